"""Summary: the figures of a report, computed from the rows of one evaluation or of several on the same data.

The first run leads: its case table, its confusion by item, its baselines. Further runs are further lines of the
leaderboard, and every line is compared with the lead, case by case.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, count

import numpy as np
from pydantic import Field

from evals.baselines import NAMES
from evals.compare import Side, check_same_data, no_case_yet
from evals.measures import METRICS, OF_RANDOM, losses, metric_value, per_case
from evals.metrics import Answer, item_counts, micro_counts, micro_f1
from evals.model_card.figures import Array, pooled_figure
from evals.report.calibration import Calibration, calibration_of
from evals.report.survival import SurvivalPanel, survival_panel
from evals.results import STATUS_TEXT, CaseRow, Entry, EvalRun, NodeUse, ResultModel, RunSpec, Status, said
from evals.statistics import bootstrap_mean, holm, paired_difference
from models.errors import InputError
from models.formulary import Formulary
from models.protocol import Protocol

LABELS = {"own": "{label}", "fallback": "{label}, fallback counted", "alone": "VLM alone, the paper's prompts"}
BASELINES = {
    "constant": "best constant", "frequency": "most frequent agents in the BCLC stage",
    "neighbour": "gold of the nearest clinical record", "regressor": "regressor without simulation",
    "regressor_told": "the same regressor, told the true risk of its training protocols",
}  # fmt: skip
"""What tables call a baseline that could not be run, and so told no label of its own."""
NOT_RUN = {"alone": "no endpoint was given (--backend), or --baselines left it out"}
VERSUS = ("f1", "regret")
"""What every line is compared with the lead in; regret where the truth is known."""


class Figure(ResultModel):
    """A mean over cases, or a ratio of two, with its 95 % bootstrap interval; no interval for fewer than two cases."""

    mean: float
    low: float | None
    high: float | None
    n: int


class Line(ResultModel):
    """One line of the leaderboard."""

    who: str
    label: str
    lead: bool
    figures: dict[str, Figure]
    micro_f1: float | None
    micro_f1_low: float | None = None
    micro_f1_high: float | None = None
    empty: int = Field(description="answers that are missing, invalid or do not count")
    answers: int = Field(description="answers in all epochs")
    n: int = Field(description="cases")
    unknown: int = Field(default=0, description="names outside the action set, over all answers")
    not_run: str | None = None


class Board(ResultModel):
    """The leaderboard for one gold variant."""

    variant: str
    lines: tuple[Line, ...]

    def line(self, who: str) -> Line | None:
        """The line of a contestant of the lead run."""
        return next((line for line in self.lines if line.who == who), None)


class Versus(ResultModel):
    """The lead minus another line on one gold variant, paired by case."""

    variant: str
    label: str
    metric: str
    mean: float
    low: float
    high: float
    p: float
    p_holm: float = Field(description="adjusted over the lines, within metric and gold variant")
    n: int
    wins: int
    ties: int
    losses: int
    smallest_detectable: float | None
    missing: tuple[str, ...] = Field(description="cases that only one of the two has; they are in no figure")


class ItemRow(ResultModel):
    """How often an agent was answered and was in gold."""

    item: str
    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int
    f1: float | None


class CaseLine(ResultModel):
    """One case in one epoch."""

    case_id: str
    epoch: int
    tier: str | None
    status: Status
    why: str | None
    protocol: str
    fallback: str | None
    gold: dict[str, str]
    best: str | None
    f1: dict[str, float]
    regret: float | None
    reachable: dict[str, bool]
    broken: tuple[str, ...]
    gold_recall: dict[str, float] | None
    best_recall: float | None
    simulations: int
    tokens: int
    cost_usd: float | None
    seconds: float
    trace: str | None
    alone: str | None = Field(default=None, description="what the vision-language model alone answered")
    alone_trace: str | None = None


class Reach(ResultModel):
    """How many gold protocols a search under rules and horizons could have returned, and why not the others."""

    reachable: int
    n: int
    reasons: dict[str, int]


class Summary(ResultModel):
    """Everything that a report shows."""

    label: str
    spec: RunSpec
    complete: bool
    runs: tuple[str, ...] = Field(description="labels of all runs in the table, the lead first")
    n_cases: int
    epochs: int
    statuses: dict[Status, int]
    failed: tuple[str, ...]
    boards: tuple[Board, ...]
    versus: tuple[Versus, ...]
    reach: dict[str, Reach]
    items: dict[str, tuple[ItemRow, ...]]
    stability: Figure | None
    by_node: dict[str, NodeUse] = Field(description="mean per case")
    cases: tuple[CaseLine, ...]
    regrets: dict[str, tuple[float, ...]] = Field(description="per case, by line's label; for the plot")
    calibration: Calibration | None
    survival: SurvivalPanel | None
    notes: tuple[str, ...]
    others: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="by label of a further run: what differs from the lead"
    )


def summarise(
    runs: Sequence[EvalRun], *, seed: int = 0, draws: int = 10_000, not_run: Mapping[str, str] | None = None
) -> Summary:
    """The figures of a report.

    Args:
        runs: On the same data, the lead first.
        seed: Of the bootstrap.
        draws: Bootstrap resamples.
        not_run: Further lines that could not be run, and why.

    Raises:
        InputError: no run, a lead without a finished case, or runs on other data.
    """
    if not runs:
        raise InputError("A report needs at least one evaluation: mewm eval report DIR.")
    lead = runs[0]
    if not lead.rows:
        raise InputError(no_case_yet(lead))
    for other in runs[1:]:
        check_same_data(Side(lead, "own"), Side(other, "own"))
    formulary = Formulary.load(lead.spec.actions)
    boards = tuple(
        Board(variant=variant, lines=_lines(runs, variant, formulary, seed, draws, not_run or {}))
        for variant in lead.variants
    )
    return Summary(
        label=lead.spec.label,
        spec=lead.spec,
        complete=lead.complete,
        runs=tuple(run.spec.label for run in runs),
        n_cases=len(lead.case_ids),
        epochs=lead.spec.epochs,
        statuses=dict(Counter(row.status for row in lead.rows)),
        failed=tuple(f"{r.case_id}: {r.why}" for r in lead.rows if r.status == "failed"),
        boards=boards,
        versus=tuple(found for variant in lead.variants for found in _versus(runs, variant, seed, draws)),
        reach={variant: _reach(lead, variant) for variant in lead.variants},
        items={variant: _items(lead, variant, formulary) for variant in lead.variants},
        stability=_figure(lead, "own", "stability", lead.variants[0], seed, draws),
        by_node=_by_node(lead),
        cases=tuple(_case_lines(lead)),
        regrets=_regrets(runs),
        calibration=calibration_of(lead, seed, draws),
        survival=survival_panel(lead, seed),
        notes=(*_notes(lead), *_notes_on_others(runs)),
        others={
            label: tuple(f"{name} {there} in place of {here}" for name, here, there in lead.spec.differences(run.spec))
            for run, _, label in _contestants(runs)[len(lead.contestants) :]
        },
    )


def run_facts(summary: Summary) -> list[tuple[str, str]]:
    """What was evaluated and how, as label and value."""
    spec = summary.spec
    settings = spec.settings
    facts = [
        ("dataset", f"{spec.dataset} {spec.dataset_version}, {spec.data_origin} patients, {spec.dataset_hash[:12]}"),
        (
            "cases",
            f"{summary.n_cases} of {spec.rows} patients looked at, {summary.epochs} epoch(s)"
            + ("" if summary.complete else ", not complete"),
        ),
        ("stage", "whole plan" if spec.stage == "plan" else "the policy's answer before any simulation"),
        (
            "policy",
            spec.backend + (f", prompts {spec.prompts} {(spec.prompts_hash or '')[:12]}" if spec.prompts else ""),
        ),
        ("action set", f"{settings.actions}; answers are judged in {spec.actions}, rules {settings.profile}"),
    ]
    if spec.stage == "plan":
        d, e = settings.proposed(Formulary.load(settings.actions))
        facts.append(
            (
                "search",
                f"{settings.strategy}, D = {d}, E = {e}, B = {settings.beams}, T = "
                f"{settings.replicas}, horizons {settings.drug_horizon} + {settings.embolic_horizon}, seed "
                f"{settings.seed}",
            )
        )
    if spec.parts_off:
        facts.append(("switched off", ", ".join(spec.parts_off)))
    limits = [f"{value} {name.replace('_', ' ')}" for name, value in spec.limits.model_dump().items() if value]
    facts.append(("limits of a case", ", ".join(limits) or "none"))
    short = (f"{k.replace('_', ' ')} {v[:12] if len(v) == 64 else v}" for k, v in spec.conditions.items() if v)
    facts.append(("conditions", ", ".join(short)))
    facts.append(("begun", spec.created))
    facts += [(label, "; ".join(different) or "run alike") for label, different in summary.others.items()]
    return facts


def label_of(run: EvalRun, who: str) -> str:
    """What tables call a line."""
    if who in LABELS:
        return LABELS[who].format(label=run.spec.label)
    return next((row.baselines[who].label for row in run.rows if who in row.baselines), BASELINES.get(who, who))


def _contestants(runs: Sequence[EvalRun]) -> list[tuple[EvalRun, str, str]]:
    """Run, name and label of every line: the lead's first, then the other runs' own under labels that are not taken."""
    found = [(runs[0], who, label_of(runs[0], who)) for who in runs[0].contestants]
    for number, other in enumerate(runs[1:], start=2):
        plain, folder = other.spec.label, other.folder.name
        # two runs of one kind (another seed, another prompt) are told apart by their folder, folders of one name by a
        # number: comparisons and plots are keyed by label and would lose a line whose label another has
        labels = chain((plain, f"{plain} [{folder}]"), (f"{plain} [{folder}, {again}]" for again in count(2)))
        taken = {text for _, _, text in found}
        found.append((other, f"run{number}", next(label for label in labels if label not in taken)))
    return found


def _lines(
    runs: Sequence[EvalRun], variant: str, formulary: Formulary, seed: int, draws: int, not_run: Mapping[str, str]
) -> tuple[Line, ...]:
    lines = []
    for run, who, label in _contestants(runs):
        mine = "own" if run is not runs[0] else who
        figures = {
            name: figure for name in METRICS if (figure := _figure(run, mine, name, variant, seed, draws)) is not None
        }
        entries = run.entries(mine, variant)
        micro = _micro_f1(entries, variant, formulary, seed, draws)
        lines.append(
            Line(
                who=who,
                label=label,
                lead=run is runs[0] and who == "own",
                figures=figures,
                micro_f1=None if micro is None else micro.mean,
                micro_f1_low=None if micro is None else micro.low,
                micro_f1_high=None if micro is None else micro.high,
                empty=sum(entry.protocol is None for _, entry in entries),
                answers=len(entries),
                n=len({row.case_id for row, _ in entries}),
                unknown=sum(len(e.scores[variant].unknown_items) for _, e in entries if variant in e.scores),
            )
        )
    there = {line.who for line in lines}
    missing = {**NOT_RUN, **{name: why for row in runs[0].rows for name, why in row.not_run.items()}, **not_run}
    lines += [
        Line(
            who=who,
            label=label_of(runs[0], who),
            lead=False,
            figures={},
            micro_f1=None,
            empty=0,
            answers=0,
            n=0,
            not_run=why,
        )
        for who, why in missing.items()
        if who not in there
    ]
    return tuple(lines)


def _figure(run: EvalRun, who: str, metric: str, variant: str, seed: int, draws: int) -> Figure | None:
    """One metric of one contestant; None where no case has it."""
    if metric == OF_RANDOM:
        lost = losses(run, who, variant)
        return _pooled([lost[case] for case in sorted(lost)], _of_random, seed, draws)
    values = per_case(run, who, metric, variant)
    if not values:
        return None
    numbers = [values[case] for case in sorted(values)]
    if len(numbers) < 2:
        return Figure(mean=numbers[0], low=None, high=None, n=1)
    return Figure(**bootstrap_mean(numbers, seed=seed, draws=draws)._asdict())


def _pooled(
    sums: Sequence[Sequence[float]], statistic: Callable[[Array], Array], seed: int, draws: int
) -> Figure | None:
    """A statistic of sums over cases; what a case adds to each sum is resampled together."""
    if not sums:
        return None
    found = pooled_figure(np.array(sums, float), statistic, seed, draws)
    return Figure(mean=found["value"], low=found["low"], high=found["high"], n=found["n"])


def _of_random(sums: Array) -> Array:
    """Sums (..., [lost by the choice, by a random protocol]) -> their ratio; where nothing can be lost, nothing is."""
    chosen, random = sums[..., 0], sums[..., 1]
    return np.asarray(chosen / np.where(random == 0, 1.0, random))


def _micro_f1(
    entries: Sequence[tuple[CaseRow, Entry]], variant: str, formulary: Formulary, seed: int, draws: int
) -> Figure | None:
    """F1 over the agents of all cases pooled, cases resampled; None where there is no gold."""
    by_case: dict[str, list[tuple[Answer, Protocol]]] = {}
    for row, entry in entries:
        if variant in row.gold:
            by_case.setdefault(row.case_id, []).append((said(entry.protocol, entry.unknown), row.gold[variant]))
    return _pooled([micro_counts(by_case[case], formulary) for case in sorted(by_case)], micro_f1, seed, draws)


def _versus(runs: Sequence[EvalRun], variant: str, seed: int, draws: int) -> tuple[Versus, ...]:
    """The lead against every other line on one gold variant; Holm over the lines, within a metric."""
    found = []
    for name in VERSUS:
        metric = METRICS[name]
        mine = per_case(runs[0], "own", name, variant)
        pairs = {}
        for run, who, label in _contestants(runs)[1:]:
            theirs = per_case(run, "own" if run is not runs[0] else who, name, variant)
            if len(mine.keys() & theirs.keys()) >= 2:
                pairs[label] = paired_difference(
                    mine, theirs, lower_is_better=metric.lower_is_better, seed=seed, draws=draws
                )
        adjusted = holm({label: pair.p for label, pair in pairs.items()})
        found += [
            Versus(
                variant=variant, label=label, metric=name, p_holm=adjusted[label], **pair._asdict(),
            )
            for label, pair in pairs.items()
        ]  # fmt: skip
    return tuple(found)


def _reach(run: EvalRun, variant: str) -> Reach:
    first = {row.case_id: row.reachable[variant] for row in run.rows if variant in row.reachable}
    # the message of a rule may name the agents of its case: one message stands for all of that rule
    counts: Counter[str] = Counter()
    words: dict[str, str] = {}
    for reason in (reason for found in first.values() for reason in found.reasons):
        rule = reason.partition(":")[0]
        counts[rule] += 1
        words.setdefault(rule, reason.rstrip("."))
    reasons = {words[rule]: count for rule, count in counts.most_common()}
    return Reach(reachable=sum(f.reachable for f in first.values()), n=len(first), reasons=reasons)


def _items(run: EvalRun, variant: str, formulary: Formulary) -> tuple[ItemRow, ...]:
    pairs = [(entry.protocol, row.gold[variant]) for row, entry in run.entries("own", variant) if variant in row.gold]
    return tuple(ItemRow(item=n, f1=c.f1, **c._asdict()) for n, c in item_counts(pairs, formulary).items())


def _by_node(run: EvalRun) -> dict[str, NodeUse]:
    rows = [row for row in run.rows if row.status != "failed"]
    names = dict.fromkeys(node for row in rows for node in row.usage.by_node)
    empty = NodeUse(cost_usd=0.0)

    def mean_of(node: str, field: str) -> float | None:
        values = [getattr(row.usage.by_node.get(node, empty), field) for row in rows]
        return None if None in values else math.fsum(values) / len(values)

    return {
        node: NodeUse.model_validate({field: mean_of(node, field) for field in NodeUse.model_fields}) for node in names
    }


def _case_lines(run: EvalRun) -> list[CaseLine]:
    lines = []
    for row in run.rows:
        own = row.own
        lines.append(
            CaseLine(
                case_id=row.case_id,
                epoch=row.epoch,
                tier=row.tier,
                status=row.status,
                why=row.why,
                protocol=own.protocol.key if own.protocol is not None else "none",
                fallback=row.fallback.protocol.key if row.fallback and row.fallback.protocol else None,
                gold={name: gold.key for name, gold in row.gold.items()},
                best=None if row.best is None else row.best.key,
                f1={name: score.f1 for name, score in own.scores.items()},
                regret=metric_value(row, own, "regret", run.variants[0], "own"),
                reachable={name: found.reachable for name, found in row.reachable.items()},
                broken=own.violations.blocking if own.violations is not None else (),
                gold_recall=None if row.space is None else dict(row.space.gold_recall),
                best_recall=None if row.space is None else row.space.best_recall,
                simulations=row.usage.simulations,
                tokens=row.usage.tokens,
                cost_usd=row.usage.cost_usd,
                seconds=row.usage.seconds,
                trace=row.trace,
                alone=_alone_text(row.alone),
                alone_trace=row.alone_trace,
            )
        )
    return lines


def _alone_text(entry: Entry | None) -> str | None:
    if entry is None:
        return None
    key = entry.protocol.key if entry.protocol is not None else "none"
    return f"{key}, and unknown: {', '.join(entry.unknown)}" if entry.unknown else key


def _regrets(runs: Sequence[EvalRun]) -> dict[str, tuple[float, ...]]:
    variant = runs[0].variants[0]
    found = {}
    for run, who, label in _contestants(runs):
        values = per_case(run, "own" if run is not runs[0] else who, "regret", variant)
        if values:
            found[label] = tuple(values[case] for case in sorted(values))
    return found


def _notes_on_others(runs: Sequence[EvalRun]) -> list[str]:
    """Which further runs are not complete, and which cases one of two runs lacks."""
    notes = []
    lead = runs[0]
    for run, _, label in _contestants(runs)[len(lead.contestants) :]:
        if not run.complete:
            notes.append(f"The evaluation of {label} is not complete: its figures are of the cases that are finished.")
        if lacks := sorted(set(lead.case_ids) - set(run.case_ids)):
            notes.append(f"{label} lacks {len(lacks)} cases of the first evaluation: {', '.join(lacks)}.")
        if more := sorted(set(run.case_ids) - set(lead.case_ids)):
            notes.append(f"{label} has {len(more)} cases that the first evaluation lacks: {', '.join(more)}.")
    return notes


def _notes(run: EvalRun) -> tuple[str, ...]:
    notes = [
        f"{count} of {len(run.rows)} answers: {STATUS_TEXT[status]}."
        for status, count in Counter(row.status for row in run.rows).items()
        if status != "answered"
    ]
    alone = [row for row in run.rows if row.alone is not None and row.alone.protocol is None]
    if alone:
        why = next((f", the first time because: {row.alone_why}" for row in alone if row.alone_why), "")
        notes.append(
            f"{len(alone)} of {len(run.rows)} answers of the model alone can't be used and count as empty{why}."
        )
    if not run.complete:
        notes.insert(0, "This evaluation is not complete: figures are of the cases that are finished.")
    if left := [name for name in NAMES if name not in run.spec.baselines]:
        notes.append(f"Left out with --baselines: {', '.join(left)}. A score says little without its baselines.")
    if run.spec.no_image:
        notes.append(f"{run.spec.no_image} cases with gold have no image to plan on and are not in this evaluation.")
    if run.spec.data_origin == "synthetic":
        notes.append("Synthetic patients: no figure here says anything about real ones.")
    return tuple(notes)
