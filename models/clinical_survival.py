"""Clinical survival model: a Cox model of what the record states, beside the image model; it knows no protocol.

Its coefficients are data (`clinical_survival.yaml`, made by ``mewm train clinical``), its card is
`clinical_survival.md`. A variable that is not known is never filled in: the model has variants, each fitted on its own
variables, and the first one whose variables are all known is used, if it ranked held-out patients better than a coin.
Where none does, nothing is estimated.
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from importlib import resources
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.clinical_record import ClinicalRecord
from models.scores import child_pugh, child_pugh_class_of
from models.survival_curve import median_survival, survival_at

Variable = Literal["log_afp", "child_pugh_b_c", "vascular_invasion", "multinodular", "over_half_of_liver", "responders"]
MEANING: dict[Variable, str] = {
    "log_afp": "log10(1 + AFP in ng/ml)",
    "child_pugh_b_c": "Child-Pugh class B or C (1) or A (0)",
    "vascular_invasion": "tumour in the portal vein (1) or not (0)",
    "multinodular": "more than one tumour (1) or one (0)",
    "over_half_of_liver": "tumour in more than half of the liver (1) or not (0)",
    "responders": "share of the readers who saw a complete or partial response by mRECIST, 0 to 1",
}
NEEDS: dict[Variable, str] = {
    "log_afp": "AFP",
    "child_pugh_b_c": "Child-Pugh class",
    "vascular_invasion": "portal vein invasion",
    "multinodular": "number of tumours",
    "over_half_of_liver": "share of the liver that is tumour",
    "responders": "response after treatment",
}


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Term(_Data):
    """One variable of a variant: log hazard = coefficient x (value - mean)."""

    coefficient: float
    mean: float = Field(description="over the development patients; the reference patient has it")


class Interval(_Data):
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float


class Variant(_Data):
    """A Cox model of some of the variables.

    Attributes:
        name: of the variant.
        terms: by variable.
        penalty: ridge penalty on standardised variables, chosen by cross-validation.
        n: patients.
        deaths: among them.
        c_index: cross-validated.
        baseline: survival of the reference patient (log hazard 0) month by month, from month 0.
    """

    name: str
    terms: dict[Variable, Term]
    penalty: float
    n: int
    deaths: int
    c_index: Interval
    baseline: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _curve(self) -> Variant:
        if any(later > earlier for earlier, later in itertools.pairwise((1.0, *self.baseline, 0.0))):
            raise ValueError(f"the baseline of {self.name} is no survival curve")
        return self

    @property
    def informative(self) -> bool:
        """Whether it ranked held-out patients better than a coin."""
        return self.c_index.value > 0.5

    def log_risk(self, values: dict[Variable, float]) -> float:
        """Log hazard against the reference patient."""
        return sum(term.coefficient * (values[name] - term.mean) for name, term in self.terms.items())


class ClinicalModel(_Data):
    """Content of `clinical_survival.yaml`."""

    schema_version: Literal[1]
    data: str = Field(description="what it was fitted on, with its citation")
    table_sha256: str
    command: str
    seed: int
    variants: tuple[Variant, ...] = Field(description="in the order in which they are tried")
    after_treatment: Variant = Field(description="with the response seen at follow-up; no part of planning")


@cache
def clinical_model() -> ClinicalModel:
    """The shipped model."""
    text = resources.files("models").joinpath("clinical_survival.yaml").read_text(encoding="utf-8")
    return ClinicalModel.model_validate(yaml.safe_load(text))


class ClinicalPart(_Data):
    """What one variable adds to the log hazard."""

    variable: Variable
    meaning: str
    value: float
    log_hazard: float


class ClinicalRisk(_Data):
    """What the record alone says of a patient's survival: the same for every protocol."""

    log_risk: float | None = Field(description="log hazard against the mean development patient; None: not evaluable")
    median_survival_months: float | None = Field(description="None where not evaluable or beyond the follow-up")
    variant: str | None
    parts: tuple[ClinicalPart, ...]
    not_evaluable: tuple[str, ...] = Field(description="what was missing, for the estimate or for a fuller variant")
    c_index: Interval | None = Field(description="cross-validated, of the variant")
    n: int | None
    data: str


def clinical_values(record: ClinicalRecord, tumour_share: float | None = None) -> dict[Variable, float]:
    """The model's variables as far as they are known.

    Args:
        record: the clinical record.
        tumour_share: share of the liver that is tumour, 0 to 1, as measured on the labels; what the record states goes
            before it.
    """
    values: dict[Variable, float] = {}
    if record.afp_ng_ml is not None:
        values["log_afp"] = math.log10(1 + record.afp_ng_ml)
    grade = record.child_pugh_class
    if grade is None and record.child_pugh_score is not None:
        grade = child_pugh_class_of(record.child_pugh_score)  # type: ignore[assignment]
    if grade is None:
        grade = child_pugh(record).grade  # type: ignore[assignment]
    if grade is not None:
        values["child_pugh_b_c"] = float(grade != "A")
    if record.portal_vein_invasion is not None:
        values["vascular_invasion"] = float(record.portal_vein_invasion != "none")
    if record.tumour_number is not None:
        values["multinodular"] = float(record.tumour_number > 1)
    stated = record.tumour_liver_fraction_percent
    share = tumour_share if stated is None else stated / 100
    if share is not None:
        values["over_half_of_liver"] = float(share > 0.5)
    return values


def clinical_risk(
    record: ClinicalRecord, tumour_share: float | None = None, model: ClinicalModel | None = None
) -> ClinicalRisk:
    """The log hazard and median survival that the record alone suggests.

    Args:
        record: the clinical record.
        tumour_share: see `clinical_values`.
        model: None takes the shipped one.
    """
    model = model or clinical_model()
    values = clinical_values(record, tumour_share)
    fullest = model.variants[0]
    missing = tuple(NEEDS[name] for name in fullest.terms if name not in values)
    usable = (one for one in model.variants if one.informative and one.terms.keys() <= values.keys())
    variant = next(usable, None)
    if variant is None:
        return ClinicalRisk(
            log_risk=None, median_survival_months=None, variant=None, parts=(), not_evaluable=missing, c_index=None,
            n=None, data=model.data,
        )  # fmt: skip
    parts = tuple(
        ClinicalPart(
            variable=name, meaning=MEANING[name], value=values[name],
            log_hazard=term.coefficient * (values[name] - term.mean),
        )
        for name, term in variant.terms.items()
    )  # fmt: skip
    log_risk = variant.log_risk(values)
    return ClinicalRisk(
        log_risk=log_risk,
        median_survival_months=median_survival(range(len(variant.baseline)), survival_at(variant.baseline, log_risk)),
        variant=variant.name,
        parts=parts,
        not_evaluable=missing,
        c_index=variant.c_index,
        n=variant.n,
        data=model.data,
    )
