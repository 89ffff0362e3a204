"""What if: a planned case with other values in its clinical record, another action set or another rule profile.

A what-if is a question, never a plan to be given: it has no approval gates and says in its report what was changed. The
case folder is not touched. Images and labels stay as they are, so what was simulated on them is used again. Named
situations and the values that stand for them are data (`what_if.yaml`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from models.clinical_record import ClinicalRecord, field_label, field_name, short_name
from models.errors import InputError, RecordError

UNKNOWN = ("unknown", "not known", "")


class Situation(BaseModel):
    """A situation that a what-if may name, and the values that stand for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    also: tuple[str, ...]
    record: dict[str, str]
    why: str


class _Situations(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    situations: tuple[Situation, ...]


@lru_cache(maxsize=1)
def situations() -> tuple[Situation, ...]:
    """The named situations, checked against their schema."""
    text = files("agent").joinpath("what_if.yaml").read_text(encoding="utf-8")
    return _Situations.model_validate(yaml.safe_load(text)).situations


def situation(name: str) -> Situation:
    """The situation of that name or synonym; case, hyphens and spaces do not matter.

    Raises:
        InputError: there is none; the sentence lists what there is.
    """
    wanted = _folded(name)
    for found in situations():
        if wanted in map(_folded, (found.name, *found.also)):
            return found
    known = ", ".join(found.name for found in situations())
    raise InputError(
        f"'{name[:80]}' is no situation that stands for values of the record; there are {known}. Or name a field with "
        "its value, such as creatinine clearance 20 mL/min."
    )


def _folded(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


@lru_cache(maxsize=1)
def _labels() -> dict[str, str]:
    return {_folded(field_label(name)): name for name in ClinicalRecord.model_fields}


def field_of(text: str) -> str:
    """The full name of a field, by its name or by what a person calls it (``creatinine clearance``).

    Raises:
        RecordError: there is no such field; the sentence names the nearest.
    """
    folded = _folded(text)
    return _labels().get(folded) or field_name(folded.replace(" ", "_"))


def read_changes(stated: Mapping[str, str]) -> dict[str, Any]:
    """Changes of a clinical record as a person writes them.

    Args:
        stated: Field (``bilirubin`` or its full name) -> value with its unit, or ``unknown``.

    Returns:
        Full field name -> value in the unit of that name; None where it is to be unknown.

    Raises:
        RecordError: an unknown field, a field given twice, a missing or unknown unit, an impossible value.
    """
    values: dict[str, Any] = {}
    for key, text in stated.items():
        name = field_of(key)
        if name in values:
            raise RecordError(f"The change gives {name} twice; keep one.")
        if text.strip().lower() in UNKNOWN:
            values[name] = None
            continue
        # The full name says the unit, so a bare number may stand under it and under no other name.
        spelled = name if key.strip() == name else short_name(name)
        values |= ClinicalRecord.from_mapping({spelled: _typed(name, text.strip())}).known()
    return values


def split_changes(texts: Iterable[str]) -> dict[str, Any]:
    """Changes given as ``FIELD=VALUE`` each.

    Raises:
        RecordError: a text without ``=``, or what `read_changes` refuses.
    """
    stated: dict[str, str] = {}
    for text in texts:
        name, mark, value = text.partition("=")
        if not mark:
            raise RecordError(f"The change {text!r} is not FIELD=VALUE, such as 'creatinine_clearance=20 mL/min'.")
        if name.strip() in stated:
            raise RecordError(f"The change gives {name.strip()} twice; keep one.")
        stated[name.strip()] = value
    return read_changes(stated)


def _typed(name: str, text: str) -> object:
    """A text as the type of a field without unit: yes and no for a flag, a whole number for a grade."""
    kinds = str(ClinicalRecord.model_fields[name].annotation)
    if "bool" in kinds and text.lower() in ("yes", "true", "no", "false"):
        return text.lower() in ("yes", "true")
    if "int" in kinds and text.isdigit():
        return int(text)
    return text


def changes_shown(before: ClinicalRecord, after: ClinicalRecord) -> tuple[str, ...]:
    """The fields in which two records differ, as ``Creatinine clearance: 20 mL/min (in the record: 75 mL/min)``."""
    old, new = ({row.label: f"{row.value} {row.unit}".strip() for row in r.to_display()} for r in (before, after))
    labels = [label for label in dict.fromkeys((*new, *old)) if old.get(label) != new.get(label)]
    pairs = ((label, new.get(label, "unknown"), old.get(label, "unknown")) for label in labels)
    return tuple(f"{label}: {now} (in the record: {then})" for label, now, then in pairs)
