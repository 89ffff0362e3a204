"""Assess: turn what the search collected about protocols into the parts of a plan. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from agent.contest import Difference, Table, confidence, mean_se, paired, ranking
from agent.goal import Goal, GoalWeights
from agent.plan import (
    AssessedProtocol,
    DoseShown,
    Estimate,
    Finalist,
    GoalReading,
    Replica,
    ResponseSummary,
    SurvivalCurve,
)
from agent.search import parse_key
from agent.state import Baseline, PlannerState, ProtocolNotes, Verdict
from models.formulary import Formulary
from models.protocol import Dose, Protocol
from models.survival_curve import median_survival, survival_at

BEAD_CLASS = "drug_eluting"
NO_SIZE = (
    "There is no viable tumour before treatment, so a change of its size is not evaluable: size was given no weight."
)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error over replicas."""
    mean, se = mean_se(values)
    return Estimate(mean=mean, se=se, n=len(values))


def estimate_where_known(rows: Sequence[Replica], field: str) -> Estimate | None:
    """As `estimate`, over the replicas where the measure was evaluable; None where it never was."""
    values = [value for row in rows if (value := getattr(row, field)) is not None]
    return estimate(values) if values else None


def is_complete(protocol: Protocol) -> bool:
    """True with at least one drug and one embolic: what a plan may consist of."""
    return bool(protocol.drugs and protocol.embolics)


def median_months(baseline: Baseline | None, log_risk: float) -> float | None:
    """First time at which survival is at most one half; None where it stays above, or without a baseline."""
    if baseline is None:
        return None
    return median_survival(baseline.times_months, survival_at(baseline.survival, log_risk))


def survival_curve(baseline: Baseline | None, risk: Estimate) -> SurvivalCurve | None:
    """The curve at the mean log-risk and at the ends of its 95 % t interval over replicas; None without a baseline."""
    if baseline is None:
        return None
    low, high = risk.interval or (risk.mean, risk.mean)
    return SurvivalCurve(
        times_months=baseline.times_months,
        survival=survival_at(baseline.survival, risk.mean),
        lower=survival_at(baseline.survival, high),
        upper=survival_at(baseline.survival, low),
    )


def response_summary(rows: Sequence[Replica]) -> ResponseSummary:
    """Response measures over replicas. Oil confounds where it does so in most replicas."""
    return ResponseSummary(
        viable_ml=estimate([row.viable_ml for row in rows]),
        necrotic_fraction=estimate_where_known(rows, "necrotic_fraction"),
        oil_fraction=estimate_where_known(rows, "oil_fraction"),
        mrecist_mm=estimate_where_known(rows, "mrecist_mm"),
        mrecist_change_percent=estimate_where_known(rows, "mrecist_change_percent"),
        mrecist_categories=dict(sorted(Counter(row.mrecist_category for row in rows if row.mrecist_category).items())),
        easl_mm2=estimate_where_known(rows, "easl_mm2"),
        easl_change_percent=estimate_where_known(rows, "easl_change_percent"),
        easl_categories=dict(sorted(Counter(row.easl_category for row in rows if row.easl_category).items())),
        oil_confounded=2 * sum(row.oil_confounded for row in rows) > len(rows),
    )


def default_table(replicas: Mapping[str, Sequence[Replica]]) -> dict[str, dict[int, float]]:
    """Objectives under the default weights (mortality risk), whatever the goal was."""
    weights = GoalWeights()
    return {
        key: {r.seed: weights.tumour * r.tumour_log_risk + weights.toxicity * r.toxicity_log_risk for r in rows}
        for key, rows in replicas.items()
    }


def shown_replicas(state: PlannerState) -> dict[str, tuple[Replica, ...]]:
    """The replicas that a plan reports: finalists on the seeds of the last comparison only, all others with all of
    theirs.

    The seeds of the search favoured a finalist (that is how it came so far); those of the last comparison are fresh and
    favour nobody.
    """
    final, seeds = set(state.contest.finalists), set(state.contest.seeds)
    return {
        key: tuple(row for row in rows if key not in final or row.seed in seeds) for key, rows in state.replicas.items()
    }


def default_order(
    state: PlannerState, rows: Mapping[str, Sequence[Replica]], order: Sequence[str], ranked: Sequence[str]
) -> list[str]:
    """The `ranked` protocols by the default weights.

    Finalists and others share the seeds of the search only, so those say where finalists stand among the others; among
    themselves the finalists keep to the seeds of the last comparison, which chose the protocol too.
    """
    if not ranked:
        return []
    fresh = iter(ranking(default_table({key: rows[key] for key in order}), order) if order else ())
    return [next(fresh) if key in order else key for key in ranking(default_table(state.replicas), ranked)]


def assessed_protocols(state: PlannerState, order: Sequence[str]) -> tuple[AssessedProtocol, ...]:
    """All simulated protocols: finalists in `order`, other allowed complete ones, the rest; each group best first."""
    rows = shown_replicas(state)
    table: Table = {key: {r.seed: r.objective for r in replicas} for key, replicas in rows.items()}
    allowed = set(state.contest.allowed)
    others = ranking(table, [key for key in allowed if key not in order]) if allowed - set(order) else []
    ranked = [*order, *others]
    rest = sorted(
        (key for key in rows if key not in allowed), key=lambda key: (mean_se(list(table[key].values()))[0], key)
    )
    rank = {key: place for place, key in enumerate(ranked, 1)}
    if state.reading is not None and state.reading.weights == GoalWeights():
        default_rank = rank
    else:
        default_rank = {key: place for place, key in enumerate(default_order(state, rows, order, ranked), 1)}
    return tuple(
        _assessed(key, rows[key], state, rank.get(key), default_rank.get(key), finalist=key in order)
        for key in (*ranked, *rest)
    )


def _assessed(
    key: str,
    rows: tuple[Replica, ...],
    state: PlannerState,
    rank: int | None,
    default_rank: int | None,
    *,
    finalist: bool,
) -> AssessedProtocol:
    protocol = parse_key(key)
    risk = estimate([row.log_risk for row in rows])
    notes = state.notes.get(key, ProtocolNotes())
    verdict = state.complete.get(key) or state.partial.get(key) or Verdict(allowed=True)
    return AssessedProtocol(
        protocol=protocol,
        key=key,
        objective=estimate([row.objective for row in rows]),
        log_risk=risk,
        tumour_log_risk=estimate([row.tumour_log_risk for row in rows]),
        toxicity_log_risk=rows[0].toxicity_log_risk,
        toxicity_parts=notes.toxicity_parts,
        median_survival_months=median_months(state.baseline, risk.mean),
        response=response_summary(rows),
        replicas=rows,
        finalist=finalist,
        allowed=verdict.allowed,
        complete=is_complete(protocol),
        default_rank=default_rank,
        rank=rank,
    )


def margin_of(difference: Difference | None) -> tuple[Estimate | None, tuple[float, float] | None]:
    """A paired difference as the plan keeps it."""
    if difference is None:
        return None, None
    return Estimate(mean=difference.mean, se=difference.se, n=difference.n), difference.interval


def final_table(state: PlannerState, order: Sequence[str]) -> dict[str, dict[int, float]]:
    """Objectives of the finalists on the seeds of the last comparison."""
    seeds = set(state.contest.seeds)
    return {key: {r.seed: r.objective for r in state.replicas[key] if r.seed in seeds} for key in order}


def finalists(
    state: PlannerState, order: Sequence[str], assessed: Mapping[str, AssessedProtocol], formulary: Formulary
) -> tuple[Finalist, ...]:
    """The finalists in order, the chosen one first, with margins to it paired by seed."""
    table = final_table(state, order)
    found = []
    for place, key in enumerate(order, 1):
        difference = None if place == 1 else paired(table, order[0], key)
        margin, interval = margin_of(difference)
        verdict = state.complete[key]
        found.append(
            Finalist(
                assessed=assessed[key],
                place=place,
                margin=margin,
                margin_interval=interval,
                tied_with_chosen=difference is not None and difference.tied,
                doses=doses_shown(assessed[key].protocol, formulary),
                findings=verdict.findings,
                survival=survival_curve(state.baseline, assessed[key].log_risk),
                not_evaluable=tuple(
                    dict.fromkeys(
                        [
                            *(f.unclear for f in verdict.findings if f.unclear),
                            *state.notes[key].not_evaluable,
                        ]
                    )
                ),
            )
        )
    return tuple(found)


def sureness(state: PlannerState, order: Sequence[str]) -> tuple[float | None, str]:
    """Bootstrap confidence in the chosen protocol, with the sentence that says what it is."""
    if len(order) < 2:
        return None, " ".join(filter(None, ["There is no runner-up to compare with.", state.contest.note]))
    table = final_table(state, order)
    share = confidence(table, order[0], order, state.settings.seed)
    n = len(set.intersection(*(set(row) for row in table.values())))
    if share is None:
        one = "One replica per finalist says nothing about how sure the choice is: raise --budget."
        return None, " ".join(filter(None, [one, state.contest.note]))
    seeds = f"{n} seeds that the search did not use" if state.contest.fresh else f"{n} seeds of the search"
    note = (
        f"The chosen protocol has the lowest mean objective in {share:.0%} of 2000 bootstrap resamples of {seeds}, "
        f"among {len(order)} finalists; this covers the simulation's randomness, not the error of the models."
    )
    return share, " ".join(filter(None, [note, state.contest.note]))


def doses_shown(protocol: Protocol, formulary: Formulary) -> tuple[DoseShown, ...]:
    """How each agent of a protocol is dosed; drugs by the range for loading beads, where the protocol has them."""
    beads = any(formulary.item(name).item_class == BEAD_CLASS for name in protocol.embolics)
    return tuple(dose_shown(name, formulary, on_beads=beads, stated=protocol.dose(name)) for name in protocol.items)


def dose_shown(name: str, formulary: Formulary, *, on_beads: bool, stated: Dose | None = None) -> DoseShown:
    """The dose range of an agent (for loading beads, where the protocol has them), after the dose that a person stated.

    The search itself never states a dose.
    """
    item = formulary.item(name)
    dose = item.dose_with_beads if on_beads and item.dose_with_beads is not None else item.dose
    said = "" if stated is None else f"{stated} as stated; "
    if dose is None:
        return DoseShown(
            item=name,
            kind=item.kind,
            item_class=item.item_class,
            low=None,
            high=None,
            unit=item.unit,
            text=f"{said}no dose range with a source",
            sources=item.sources,
            note=item.note,
        )
    return DoseShown(
        item=name,
        kind=item.kind,
        item_class=item.item_class,
        low=dose.low,
        high=dose.high,
        unit=dose.unit,
        text=f"{said}usual {dose}" if said else str(dose),
        sources=dose.sources,
        note=item.note,
    )


def goal_reading(
    goal: Goal,
    order: Sequence[str],
    assessed: Mapping[str, AssessedProtocol],
    replicas: Mapping[str, Sequence[Replica]],
) -> GoalReading:
    """How the goal was understood and what it changed among the protocols that were assessed.

    Args:
        goal: The goal.
        order: Finalists, the chosen one first.
        assessed: All assessed protocols.
        replicas: All replicas of them, those of the search included.
    """
    ranked = {a.default_rank: key for key, a in assessed.items() if a.default_rank is not None}
    default_choice = ranked.get(1)
    weights, note = goal.weights.model_dump(), goal.note
    if goal.weights.size and any(row.mrecist_change_percent is None for rows in replicas.values() for row in rows):
        weights["size"] = 0.0
        note += f" {NO_SIZE}"
    return GoalReading(
        text=goal.text,
        names=goal.names,
        understood=goal.understood,
        weights=weights,
        note=note,
        default_choice=default_choice,
        changed=_changed(goal, order, default_choice, assessed, replicas),
    )


def _changed(
    goal: Goal,
    order: Sequence[str],
    default_choice: str | None,
    assessed: Mapping[str, AssessedProtocol],
    replicas: Mapping[str, Sequence[Replica]],
) -> str:
    if not order or default_choice is None:
        return "No protocol was chosen, so the goal changed nothing."
    if goal.weights == GoalWeights():
        if not goal.text.strip():
            return "No goal was given: the lowest mortality risk decides."
        return "The goal leaves the weights as they are: the lowest mortality risk decides."
    chosen = order[0]
    count = sum(a.rank is not None for a in assessed.values())
    if chosen == default_choice:
        return (
            f"It did not change the choice: the default weights choose the same of {count} finished protocols assessed."
        )
    now, then = assessed[chosen], assessed[default_choice]
    table = {key: {r.seed: r.log_risk for r in replicas[key]} for key in (chosen, default_choice)}
    common = set(table[chosen]) & set(table[default_choice])
    risk = paired(table, default_choice, chosen).mean if common else now.log_risk.mean - then.log_risk.mean
    toxicity = now.toxicity_log_risk - then.toxicity_log_risk
    return (
        f"With the default weights {default_choice} leads among the {count} finished protocols assessed; the goal "
        f"moved the choice to {chosen} (mortality log-risk {risk:+.2f}, of which toxicity {toxicity:+.2f})."
    )
