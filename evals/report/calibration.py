"""Calibration of the simulated risk: does a simulated difference between protocols mean a true one as large?

Within a case only: what a planner needs is the difference between protocols for one patient. Both risks are centred on
their mean over the protocols that the search assessed for the case.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field
from scipy.stats import spearmanr

from evals.results import EvalRun, ResultModel
from evals.statistics import bootstrap_mean

LEAST = 3
"""Protocols of a case that an estimate needs."""


class Calibration(ResultModel):
    """Simulated against true log hazard of the assessed protocols, centred within each case."""

    pairs: tuple[tuple[float, float], ...] = Field(description="simulated, true")
    cases: int
    slope: float | None = Field(description="of true on simulated: 1 is calibrated, below 1 differences are overstated")
    slope_low: float | None
    slope_high: float | None
    rank: float | None = Field(description="mean Spearman correlation within a case")
    rank_low: float | None
    rank_high: float | None
    rank_cases: int


def calibration_of(run: EvalRun, seed: int = 0, draws: int = 2000) -> Calibration | None:
    """The calibration over all cases whose truth is known; None where there is none.

    Intervals are bootstrap intervals by case.
    """
    by_case: list[np.ndarray[tuple[int, int], np.dtype[np.float64]]] = []
    for row in run.rows:
        known = [(r.simulated, r.true) for r in row.risks if r.true is not None]
        if row.epoch == 1 and len(known) >= LEAST:
            values = np.array(known, float)
            by_case.append(values - values.mean(axis=0))
    if not by_case:
        return None
    ranks = [
        float(spearmanr(v[:, 0], v[:, 1]).statistic) for v in by_case if np.ptp(v[:, 0]) > 0 and np.ptp(v[:, 1]) > 0
    ]
    rank = bootstrap_mean(ranks, seed=seed, draws=draws) if len(ranks) > 1 else None
    slopes = _slopes(by_case, seed, draws)
    return Calibration(
        pairs=tuple((float(a), float(b)) for a, b in np.concatenate(by_case)),
        cases=len(by_case),
        slope=_slope(by_case),
        slope_low=slopes[0],
        slope_high=slopes[1],
        rank=rank.mean if rank else (ranks[0] if ranks else None),
        rank_low=rank.low if rank else None,
        rank_high=rank.high if rank else None,
        rank_cases=len(ranks),
    )


def _slope(cases: list[np.ndarray[tuple[int, int], np.dtype[np.float64]]]) -> float | None:
    """Least squares through the origin of the centred values."""
    square = sum(float(v[:, 0] @ v[:, 0]) for v in cases)
    return sum(float(v[:, 0] @ v[:, 1]) for v in cases) / square if square > 0 else None


def _slopes(
    cases: list[np.ndarray[tuple[int, int], np.dtype[np.float64]]], seed: int, draws: int
) -> tuple[float | None, float | None]:
    products = np.array([[v[:, 0] @ v[:, 1], v[:, 0] @ v[:, 0]] for v in cases])
    if len(cases) < 2 or not products[:, 1].any():
        return None, None
    index = np.random.default_rng(seed).integers(0, len(cases), (draws, len(cases)))
    sums = products[index].sum(axis=1)
    low, high = np.quantile(sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], np.nan), (0.025, 0.975))
    return float(low), float(high)


def calibration_text(found: Calibration) -> str:
    """The figures in words."""

    def span(low: float | None, high: float | None) -> str:
        return "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"

    slope = "not evaluable" if found.slope is None else f"{found.slope:.2f}{span(found.slope_low, found.slope_high)}"
    rank = "not evaluable" if found.rank is None else f"{found.rank:.2f}{span(found.rank_low, found.rank_high)}"
    return (
        f"Slope of true on simulated log hazard within a case: {slope} (1 is calibrated; below 1 the simulation "
        f"overstates differences, 0 says nothing); mean rank correlation within a case: {rank}. "
        f"{len(found.pairs)} protocols of {found.cases} cases; 95 % bootstrap intervals by case."
    )
