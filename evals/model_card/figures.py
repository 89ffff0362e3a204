"""Figures: pooled statistics with bootstrap intervals by patient, as the model card's JSON holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from evals.statistics import bootstrap_mean

Array = npt.NDArray[np.float64]
Figure = dict[str, Any]
"""``value``, ``low``, ``high`` (95 % bootstrap interval by patient; None where there is none) and ``n`` patients."""

DRAWS = 2000


def figure(value: float, low: float | None = None, high: float | None = None, n: int = 0) -> Figure:
    """A figure as a dict that JSON can hold; a value that is not finite becomes None."""

    def kept(number: float | None) -> float | None:
        return float(number) if number is not None and np.isfinite(number) else None

    return {"value": kept(value), "low": kept(low), "high": kept(high), "n": int(n)}


def mean_figure(values: Sequence[float | None]) -> Figure:
    """Mean over patients; patients without a value are left out, fewer than two have no interval."""
    found = [float(value) for value in values if value is not None and np.isfinite(value)]
    if len(found) < 2:
        return figure(found[0] if found else float("nan"), n=len(found))
    interval = bootstrap_mean(found)
    return figure(interval.mean, interval.low, interval.high, interval.n)


def share_figure(hits: Sequence[bool]) -> Figure:
    """A share of patients with the Wilson interval, which stays inside [0, 1] and is not empty at 0 or 1.

    Source:
        Wilson, J Am Stat Assoc 1927.
    """
    n = len(hits)
    if n == 0:
        return figure(float("nan"))
    share, z = sum(hits) / n, 1.959963984540054
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return figure(share, max(0.0, centre - half), min(1.0, centre + half), n)


def pooled_figure(sums: Array, statistic: Callable[[Array], Array], seed: int = 0, draws: int = DRAWS) -> Figure:
    """A statistic of sums over patients, with its interval from resampled patients.

    Args:
        sums: (patients, K) what each patient adds to each sum.
        statistic: Sums (..., K) -> value (...).
        seed: Of the resampling.
        draws: Bootstrap resamples.
    """
    n = len(sums)
    if n == 0:
        return figure(float("nan"))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(sums.sum(0)))
        if n < 2:
            return figure(value, n=n)
        index = np.random.default_rng(seed).integers(0, n, (draws, n))
        drawn = statistic(sums[index].sum(1))
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size == 0:
        return figure(value, n=n)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return figure(value, float(low), float(high), n)


def resampled_figure(
    count: int, statistic: Callable[[npt.NDArray[np.int64]], float], seed: int = 0, draws: int = 500
) -> Figure:
    """A statistic of whole patients (by index), with its interval; for what is no function of sums."""
    value = statistic(np.arange(count))
    if count < 2:
        return figure(value, n=count)
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(rng.integers(0, count, count)) for _ in range(draws)])
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size == 0:
        return figure(value, n=count)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return figure(value, float(low), float(high), count)


def rank_correlation(true: Sequence[float], found: Sequence[float]) -> float | None:
    """Spearman's correlation of what was found with the truth.

    None where the truth is constant, so that there is nothing to rank; 0 where the truth differs and what was found
    does not: leaving such a patient out would favour who sees no difference.
    """
    if len(true) < 3 or np.ptp(true) == 0:
        return None
    if np.ptp(found) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(true), rankdata(found))[0, 1])


def deviations(true: Sequence[float], simulated: Sequence[float]) -> tuple[Array, Array]:
    """Values of one patient less their mean: what differs between protocols, not between patients."""
    x, y = np.asarray(true, np.float64), np.asarray(simulated, np.float64)
    return x - x.mean(), y - y.mean()


def slope(sums: Array) -> Array:
    """Sums (..., [xy, xx, yy]) -> regression of y on x through the origin."""
    return np.asarray(sums[..., 0] / sums[..., 1])


def correlation(sums: Array) -> Array:
    """Sums (..., [xy, xx, yy]) -> correlation of centred values."""
    return np.asarray(sums[..., 0] / np.sqrt(sums[..., 1] * sums[..., 2]))


def amplitude(sums: Array) -> Array:
    """Sums (..., [xy, xx, yy]) -> root mean square of y over that of x."""
    return np.asarray(np.sqrt(sums[..., 2] / sums[..., 1]))


def products(x: Array, y: Array) -> Array:
    """[xy, xx, yy] of one patient."""
    return np.array([x @ y, x @ x, y @ y])


def look_up(card: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Figures at a dotted path; ``*`` stands for every key there. Path -> figure, empty where nothing is."""
    found: dict[str, Any] = {"": card}
    for part in path.split("."):
        step: dict[str, Any] = {}
        for name, node in found.items():
            if not isinstance(node, Mapping):
                continue
            keys = list(node) if part == "*" else [part] if part in node else []
            step |= {f"{name}.{key}" if name else key: node[key] for key in keys}
        found = step
    return {name: node for name, node in found.items() if isinstance(node, Mapping) and "value" in node}
