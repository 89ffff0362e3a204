"""Judge: an answer to a case becomes the row that is reported. Pure, apart from what the case computes of itself."""

from __future__ import annotations

from agent.settings import PlannerSettings
from evals.datasets import EvalCase
from evals.metrics import reachable, recall_of, score_protocol, violations
from evals.results import Answer, BaselineAnswers, BaselineEntry, CaseRow, Entry, Space, Status, Survival, said
from models.formulary import Formulary
from models.protocol import Protocol
from tools.check_rules import judge_protocols
from tools.rulebook import CheckRulesResult

NOTHING_PROPOSED: frozenset[Status] = frozenset({"degraded", "limit", "failed"})
"""Statuses under which no action space counts: a case without one would be left out of the means."""


def judge_answer(case: EvalCase, answer: Answer, baselines: BaselineAnswers, search: PlannerSettings) -> CaseRow:
    """Score everything that was answered to one case.

    A degraded plan is an empty answer in `own`, and its action space is empty too; what the fallback said and proposed
    is judged beside it, so that a broken backend can't borrow the embedded policy's score. A case that ended at a limit
    or failed proposed nothing.

    Args:
        case: Gold and truth.
        answer: The agent's.
        baselines: What they say.
        search: Settings of the search that was asked: its rules, its horizons and its action set decide which gold was
            within its reach.
    """
    own = answer.protocol if answer.status == "answered" else None
    proposed = () if answer.status in NOTHING_PROPOSED else answer.space
    said = [protocol for found in baselines.answers.values() for protocol in found.protocols.values()]
    asked = [own, answer.protocol, answer.alone, *said, *case.gold.values()]
    keys = list({protocol.key: protocol for protocol in asked if protocol is not None}.values())
    rules = judge_protocols(case.case_id, case.facts, keys, case.space.profile, search.strict, "complete")

    def entry(protocol: Protocol | None, variant: str | None = None, unknown: tuple[str, ...] = ()) -> Entry:
        return _entry(case, protocol, rules, variant, unknown)

    horizons, actions = (search.drug_horizon, search.embolic_horizon), Formulary.load(search.actions)
    truth = case.truth
    return CaseRow(
        case_id=case.case_id,
        epoch=answer.epoch,
        tier=case.tier,
        status=answer.status,
        why=answer.why,
        gold=dict(case.gold),
        given=case.given,
        best=None if truth is None else truth.best,
        reachable={name: reachable(gold, rules, horizons, actions) for name, gold in case.gold.items()},
        own=entry(own),
        fallback=entry(answer.protocol) if answer.status == "degraded" else None,
        alone=None if answer.alone_status == "not_run" else entry(answer.alone, unknown=answer.alone_unknown),
        baselines={
            name: BaselineEntry(
                label=found.label, by_variant={v: entry(protocol, v) for v, protocol in found.protocols.items()}
            )
            for name, found in baselines.answers.items()
        },
        not_run=dict(baselines.not_run),
        space=None if proposed is None else _space(case, proposed),
        fallback_space=_space(case, answer.space) if answer.status == "degraded" and answer.space is not None else None,
        risks=answer.risks,
        curve=answer.curve,
        given_risk=answer.given_risk,
        survival=None if case.survival is None else Survival(**case.survival._asdict()),
        usage=answer.usage,
        alone_why=answer.alone_why,
        alone_usage=answer.alone_usage,
        alone_trace=answer.alone_trace,
        trace=answer.trace,
    )


def _entry(
    case: EvalCase, protocol: Protocol | None, rules: CheckRulesResult, variant: str | None, unknown: tuple[str, ...]
) -> Entry:
    formulary = case.space.formulary
    golds = {name: gold for name, gold in case.gold.items() if variant in (None, name)}
    answer = said(protocol, unknown)
    return Entry(
        protocol=protocol,
        unknown=unknown,
        scores={name: score_protocol(answer, gold, formulary) for name, gold in golds.items()},
        # nobody can give an agent that nothing knows: a missing choice
        regret=None if case.truth is None else case.truth.judge(None if unknown else protocol),
        violations=None if protocol is None else violations(protocol, rules),
    )


def _space(case: EvalCase, items: tuple[str, ...]) -> Space:
    truth = case.truth
    return Space(
        items=items,
        gold_recall={name: recall_of(items, gold) for name, gold in case.gold.items()},
        best_recall=None if truth is None else recall_of(items, truth.best),
        best_within=None if truth is None else truth.best_within(items),
    )
