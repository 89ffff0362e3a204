"""Measures: the figures that are averaged over cases, and their value for one contestant on one case."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from evals.metrics import stability
from evals.results import CaseRow, Entry, EvalRun, Space, Usage


@dataclass(frozen=True)
class Metric:
    """A figure that is averaged over cases.

    Attributes:
        name: As options and JSON call it.
        label: As tables call it.
        lower_is_better: Decides who wins.
        percent: Shown times 100, as in the paper's tables.
        quality: Takes part in Holm's correction; what is left is effort, stability, and doses, which the search and
            most baselines never state.
        digits: Decimals shown.
    """

    name: str
    label: str
    lower_is_better: bool = False
    percent: bool = True
    quality: bool = True
    digits: int = 1


ASKED_EACH_TIME = ("own", "fallback", "alone")
"""Contestants that are asked in every epoch; a baseline is asked once, and says nothing about its stability."""
OF_RANDOM = "regret_of_random"
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("f1", "F1"),
        Metric("jaccard", "Jaccard"),
        Metric("precision", "Precision"),
        Metric("recall", "Recall"),
        Metric("exact", "Exact match"),
        Metric("drug_f1", "Drug F1"),
        Metric("embolic_f1", "Embolic F1"),
        Metric("class_f1", "Class F1"),
        Metric("dose_within", "Dose in range", quality=False),
        Metric("regret", "Regret (of range)", lower_is_better=True, percent=False, digits=3),
        Metric(OF_RANDOM, "Regret (of random)", lower_is_better=True, percent=False, digits=3),
        Metric("win_vs_given", "Better than given"),
        Metric("violations", "Rules broken", lower_is_better=True, percent=False, digits=2),
        Metric("gold_recall", "Gold in the action space"),
        Metric("best_recall", "Truly best in the action space"),
        Metric("best_within", "Regret within the action space", lower_is_better=True, percent=False, digits=3),
        Metric("stability", "Stability", quality=False),
        Metric("requests", "Requests", lower_is_better=True, percent=False, quality=False),
        Metric("tokens", "Tokens", lower_is_better=True, percent=False, quality=False, digits=0),
        Metric("cost_usd", "Cost (USD)", lower_is_better=True, percent=False, quality=False, digits=4),
        Metric("tool_calls", "Tool calls", lower_is_better=True, percent=False, quality=False),
        Metric("simulations", "Simulations", lower_is_better=True, percent=False, quality=False),
        Metric("seconds", "Seconds", lower_is_better=True, percent=False, quality=False),
    )
}
_OF_SCORE = ("f1", "jaccard", "precision", "recall", "exact", "drug_f1", "embolic_f1", "class_f1", "dose_within")
_OF_USAGE = ("requests", "tokens", "cost_usd", "tool_calls", "simulations", "seconds")
_OF_SPACE = ("gold_recall", "best_recall", "best_within")


def metric_value(row: CaseRow, entry: Entry, metric: str, variant: str, who: str) -> float | None:
    """One metric of one entry; None where it does not exist for it.

    Args:
        row: The case.
        entry: A contestant's entry in it.
        metric: Name in `METRICS`, apart from ``stability`` and ``regret_of_random``, which belong to several rows
            (`per_case`, `losses`).
        variant: Gold variant.
        who: Whose entry it is: effort and action space are known of the agent and of its fallback, effort of the
            vision-language model alone, neither of a baseline.
    """
    if metric in _OF_SCORE:
        score = entry.scores.get(variant)
        value = None if score is None else getattr(score, metric)
        return None if value is None else float(value)
    if metric in ("regret", "win_vs_given"):
        if entry.regret is None:
            return None
        value = getattr(entry.regret, {"regret": "of_range", "win_vs_given": "win_vs_given"}[metric])
        return None if value is None else float(value)
    if metric == "violations":
        return float(entry.violations.count) if entry.violations is not None else 0.0
    if metric in _OF_SPACE:
        space = _space_of(row, who)
        if space is None:
            return None
        return space.gold_recall.get(variant) if metric == "gold_recall" else getattr(space, metric)
    if metric in _OF_USAGE:
        value = getattr(_usage_of(row, who), metric, None)
        return None if value is None else float(value)
    raise KeyError(metric)


def _space_of(row: CaseRow, who: str) -> Space | None:
    if who == "fallback":
        return row.fallback_space or row.space
    return row.space if who == "own" else None


def _usage_of(row: CaseRow, who: str) -> Usage | None:
    if who == "alone":
        return row.alone_usage
    if row.status == "failed":  # what it used until then is no effort of an answer, and would make errors look cheap
        return None
    return row.usage if who in ("own", "fallback") else None


def per_case(run: EvalRun, who: str, metric: str, variant: str) -> dict[str, float]:
    """Case id -> value, averaged over the epochs of a case; cases without a value are left out.

    Args:
        run: The evaluation.
        who: The contestant.
        metric: Name in `METRICS`, but ``regret_of_random``, which is a ratio of means over cases (`losses`).
        variant: Gold variant.
    """
    values: dict[str, float] = {}
    for case_id, found in _by_case(run, who, variant).items():
        if metric == "stability":
            if who not in ASKED_EACH_TIME:
                continue
            agreement = stability([entry.protocol for _, entry in found])
            numbers = [] if agreement is None else [agreement]
        else:
            several = (metric_value(row, entry, metric, variant, who) for row, entry in found)
            numbers = [number for number in several if number is not None]
        if numbers:
            values[case_id] = math.fsum(numbers) / len(numbers)  # the same whatever the order of the epochs
    return values


class Loss(NamedTuple):
    """What is lost in a case against the best allowed protocol, in true log hazard.

    Attributes:
        chosen: By the choice, mean over epochs.
        random: By a random allowed protocol, in the mean.
    """

    chosen: float
    random: float


def losses(run: EvalRun, who: str, variant: str) -> dict[str, Loss]:
    """Case id -> what is lost there; cases whose truth is not known are left out.

    ``regret_of_random`` is the sum of what the choices lost over the sum of what random ones lose. A mean of the cases'
    ratios would be ruled by the patients for whom all protocols do nearly the same.

    Args:
        run: The evaluation.
        who: The contestant.
        variant: Gold variant.
    """
    lost = {}
    for case_id, found in _by_case(run, who, variant).items():
        if judged := [entry.regret for _, entry in found if entry.regret is not None]:
            lost[case_id] = Loss(
                chosen=sum(one.true_risk - one.best for one in judged) / len(judged),
                random=judged[0].random_mean - judged[0].best,
            )
    return lost


def _by_case(run: EvalRun, who: str, variant: str) -> dict[str, list[tuple[CaseRow, Entry]]]:
    by_case: dict[str, list[tuple[CaseRow, Entry]]] = {}
    for row, entry in run.entries(who, variant):
        by_case.setdefault(row.case_id, []).append((row, entry))
    return by_case
