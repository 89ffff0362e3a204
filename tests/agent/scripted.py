"""Scripted risks for tests of the search: a table in place of the world model."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from agent.search import Job, parse_key

DRUGS = ("Cisplatin", "Doxorubicin", "Epirubicin", "Mitomycin", "Oxaliplatin", "Raltitrexed")
EMBOLICS = ("Gelatin sponge", "Lipiodol", "NBCA", "PVA")


def unit(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


class ScriptedRisk:
    """Objective of (protocol, seed): additive item effects, pair effects, noise shared by a seed, noise of its own.

    Counts every simulation, so that a test can see that none was made twice.
    """

    def __init__(self, seed: int, own_noise: float = 0.0, shared_noise: float = 0.0, pairs: float = 0.5) -> None:
        self.seed, self.own, self.shared, self.pairs = seed, own_noise, shared_noise, pairs
        self.simulated: Counter[tuple[str, int]] = Counter()
        self.calls: list[tuple[Job, ...]] = []

    def truth(self, key: str) -> float:
        items = parse_key(key).items
        single = sum(unit(self.seed, item) - 0.45 for item in items)
        pair = sum(unit(self.seed, a, b) - 0.5 for a in items for b in items if a < b)
        return single + self.pairs * pair

    def value(self, key: str, seed: int) -> float:
        shared = self.shared * (unit("shared", self.seed, seed) - 0.5)
        return self.truth(key) + shared + self.own * (unit("own", self.seed, key, seed) - 0.5)

    def __call__(self, jobs: tuple[Job, ...]) -> dict[str, dict[int, float]]:
        self.calls.append(jobs)
        table: dict[str, dict[int, float]] = {}
        for job in jobs:
            for key in job.protocols:
                for seed in job.seeds:
                    self.simulated[key, seed] += 1
                    table.setdefault(key, {})[seed] = self.value(key, seed)
        return table


def allow_all(keys: Sequence[str], complete: bool) -> Mapping[str, str]:
    return {}


def one_platinum(keys: Sequence[str], complete: bool) -> Mapping[str, str]:
    """A partial rule (two platinum agents) and a complete one (PVA alone is no finished embolisation)."""
    reasons = {}
    for key in keys:
        protocol = parse_key(key)
        if {"Cisplatin", "Oxaliplatin"} <= set(protocol.drugs):
            reasons[key] = "two platinum agents"
        if complete and protocol.embolics == ("PVA",):
            reasons[key] = "PVA alone"
    return reasons
