"""Compare: protocols side by side on the same seeds, through the registered tools.

The seeds are those of the plan's last comparison, so that what it simulated is used again and a difference of two
protocols is free of the noise that both share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.approval import fired_rules
from agent.assess import estimate, median_months, response_summary
from agent.contest import Difference, paired
from agent.digest import figure, terms_text
from agent.goal import Goal, GoalWeights, interpret_goal
from agent.nodes import Tool, verdicts_of
from agent.plan import Estimate, Plan, PlanModel, Replica, ResponseSummary, RuleFinding
from agent.search import merge_jobs
from agent.search_nodes import replica_of
from agent.settings import PlannerSettings
from agent.state import Baseline, PendingOutcome
from models.errors import InputError
from models.protocol import Protocol

MOST_PROTOCOLS = 6
"""In one comparison: each new one costs as many simulations as there are seeds."""


class Compared(PlanModel):
    """One protocol of a comparison; `behind` is its objective minus the first one's, paired by seed."""

    protocol: str
    objective: Estimate
    tumour_log_risk: Estimate
    toxicity_log_risk: float
    median_survival_months: float | None
    response: ResponseSummary
    allowed: bool
    findings: tuple[RuleFinding, ...]
    behind: Estimate | None = None
    behind_interval: tuple[float, float] | None = None
    tied: bool = False


@dataclass(frozen=True)
class Comparison:
    """Protocols in the order asked for, how many simulations were new, and what the goal weighs."""

    rows: tuple[Compared, ...]
    seeds: tuple[int, ...]
    simulated: int
    viable_before_ml: float
    weights: GoalWeights

    @property
    def text(self) -> str:
        """The comparison in words."""
        lines = [row_text(row, self.viable_before_ml, self.weights) for row in self.rows]
        for row in self.rows[1:]:
            assert row.behind is not None
            span = row.behind_interval
            seen = f" (95 % interval {span[0]:+.3f} to {span[1]:+.3f})" if span else ""
            verdict = (
                "they can't be told apart" if row.tied else ("it is worse" if row.behind.mean > 0 else "it is better")
            )
            first = self.rows[0].protocol
            lines.append(f"{row.protocol} against {first}: objective {row.behind.mean:+.3f}{seen}, so {verdict}.")
        n = len(self.seeds)
        lines.append(f"{n} simulation{'' if n == 1 else 's'} each on common seeds, {self.simulated} of them new.")
        return "\n".join(lines)


def row_text(row: Compared, before_ml: float, weights: GoalWeights) -> str:
    """One protocol in words."""
    response = row.response
    terms = terms_text(row.tumour_log_risk, row.toxicity_log_risk, response.mrecist_change_percent, weights)
    parts = [
        f"{row.protocol}: objective {figure(row.objective)} ({terms})",
        f"viable tumour {before_ml:.1f} ml to {figure(response.viable_ml, 1, sign=False)} ml",
    ]
    if response.mrecist_change_percent is not None:
        counts = ", ".join(f"{name} {n}" for name, n in response.mrecist_categories.items())
        parts.append(f"mRECIST {response.mrecist_change_percent.mean:+.0f} % ({counts})")
    if response.necrotic_fraction is not None:
        parts.append(f"necrotic {100 * response.necrotic_fraction.mean:.0f} %")
    if response.oil_fraction is not None:
        parts.append(f"oil-like {100 * response.oil_fraction.mean:.0f} %")
    if row.median_survival_months is not None:
        parts.append(f"median survival {row.median_survival_months:g} months by the model")
    end = "" if row.allowed else f" Blocked by rules: {' '.join(fired_rules(row.findings)) or 'a rule on the patient.'}"
    return "; ".join(parts) + "." + end


def compare(
    protocols: Sequence[Protocol],
    case_id: str,
    tools: Mapping[str, Tool],
    settings: PlannerSettings,
    plan: Plan | None = None,
    goal: str = "",
) -> Comparison:
    """Compare protocols; what was simulated before is not simulated again.

    Args:
        protocols: In the order wanted; the first one is what the others are measured against.
        case_id: The case, as the tools know it.
        tools: The registered tools.
        settings: Seeds, rule profile and steps.
        plan: Gives the seeds of its last comparison and its replicas; None takes fresh seeds.
        goal: Treatment goal, which weighs the objective.

    Raises:
        InputError: no protocols, or too many.
        ToolError: what a tool raises.
    """
    keys = list(dict.fromkeys(protocol.key for protocol in protocols))
    if not 1 <= len(keys) <= MOST_PROTOCOLS:
        raise InputError(f"{len(keys)} protocols were named; name 1 to {MOST_PROTOCOLS} to compare.")
    known = {a.key: a for a in plan.assessed} if plan else {}
    shared = [r.seed for r in plan.chosen.assessed.replicas] if plan and plan.chosen else ()
    seeds = tuple(shared) or settings.seeds(settings.finalist_replicas, start=settings.replicas)
    read = interpret_goal(goal)
    replicas = {
        key: {r.seed: r for r in known[key].replicas if r.seed in seeds} if key in known else {} for key in keys
    }
    simulated = 0
    baseline: Baseline | None = None
    before = plan.before.viable_ml if plan else None
    table = {key: dict.fromkeys(rows, 0.0) for key, rows in replicas.items()}
    for job in merge_jobs(dict.fromkeys(keys, seeds), table):
        for late, part in settings.by_phase(job.seeds):
            made, fresh, baseline, before = _simulate(job.protocols, part, late, case_id, tools, settings, read)
            simulated += fresh
            for key, seed, replica in made:
                replicas[key][seed] = replica
    rules = tools["check_rules"].call(
        case_id=case_id, protocols=keys, profile=settings.profile, strict=settings.strict, stage="complete",
        session=settings.session.model_dump(exclude_none=True) if settings.session else None,
    )  # fmt: skip
    verdicts = verdicts_of(rules)
    objectives = {key: {seed: replicas[key][seed].objective for seed in seeds} for key in keys}
    rows = []
    for key in keys:
        own = tuple(replicas[key][seed] for seed in seeds)
        difference: Difference | None = paired(objectives, keys[0], key) if key != keys[0] else None
        months = known[key].median_survival_months if key in known and baseline is None else None
        log_risk = estimate([r.log_risk for r in own])
        rows.append(
            Compared(
                protocol=key,
                objective=estimate([r.objective for r in own]),
                tumour_log_risk=estimate([r.tumour_log_risk for r in own]),
                toxicity_log_risk=own[0].toxicity_log_risk,
                median_survival_months=months if baseline is None else median_months(baseline, log_risk.mean),
                response=response_summary(own),
                allowed=verdicts[key].allowed,
                findings=verdicts[key].findings,
                behind=None if difference is None else Estimate(mean=difference.mean, se=difference.se, n=difference.n),
                behind_interval=None if difference is None else difference.interval,
                tied=difference is not None and difference.tied,
            )
        )
    return Comparison(tuple(rows), seeds, simulated, before or 0.0, read.weights)


def _simulate(
    keys: Sequence[str],
    seeds: Sequence[int],
    last_comparison: bool,
    case_id: str,
    tools: Mapping[str, Tool],
    settings: PlannerSettings,
    goal: Goal,
) -> tuple[list[tuple[str, int, Replica]], int, Baseline | None, float]:
    """Simulate, segment and score one batch."""
    outcomes = tools["simulate_tumor"].call(
        case_id=case_id, protocols=list(keys), seeds=list(seeds), steps=settings.steps, last_comparison=last_comparison,
    )  # fmt: skip
    names = [o.outcome_id for o in outcomes.outcomes]
    segmented = tools["segment"].call(outcome_ids=names)
    ids = {s.outcome_id: s.segmentation_id for s in segmented.segmentations}
    segmentations = [ids[name] for name in names]
    risks = tools["survival_risk"].call(case_id=case_id, segmentation_ids=segmentations)
    responses = tools["measure_response"].call(case_id=case_id, segmentation_ids=segmentations)
    risk = {e.outcome_id: e for e in risks.estimates}
    response = {r.outcome_id: r for r in responses.responses}
    made = []
    for o in outcomes.outcomes:
        pending = PendingOutcome(
            outcome_id=o.outcome_id, protocol=o.protocol, seed=o.seed, segmentation_id=ids[o.outcome_id]
        )
        replica = replica_of(pending, risk[o.outcome_id], response[o.outcome_id], goal)
        made.append((o.protocol, o.seed, replica))
    baseline = None
    if risks.times_months:
        baseline = Baseline(times_months=risks.times_months, survival=risks.baseline)
    return made, outcomes.simulated, baseline, responses.responses[0].viable_before_ml
