"""Protocol: an unordered set of drugs and embolics, optionally with doses."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["drug", "embolic"]
DoseUnit = Literal["mg", "ml"]


class Dose(BaseModel):
    """An amount of one agent in one session. Drugs are in mg, liquid embolics in ml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    amount: float = Field(gt=0)
    unit: DoseUnit

    def __str__(self) -> str:
        amount = format(Decimal(f"{self.amount:.12g}"), "f")  # never "1e+06", which nobody reads and no parser takes
        return f"{amount} {self.unit}"


class Protocol(BaseModel):
    """Canonical names only (see `models.formulary`); order and repetition do not matter.

    Equal sets with equal doses are equal and hash alike. `key` is a stable text id, for example
    ``"Cisplatin 50 mg + Mitomycin | Lipiodol"``; an empty side is written ``-``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    drugs: tuple[str, ...] = ()
    embolics: tuple[str, ...] = ()
    doses: tuple[tuple[str, Dose], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        out = dict(data)
        for side in ("drugs", "embolics"):
            out[side] = tuple(sorted(set(out.get(side, ()))))
        doses = out.get("doses", ())
        out["doses"] = tuple(sorted(doses.items() if isinstance(doses, dict) else doses, key=lambda pair: pair[0]))
        return out

    @model_validator(mode="after")
    def _doses_belong(self) -> Self:
        names = [name for name, _ in self.doses]
        if len(set(names)) != len(names):
            raise ValueError(f"an agent has two doses: {', '.join(names)}")
        if stray := sorted(set(names) - set(self.items)):
            raise ValueError(f"a dose is given for {', '.join(stray)}, which is not in the protocol")
        return self

    @property
    def items(self) -> tuple[str, ...]:
        """All agents, drugs first."""
        return self.drugs + self.embolics

    def dose(self, name: str) -> Dose | None:
        """The dose of one agent, or None where none is stated."""
        return dict(self.doses).get(name)

    def with_item(self, kind: Kind, name: str) -> Protocol:
        """The protocol with one more agent; the same protocol when the agent is already in it."""
        side = "drugs" if kind == "drug" else "embolics"
        return Protocol(**{**self.model_dump(), side: (*getattr(self, side), name)})

    @property
    def key(self) -> str:
        """Stable text id, unique among protocols."""
        doses = dict(self.doses)

        def side(names: tuple[str, ...]) -> str:
            return " + ".join(f"{n} {doses[n]}" if n in doses else n for n in names) or "-"

        return f"{side(self.drugs)} | {side(self.embolics)}"

    def __str__(self) -> str:
        return self.key
