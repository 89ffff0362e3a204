"""Clinical record: what is known about a patient apart from the image. Every field is optional; absent means unknown.

Inside the program each quantity is a number in the unit that its field name states. In a file a quantity has to say its
unit (``bilirubin: 20 umol/L``); units and conversion factors are data (`clinical_record.yaml`).
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import RecordError
from models.strict_yaml import read_mapping

_QUANTITY = re.compile(r"([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\d.,]))\s*(.*)", re.IGNORECASE | re.DOTALL)
_CHILD_PUGH = {"A": (5, 6), "B": (7, 9), "C": (10, 15)}  # Child-Pugh classes by points [B]


class UnitField(BaseModel):
    """How one quantity is written: its canonical unit, the accepted units with their factors, its limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    unit: str
    units: dict[str, float]
    limits: tuple[float, float]
    source: str = ""


class DisplayRow(NamedTuple):
    """One line of a printed record."""

    label: str
    value: str
    unit: str


class _Vocabulary(BaseModel):
    fields: dict[str, UnitField]
    labels: dict[str, str]


@cache
def _vocabulary() -> _Vocabulary:
    text = resources.files("models").joinpath("clinical_record.yaml").read_text(encoding="utf-8")
    return _Vocabulary.model_validate(yaml.safe_load(text))


class ClinicalRecord(BaseModel):
    """Typed facts about a patient, in the units of the field names. None means unknown, never normal."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    age_years: float | None = None
    sex: Literal["male", "female"] | None = None
    height_cm: float | None = None
    weight_kg: float | None = None
    bilirubin_mg_dl: float | None = None
    albumin_g_dl: float | None = None
    inr: float | None = None
    creatinine_mg_dl: float | None = None
    creatinine_clearance_ml_min: float | None = None
    platelets_10e9_l: float | None = None
    wbc_10e9_l: float | None = None
    neutrophils_10e9_l: float | None = None
    lvef_percent: float | None = None
    afp_ng_ml: float | None = None
    crp_mg_dl: float | None = None
    ast_u_l: float | None = None
    ecog: int | None = Field(default=None, ge=0, le=4)
    ascites: Literal["none", "mild", "moderate_severe"] | None = None
    encephalopathy: int | None = Field(default=None, ge=0, le=4)
    child_pugh_class: Literal["A", "B", "C"] | None = None
    child_pugh_score: int | None = Field(default=None, ge=5, le=15)
    bclc: Literal["0", "A", "B", "C", "D"] | None = None
    cirrhosis: bool | None = None
    portal_vein_invasion: Literal["none", "branch", "main"] | None = None
    hepatofugal_flow: bool | None = None
    extrahepatic_spread: bool | None = None
    shunt: Literal["none", "arterioportal", "hepatic_vein"] | None = None
    shunt_marked: bool | None = None
    refractory_ascites: bool | None = None
    jaundice: bool | None = None
    hepatorenal_syndrome: bool | None = None
    active_infection: bool | None = None
    active_gi_bleeding: bool | None = None
    contrast_allergy_severe: bool | None = None
    uncorrectable_coagulopathy: bool | None = None
    hyperthyroidism: bool | None = None
    bile_duct_dilatation_undrained: bool | None = None
    bile_duct_occlusion: bool | None = None
    high_risk_varices: bool | None = None
    lipiodol_hypersensitivity: bool | None = None
    severe_lung_impairment: bool | None = None
    neuropathy_grade: int | None = Field(default=None, ge=0, le=4)
    hearing_loss: bool | None = None
    prior_anthracycline_mg_m2: float | None = None
    prior_tace_sessions: int | None = Field(default=None, ge=0, le=50)
    prior_tace_without_response: int | None = Field(default=None, ge=0, le=50)
    transplant_listed: bool | None = None
    tumour_number: int | None = Field(default=None, ge=1, le=1000)
    tumour_liver_fraction_percent: float | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name, field in _vocabulary().fields.items():
            value, (low, high) = getattr(self, name), field.limits
            if value is not None and not low <= value <= high:
                raise ValueError(
                    f"{field.label} is {value:g} {field.unit}".rstrip()
                    + f", outside {low:g} to {high:g}; check the value and its unit"
                )
        if self.child_pugh_class is not None and self.child_pugh_score is not None:
            low_points, high_points = _CHILD_PUGH[self.child_pugh_class]
            if not low_points <= self.child_pugh_score <= high_points:
                raise ValueError(
                    f"Child-Pugh class {self.child_pugh_class} means {low_points} to {high_points} points, "
                    f"but the score is {self.child_pugh_score}; correct one of them"
                )
        sessions, failed = self.prior_tace_sessions, self.prior_tace_without_response
        if sessions is not None and failed is not None and failed > sessions:
            raise ValueError(f"{failed} TACE sessions without response are more than the {sessions} sessions given")
        return self

    @classmethod
    def load(cls, path: Path | str) -> ClinicalRecord:
        """Read a YAML or JSON file.

        Args:
            path: ``.yaml``, ``.yml`` or ``.json``, a mapping of field names to values.

        Raises:
            RecordError: the file is missing or unreadable, or `from_mapping` refuses its content.
        """
        return cls.from_mapping(read_mapping(Path(path), "clinical record", RecordError))

    @classmethod
    def from_mapping(cls, data: Mapping[Any, Any]) -> ClinicalRecord:
        """Read fields as a person writes them.

        A quantity is ``"1.2 mg/dL"`` or ``{value: 1.2, unit: mg/dL}`` under its short name (``bilirubin``) or its
        full name (``bilirubin_mg_dl``); only under the full name, which says the unit, a bare number is accepted.
        None leaves a field unknown.

        Raises:
            RecordError: an unknown field, a field given twice, a missing or unknown unit, an impossible value.
        """
        values: dict[str, Any] = {}
        for key, raw in data.items():
            name = field_name(key)
            if name in values:
                raise RecordError(f"The clinical record gives {name} twice; keep one.")
            values[name] = None if raw is None else _read_value(str(key), name, raw)
        try:
            return cls(**values)
        except ValidationError as error:
            raise RecordError(f"The clinical record can't be used: {_explain(error)}.") from error

    def to_display(self) -> list[DisplayRow]:
        """The known fields as (label, value, unit), in the order of the class."""
        vocabulary = _vocabulary()
        rows = []
        for name in type(self).model_fields:
            value = getattr(self, name)
            if value is None:
                continue
            field = vocabulary.fields.get(name)
            if isinstance(value, bool):
                text = "yes" if value else "no"
            elif isinstance(value, float):
                text = f"{value:.6g}" if abs(value) < 1e6 else f"{value:.0f}"
            else:
                text = str(value).replace("_", " ")
            label, unit = (field.label, field.unit) if field else (vocabulary.labels[name], "")
            rows.append(DisplayRow(label, text, unit))
        return rows

    def known(self) -> dict[str, Any]:
        """The known fields as plain values, in the units of their names."""
        return self.model_dump(exclude_none=True)


def field_label(name: str) -> str:
    """What a person calls a field of the record: ``Total bilirubin`` for ``bilirubin_mg_dl``.

    Raises:
        KeyError: There is no such field.
    """
    vocabulary = _vocabulary()
    field = vocabulary.fields.get(name)
    return field.label if field else vocabulary.labels[name]


def short_name(name: str) -> str:
    """``bilirubin`` of ``bilirubin_mg_dl``."""
    return re.sub(r"_(years|cm|kg|mg_dl|g_dl|ml_min|10e9_l|percent|ng_ml|u_l|mg_m2)$", "", name)


def field_name(key: object) -> str:
    """The full name of a field: ``bilirubin_mg_dl`` for ``bilirubin``.

    Raises:
        RecordError: there is no such field; the sentence names the nearest.
    """
    by_spelling = {short_name(name): name for name in ClinicalRecord.model_fields}
    by_spelling |= {name: name for name in ClinicalRecord.model_fields}
    text = str(key).strip()
    if text in by_spelling:
        return by_spelling[text]
    near = difflib.get_close_matches(text.lower(), by_spelling, n=3, cutoff=0.5)
    known = ", ".join(map(short_name, ClinicalRecord.model_fields))
    hint = f"near it are {', '.join(near)}" if near else f"known are {known}"
    raise RecordError(f"The clinical record has no field {text!r}; {hint}.")


def _read_value(key: str, name: str, raw: object) -> object:
    field = _vocabulary().fields.get(name)
    if isinstance(raw, str) and raw.strip().lower() in ("na", "n/a", "nan", "unknown", ""):
        raise RecordError(f"{key} is {raw!r}, which is no value; leave the field out where it is unknown.")
    if field is None:
        # YAML reads the BCLC stage 0 as a number; the stage is a name.
        return str(raw) if name == "bclc" and type(raw) is int else raw
    others = [spelling for spelling in field.units if spelling != _fold_unit(field.unit)]
    accepted = ", ".join([field.unit, *others] if field.unit else ["no unit"])
    if isinstance(raw, Mapping):
        if set(raw) != {"value", "unit"}:
            raise RecordError(f"{key} needs exactly `value` and `unit`, has {', '.join(map(str, raw)) or 'nothing'}.")
        number, unit_text = raw["value"], str(raw["unit"])
    elif isinstance(raw, str):
        match = _QUANTITY.fullmatch(unicodedata.normalize("NFKC", raw).strip())
        if match is None:
            raise RecordError(f"{key} is {raw!r}, not a number with a unit such as '12 {field.unit}'.")
        number, unit_text = float(match.group(1)), match.group(2)
    else:
        number, unit_text = raw, ""
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise RecordError(f"{key} is {raw!r}, not a number; write it with one of its units: {accepted}.")
    try:
        number = float(number)
    except OverflowError:
        raise RecordError(f"{key} has {len(str(number))} digits, which is no possible number; correct it.") from None
    unit = _fold_unit(unit_text)
    if not unit:
        if field.units and key.strip() != name:
            raise RecordError(f"{key} is {number:g} without a unit; write it with one of {accepted}.")
        return number
    factors = {_fold_unit(spelling): factor for spelling, factor in field.units.items()}
    if unit not in factors:
        raise RecordError(f"{key} is in {unit_text!r}, which is not known for it; use {accepted}.")
    if key.strip() == name and field.units and factors[unit] != 1 and short_name(name) != name:
        raise RecordError(
            f"{key} says {field.unit} in its name but is given in {unit_text!r}; use the name {short_name(name)!r}."
        )
    # Nine digits: 176.8 umol/L is 2 mg/dL, not 1.9999999999999998, where a rule asks for at least 2.
    return float(f"{number / factors[unit]:.9g}")


def _fold_unit(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold().replace("μ", "u").replace("µ", "u")
    return re.sub(r"\s+", "", folded).replace("×", "x").replace("·", "*")


def _explain(error: ValidationError) -> str:
    """The first problem as a clause, without pydantic's vocabulary."""
    first = error.errors()[0]
    message = str(first["msg"]).removeprefix("Value error, ")
    where = ".".join(map(str, first["loc"]))
    if not where:
        return message
    # YAML 1.1 reads the words yes, no, on and off as true and false: the file need not say what is told here
    yaml_word = " (YAML reads an unquoted yes, no, on or off so)" if isinstance(first["input"], bool) else ""
    return f"{where} is {first['input']!r}{yaml_word}: {message[0].lower()}{message[1:]}"
