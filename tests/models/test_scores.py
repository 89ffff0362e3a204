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


def test_ez_albi_by_hand() -> None:
    assert scores.ez_albi(Record(bilirubin_mg_dl=1.2, albumin_g_dl=3.8)).value == pytest.approx(-33.0)


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


def test_mhap_ii_adds_number() -> None:
    record = Record(bilirubin_mg_dl=0.9, albumin_g_dl=4.0, afp_ng_ml=10.0)
    assert [scores.mhap_ii(record, 3.0, n).grade for n in (1, 2)] == ["A", "B"]
    worst = Record(bilirubin_mg_dl=2.0, albumin_g_dl=3.0, afp_ng_ml=900.0)
    assert (scores.mhap_ii(worst, 9.0, 3).points, scores.mhap_ii(worst, 9.0, 3).grade) == (5, "D")


@pytest.mark.parametrize(
    ("size", "number", "six", "seven", "up_to"),
    [
        (5.0, 1, "low", "low", "within"),
        (5.1, 1, "intermediate", "low", "within"),
        (6.0, 1, "intermediate", "low", "within"),
        (6.1, 1, "intermediate", "intermediate", "beyond"),
        (10.0, 1, "intermediate", "intermediate", "beyond"),
        (10.1, 1, "intermediate", "high", "beyond"),
        (11.0, 1, "intermediate", "high", "beyond"),
        (11.1, 1, "high", "high", "beyond"),
    ],
)
def test_sums_of_size_and_number(size: float, number: int, six: str, seven: str, up_to: str) -> None:
    assert scores.six_and_twelve(size, number).grade == six
    assert scores.seven_eleven(size, number).grade == seven
    assert scores.up_to_seven(size, number).grade == up_to
    assert scores.six_and_twelve(size, number).value == pytest.approx(size + number)


def test_tumour_burden_score_by_hand() -> None:
    assert scores.tumour_burden(3.0, 4).value == pytest.approx(5.0)
    assert [scores.tumour_burden(d, 1).grade for d in (3.0, 5.0, 14.0)] == ["low", "medium", "high"]


@pytest.mark.parametrize(
    "function", [scores.six_and_twelve, scores.seven_eleven, scores.up_to_seven, scores.tumour_burden]
)
def test_size_scores_without_input(function: Any) -> None:
    assert function(None, 2).missing == ("largest_diameter_cm",)
    assert function(3.0, None).missing == ("tumour_number",)
    with pytest.raises(ValueError, match="diameter"):
        function(0.0, 1)
    with pytest.raises(ValueError, match="number"):
        function(3.0, 0)


def test_albi_tae_and_state() -> None:
    good = Record(bilirubin_mg_dl=0.5, albumin_g_dl=4.5, afp_ng_ml=200.0, crp_mg_dl=0.9)
    assert scores.albi_tae(good, 5.0, 2).grade == "A"
    bad = Record(bilirubin_mg_dl=2.0, albumin_g_dl=3.5, afp_ng_ml=201.0, crp_mg_dl=1.0)
    assert scores.albi_tae(bad, 9.1, 2).grade == "D"
    assert scores.state(good, 5.0, 2).value == pytest.approx(45)
    assert scores.state(bad, 5.1, 2).value == pytest.approx(11)  # 35 - 12 - 12
    assert scores.state(bad, 5.1, 2).grade == "unfavourable"
    assert scores.state(Record(albumin_g_dl=4.0), 5.0, 2).missing == ("crp_mg_dl",)


@pytest.mark.parametrize(
    ("ast", "after", "responded", "points", "grade"),
    [
        (125.0, 5, True, 0, "re-treat"),  # exactly 25 % is no rise above 25 %
        (126.0, 5, True, 4, "do not re-treat"),
        (100.0, 6, True, 1.5, "re-treat"),
        (100.0, 6, False, 2.5, "do not re-treat"),
        (100.0, 8, True, 3, "do not re-treat"),
        (126.0, 7, False, 8, "do not re-treat"),
    ],
)
def test_art(ast: float, after: int, responded: bool, points: float, grade: str) -> None:
    before = Record(ast_u_l=100.0, child_pugh_score=5)
    score = scores.art(before, Record(ast_u_l=ast, child_pugh_score=after), responded)
    assert (score.value, score.grade) == (points, grade)


def test_art_without_input() -> None:
    score = scores.art(Record(ast_u_l=100.0), Record(child_pugh_score=5), None)
    assert score.missing == ("ast_u_l (after)", "child_pugh_score (before)", "response")


def test_abcr() -> None:
    before, after = Record(afp_ng_ml=200.0, bclc="B", child_pugh_score=5), Record(child_pugh_score=7)
    assert scores.abcr(before, after, False).value == 5  # 1 + 2 + 2
    assert scores.abcr(before, after, False).grade == "argues against re-treatment"
    assert scores.abcr(before, after, True).value == 2
    assert scores.abcr(before, Record(), True).missing == ("child_pugh_score (after)",)
    with pytest.raises(ValueError, match="BCLC A, B and C"):
        scores.abcr(before.model_copy(update={"bclc": "D"}), after, True)


CLEAR = {"child_pugh_class": "A", "ecog": 0, "portal_vein_invasion": "none", "extrahepatic_spread": False}


@pytest.mark.parametrize(
    ("change", "size", "number", "stage"),
    [
        ({}, 2.0, 1, "0"),
        ({}, 2.1, 1, "A"),
        ({}, 12.0, 1, "A"),
        ({}, 3.0, 3, "A"),
        ({}, 3.1, 3, "B"),
        ({}, 1.0, 4, "B"),
        ({"portal_vein_invasion": "branch"}, 1.0, 1, "C"),
        ({"extrahepatic_spread": True}, 1.0, 1, "C"),
        ({"ecog": 1}, 1.0, 1, "C"),
        ({"ecog": 3, "portal_vein_invasion": "main"}, 1.0, 1, "D"),
        ({"child_pugh_class": "C"}, 1.0, 1, "D"),
    ],
)
def test_bclc(change: dict[str, Any], size: float, number: int, stage: str) -> None:
    assert scores.bclc_stage(Record(**{**CLEAR, **change}), size, number).grade == stage


def test_bclc_without_input() -> None:
    assert scores.bclc_stage(Record(), None, None).missing == (
        "child_pugh_class",
        "ecog",
        "portal_vein_invasion",
        "extrahepatic_spread",
        "largest_diameter_cm",
        "tumour_number",
    )
    assert scores.bclc_stage(Record(child_pugh_class="C"), None, None).grade == "D"
    # Vascular invasion is C only once D is ruled out.
    assert scores.bclc_stage(Record(portal_vein_invasion="main", ecog=0), 3.0, 1).grade is None


def test_nan_is_an_error_and_not_a_score() -> None:
    record = Record(bilirubin_mg_dl=1.0, albumin_g_dl=4.0).model_copy(update={"bilirubin_mg_dl": float("nan")})
    with pytest.raises(ValueError, match="finite"):
        scores.albi(record)
