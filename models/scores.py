"""Prognostic scores of hepatocellular carcinoma and TACE as pure functions over canonical units.

Every score returns a `Score`; where an input is missing its value is None and the inputs are named: nothing is assumed.
Cut-offs are those of the cited papers. Scores whose coefficients could not be confirmed are not here.

Inputs are in the units of `models.clinical_record.ClinicalRecord`; the published formulas use SI units, and the
conversion is done here: 1 mg/dL bilirubin = 17.104 umol/L (molar mass 584.66 g/mol), 1 g/dL = 10 g/L.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from models.clinical_record import ClinicalRecord

BILIRUBIN_UMOL_L_PER_MG_DL = 17.104


class Score(BaseModel):
    """A score: its value, its class where it has one, or the inputs that were missing.

    `stated` is True where it was taken from the clinical record as it stands there, not computed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    value: float | None = None
    grade: str | None = None
    missing: tuple[str, ...] = ()
    stated: bool = False
    source: str

    @property
    def evaluable(self) -> bool:
        """Whether every input was there."""
        return not self.missing

    @property
    def points(self) -> int | None:
        """The value of a point score as a whole number."""
        return None if self.value is None else round(self.value)


def _score(name: str, source: str, inputs: dict[str, Any], rule: Callable[[], tuple[float, str | None]]) -> Score:
    """Score with `rule` when every input is there; a NaN or infinite input is an error, not a score."""
    missing = tuple(key for key, value in inputs.items() if value is None)
    if missing:
        return Score(name=name, missing=missing, source=source)
    for key, value in inputs.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}: {key} is {value}, not a finite number")
    value, grade = rule()
    return Score(name=name, value=value, grade=grade, source=source)


def _from(record: ClinicalRecord, *names: str) -> dict[str, Any]:
    return {name: getattr(record, name) for name in names}


def _band(value: float, limits: Sequence[float], grades: Sequence[str]) -> str:
    """Grade by upper limits that belong to the band below them."""
    return grades[sum(value > limit for limit in limits)]


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} has to be above 0, it is {value}")


def body_surface_m2(height_cm: float, weight_kg: float) -> float:
    """Body surface area by Mosteller, sqrt(height x weight / 3600).

    Args:
        height_cm: Height in cm, 40 to 250 (a height in m is refused).
        weight_kg: Weight in kg, above 0.

    Returns:
        Area in m2.

    Raises:
        ValueError: A value is outside its range.

    Source:
        Mosteller, N Engl J Med 1987;317:1098.
    """
    if not 40 <= height_cm <= 250:
        raise ValueError(f"height has to be in cm between 40 and 250, it is {height_cm}")
    _positive("weight", weight_kg)
    return math.sqrt(height_cm * weight_kg / 3600.0)


def child_pugh_class_of(points: int) -> str:
    """Class of 5 to 15 Child-Pugh points: A to 6, B to 9, C above.

    Raises:
        ValueError: The points are not between 5 and 15.
    """
    if not 5 <= points <= 15:
        raise ValueError(f"Child-Pugh points are between 5 and 15, not {points}")
    return _band(points, (6, 9), ("A", "B", "C"))


def child_pugh(record: ClinicalRecord) -> Score:
    """Child-Pugh points from bilirubin, albumin, INR, ascites and encephalopathy; class A, B or C.

    Source:
        Pugh, Br J Surg 1973;60:646-649, with INR in place of prothrombin time.
    """
    inputs = _from(record, "bilirubin_mg_dl", "albumin_g_dl", "inr", "ascites", "encephalopathy")

    def rule() -> tuple[float, str]:
        bilirubin, albumin, inr = inputs["bilirubin_mg_dl"], inputs["albumin_g_dl"], inputs["inr"]
        points = 1 if bilirubin < 2 else 2 if bilirubin <= 3 else 3
        points += 1 if albumin > 3.5 else 2 if albumin >= 2.8 else 3
        points += 1 if inr < 1.7 else 2 if inr <= 2.3 else 3
        points += {"none": 1, "mild": 2, "moderate_severe": 3}[inputs["ascites"]]
        points += (1, 2, 2, 3, 3)[inputs["encephalopathy"]]
        return points, child_pugh_class_of(points)

    return _score("Child-Pugh", "Pugh, Br J Surg 1973;60:646", inputs, rule)


def albi(record: ClinicalRecord) -> Score:
    """ALBI, 0.66 log10(bilirubin umol/L) - 0.085 albumin g/L; grade 1, 2a, 2b or 3 (mALBI splits grade 2 at -2.270).

    Raises:
        ValueError: Albumin is above 7 g/dL (it is probably in g/L), or a value is not above 0.

    Source:
        Johnson, J Clin Oncol 2015;33:550-558; split: Hiraoka, Liver Cancer 2019;8:312-325.
    """
    inputs = _from(record, "bilirubin_mg_dl", "albumin_g_dl")

    def rule() -> tuple[float, str]:
        bilirubin, albumin = inputs["bilirubin_mg_dl"], inputs["albumin_g_dl"]
        _positive("bilirubin", bilirubin)
        if not 0 < albumin <= 7:
            raise ValueError(f"albumin has to be in g/dL between 0 and 7, it is {albumin}")
        value = 0.66 * math.log10(bilirubin * BILIRUBIN_UMOL_L_PER_MG_DL) - 0.085 * albumin * 10
        return value, _band(value, (-2.60, -2.270, -1.39), ("1", "2a", "2b", "3"))

    return _score("ALBI", "Johnson, J Clin Oncol 2015;33:550", inputs, rule)


def hap(record: ClinicalRecord, largest_cm: float | None) -> Score:
    """HAP: one point each for albumin < 36 g/L, bilirubin > 17 umol/L, AFP > 400 ng/mL, size > 7 cm; A to D.

    Args:
        record: Clinical record.
        largest_cm: Largest tumour diameter in cm.

    Source:
        Kadalayil, Ann Oncol 2013;24:2565-2570; median survival A-D 27.6, 18.5, 9.0, 3.6 months.
    """
    inputs = {**_from(record, "albumin_g_dl", "bilirubin_mg_dl", "afp_ng_ml"), "largest_diameter_cm": largest_cm}

    def rule() -> tuple[float, str]:
        criteria: tuple[bool, ...] = (
            inputs["albumin_g_dl"] * 10 < 36,
            inputs["bilirubin_mg_dl"] * BILIRUBIN_UMOL_L_PER_MG_DL > 17,
            inputs["afp_ng_ml"] > 400,
            inputs["largest_diameter_cm"] > 7,
        )
        points = sum(criteria)
        return points, "ABCDD"[points]

    return _score("HAP", "Kadalayil, Ann Oncol 2013;24:2565", inputs, rule)


def _size_and_number(largest_cm: float | None, tumour_number: int | None) -> dict[str, Any]:
    if largest_cm is not None:
        _positive("largest diameter", largest_cm)
    if tumour_number is not None and tumour_number < 1:
        raise ValueError(f"the number of tumours has to be 1 or more, it is {tumour_number}")
    return {"largest_diameter_cm": largest_cm, "tumour_number": tumour_number}


def _sum_score(name: str, source: str, limits: Sequence[float], grades: Sequence[str]) -> Callable[..., Score]:
    def score(largest_cm: float | None, tumour_number: int | None) -> Score:
        inputs = _size_and_number(largest_cm, tumour_number)

        def rule() -> tuple[float, str]:
            total = inputs["largest_diameter_cm"] + inputs["tumour_number"]
            return total, _band(total, limits, grades)

        return _score(name, source, inputs, rule)

    return score


def six_and_twelve(largest_cm: float | None, tumour_number: int | None) -> Score:
    """Six-and-twelve: largest diameter in cm plus number; low <= 6, intermediate <= 12, high above. Not rounded.

    Args:
        largest_cm: Largest diameter in cm, above 0.
        tumour_number: Count of tumours, 1 or more.

    Raises:
        ValueError: A value is outside its range.

    Source:
        Wang Q, J Hepatol 2019;70:893-903; median survival 49.1, 32.0, 15.8 months.
    """
    return _sum_score("six-and-twelve", "Wang, J Hepatol 2019;70:893", (6, 12), ("low", "intermediate", "high"))(
        largest_cm, tumour_number
    )


def up_to_seven(largest_cm: float | None, tumour_number: int | None) -> Score:
    """Up-to-seven: largest diameter in cm plus number; within <= 7, beyond above.

    Args and Raises as in `six_and_twelve`.

    Source:
        Mazzaferro, Lancet Oncol 2009;10:35-43.
    """
    return _sum_score("up-to-seven", "Mazzaferro, Lancet Oncol 2009;10:35", (7,), ("within", "beyond"))(
        largest_cm, tumour_number
    )


def tumour_burden(largest_cm: float | None, tumour_number: int | None) -> Score:
    """Tumour burden score sqrt(d^2 + n^2); low < 3.36, medium to 13.74, high above.

    Args and Raises as in `six_and_twelve`.

    Source:
        Sasaki, Ann Surg 2018;267:132-141; cut-offs 3.36 and 13.74.
    """
    inputs = _size_and_number(largest_cm, tumour_number)

    def rule() -> tuple[float, str]:
        value = math.hypot(inputs["largest_diameter_cm"], inputs["tumour_number"])
        return value, "low" if value < 3.36 else "medium" if value <= 13.74 else "high"

    return _score("tumour burden score", "Sasaki, Ann Surg 2018;267:132", inputs, rule)


def prognostic_scores(record: ClinicalRecord, largest_cm: float | None, tumour_number: int | None) -> tuple[Score, ...]:
    """The scores that are shown beside a plan; none of them enters the search.

    What the record states (Child-Pugh, BCLC) goes before what could be computed: it is what the rules judge by.

    Args:
        record: Clinical record.
        largest_cm: Largest tumour diameter in cm, above 0.
        tumour_number: Count of tumours, 1 or more.

    Returns:
        Child-Pugh, ALBI, BCLC, HAP, six-and-twelve, up-to-seven, tumour burden score; each with its missing inputs
        where it can't be had.

    Raises:
        ValueError: A size or number is outside its range.
    """
    return (
        _stated_child_pugh(record) or child_pugh(record),
        albi(record),
        _stated_bclc(record),
        hap(record, largest_cm),
        six_and_twelve(largest_cm, tumour_number),
        up_to_seven(largest_cm, tumour_number),
        tumour_burden(largest_cm, tumour_number),
    )


def _stated_child_pugh(record: ClinicalRecord) -> Score | None:
    points, grade = record.child_pugh_score, record.child_pugh_class
    if points is None and grade is None:
        return None
    known_class = grade if points is None else child_pugh_class_of(points)
    return Score(name="Child-Pugh", value=points, grade=known_class, stated=True, source="Pugh, Br J Surg 1973;60:646")


def _stated_bclc(record: ClinicalRecord) -> Score:
    missing = () if record.bclc is not None else ("bclc",)
    source = "Reig, J Hepatol 2022;76:681"
    return Score(name="BCLC", grade=record.bclc, missing=missing, stated=not missing, source=source)
