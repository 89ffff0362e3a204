"""Nodes from the searched protocols to the plan: finalise, explain, report."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from langgraph.runtime import Runtime

from agent.ask import ask
from agent.assess import assessed_protocols, final_table, finalists, goal_reading, is_complete, margin_of, sureness
from agent.contest import paired
from agent.last_comparison import MOST_ROUNDS, settle, take_part
from agent.nodes import Nodes, Update, verdicts_of
from agent.plan import Execution, Finalist, LlmQuestion, LlmUsage, Origin, Plan, PolicyNote, Reproduction, RuleFinding
from agent.policy import Choice, PlanFacts, RiskFacts
from agent.search import merge_jobs, parse_key
from agent.search_nodes import strategy_of
from agent.state import Contest, PlannerState, Verdict
from agent.trace import Decision
from models.protocol import Kind

NOT_MODELLED = (
    "Catheter selectivity (selective or lobar injection) and the technique of the session.",
    "Repeat sessions, and treatments before or after this one.",
    "Doses: agents are simulated at their usual dose; the ranges are the formulary's.",
    "Breathing and changes of posture between the scans, and tumour growth outside the treated lesions.",
    "Recovery or decline of liver function after treatment, beyond the fixed toxicity term.",
)
PACKAGES = ("mewm", "torch", "monai", "langgraph", "numpy")


class PlanNodes(Nodes):
    """finalise, explain, report."""

    def finalise(self, state: PlannerState, runtime: Runtime[Any]) -> Update:
        """Judge finished protocols by the complete rules, compare the best with more replicas, and make the plan.

        The node runs until the comparison is settled: as long as a finalist lacks replicas it sends the graph back to
        simulate, segment and score.
        """
        if not state.contest.settled:
            return self._shortlist(state, runtime)
        return self._conclude(state, runtime)

    def _shortlist(self, state: PlannerState, runtime: Runtime[Any]) -> Update:
        recorder = self.begin("finalise", "Comparing the best protocols", state, runtime)
        keys = [key for key in state.replicas if is_complete(parse_key(key))]
        verdicts = dict(state.complete)
        if new := [key for key in keys if key not in verdicts]:
            reason = "which finished protocols the rules allow"
            verdicts.update(verdicts_of(self.check(new, "complete", reason, state, runtime, recorder)))
        allowed = tuple(key for key in keys if verdicts[key].allowed)
        update: Update = {"complete": verdicts}
        contest = state.contest
        if not state.patient_allowed or not allowed:
            update["contest"] = contest.model_copy(update={"settled": True})
            closed = recorder.close(keys, {"allowed": 0}, "no finished protocol is allowed by the rules")
            return {**update, "jobs": (), "decisions": closed}
        settings, table, strategy = state.settings, state.table, strategy_of(state)
        order = strategy.final_order(state.search, table, allowed)[: settings.finalists]
        part, seeds = take_part(settings, table, order, contest)
        jobs = merge_jobs(dict.fromkeys(part, seeds), table)
        if jobs and contest.rounds < MOST_ROUNDS:
            update["contest"] = Contest(finalists=tuple(part), allowed=allowed, seeds=seeds, rounds=contest.rounds + 1)
            more = sum(job.size for job in jobs)
            closed = recorder.close(
                order, {"finalists": part, "more_replicas": more}, f"{len(part)} finalists need {more} fresh replicas"
            )
            return {**update, "jobs": jobs, "decisions": closed}
        settled = settle(table, order, allowed, seeds, contest.rounds, fixed=strategy.choice_is_fixed())
        closed = recorder.close(
            order, {"finalists": settled.finalists, "replicas": len(settled.seeds)}, "the comparison is settled"
        )
        return {**update, "contest": settled, "jobs": (), "decisions": closed}

    def _conclude(self, state: PlannerState, runtime: Runtime[Any]) -> Update:
        recorder = self.begin("finalise", "Making the plan", state, runtime)
        plan = self._plan(state)
        chosen = plan.chosen.assessed.key if plan.chosen else None
        result = {
            "chosen": chosen,
            "objective": None if plan.chosen is None else round(plan.chosen.assessed.objective.mean, 4),
            "runners_up": [f.assessed.key for f in plan.runners_up],
            "ties": plan.ties,
            "confidence": plan.confidence,
            "blocked_by": [finding.rule_id for finding in plan.blocked_by],
        }
        if chosen is None:
            reason = "every protocol that was tried is blocked by the rules"
        elif strategy_of(state).choice_is_fixed():
            reason = f"the strategy's own choice: {chosen}"
        else:
            reason = f"lowest mean objective: {chosen}"
        closed = recorder.close(
            {"contest": state.contest, "table": final_table(state, state.contest.finalists)}, result, reason
        )
        return {"plan": plan, "decisions": closed}

    def _plan(self, state: PlannerState) -> Plan:
        services = self.services(state)
        assert state.reading is not None
        assert state.case is not None
        assert state.conditions is not None
        order = list(state.contest.finalists)
        assessed = {a.key: a for a in assessed_protocols(state, order)}
        places = finalists(state, order, assessed, services.formulary)
        difference = None
        if len(order) > 1:
            difference = paired(final_table(state, order), order[0], order[1])
        margin, interval = margin_of(difference)
        share, note = sureness(state, order) if order else (None, "No protocol was chosen.")
        models = state.models
        return Plan(
            case_id=state.case_id,
            blocked=not order,
            blocked_by=() if order else blocked_by(state),
            degraded=bool(state.degraded),
            degraded_reason=" ".join(dict.fromkeys(state.degraded)) or None,
            stopped_early=" ".join(state.search.stops) or None,
            goal=goal_reading(state.reading, order, assessed, state.replicas),
            settings=state.settings.model_dump(exclude={"session"}),
            session=state.settings.session.model_dump(exclude_none=True) if state.settings.session else {},
            before=state.before,
            scores=state.scores,
            clinical=state.clinical,
            observation=state.observation.summary if state.observation else "",
            proposals=policy_notes(state),
            chosen=places[0] if places else None,
            runners_up=places[1:],
            ties=tuple(f.assessed.key for f in places if f.tied_with_chosen),
            margin=margin,
            margin_interval=interval,
            confidence=share,
            confidence_note=note,
            assessed=tuple(assessed.values()),
            tree=state.search.tree,
            rules=fired_rules(state),
            not_evaluable=not_evaluable(state, places),
            not_modelled=NOT_MODELLED,
            explanation="" if order else blocked_text(state),
            origin=Origin(
                case_origin=state.case.origin,
                case_note=state.case.origin_note,
                model_origin=models.origin if models else "nothing was simulated",
                weights_hash=models.weights_hash if models else "",
                policy=services.policy.name,
                policy_is_llm=services.policy.is_llm,
                simulated_how=models.how if models else "nothing was simulated",
                baseline_n=state.baseline.n if state.baseline else None,
                baseline_origin=state.baseline.origin if state.baseline else None,
            ),
            reproduction=Reproduction(
                command=services.command,
                case_id=state.case_id,
                case_hash=state.case.content_hash,
                seed=state.settings.seed,
                seeds=tuple(sorted({row.seed for rows in state.replicas.values() for row in rows})),
                device=state.conditions.device,
                precision=state.conditions.precision,
                preset=state.conditions.preset,
                rules_hash=state.conditions.rules_hash,
                versions=versions(),
            ),
            simulations=sum(len(rows) for rows in state.replicas.values()),
            approvals=state.approvals,
            what_if=state.case.what_if,
            execution=execution(state.decisions),
            artifacts={},
        )

    def explain(self, state: PlannerState, runtime: Runtime[Any]) -> Update:
        """Let the policy say why the plan is what it is. A blocked plan explains itself by its rules."""
        recorder = self.begin("explain", "Explaining the plan", state, runtime)
        plan = state.plan
        assert plan is not None
        if plan.chosen is None:
            closed = recorder.close("blocked", {}, "a blocked plan is explained by its rules")
            return {"decisions": closed}
        facts = plan_facts(state, plan, plan.chosen)
        answer, degraded = ask(
            self.services(state),
            "explain",
            facts,
            lambda policy: policy.explain(facts),
            lambda _: [],
            recorder,
            state.decisions,
        )
        update: dict[str, object] = {"explanation": answer.text}
        if degraded:
            reasons = (*state.degraded, degraded)
            update |= {"degraded": True, "degraded_reason": " ".join(dict.fromkeys(reasons))}
        closed = recorder.close(facts, {"characters": len(answer.text)}, "the rationale of the plan")
        return {"plan": plan.model_copy(update=update), "decisions": closed}

    def report(self, state: PlannerState, runtime: Runtime[Any]) -> Update:
        """Write what the run leaves: the finalists' volumes and the report."""
        recorder = self.begin("report", "Writing volumes and report", state, runtime)
        assert state.plan is not None
        plan = state.plan.model_copy(update={"execution": execution(state.decisions)})
        if shown := [finalist.assessed.shown_replica.outcome_id for finalist in plan.finalists]:
            # What is drawn is stored already. Asked for by the tool, whatever a resumed process has to do for it first
            # (the case's patches go through the networks again) is in the trace too.
            self.use(
                "segment",
                "the outcomes that the report shows",
                state,
                runtime,
                recorder,
                lambda r: {"segmentations": len(r.segmentations)},
                len(shown),
                outcome_ids=shown,
            )
        artifacts = self.services(state).publish(plan)
        closed = recorder.close(plan.chosen.assessed.key if plan.chosen else "blocked", artifacts, "files of the run")
        return {"plan": plan.model_copy(update={"artifacts": artifacts}), "decisions": closed}


def policy_notes(state: PlannerState) -> tuple[PolicyNote, ...]:
    """What the policy proposed and what was taken out, with reasons."""
    if state.proposal is None:
        return ()
    refinement = state.refinement
    answer = refinement or state.proposal
    kept = refinement is not None
    drugs = {choice.item for choice in (*state.proposal.drugs, *state.proposal.reserve_drugs)}
    sides: tuple[tuple[Kind, tuple[Choice, ...]], ...] = (("drug", answer.drugs), ("embolic", answer.embolics))
    cautions: dict[str, list[str]] = {}
    for caution in refinement.cautions if refinement else ():
        cautions.setdefault(caution.item, []).append(f"kept although {caution.rule_id} warns: {caution.reason}")
    notes = [
        PolicyNote(item=c.item, kind=kind, kept=kept, reason="; ".join([c.reason, *cautions.get(c.item, ())]))
        for kind, choices in sides
        for c in choices
    ]
    if refinement is not None:
        notes += [
            PolicyNote(
                item=removal.item,
                kind="drug" if removal.item in drugs else "embolic",
                kept=False,
                reason=removal.reason,
                rule_id=removal.rule_id,
            )
            for removal in refinement.removed
        ]
    return tuple(notes)


def _verdicts(state: PlannerState) -> list[Verdict]:
    return [*state.partial.values(), *state.complete.values()]


def _distinct(findings: Sequence[RuleFinding]) -> tuple[RuleFinding, ...]:
    return tuple({(f.rule_id, f.protocol, f.status, f.message): f for f in findings}.values())


def blocked_by(state: PlannerState) -> tuple[RuleFinding, ...]:
    """The rules that leave no protocol, one finding for each rule and message.

    Those on the patient; else those on the protocols that were tried last, not on others that the search lost before.
    """
    fired = [f for f in state.patient if f.status == "fired" and f.strength == "block"]
    if not fired:
        tried = last_tried(state)
        verdicts = (known.get(key) for key in tried for known in (state.complete, state.partial))
        findings = (f for verdict in verdicts if verdict for f in verdict.findings)
        fired = [f for f in findings if f.status == "fired" and f.strength == "block"]
    return tuple({(f.rule_id, f.message): f for f in fired}.values())


def last_tried(state: PlannerState) -> tuple[str, ...]:
    """The protocols that a blocked search ended on.

    Finished ones that were simulated, else the candidates of the deepest level, else the agents alone.
    """
    if finished := tuple(key for key in state.replicas if is_complete(parse_key(key))):
        return finished
    blocked = [node for node in state.search.tree if node.status == "blocked"]
    deepest = max((node.depth for node in blocked), default=0)
    return tuple(dict.fromkeys(n.protocol for n in blocked if n.depth == deepest)) or tuple(state.partial)


def blocked_text(state: PlannerState) -> str:
    """Why there is no protocol, in one paragraph."""
    rules = "; ".join(f"{f.message} ({f.rule_id})" for f in blocked_by(state))
    if not state.patient_allowed:
        return f"The rules allow no protocol for this patient, so none is proposed. Rules: {rules}."
    return (
        f"Every protocol that was tried is blocked, so none is proposed; a wider search may find one. Rules: {rules}."
    )


def fired_rules(state: PlannerState) -> tuple[RuleFinding, ...]:
    """Findings on the patient, and every finding that fired on a protocol during the search."""
    fired = [f for verdict in _verdicts(state) for f in verdict.findings if f.status == "fired"]
    return _distinct([*(f for f in state.patient if f.status != "passed"), *fired])


def not_evaluable(state: PlannerState, places: Sequence[Finalist]) -> tuple[str, ...]:
    """What could not be judged, for the patient and for the finalists."""
    patient = [f.unclear for f in state.patient if f.unclear]
    return tuple(dict.fromkeys([*patient, *(text for place in places for text in place.not_evaluable)]))


def execution(decisions: Sequence[Decision]) -> Execution:
    """Time and cache use, from the decisions so far. Tool calls lie inside their node's time."""
    by_node: dict[str, float] = {}
    for decision in decisions:
        if decision.kind == "node":
            by_node[decision.node] = by_node.get(decision.node, 0.0) + decision.seconds
    simulations = [d for d in decisions if d.tool == "simulate_tumor"]
    cached = sum(d.from_cache or 0 for d in simulations)
    total = sum(int(d.result.get("outcomes", 0)) for d in simulations)
    return Execution(
        created=decisions[0].time if decisions else "",
        seconds=sum(by_node.values()),
        seconds_by_node=by_node,
        simulated=total - cached,
        from_cache=cached,
        llm=llm_usage(decisions),
    )


def llm_usage(decisions: Sequence[Decision]) -> LlmUsage | None:
    """What language models answered and cost, from the decisions so far; None where none was asked."""
    # Every answer has content; a policy decision without any is a language model that gave none.
    asked = [d for d in decisions if d.kind == "policy" and (d.model is not None or not d.result)]
    if not asked:
        return None
    costs = [d.cost_usd if d.cost_usd is not None else (None if d.requests else 0.0) for d in asked]
    return LlmUsage(
        requests=sum(d.requests for d in asked),
        input_tokens=sum(d.input_tokens for d in asked),
        output_tokens=sum(d.output_tokens for d in asked),
        cost_usd=None if None in costs else sum(cost or 0.0 for cost in costs),
        failures=sum(len(d.failures) for d in asked),
        questions=tuple(
            LlmQuestion(
                question=str(d.arguments.get("question", d.node)),
                backend=d.backend or "",
                model=d.model,
                prompt_id=d.prompt_id,
                prompt_hash=d.prompt_hash,
                requests=d.requests,
                answered=d.model is not None,
            )
            for d in asked
        ),
    )


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def risk_facts(place: Finalist, state: PlannerState) -> RiskFacts:
    """A finalist's figures as an explanation may use them."""
    a = place.assessed
    categories = a.response.mrecist_categories
    change = a.response.mrecist_change_percent
    return RiskFacts(
        protocol=a.key,
        risk=a.objective.mean,
        standard_error=a.objective.se,
        replicas=a.objective.n,
        tumour_log_risk=a.tumour_log_risk.mean,
        toxicity_log_risk=a.toxicity_log_risk,
        median_survival_months=a.median_survival_months,
        viable_before_ml=state.before.viable_ml,
        viable_ml=a.response.viable_ml.mean,
        mrecist_change_percent=change.mean if change else None,
        mrecist_category=max(categories, key=lambda name: (categories[name], name)) if categories else None,
    )


def plan_facts(state: PlannerState, plan: Plan, chosen: Finalist) -> PlanFacts:
    """Everything that an explanation may draw on."""
    assert state.summary is not None
    assert state.reading is not None
    kept = state.refinement
    choices: tuple[Choice, ...] = (*kept.drugs, *kept.embolics) if kept else ()
    runner = plan.runners_up[0] if plan.runners_up else None
    return PlanFacts(
        case=state.summary,
        goal=state.reading,
        chosen=risk_facts(chosen, state),
        choices=tuple(c for c in choices if c.item in chosen.assessed.protocol.items),
        runner_up=risk_facts(runner, state) if runner else None,
        margin=plan.margin.mean if plan.margin else None,
        confidence=plan.confidence,
        ties=plan.ties,
        finalists=len(plan.finalists),
        choice_is_fixed=strategy_of(state).choice_is_fixed(),
        simulations=plan.simulations,
        removed=kept.removed if kept else (),
        warnings=tuple(f.message for f in chosen.findings if f.status == "fired" and f.strength == "warn"),
        not_evaluable=plan.not_evaluable,
        model_origin="real" if plan.origin.model_origin == "real" else "synthetic",
        people=tuple(dict.fromkeys(approval.by for approval in state.approvals)),
    )
