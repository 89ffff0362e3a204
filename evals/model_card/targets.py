"""Targets: each figure of the card against what was asked for, met or missed, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from evals.model_card.figures import look_up


class Target(BaseModel):
    """One target of `targets.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    figure: str
    text: str
    at_least: float | None = None
    at_most: float | None = None
    prototype: float | None = None
    least_n: int | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> Target:
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"target {self.id} has no bound")
        return self

    @property
    def wanted(self) -> str:
        """The bounds in words."""
        low, high = self.at_least, self.at_most
        if low is not None and high is not None:
            return f"{low:g}" if low == high else f"{low:g} to {high:g}"
        return f"at least {low:g}" if low is not None else f"at most {high:g}"

    def miss(self, value: float) -> float:
        """How far outside the bounds a value lies; 0 inside. Negative below, positive above."""
        if self.at_least is not None and value < self.at_least:
            return value - self.at_least
        if self.at_most is not None and value > self.at_most:
            return value - self.at_most
        return 0.0


class RealPatient(BaseModel):
    """What the networks have to find in HCC_009.

    Attributes:
        mass_dice, liver_dice: least Dice without a mask, of the mass and of the liver without it.
        oil_ml: Lipiodol above 200 HU in the mass as measured by hand, lowest and highest, ml.
        oil_margin_ml: how near to these a registration has to come, ml.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mass_dice: float
    liver_dice: float
    oil_ml: tuple[float, float]
    oil_margin_ml: float


class Targets(BaseModel):
    """The content of `targets.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    real_patient: RealPatient
    targets: tuple[Target, ...]


@lru_cache(maxsize=1)
def targets() -> Targets:
    """The targets."""
    text = files("evals.model_card").joinpath("targets.yaml").read_text(encoding="utf-8")
    return Targets.model_validate(yaml.safe_load(text))


def judge(card: Mapping[str, Any], wanted: Targets | None = None) -> list[dict[str, Any]]:
    """Every target with ``met``, ``missed``, ``too few`` or ``not measured``.

    A target over several figures counts the worst of them, and is not met while one of them has no value. ``too few``
    means that the value is fine but stands on fewer patients than asked for, as in a quick run. `sure` says that the
    whole 95 % interval is inside the bounds.

    Args:
        card: The figures.
        wanted: None is `targets`.
    """
    return [_judge(target, card) for target in (wanted or targets()).targets]


def _judge(target: Target, card: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"id": target.id, "text": target.text, "wanted": target.wanted, "prototype": target.prototype}
    wanted = look_up(card, target.figure)
    found = {path: one for path, one in wanted.items() if one["value"] is not None}
    absent = sorted(wanted.keys() - found.keys())
    row["figures_unmeasured"] = absent
    if not found:
        return {**row, "verdict": "not measured", "value": None, "of": None, "miss": None, "sure": None, "n": 0}
    worst = max(found, key=lambda path: (abs(target.miss(found[path]["value"])), _margin(target, found[path]["value"])))
    one = found[worst]
    missing = [path for path, other in found.items() if target.miss(other["value"]) != 0.0]
    n = min(other["n"] for other in found.values())
    few = target.least_n is not None and n < target.least_n
    verdict = "missed" if missing else "not measured" if absent else "too few" if few else "met"
    bounds = [other[end] for other in found.values() for end in ("low", "high")]
    sure = None if absent or any(end is None for end in bounds) else all(target.miss(end) == 0.0 for end in bounds)
    several = len(wanted) > 1
    return {
        **row, "verdict": verdict, "value": one["value"], "low": one["low"], "high": one["high"], "n": n,
        "miss": target.miss(one["value"]), "sure": sure, "of": worst if several else None, "figures": len(wanted),
        "figures_missed": sorted(missing) if several else [],
    }  # fmt: skip


def _margin(target: Target, value: float) -> float:
    """How near a value inside the bounds comes to one of them, as a negative distance: the largest is the worst."""
    ends = [abs(value - end) for end in (target.at_least, target.at_most) if end is not None]
    return -min(ends)
