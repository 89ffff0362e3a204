"""The fixed toxicity term: what a protocol does to the patient, beside what it does to the tumour.

The survival network sees images only and never an agent's name. Harm to liver, kidney, marrow and heart is therefore
added as a fixed, sourced term (`toxicity.yaml`) of class, dose and clinical record. It is never fitted to data.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from models.clinical_record import ClinicalRecord
from models.formulary import Formulary
from models.protocol import Protocol
from models.scores import child_pugh

_CLASS_FEWEST = {"A": 5.0, "B": 7.0, "C": 10.0}  # Pugh, Br J Surg 1973


class ToxicityPart(BaseModel):
    """The share of one agent. `reasons` name the factors that raised it, with their sources."""

    model_config = ConfigDict(frozen=True)

    item: str
    log_hazard: float
    organ: str
    reasons: tuple[str, ...] = ()


class ToxicityTerm(BaseModel):
    """Addition to the log hazard of death, at least 0, with its parts."""

    model_config = ConfigDict(frozen=True)

    log_hazard: float
    parts: tuple[ToxicityPart, ...] = ()
    not_evaluable: tuple[str, ...] = ()
    version: int


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(files("models").joinpath("toxicity.yaml").read_text(encoding="utf-8"))
    return table


@lru_cache(maxsize=1)
def _formulary() -> Formulary:
    return Formulary.load("all")


def _step(value: float, rule: dict[str, Any]) -> float:
    below = bool(rule.get("below", False))
    reached = [factor for limit, factor in rule["steps"] if (value < limit if below else value >= limit)]
    return max(reached, default=1.0)


def _number(record: ClinicalRecord, rule: dict[str, Any]) -> float | None:
    """The rule's input as a number; a grade in words counts as its place in the rule's `grades`."""
    found = getattr(record, rule["input"])
    return float(rule["grades"].index(found)) if found is not None and "grades" in rule else found


def _child_pugh_points(record: ClinicalRecord) -> tuple[float | None, str]:
    """Child-Pugh points as stated, else computed, else the fewest of the stated class; and how they were found."""
    if record.child_pugh_score is not None:
        return float(record.child_pugh_score), ""
    if (computed := child_pugh(record).value) is not None:
        return computed, ", computed from the record"
    if record.child_pugh_class is not None:
        return _CLASS_FEWEST[
            record.child_pugh_class
        ], f", the fewest points of the stated class {record.child_pugh_class}"
    return None, ""


def toxicity(
    protocol: Protocol,
    record: ClinicalRecord,
    tumour_ml: float | None = None,
    liver_ml: float | None = None,
) -> ToxicityTerm:
    """Toxicity of a protocol as an addition to the log hazard of death.

    Each agent contributes ``base(class) x dose / reference dose x product of the factors that hold``. A stated dose
    scales the term; without one the reference dose is meant. A factor whose input is missing is left out and named in
    `not_evaluable`: it is never assumed to be normal or abnormal.

    Args:
        protocol: Canonical protocol.
        record: Clinical record; absent fields stay absent.
        tumour_ml: Tumour volume in ml, from the segmentation.
        liver_ml: Volume of liver with tumour in ml. Both volumes are needed for the tumour's share of the liver where
            the record does not state it.

    Returns:
        The term, its parts per agent and the inputs that were missing.

    Raises:
        UnknownItemError: An agent of the protocol is in no formulary.

    Source:
        `models/toxicity.yaml`, which names a source per row; the relative sizes are the project's judgement.
    """
    table, formulary = _table(), _formulary()
    inputs: dict[str, float | None] = {rule["input"]: _number(record, rule) for rule in table["factors"]}
    inputs["child_pugh_score"], basis = _child_pugh_points(record)
    if inputs["tumour_liver_fraction_percent"] is None and tumour_ml is not None and liver_ml:
        inputs["tumour_liver_fraction_percent"] = 100.0 * tumour_ml / liver_ml
    parts: list[ToxicityPart] = []
    missing: set[str] = set()
    for name in protocol.items:
        item = formulary.item(name)
        base = table["base"][item.item_class]
        value = float(base["value"])
        dose = protocol.dose(name)
        if dose is not None and item.dose is not None and dose.unit == item.dose.unit:
            value *= dose.amount / item.dose.reference
        reasons: list[str] = []
        for rule in table["factors"]:
            if item.item_class not in rule["applies_to"]:
                continue
            found = inputs[rule["input"]]
            if found is None:
                missing.add(f"{rule['input']} ({rule['id']})")
            elif (factor := _step(found, rule)) > 1.0:
                value *= factor
                shown = rule["grades"][int(found)] if "grades" in rule else found
                text = rule["text"].format(value=shown) + (basis if rule["input"] == "child_pugh_score" else "")
                reasons.append(f"{rule['id']}: {text}, x{factor:g} ({rule['source']})")
        parts.append(ToxicityPart(item=name, log_hazard=value, organ=base["organ"], reasons=tuple(reasons)))
    return ToxicityTerm(
        log_hazard=sum(part.log_hazard for part in parts),
        parts=tuple(parts),
        not_evaluable=tuple(sorted(missing)),
        version=int(table["version"]),
    )
