"""Intervals by patient."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Interval(NamedTuple):
    """A mean over patients with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.n})"


def bootstrap_mean(values: npt.ArrayLike, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean with a percentile bootstrap interval over patients.

    Args:
        values: One value per patient, at least 2; for a paired comparison, the differences.
        resamples: Bootstrap resamples.
        seed: Of the resampling.

    Raises:
        ValueError: Fewer than two values, or a value that is not finite.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap (1993), percentile interval.
    """
    data = np.asarray(values, float)
    if data.ndim != 1 or data.size < 2 or not np.isfinite(data).all():
        raise ValueError(f"an interval needs at least two finite values, got {data!r}")
    index = np.random.default_rng(seed).integers(0, data.size, (resamples, data.size))
    low, high = np.quantile(data[index].mean(1), (0.025, 0.975))
    return Interval(float(data.mean()), float(low), float(high), int(data.size))
