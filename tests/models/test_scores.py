"""Scores against hand calculations, published cut-offs and the classes' edges."""

from __future__ import annotations

import math
from typing import Any

import pytest

from models import scores
from models.clinical_record import ClinicalRecord as Record


def test_mosteller_by_hand() -> None:
    assert scores.body_surface_m2(180, 80) == 2.0  # sqrt(14400 / 3600)
    assert scores.body_surface_m2(170, 65) == pytest.approx(1.752, abs=5e-4)  # sqrt(11050 / 3600)


@pytest.mark.parametrize(
    ("height", "weight"), [(1.8, 80), (180, 0), (180, -1), (300, 80), (float("nan"), 80), (180, math.inf)]
)
def test_mosteller_refuses_wrong_units(height: float, weight: float) -> None:
    with pytest.raises(ValueError, match=r"height|weight"):
        scores.body_surface_m2(height, weight)


FINE = {"bilirubin_mg_dl": 1.0, "albumin_g_dl": 4.0, "inr": 1.0, "ascites": "none", "encephalopathy": 0}


@pytest.mark.parametrize(
    ("change", "points", "grade"),
    [
        ({}, 5, "A"),
        ({"bilirubin_mg_dl": 1.99}, 5, "A"),
        ({"bilirubin_mg_dl": 2.0}, 6, "A"),
        ({"bilirubin_mg_dl": 3.0}, 6, "A"),
        ({"bilirubin_mg_dl": 3.01}, 7, "B"),
        ({"albumin_g_dl": 3.5}, 6, "A"),
        ({"albumin_g_dl": 2.8}, 6, "A"),
        ({"albumin_g_dl": 2.79}, 7, "B"),
        ({"inr": 1.69}, 5, "A"),
        ({"inr": 1.7}, 6, "A"),
        ({"inr": 2.3}, 6, "A"),
        ({"inr": 2.31}, 7, "B"),
        ({"ascites": "mild"}, 6, "A"),
        ({"ascites": "moderate_severe"}, 7, "B"),
        ({"encephalopathy": 1}, 6, "A"),
        ({"encephalopathy": 2}, 6, "A"),
        ({"encephalopathy": 3}, 7, "B"),
        ({"bilirubin_mg_dl": 4.0, "albumin_g_dl": 2.0, "ascites": "mild"}, 10, "C"),
        (
            {
                "bilirubin_mg_dl": 9.0,
                "albumin_g_dl": 2.0,
                "inr": 3.0,
                "ascites": "moderate_severe",
                "encephalopathy": 4,
            },
            15,
            "C",
        ),
    ],
)
def test_child_pugh(change: dict[str, Any], points: int, grade: str) -> None:
    score = scores.child_pugh(Record(**{**FINE, **change}))
    assert (score.points, score.grade) == (points, grade)


@pytest.mark.parametrize("absent", list(FINE))
def test_child_pugh_needs_all_five(absent: str) -> None:
    score = scores.child_pugh(Record(**{**FINE, absent: None}))
    assert not score.evaluable
    assert score.value is None
    assert score.grade is None
    assert score.missing == (absent,)


def test_albi_by_hand() -> None:
    # 0.66 * log10(17.104) - 0.085 * 40 = 0.66 * 1.23310 - 3.4
    score = scores.albi(Record(bilirubin_mg_dl=1.0, albumin_g_dl=4.0))
    assert score.value == pytest.approx(-2.5862, abs=1e-4)
    assert score.grade == "2a"


@pytest.mark.parametrize(("albumin", "grade"), [(4.5, "1"), (4.0, "2a"), (3.5, "2b"), (2.5, "3")])
def test_albi_grades(albumin: float, grade: str) -> None:
    # at 1 mg/dL: -3.01, -2.59, -2.16, -1.31
    assert scores.albi(Record(bilirubin_mg_dl=1.0, albumin_g_dl=albumin)).grade == grade


def test_albi_refuses_grams_per_litre() -> None:
    record = Record(bilirubin_mg_dl=1.0).model_copy(update={"albumin_g_dl": 40.0})
    with pytest.raises(ValueError, match="g/dL"):
        scores.albi(record)


@pytest.mark.parametrize(
    ("bilirubin", "albumin", "afp", "size", "grade"),
    [
        (0.9, 4.0, 10.0, 3.0, "A"),  # 15.4 umol/L
        (1.0, 4.0, 10.0, 3.0, "B"),  # 17.1 umol/L
        (0.9, 3.6, 400.0, 7.0, "A"),  # every value on its edge
        (0.9, 3.5, 401.0, 7.0, "C"),
        (1.0, 3.5, 401.0, 7.0, "D"),
        (1.0, 3.5, 401.0, 7.1, "D"),
    ],
)
def test_hap(bilirubin: float, albumin: float, afp: float, size: float, grade: str) -> None:
    record = Record(bilirubin_mg_dl=bilirubin, albumin_g_dl=albumin, afp_ng_ml=afp)
    assert scores.hap(record, size).grade == grade


@pytest.mark.parametrize(
    ("size", "number", "six", "up_to"),
    [
        (5.0, 1, "low", "within"),
        (5.1, 1, "intermediate", "within"),
        (6.0, 1, "intermediate", "within"),
        (6.1, 1, "intermediate", "beyond"),
        (11.0, 1, "intermediate", "beyond"),
        (11.1, 1, "high", "beyond"),
    ],
)
def test_sums_of_size_and_number(size: float, number: int, six: str, up_to: str) -> None:
    assert scores.six_and_twelve(size, number).grade == six
    assert scores.up_to_seven(size, number).grade == up_to
    assert scores.six_and_twelve(size, number).value == pytest.approx(size + number)


def test_tumour_burden_score_by_hand() -> None:
    assert scores.tumour_burden(3.0, 4).value == pytest.approx(5.0)
    assert [scores.tumour_burden(d, 1).grade for d in (3.0, 5.0, 14.0)] == ["low", "medium", "high"]


@pytest.mark.parametrize("function", [scores.six_and_twelve, scores.up_to_seven, scores.tumour_burden])
def test_size_scores_without_input(function: Any) -> None:
    assert function(None, 2).missing == ("largest_diameter_cm",)
    assert function(3.0, None).missing == ("tumour_number",)
    with pytest.raises(ValueError, match="diameter"):
        function(0.0, 1)
    with pytest.raises(ValueError, match="number"):
        function(3.0, 0)


def test_nan_is_an_error_and_not_a_score() -> None:
    record = Record(bilirubin_mg_dl=1.0, albumin_g_dl=4.0).model_copy(update={"bilirubin_mg_dl": float("nan")})
    with pytest.raises(ValueError, match="finite"):
        scores.albi(record)


def test_an_empty_record_leaves_the_scores_of_size_and_number() -> None:
    found = {score.name: score for score in scores.prognostic_scores(Record(), 17.0, 1)}
    assert {name for name, score in found.items() if score.evaluable} == {
        "six-and-twelve", "up-to-seven", "tumour burden score"
    }  # fmt: skip
    assert (found["six-and-twelve"].value, found["six-and-twelve"].grade) == (18.0, "high")
    assert found["BCLC"].missing == ("bclc",)
    assert found["HAP"].missing == ("albumin_g_dl", "bilirubin_mg_dl", "afp_ng_ml")
    assert all(score.value is None and score.grade is None for score in found.values() if not score.evaluable)


@pytest.mark.parametrize(
    ("record", "value", "grade", "stated"),
    [
        (Record(**FINE), 5, "A", False),
        (Record(**FINE, child_pugh_score=8), 8, "B", True),
        (Record(**FINE, child_pugh_class="B"), None, "B", True),
        (Record(child_pugh_class="B", child_pugh_score=7), 7, "B", True),
        (Record(bilirubin_mg_dl=1.0), None, None, False),
    ],
)
def test_a_stated_child_pugh_goes_before_a_computed_one(
    record: Record, value: float | None, grade: str | None, stated: bool
) -> None:
    score = scores.prognostic_scores(record, 3.0, 1)[0]
    assert (score.name, score.value, score.grade, score.stated) == ("Child-Pugh", value, grade, stated)
    assert score.evaluable == (grade is not None)


def test_bclc_is_the_stated_one() -> None:
    found = {score.name: score for score in scores.prognostic_scores(Record(bclc="0"), 3.0, 1)}
    assert (found["BCLC"].grade, found["BCLC"].value, found["BCLC"].stated) == ("0", None, True)
