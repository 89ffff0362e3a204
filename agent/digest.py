"""Digest: what a conversation says about a plan: figures and reasons, without paths, identifiers, names or dates.

It goes to a language model as a tool's result, and its `text` to a person.
"""

from __future__ import annotations

from typing import Any

from agent.approval import blocks_of, fired_rules
from agent.goal import GoalWeights
from agent.plan import AssessedProtocol, Estimate, Finalist, Plan
from agent.run import Standing

DIGITS = 3


def plan_digest(plan: Plan) -> dict[str, Any]:
    """The main figures of a plan, as data."""
    chosen = plan.chosen
    return {
        "chosen": finalist_digest(chosen) if chosen else None,
        "runners_up": [finalist_digest(place) for place in plan.runners_up],
        "cannot_be_told_apart_from_chosen": list(plan.ties),
        "share_of_resamples_that_chosen_wins": None if plan.confidence is None else round(plan.confidence, DIGITS),
        "blocked_by": list(fired_rules(plan.blocked_by)),
        "goal": {"note": plan.goal.note, "weights": plan.goal.weights, "effect": plan.goal.changed},
        "action_space": [note.item for note in plan.proposals if note.kept],
        "taken_out": {note.item: note.reason for note in plan.proposals if not note.kept and note.rule_id},
        "not_evaluable": len(plan.not_evaluable),
        "degraded": plan.degraded_reason,
        "search_ended_early": plan.stopped_early,
        "what_if": list(plan.what_if),
        "decisions_of_people": [
            {
                "gate": a.gate,
                "decision": a.decision,
                "before": a.before,
                "after": a.after,
                "overridden": list(a.overridden),
            }
            for a in plan.approvals
        ],
        "simulations": plan.simulations,
        "models_trained_on": plan.origin.model_origin,
    }


def finalist_digest(place: Finalist) -> dict[str, Any]:
    """One protocol of the last comparison."""
    return {
        **assessed_digest(place.assessed),
        "behind_chosen_by": estimate_digest(place.margin),
        "warnings": list(fired_rules(place.findings, "warn")),
    }


def assessed_digest(assessed: AssessedProtocol) -> dict[str, Any]:
    """The figures of one simulated protocol; log-risks have no unit, lower is better."""
    response = assessed.response
    return {
        "protocol": assessed.key,
        "rank": assessed.rank,
        "allowed_by_rules": assessed.allowed,
        "objective": estimate_digest(assessed.objective),
        "tumour_log_risk": estimate_digest(assessed.tumour_log_risk),
        "toxicity_log_risk": round(assessed.toxicity_log_risk, DIGITS),
        "viable_ml": estimate_digest(response.viable_ml),
        "mrecist_change_percent": estimate_digest(response.mrecist_change_percent),
        "mrecist_categories": response.mrecist_categories,
        "median_survival_months": assessed.median_survival_months,
    }


def estimate_digest(value: Estimate | None) -> dict[str, Any] | None:
    """Mean, standard error and number of replicas."""
    if value is None:
        return None
    se = None if value.se is None else round(value.se, DIGITS)
    return {"mean": round(value.mean, DIGITS), "standard_error": se, "n": value.n}


def figure(value: Estimate, digits: int = 2, *, sign: bool = True) -> str:
    """Mean with its standard error over replicas, in words."""
    mean = f"{value.mean:{'+' if sign else ''}.{digits}f}"
    return mean if value.se is None else f"{mean} ± {value.se:.{digits}f}"


def behind_text(margin: Estimate | None) -> str:
    """How far a protocol is behind the chosen one; ahead of it, where a person put the chosen one in."""
    if margin is None:
        return ""
    size = figure(margin.model_copy(update={"mean": abs(margin.mean)}), 3, sign=False)
    return f", {'behind' if margin.mean >= 0 else 'ahead of it'} by {size}"


def terms_text(tumour: Estimate, toxicity: float, change: Estimate | None, weights: GoalWeights) -> str:
    """What an objective is the sum of, each term with its weight where that is not 1.

    Args:
        tumour: Log-risk by the survival network.
        toxicity: The fixed toxicity term, log-hazard.
        change: mRECIST change in percent, None where it is not evaluable.
        weights: Of the goal.
    """
    terms = [("tumour", tumour.mean, weights.tumour), ("toxicity", toxicity, weights.toxicity)]
    if weights.size and change is not None:
        terms.append(("mRECIST change", change.mean / 100.0, weights.size))
    return ", ".join(f"{name} {value:+.2f}{'' if w == 1 else f' x {w:g}'}" for name, value, w in terms)


def plan_text(plan: Plan, name: str) -> str:
    """What a plan says, in a few sentences."""
    if (chosen := plan.chosen) is None:
        if plan.rejected:
            return f"{name}: the action space was rejected, so nothing is proposed."
        why = " ".join(fired_rules(plan.blocked_by))
        whom = "for this patient" if plan.patient_blocked else "of those that were tried"
        return f"{name}: the rules leave no protocol {whom}. {why}".strip()
    a = chosen.assessed
    weights = GoalWeights.model_validate(plan.goal.weights)
    terms = terms_text(a.tumour_log_risk, a.toxicity_log_risk, a.response.mrecist_change_percent, weights)
    kind = "log-risk" if weights == GoalWeights() else "weighted by the goal"
    lines = [
        f"{name}: {a.key}, objective {figure(a.objective)} ({terms}; {kind}, lower is better; {a.objective.n} "
        "simulations each)."
    ]
    if plan.before.viable_ml is not None:
        after = figure(a.response.viable_ml, 1, sign=False)
        lines.append(f"Simulated viable tumour: {plan.before.viable_ml:.1f} ml to {after} ml.")
    if plan.runners_up:
        second = plan.runners_up[0]
        lines.append(f"Runner-up: {second.assessed.key}{behind_text(second.margin)}.")
    if plan.ties:
        lines.append(f"It can't be told apart from: {'; '.join(plan.ties)}.")
    if blocks := blocks_of(plan):
        lines.append(f"Rules block it: {' '.join(blocks)}")
    if plan.stopped_early:
        lines.append(f"The search ended early: {plan.stopped_early} {plan.confidence_note}")
    if plan.degraded:
        lines.append(f"The plan is degraded: {plan.degraded_reason}")
    return " ".join(lines)


def standing_text(standing: Standing, name: str) -> str:
    """Where a plan of the conversation stands, and what a person can do now."""
    if standing.waiting is not None and standing.plan is None:
        value = standing.waiting.value
        removed = f" Taken out before: {'; '.join(value['removed'])}." if value["removed"] else ""
        problem = f"{value['problem']} " if value["problem"] else ""
        return (
            f"{problem}{name}: the action space waits for a person's approval. Drugs: {', '.join(value['drugs'])}. "
            f"Embolic agents: {', '.join(value['embolics'])}.{removed} Approve, edit or reject it."
        )
    if standing.plan is None:
        return f"{name} was stopped before it was ready. Say 'continue' to go on with it."
    text = plan_text(standing.plan, name)
    if standing.waiting is not None:
        problem = standing.waiting.value["problem"]
        return f"{problem + ' ' if problem else ''}{text} It waits for a person's approval: approve, edit or reject it."
    last = standing.plan.approvals[-1] if standing.plan.approvals else None
    if last is None or last.gate == "actions":
        return text
    done = {"approve": "It was approved", "reject": "It was rejected"}.get(last.decision, "It was edited")
    override = f" although rules block it, for this reason: {last.override_reason}" if last.overridden else ""
    return f"{text} {done}{override}."
