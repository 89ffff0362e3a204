"""Conditions: the small language of the rules file. It is data, not code: nothing in it is evaluated as Python.

A condition is one of

* ``{field: record.platelets_10e9_l, op: "<", value: 50}``: a comparison; ``op`` is ``<  <=  >  >=  ==  !=  in``. A
  missing field makes the condition unknown, unless ``if_missing`` (true or false) says what silence means; that is for
  exemptions only ("unless the patient is transplant-listed"), so that silence never lifts a block;
* ``{present: [NBCA, PVA]}``: at least one of these agents or classes is in the protocol;
* ``{count: platinum, op: ">=", value: 2}``: how many agents of a class, a list, ``drugs`` or ``embolics`` it has;
* ``{any: [...]}``, ``{all: [...]}``, ``{not: ...}`` of conditions, in three-valued logic (Kleene), where unknown
  stays unknown.

Fields are ``record.*`` (clinical record), ``session.*`` (`SessionFacts`), ``case.*`` (measured on the image), and
values that are derived from them: see `tools.rule_facts.Facts.value`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from typing_extensions import override

from models.clinical_record import ClinicalRecord
from tools.rule_facts import DERIVED, DOSES, CaseFacts, Facts, SessionFacts, known_agents

Operator = Literal["<", "<=", ">", ">=", "==", "!=", "in"]
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "in": lambda value, among: value in among,
}


class Truth(NamedTuple):
    """Three-valued answer: True, False or None (unknown), with what was found true and what is missing."""

    holds: bool | None
    found: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


class _Condition(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    kind: ClassVar[str]

    def judge(self, facts: Facts) -> Truth:
        raise NotImplementedError

    def parts(self) -> tuple[_Condition, ...]:
        return ()

    def leaves(self) -> Iterator[_Condition]:
        """Every condition below this one that has no parts."""
        below = self.parts()
        if not below:
            yield self
        for part in below:
            yield from part.leaves()


class Compare(_Condition):
    """Comparison of one field."""

    kind: ClassVar[str] = "field"
    path: str = Field(alias="field")
    op: Operator
    value: bool | int | float | str | tuple[str, ...]
    if_missing: bool | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        group, _, name = self.path.partition(".")
        known: Mapping[str, Any] = {
            "record": ClinicalRecord.model_fields,
            "session": SessionFacts.model_fields,
            "case": CaseFacts.__dataclass_fields__,
            "derived": DERIVED,
            "dose_above_range": {"drugs": None},
        }
        agents = {item.name: None for item in known_agents().items}
        if name not in known.get(group, agents if group in DOSES else {}):
            raise ValueError(f"there is no field {self.path}")
        if (self.op == "in") != isinstance(self.value, tuple):
            raise ValueError(f"{self.path}: the operator `in`, and only it, takes a list")
        return self

    @override
    def judge(self, facts: Facts) -> Truth:
        found = facts.value(self.path)
        if found.value is None:
            if self.if_missing is not None:
                return Truth(self.if_missing)
            return Truth(None, missing=found.missing)
        if self.path.startswith("dose_above_range."):
            return Truth(bool(found.value), found=found.value)
        holds = _OPERATORS[self.op](found.value, self.value)
        shown = f"{found.value:g}" if isinstance(found.value, float) else str(found.value)
        return Truth(holds, found=(f"{self.path.partition('.')[2]} {shown}",) if holds else ())


class Present(_Condition):
    """At least one of some agents or classes is in the protocol."""

    kind: ClassVar[str] = "present"
    present: tuple[str, ...]

    @model_validator(mode="before")
    @classmethod
    def _one_or_many(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("present"), str):
            return {**data, "present": (data["present"],)}
        return data

    @model_validator(mode="after")
    def _known(self) -> Self:
        _check_groups(self.present)
        return self

    @override
    def judge(self, facts: Facts) -> Truth:
        return Truth(any(facts.members(name) for name in self.present))


class Count(_Condition):
    """How many agents of a group the protocol has."""

    kind: ClassVar[str] = "count"
    count: tuple[str, ...]
    op: Operator
    value: int

    @model_validator(mode="before")
    @classmethod
    def _one_or_many(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("count"), str):
            return {**data, "count": (data["count"],)}
        return data

    @model_validator(mode="after")
    def _known(self) -> Self:
        _check_groups(self.count)
        return self

    @override
    def judge(self, facts: Facts) -> Truth:
        members = {item for name in self.count for item in facts.members(name)}
        return Truth(_OPERATORS[self.op](len(members), self.value))


class AnyOf(_Condition):
    """True when one part is true."""

    kind: ClassVar[str] = "any"
    any: tuple[ConditionField, ...] = Field(min_length=1)

    @override
    def parts(self) -> tuple[_Condition, ...]:
        return self.any

    @override
    def judge(self, facts: Facts) -> Truth:
        truths = [part.judge(facts) for part in self.any]
        found = tuple(text for truth in truths if truth.holds for text in truth.found)
        if any(truth.holds for truth in truths):
            return Truth(True, found=found)
        missing = tuple(dict.fromkeys(name for truth in truths if truth.holds is None for name in truth.missing))
        return Truth(None if missing else False, missing=missing)


class AllOf(_Condition):
    """True when every part is true."""

    kind: ClassVar[str] = "all"
    all: tuple[ConditionField, ...] = Field(min_length=1)

    @override
    def parts(self) -> tuple[_Condition, ...]:
        return self.all

    @override
    def judge(self, facts: Facts) -> Truth:
        truths = [part.judge(facts) for part in self.all]
        if any(truth.holds is False for truth in truths):
            return Truth(False)
        missing = tuple(dict.fromkeys(name for truth in truths for name in truth.missing))
        found = tuple(text for truth in truths for text in truth.found)
        return Truth(None, missing=missing) if missing else Truth(True, found=found)


class Not(_Condition):
    """The opposite; unknown stays unknown."""

    kind: ClassVar[str] = "not"
    negated: ConditionField = Field(alias="not")

    @override
    def parts(self) -> tuple[_Condition, ...]:
        return (self.negated,)

    @override
    def judge(self, facts: Facts) -> Truth:
        truth = self.negated.judge(facts)
        return Truth(None if truth.holds is None else not truth.holds, missing=truth.missing)


_KINDS = ("field", "present", "count", "any", "all", "not")


def _kind(data: object) -> str | None:
    """Which kind of condition it is; None, and so a schema error, for a mapping of no kind or of two at once."""
    if isinstance(data, _Condition):
        return data.kind
    kinds = [key for key in data if key in _KINDS] if isinstance(data, dict) else []
    return kinds[0] if len(kinds) == 1 else None


ConditionField = Annotated[
    Annotated[Compare, Tag("field")]
    | Annotated[Present, Tag("present")]
    | Annotated[Count, Tag("count")]
    | Annotated[AnyOf, Tag("any")]
    | Annotated[AllOf, Tag("all")]
    | Annotated[Not, Tag("not")],
    Discriminator(_kind),
]
for _model in (AnyOf, AllOf, Not):
    _model.model_rebuild()


def _check_groups(names: tuple[str, ...]) -> None:
    known = {"drugs", "embolics"}
    for item in known_agents().items:
        known |= {item.name, item.item_class}
    if strangers := [name for name in names if name not in known]:
        raise ValueError(f"no agent or class is called {', '.join(strangers)}")
