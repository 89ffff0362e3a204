"""Survival curves under proportional hazards: baseline and log-risk to a curve and its median."""

from __future__ import annotations

import math
from collections.abc import Sequence


def survival_at(baseline: Sequence[float], log_risk: float) -> tuple[float, ...]:
    """Cox's model: each baseline survival to the power of exp(log_risk).

    Args:
        baseline: Survival of the reference patient (log-risk 0), each from 0 to 1.
        log_risk: Total log hazard ratio; cut at 50, where every survival below 1 is 0 already.

    Returns:
        Survival at the baseline's times.
    """
    power = math.exp(min(log_risk, 50.0))
    return tuple(float(s) ** power for s in baseline)


def median_survival(times_months: Sequence[float], survival: Sequence[float]) -> float | None:
    """The first time at which survival is at most one half, or None where it stays above."""
    return next((float(t) for t, s in zip(times_months, survival, strict=True) if s <= 0.5), None)
