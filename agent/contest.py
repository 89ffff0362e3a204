"""Contest: which protocols can be told apart, from objectives on common seeds.

Every protocol of a depth is simulated with the same noise (common random numbers), so the difference of two protocols
on one seed is free of most of the noise that both share. Everything here works on such paired differences. Lower is
better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

Table = Mapping[str, Mapping[int, float]]
"""Protocol key -> seed -> objective."""

RESOLVED_AT = 2.0
"""A difference of at least this many standard errors counts as resolved (about 95 % for a normal difference)."""


@dataclass(frozen=True)
class Difference:
    """Mean of ``b - a`` over common seeds with its standard error (None for fewer than two seeds)."""

    mean: float
    se: float | None
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """Two-sided 95 % Student t interval of the mean; None for fewer than two seeds."""
        return t_interval(self.mean, self.se, self.n)

    @property
    def tied(self) -> bool:
        """True where the interval includes 0, or where one seed only leaves it open."""
        interval = self.interval
        return True if interval is None else interval[0] <= 0.0 <= interval[1]


def t_interval(mean: float, se: float | None, n: int) -> tuple[float, float] | None:
    """Two-sided 95 % Student t interval of a mean over `n` values; None where there is no standard error."""
    if se is None:
        return None
    half = float(stdtrit(n - 1, 0.975)) * se
    return mean - half, mean + half


def mean_se(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard error of the mean (None for one value)."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def paired(table: Table, a: str, b: str) -> Difference:
    """Objective of `b` minus that of `a` on the seeds that both have.

    Raises:
        ValueError: they share no seed.
    """
    seeds = sorted(set(table[a]) & set(table[b]))
    if not seeds:
        msg = f"'{a}' and '{b}' were never simulated with the same seed"
        raise ValueError(msg)
    mean, se = mean_se([table[b][seed] - table[a][seed] for seed in seeds])
    return Difference(mean, se, len(seeds))


def pooled_variance(differences: Iterable[Difference]) -> float:
    """Mean variance of single differences over those that have one; infinite where none has."""
    variances = [d.se**2 * d.n for d in differences if d.se is not None]
    return math.fsum(variances) / len(variances) if variances else math.inf


def gain(table: Table, best: str, before: str, peers: Iterable[str]) -> Difference:
    """Objective of `before` minus that of `best`: what a depth of the search improved.

    Two seeds estimate a standard error poorly, in both directions. The variance of a difference is therefore pooled
    over the differences between `best` and its peers.

    Args:
        table: Objectives.
        best: The best protocol now.
        before: The best one a depth earlier.
        peers: The protocols kept beside it; those that share no seed with `best` are left out.

    Raises:
        ValueError: `best` and `before` share no seed.
    """
    own = paired(table, best, before)
    others = (key for key in dict.fromkeys(peers) if key not in (best, before) and set(table[key]) & set(table[best]))
    pooled = pooled_variance([own, *(paired(table, best, key) for key in others)])
    return Difference(own.mean, math.sqrt(pooled / own.n) if math.isfinite(pooled) else None, own.n)


def levels(table: Table, keys: Sequence[str]) -> dict[str, float]:
    """Mean objective of each protocol, corrected for the seeds that only some of them have.

    With equal seeds this is the plain mean. Otherwise a seed's own effect (a hard or an easy noise draw, the same for
    every protocol) is estimated against the seeds that all protocols share, and taken out, so that a protocol with
    more replicas is not favoured or punished by the draws it got. Without a shared seed the plain means are returned.
    """
    seeds = {seed for key in keys for seed in table[key]}
    shared = sorted(seed for seed in seeds if all(seed in table[key] for key in keys))
    plain = {key: math.fsum(table[key].values()) / len(table[key]) for key in keys}
    if not shared or len(shared) == len(seeds):
        return plain
    base = {key: math.fsum(table[key][seed] for seed in shared) / len(shared) for key in keys}
    effect = {}
    for seed in sorted(seeds):
        shifts = [table[key][seed] - base[key] for key in keys if seed in table[key]]
        effect[seed] = math.fsum(shifts) / len(shifts)
    centre = math.fsum(effect.values()) / len(effect)
    return {
        key: math.fsum(table[key][seed] - effect[seed] for seed in sorted(table[key])) / len(table[key]) + centre
        for key in keys
    }


def ranking(table: Table, keys: Sequence[str]) -> list[str]:
    """Protocols by corrected mean objective, best first; equal ones in alphabetical order."""
    level = levels(table, keys)
    return sorted(dict.fromkeys(keys), key=lambda key: (level[key], key))


def contested(table: Table, keys: Sequence[str], places: int) -> list[str]:
    """The protocols whose place inside or outside the best `places` is open.

    A protocol inside is compared with the first one outside, a protocol outside with the last one inside, by paired
    differences on common seeds. Two replicas estimate a standard error poorly, so each difference is judged with the
    larger of its own variance and the variance pooled over all differences of this contest.

    Returns:
        Open protocols, best first; empty where all places are settled or every protocol has one.
    """
    order = ranking(table, keys)
    if len(order) <= places:
        return []
    inside, outside = order[places - 1], order[places]
    rivals = [(key, outside if place < places else inside) for place, key in enumerate(order)]
    differences = {key: paired(table, rival, key) for key, rival in rivals}
    pooled = pooled_variance(differences.values())
    open_places = []
    for key, difference in differences.items():
        own = math.inf if difference.se is None else difference.se**2 * difference.n
        se = math.sqrt(max(own, pooled) / difference.n)
        if abs(difference.mean) < RESOLVED_AT * se or difference.mean == 0.0:
            open_places.append(key)
    return open_places


def confidence(table: Table, chosen: str, keys: Sequence[str], seed: int, resamples: int = 2000) -> float | None:
    """Share of bootstrap resamples of the common seeds in which `chosen` has the lowest mean objective.

    A resample in which several are lowest counts for each of them in equal parts.

    Args:
        table: Objectives.
        chosen: The protocol in question, one of `keys`.
        keys: The finalists.
        seed: Seed of the resampling.
        resamples: Number of resamples.

    Returns:
        A share from 0 to 1, or None where fewer than two seeds are common to all (nothing to resample).
    """
    common = sorted(set.intersection(*(set(table[key]) for key in keys)))
    if len(common) < 2:
        return None
    values = np.array([[table[key][s] for s in common] for key in keys])
    draws = np.random.default_rng(seed).integers(0, len(common), size=(resamples, len(common)))
    means = values[:, draws].mean(axis=2)  # (protocols, resamples)
    row = list(keys).index(chosen)
    lowest = means == means.min(axis=0)
    return float(np.mean(lowest[row] / lowest.sum(axis=0)))
