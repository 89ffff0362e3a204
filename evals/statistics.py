"""Intervals by patient, paired comparison of two runs, and correction for several metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

EXACT_UP_TO = 20
"""Most cases for which the sign-flip test goes through all 2^n sign patterns; beyond, it draws them."""

ALPHA = 0.05
POWER = 0.80
"""Level and power of `smallest_detectable`: the usual 5 % two-sided and 80 %."""


class Interval(NamedTuple):
    """A mean over patients with its bootstrap interval (95 % unless asked otherwise)."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.n})"


class Paired(NamedTuple):
    """Run A minus run B over the cases that both have.

    Attributes:
        mean: Mean of A - B, or its ratio to the mean of `unit`.
        low: Lower end of the paired bootstrap interval.
        high: Upper end.
        p: Two-sided sign-flip permutation p value.
        n: Cases in common.
        wins: Cases in which A is better.
        ties: Cases in which both are equal.
        losses: Cases in which B is better.
        smallest_detectable: The smallest true mean difference that `n` cases with this spread would have shown with a
            power of 80 % (two-sided 5 %), in the unit's mean as if that were known; None where `n` is too small for any
            difference to reach 5 %.
        missing: Ids of cases that only one run has, sorted. They are not in any figure.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int
    wins: int
    ties: int
    losses: int
    smallest_detectable: float | None
    missing: tuple[str, ...]


def bootstrap_mean(
    values: npt.ArrayLike, seed: int = 0, draws: int = 10_000, level: float = 0.95, unit: npt.ArrayLike = 1.0
) -> Interval:
    """Mean with a percentile bootstrap interval over patients.

    Args:
        values: One value per patient, at least 2; for a paired comparison, the differences.
        seed: Of the resampling.
        draws: Bootstrap resamples.
        level: Of the interval, in (0, 1).
        unit: One value per patient that is resampled with them: the figure is the ratio of both means, and of the
            values alone where the units are all 0.

    Raises:
        ValueError: Fewer than two values, or a value that is not finite.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap (1993), percentile interval.
    """
    data = np.asarray(values, float)
    if data.ndim != 1 or data.size < 2 or not np.isfinite(data).all():
        raise ValueError(f"an interval needs at least two finite values, got {data!r}")
    index = np.random.default_rng(seed).integers(0, data.size, (draws, data.size))
    per = np.broadcast_to(np.asarray(unit, float), data.shape)
    means, units = data[index].mean(1), per[index].mean(1)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means / np.where(units == 0, 1.0, units), (tail, 1.0 - tail))
    return Interval(float(data.mean() / (per.mean() or 1.0)), float(low), float(high), int(data.size))


def paired_difference(
    a: Mapping[str, float],
    b: Mapping[str, float],
    *,
    lower_is_better: bool = False,
    seed: int = 0,
    draws: int = 10_000,
    level: float = 0.95,
    unit: Mapping[str, float] | None = None,
) -> Paired:
    """Compare two runs case by case.

    Args:
        a: Case id -> value of run A.
        b: Case id -> value of run B.
        lower_is_better: For regret, cost and seconds; decides what counts as a win.
        seed: Of bootstrap and permutation.
        draws: Bootstrap resamples, and sign patterns where they are drawn.
        level: Of the interval.
        unit: Case id -> what the differences are measured in, for a ratio of two means; a case's difference and unit
            are resampled together. None: the plain mean.

    Raises:
        ValueError: Fewer than two cases in common, or a value that is not finite.
    """
    common = sorted(a.keys() & b.keys())
    differences = np.array([a[case] - b[case] for case in common], float)
    per = np.array([1.0 if unit is None else unit[case] for case in common])
    interval = bootstrap_mean(differences, seed, draws, level, per)
    better = -differences if lower_is_better else differences
    return Paired(
        mean=interval.mean,
        low=interval.low,
        high=interval.high,
        p=sign_flip_p(differences, seed, draws),
        n=len(common),
        wins=int((better > 0).sum()),
        ties=int((better == 0).sum()),
        losses=int((better < 0).sum()),
        smallest_detectable=_smallest_detectable(differences / (per.mean() or 1.0)),
        missing=tuple(sorted(a.keys() ^ b.keys())),
    )


def sign_flip_p(differences: npt.ArrayLike, seed: int = 0, draws: int = 10_000) -> float:
    """Two-sided p value of a mean of paired differences: how often random signs give a mean as far from 0.

    Exact for up to `EXACT_UP_TO` differences; beyond, (1 + hits) / (1 + draws), which is never 0.

    Args:
        differences: One per case.
        seed: Of the drawn sign patterns.
        draws: Sign patterns to draw.

    Source:
        Good, Permutation, Parametric and Bootstrap Tests of Hypotheses (2005); the added one of Phipson and Smyth,
        Stat Appl Genet Mol Biol 2010.
    """
    data = np.asarray(differences, float)
    # Equal sums in another order differ in the last bits: they count as equal.
    reached = abs(data.sum()) - 1e-9 * max(float(np.abs(data).sum()), 1e-300)
    if data.size <= EXACT_UP_TO:
        sums = np.zeros(1)
        for value in data:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= reached).mean())
    rng = np.random.default_rng(seed)
    hits = 0
    for start in range(0, draws, 1000):
        signs = rng.integers(0, 2, (min(1000, draws - start), data.size)) * 2 - 1
        hits += int((np.abs(signs @ data) >= reached).sum())
    return (1 + hits) / (1 + draws)


def _smallest_detectable(differences: npt.NDArray[np.float64]) -> float | None:
    """(t_{1-alpha/2} + t_{power}) sd / sqrt(n), the usual approximation for a paired t test.

    Source:
        Chow, Shao and Wang, Sample Size Calculations in Clinical Research (2008), chapter 3.
    """
    n = differences.size
    if 2.0 ** (1 - n) > ALPHA:  # even the most extreme of all sign patterns is not that rare
        return None
    if np.ptp(differences) == 0:  # nothing varies: that says nothing of what could be seen
        return None
    factor = float(stdtrit(n - 1, 1.0 - ALPHA / 2.0)) + float(stdtrit(n - 1, POWER))
    return factor * float(differences.std(ddof=1)) / float(np.sqrt(n))


def why_undetectable(n: int) -> str:
    """Why there is no smallest detectable difference, for a table."""
    return "n too small" if 2.0 ** (1 - n) > ALPHA else "no spread"


def holm(pvalues: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment, so that several metrics together err at most at the stated level.

    Args:
        pvalues: Name -> p value.

    Returns:
        Name -> adjusted p value, at most 1, in the order given.

    Source:
        Holm, Scand J Stat 1979.
    """
    order = sorted(pvalues, key=lambda name: pvalues[name])
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * pvalues[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in pvalues}
