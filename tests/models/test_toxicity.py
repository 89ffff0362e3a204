from __future__ import annotations

import pytest

from models.clinical_record import ClinicalRecord
from models.protocol import Dose, Protocol
from models.toxicity import toxicity

HEALTHY = ClinicalRecord(
    child_pugh_score=5, bilirubin_mg_dl=0.8, creatinine_clearance_ml_min=90, platelets_10e9_l=180, lvef_percent=62,
    portal_vein_invasion="none",
)  # fmt: skip
TRIPLE = Protocol(drugs=("Cisplatin", "Doxorubicin", "Mitomycin"), embolics=("Lipiodol",))


def test_parts_add_up_by_hand() -> None:
    term = toxicity(TRIPLE, HEALTHY, tumour_ml=30, liver_ml=1500)
    assert term.log_hazard == pytest.approx(0.06 + 0.06 + 0.075 + 0.04)
    assert {part.item: part.log_hazard for part in term.parts}["Mitomycin"] == pytest.approx(0.075)
    assert term.not_evaluable == ()


def test_renal_failure_raises_the_platinum_only() -> None:
    poor = HEALTHY.model_copy(update={"creatinine_clearance_ml_min": 25.0})
    before = {p.item: p.log_hazard for p in toxicity(TRIPLE, HEALTHY, 30, 1500).parts}
    after = {p.item: p for p in toxicity(TRIPLE, poor, 30, 1500).parts}
    assert after["Cisplatin"].log_hazard == pytest.approx(6 * before["Cisplatin"])
    assert "25 ml/min" in after["Cisplatin"].reasons[0]
    assert all(after[i].log_hazard == before[i] for i in before if i != "Cisplatin")


def test_factors_multiply_and_limits_are_inclusive_as_stated() -> None:
    poor = HEALTHY.model_copy(update={"child_pugh_score": 7, "bilirubin_mg_dl": 1.5})
    parts = {p.item: p.log_hazard for p in toxicity(TRIPLE, poor, 30, 1500).parts}
    assert parts["Doxorubicin"] == pytest.approx(0.06 * 2.5 * 2.0)
    assert parts["Lipiodol"] == pytest.approx(0.04 * 2.0)
    edge = HEALTHY.model_copy(update={"platelets_10e9_l": 100.0})
    assert toxicity(TRIPLE, edge, 30, 1500).log_hazard == toxicity(TRIPLE, HEALTHY, 30, 1500).log_hazard


def test_a_missing_input_is_named_and_never_assumed() -> None:
    term = toxicity(TRIPLE, ClinicalRecord())
    assert term.log_hazard == pytest.approx(0.235)
    assert term.not_evaluable == (
        "bilirubin_mg_dl (T03)",
        "child_pugh_score (T01)",
        "child_pugh_score (T02)",
        "creatinine_clearance_ml_min (T04)",
        "lvef_percent (T07)",
        "platelets_10e9_l (T06)",
        "tumour_liver_fraction_percent (T08)",
    )


def test_a_dose_scales_its_agent() -> None:
    single = Protocol(drugs=("Mitomycin",), embolics=("Gelatin sponge",))
    from models.formulary import Formulary

    reference = Formulary.load("all").item("Mitomycin").dose
    assert reference is not None
    double = Protocol(
        **single.model_dump(exclude={"doses"}), doses=(("Mitomycin", Dose(amount=2 * reference.reference, unit="mg")),)
    )
    difference = toxicity(double, HEALTHY).log_hazard - toxicity(single, HEALTHY).log_hazard
    assert difference == pytest.approx(0.075)


def test_the_record_is_preferred_to_the_measured_share_of_the_liver() -> None:
    stated = HEALTHY.model_copy(update={"tumour_liver_fraction_percent": 10.0})
    oil = Protocol(drugs=("Mitomycin",), embolics=("Lipiodol",))
    assert toxicity(oil, HEALTHY, 900, 1500).log_hazard > toxicity(oil, stated, 900, 1500).log_hazard


def test_a_grade_in_words_counts_and_is_named() -> None:
    glue = Protocol(drugs=("Mitomycin",), embolics=("NBCA",))
    parts = {
        grade: toxicity(glue, HEALTHY.model_copy(update={"portal_vein_invasion": grade}), 30, 1500).parts[1]
        for grade in ("none", "branch", "main")
    }
    assert parts["none"].item == "NBCA"
    assert [parts[g].log_hazard / 0.12 for g in ("none", "branch", "main")] == pytest.approx([1.0, 1.7, 3.0])
    assert parts["none"].reasons == ()
    assert "portal vein invasion (branch)" in parts["branch"].reasons[0]
    oil = Protocol(drugs=("Mitomycin",), embolics=("Lipiodol",))
    main = HEALTHY.model_copy(update={"portal_vein_invasion": "main"})
    assert toxicity(oil, main, 30, 1500).log_hazard == toxicity(oil, HEALTHY, 30, 1500).log_hazard


def test_toxicity_grows_with_burden_and_poor_liver_function() -> None:
    protocol = Protocol(drugs=("Doxorubicin",), embolics=("Lipiodol", "PVA"))
    burden = [toxicity(protocol, HEALTHY, ml, 1500).log_hazard for ml in (30, 300, 600, 900)]
    assert burden == sorted(burden)
    assert burden[-1] > 1.5 * burden[0]
    liver = [
        toxicity(protocol, HEALTHY.model_copy(update={"child_pugh_score": score}), 30, 1500).log_hazard
        for score in (5, 7, 8)
    ]
    assert liver == sorted(liver)
    assert liver[-1] > 3 * liver[0]
