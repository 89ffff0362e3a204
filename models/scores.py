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
    """A score: its value, its class where it has one, or the inputs that were missing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    value: float | None = None
    grade: str | None = None
    missing: tuple[str, ...] = ()
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


def ez_albi(record: ClinicalRecord) -> Score:
    """EZ-ALBI, bilirubin mg/dL - 9 albumin g/dL; no grade.

    Source:
        Kariyama, EZ-ALBI score; the formula is checked, the paper was not opened.
    """
    inputs = _from(record, "bilirubin_mg_dl", "albumin_g_dl")
    return _score(
        "EZ-ALBI",
        "Kariyama, EZ-ALBI score",
        inputs,
        lambda: (inputs["bilirubin_mg_dl"] - 9 * inputs["albumin_g_dl"], None),
    )


def _hap_inputs(record: ClinicalRecord, largest_cm: float | None) -> dict[str, Any]:
    return {**_from(record, "albumin_g_dl", "bilirubin_mg_dl", "afp_ng_ml"), "largest_diameter_cm": largest_cm}


def _hap_points(inputs: dict[str, Any]) -> int:
    criteria: tuple[bool, ...] = (
        inputs["albumin_g_dl"] * 10 < 36,
        inputs["bilirubin_mg_dl"] * BILIRUBIN_UMOL_L_PER_MG_DL > 17,
        inputs["afp_ng_ml"] > 400,
        inputs["largest_diameter_cm"] > 7,
    )
    return sum(criteria)


def hap(record: ClinicalRecord, largest_cm: float | None) -> Score:
    """HAP: one point each for albumin < 36 g/L, bilirubin > 17 umol/L, AFP > 400 ng/mL, size > 7 cm; A to D.

    Args:
        record: Clinical record.
        largest_cm: Largest tumour diameter in cm.

    Source:
        Kadalayil, Ann Oncol 2013;24:2565-2570; median survival A-D 27.6, 18.5, 9.0, 3.6 months.
    """
    inputs = _hap_inputs(record, largest_cm)

    def rule() -> tuple[float, str]:
        points = _hap_points(inputs)
        return points, "ABCDD"[points]

    return _score("HAP", "Kadalayil, Ann Oncol 2013;24:2565", inputs, rule)


def mhap_ii(record: ClinicalRecord, largest_cm: float | None, tumour_number: int | None) -> Score:
    """mHAP-II: HAP and one point for two or more tumours; A 0, B 1, C 2, D 3 or more.

    Args:
        record: Clinical record.
        largest_cm: Largest tumour diameter in cm.
        tumour_number: Count of tumours.

    Source:
        Park, Liver Int 2016;36:100-107.
    """
    inputs: dict[str, Any] = {**_hap_inputs(record, largest_cm), "tumour_number": tumour_number}

    def rule() -> tuple[float, str]:
        points = _hap_points(inputs) + (inputs["tumour_number"] >= 2)
        return points, "ABCDDD"[points]

    return _score("mHAP-II", "Park, Liver Int 2016;36:100", inputs, rule)


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


def seven_eleven(largest_cm: float | None, tumour_number: int | None) -> Score:
    """Seven-eleven: largest diameter in cm plus number; low <= 7, intermediate <= 11, high above.

    Args and Raises as in `six_and_twelve`.

    Source:
        Hung, Liver Cancer 2021;10:629-640.
    """
    return _sum_score("seven-eleven", "Hung, Liver Cancer 2021;10:629", (7, 11), ("low", "intermediate", "high"))(
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


def albi_tae(record: ClinicalRecord, largest_cm: float | None, tumour_number: int | None) -> Score:
    """ALBI-TAE: one point each for ALBI grade 2-3, AFP > 200 ng/mL, diameter plus number above 11; A to D.

    Args:
        record: Clinical record.
        largest_cm: Largest diameter in cm.
        tumour_number: Count of tumours.

    Source:
        ALBI-TAE model; the points are checked, the paper was not opened.
    """
    inputs: dict[str, Any] = {
        **_from(record, "bilirubin_mg_dl", "albumin_g_dl", "afp_ng_ml"),
        **_size_and_number(largest_cm, tumour_number),
    }

    def rule() -> tuple[float, str]:
        beyond = inputs["largest_diameter_cm"] + inputs["tumour_number"] > 11
        points = (albi(record).grade != "1") + (inputs["afp_ng_ml"] > 200) + beyond
        return points, "ABCD"[points]

    return _score("ALBI-TAE", "ALBI-TAE model", inputs, rule)


def state(record: ClinicalRecord, largest_cm: float | None, tumour_number: int | None) -> Score:
    """STATE: albumin g/L, minus 12 beyond up-to-seven, minus 12 when CRP is 1 mg/dL or more; favourable from 18.

    Args:
        record: Clinical record.
        largest_cm: Largest diameter in cm.
        tumour_number: Count of tumours.

    Source:
        Hucke, J Hepatol 2014;61:1287-1296; below 18 against 18 and more: 5.3 and 19.5 months.
    """
    inputs: dict[str, Any] = {
        **_from(record, "albumin_g_dl", "crp_mg_dl"),
        **_size_and_number(largest_cm, tumour_number),
    }

    def rule() -> tuple[float, str]:
        value = inputs["albumin_g_dl"] * 10
        value -= 12 if up_to_seven(largest_cm, tumour_number).grade == "beyond" else 0
        value -= 12 if inputs["crp_mg_dl"] >= 1 else 0
        return value, "favourable" if value >= 18 else "unfavourable"

    return _score("STATE", "Hucke, J Hepatol 2014;61:1287", inputs, rule)


def art(before: ClinicalRecord, after: ClinicalRecord, responded: bool | None) -> Score:
    """ART before the second TACE: AST rise > 25 % 4, Child-Pugh +1 1.5 or +2 and more 3, no response 1.

    Args:
        before: Record before the first session.
        after: Record before the second one.
        responded: Whether the first session had a response.

    Returns:
        Points; grade ``re-treat`` up to 1.5, ``do not re-treat`` from 2.5.

    Source:
        Sieghart, Hepatology 2013;57:2261-2273; not confirmed in every later cohort.
    """
    inputs: dict[str, Any] = {
        "ast_u_l (before)": before.ast_u_l,
        "ast_u_l (after)": after.ast_u_l,
        "child_pugh_score (before)": _points(before),
        "child_pugh_score (after)": _points(after),
        "response": responded,
    }

    def rule() -> tuple[float, str]:
        ast_before, ast_after = inputs["ast_u_l (before)"], inputs["ast_u_l (after)"]
        rise = inputs["child_pugh_score (after)"] - inputs["child_pugh_score (before)"]
        points = 4.0 * (ast_after > 1.25 * ast_before) + (3.0 if rise >= 2 else 1.5 if rise == 1 else 0.0)
        points += 0.0 if inputs["response"] else 1.0
        return points, "re-treat" if points <= 1.5 else "do not re-treat"

    return _score("ART", "Sieghart, Hepatology 2013;57:2261", inputs, rule)


def abcr(before: ClinicalRecord, after: ClinicalRecord, responded: bool | None) -> Score:
    """ABCR before a further TACE: AFP >= 200 +1, BCLC B +2 or C +3, Child-Pugh rise of 2 and more +2, response -3.

    Args:
        before: Record before the first session (AFP, BCLC, Child-Pugh).
        after: Record before the next one (Child-Pugh).
        responded: Whether there was a radiological response.

    Returns:
        Points; grade ``argues against re-treatment`` from 4.

    Raises:
        ValueError: The BCLC stage is neither A, B nor C, for which the score is not defined.

    Source:
        Adhoute, J Hepatol 2015;62:855-862.
    """
    inputs: dict[str, Any] = {
        "afp_ng_ml": before.afp_ng_ml,
        "bclc": before.bclc,
        "child_pugh_score (before)": _points(before),
        "child_pugh_score (after)": _points(after),
        "response": responded,
    }

    def rule() -> tuple[float, str]:
        stages = {"A": 0, "B": 2, "C": 3}
        if inputs["bclc"] not in stages:
            raise ValueError(f"ABCR is defined for BCLC A, B and C, not {inputs['bclc']}")
        rise = inputs["child_pugh_score (after)"] - inputs["child_pugh_score (before)"]
        points = (inputs["afp_ng_ml"] >= 200) + stages[inputs["bclc"]] + 2 * (rise >= 2) - 3 * bool(inputs["response"])
        return points, "argues against re-treatment" if points >= 4 else "does not argue against re-treatment"

    return _score("ABCR", "Adhoute, J Hepatol 2015;62:855", inputs, rule)


def _points(record: ClinicalRecord) -> int | None:
    return record.child_pugh_score if record.child_pugh_score is not None else child_pugh(record).points


def bclc_stage(record: ClinicalRecord, largest_cm: float | None, tumour_number: int | None) -> Score:
    """BCLC 2022 stage from tumour and record; grade ``0``, ``A``, ``B``, ``C`` or ``D``, no value.

    D needs performance status 3-4 or Child-Pugh C; C vascular invasion, spread or status 1-2; 0 is single and at most
    2 cm; A single, or up to three of at most 3 cm each; B the rest. A stage that is already certain (a D or C
    criterion that holds) does not wait for missing inputs of the milder ones.

    Args:
        record: Clinical record; a stated `bclc` is not looked at.
        largest_cm: Largest diameter in cm.
        tumour_number: Count of tumours.

    Source:
        Reig, J Hepatol 2022;76:681-693.
    """
    name, source = "BCLC", "Reig, J Hepatol 2022;76:681"
    points = _points(record)
    liver_class = record.child_pugh_class or (child_pugh_class_of(points) if points is not None else None)
    if liver_class == "C" or (record.ecog or 0) >= 3:
        return Score(name=name, grade="D", source=source)
    inputs: dict[str, Any] = {
        "child_pugh_class": liver_class,
        **_from(record, "ecog", "portal_vein_invasion", "extrahepatic_spread"),
        **_size_and_number(largest_cm, tumour_number),
    }
    terminal_known = liver_class is not None and record.ecog is not None
    spread = (
        record.portal_vein_invasion in ("branch", "main")
        or record.extrahepatic_spread is True
        or (record.ecog or 0) >= 1
    )
    if terminal_known and spread:
        return Score(name=name, grade="C", source=source)
    if missing := tuple(key for key, value in inputs.items() if value is None):
        return Score(name=name, missing=missing, source=source)
    size, number = inputs["largest_diameter_cm"], inputs["tumour_number"]
    if number == 1:
        return Score(name=name, grade="0" if size <= 2 else "A", source=source)
    return Score(name=name, grade="A" if number <= 3 and size <= 3 else "B", source=source)
