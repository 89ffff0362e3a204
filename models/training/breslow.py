"""Breslow estimator of the baseline survival for a log-risk."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def breslow_survival(log_risk: Array, time: Array, event: Array, at: Array) -> npt.NDArray[np.float64]:
    """Survival of a patient with log-risk 0 (Breslow 1972).

    Args:
        log_risk: (N,) total log-hazard, offset included.
        time: (N,), same unit as `at`.
        event: (N,) bool, False where censored.
        at: times at which the curve is wanted.

    Returns:
        Survival probability at each of `at`, in (0, 1], not increasing. S(t | r) = S0(t) ** exp(r).
    """
    order = np.argsort(time, kind="stable")
    when, died = np.asarray(time)[order], np.asarray(event, dtype=bool)[order]
    hazard = np.exp(np.asarray(log_risk, dtype=np.float64)[order])
    at_risk = hazard[::-1].cumsum()[::-1]
    first = np.searchsorted(when, when, side="left")  # those tied in time are all still at risk
    steps = np.where(died, 1.0 / at_risk[first], 0.0)
    cumulative = np.concatenate([[0.0], np.cumsum(steps)])
    return np.asarray(np.exp(-cumulative[np.searchsorted(when, at, side="right")]))
