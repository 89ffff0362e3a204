"""Facts: everything that a clinical rule may ask about one protocol for one patient, looked up by path.

A fact that nobody stated and nothing measures is None, with the names of the inputs that were missing; nothing is
assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from models.clinical_record import ClinicalRecord
from models.formulary import Formulary
from models.protocol import Protocol
from models.scores import body_surface_m2, child_pugh, child_pugh_class_of


class SessionFacts(BaseModel):
    """What is stated about this session and has no field in the clinical record; None is unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    technique: Literal["ctace", "deb_tace"] | None = Field(default=None, description="What the plan is called")
    superselective: bool | None = Field(default=None, description="Segmental or superselective catheter position")
    folinic_acid: bool | None = Field(default=None, description="Folinic or folic acid is given too")
    raltitrexed_mixed: bool | None = Field(default=None, description="Raltitrexed shares a container or emulsion")
    chloride_diluent: bool | None = Field(default=None, description="The platinum is diluted in a chloride solution")
    portal_collaterals: Literal["few", "adequate"] | None = None
    hypersplenism: bool | None = None
    diffuse_bilobar: bool | None = Field(default=None, description="Diffuse, infiltrative, bilobar disease")
    resectable_or_ablatable: bool | None = None
    life_expectancy_months: float | None = Field(default=None, ge=0, json_schema_extra={"unit": "months"})
    new_invasion_or_spread: bool | None = Field(
        default=None, description="New macrovascular invasion or metastasis after TACE"
    )
    recent_trauma_or_haemorrhage: bool | None = None
    heart_failure_or_overload: bool | None = Field(
        default=None, description="Cardiorespiratory failure, right-heart overload"
    )
    recent_myocardial_infarction: bool | None = None
    cardiotoxic_exposure: bool | None = Field(
        default=None, description="Other cardiotoxic drugs or cardiac radiotherapy"
    )
    marrow_failure: bool | None = None
    prior_oxaliplatin_mg_m2: float | None = Field(default=None, ge=0, json_schema_extra={"unit": "mg/m2"})
    prior_mitomycin_mg: float | None = Field(default=None, ge=0, json_schema_extra={"unit": "mg"})


@dataclass(frozen=True)
class CaseFacts:
    """What is measured on the pre-treatment image and its labels; None where there is nothing to measure on."""

    lesion_count: int | None = None
    largest_diameter_cm: float | None = None
    tumour_liver_percent: float | None = None
    contrast_hu: float | None = None
    heterogeneity_hu: float | None = None
    hypodense_fraction: float | None = None


@lru_cache(maxsize=1)
def known_agents() -> Formulary:
    """Every agent that the rules may name, whether it is in an action set or not."""
    return Formulary.load("all_known")


@lru_cache(maxsize=1)
def _classes() -> dict[str, str]:
    return {item.name: item.item_class for item in known_agents().items}


class Value(NamedTuple):
    """A looked-up value; `missing` names the absent inputs when it is None."""

    value: Any
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """Everything that a rule may ask about one protocol for one patient."""

    record: ClinicalRecord = field(default_factory=ClinicalRecord)
    case: CaseFacts = field(default_factory=CaseFacts)
    session: SessionFacts = field(default_factory=SessionFacts)
    protocol: Protocol = field(default_factory=Protocol)

    def members(self, name: str) -> tuple[str, ...]:
        """Agents of the protocol that `name` (an agent, a class, ``drugs`` or ``embolics``) covers."""
        if name == "drugs":
            return self.protocol.drugs
        if name == "embolics":
            return self.protocol.embolics
        classes = _classes()
        return tuple(item for item in self.protocol.items if name in (item, classes[item]))

    def value(self, path: str) -> Value:
        """Look up a field.

        Args:
            path: ``record.X``, ``session.X``, ``case.X``; ``derived.child_pugh_score`` (stated, else from bilirubin,
            albumin,
                INR, ascites, encephalopathy), ``derived.child_pugh_class``, ``derived.tumour_number`` (stated, else
                counted), ``derived.tumour_liver_percent`` (stated, else measured); ``dose.AGENT`` (mg or ml),
                ``dose_per_m2.AGENT`` (by Mosteller's surface; mg/m2), ``lifetime_per_m2.AGENT`` (prior anthracyclines
                plus this dose, mg/m2), ``lifetime.Mitomycin`` (mg), ``dose_above_range.drugs`` (drugs dosed above
                the formulary's range).

        Returns:
            The value, or None with the names of the missing inputs.

        Raises:
            KeyError: There is no such field.
        """
        group, _, name = path.partition(".")
        if group in ("record", "session", "case"):
            found = getattr(getattr(self, group), name)
            return Value(found, () if found is not None else (path,))
        if group == "derived":
            return DERIVED[name](self)
        if group in DOSES:
            return DOSES[group](self, name)
        raise KeyError(path)


def _dose(facts: Facts, item: str) -> Value:
    dose = facts.protocol.dose(item)
    return Value(None, (f"dose of {item}",)) if dose is None else Value(dose.amount)


def _dose_per_m2(facts: Facts, item: str) -> Value:
    amount, area = _dose(facts, item), _surface(facts)
    if missing := amount.missing + area.missing:
        return Value(None, missing)
    return Value(amount.value / area.value)


def _surface(facts: Facts) -> Value:
    record = facts.record
    if record.height_cm is None or record.weight_kg is None:
        absent = {"record.height_cm": record.height_cm, "record.weight_kg": record.weight_kg}
        return Value(None, tuple(name for name, value in absent.items() if value is None))
    return Value(body_surface_m2(record.height_cm, record.weight_kg))


def _lifetime_per_m2(facts: Facts, item: str) -> Value:
    before = facts.session.prior_oxaliplatin_mg_m2 if item == "Oxaliplatin" else facts.record.prior_anthracycline_mg_m2
    where = "session.prior_oxaliplatin_mg_m2" if item == "Oxaliplatin" else "record.prior_anthracycline_mg_m2"
    now = _dose_per_m2(facts, item)
    missing = (() if before is not None else (where,)) + now.missing
    return Value(None, missing) if missing or before is None else Value(before + now.value)


def _lifetime(facts: Facts, item: str) -> Value:
    before, now = facts.session.prior_mitomycin_mg, _dose(facts, item)
    missing = (() if before is not None else ("session.prior_mitomycin_mg",)) + now.missing
    return Value(None, missing) if missing or before is None else Value(before + now.value)


def _above_range(facts: Facts, _name: str) -> Value:
    above: list[str] = []
    missing: list[str] = []
    for item in facts.protocol.drugs:
        entry = known_agents().item(item)
        with_beads = "Drug-eluting beads" in facts.protocol.embolics
        limits = entry.dose_with_beads if with_beads and entry.dose_with_beads is not None else entry.dose
        dose = facts.protocol.dose(item)
        if limits is None:
            continue
        if dose is None:
            missing.append(f"dose of {item}")
        elif dose.amount > limits.high:
            above.append(f"{item} {dose} (usual {limits})")
    return Value(tuple(above), ()) if above or not missing else Value(None, tuple(missing))


def _child_pugh_score(facts: Facts) -> Value:
    record = facts.record
    if record.child_pugh_score is not None:
        return Value(record.child_pugh_score)
    result = child_pugh(record)
    if result.points is not None:
        return Value(result.points)
    return Value(None, ("record.child_pugh_score", *(f"record.{name}" for name in result.missing)))


def _child_pugh_class(facts: Facts) -> Value:
    record = facts.record
    if record.child_pugh_class is not None:
        return Value(record.child_pugh_class)
    score = _child_pugh_score(facts)
    if score.value is None:
        return Value(None, ("record.child_pugh_class", *score.missing))
    return Value(child_pugh_class_of(score.value))


def _either(stated: Any, measured: Any, names: tuple[str, str]) -> Value:
    found = stated if stated is not None else measured
    return Value(found, () if found is not None else names)


DERIVED: dict[str, Callable[[Facts], Value]] = {
    "child_pugh_score": _child_pugh_score,
    "child_pugh_class": _child_pugh_class,
    "tumour_number": lambda f: _either(
        f.record.tumour_number, f.case.lesion_count, ("record.tumour_number", "case.lesion_count")
    ),
    "tumour_liver_percent": lambda f: _either(
        f.record.tumour_liver_fraction_percent,
        f.case.tumour_liver_percent,
        ("record.tumour_liver_fraction_percent", "case.tumour_liver_percent"),
    ),
}
DOSES: dict[str, Callable[[Facts, str], Value]] = {
    "dose": _dose,
    "dose_per_m2": _dose_per_m2,
    "lifetime_per_m2": _lifetime_per_m2,
    "lifetime": _lifetime,
    "dose_above_range": _above_range,
}
