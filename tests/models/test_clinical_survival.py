from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from models.clinical_record import ClinicalRecord
from models.clinical_survival import (
    MEANING,
    NEEDS,
    ClinicalModel,
    Interval,
    Term,
    Variant,
    clinical_model,
    clinical_risk,
    clinical_values,
)

CURVE = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)


def variant(name: str, terms: dict[str, tuple[float, float]], c: float = 0.6, **changes: Any) -> Variant:
    values: dict[str, Any] = {
        "name": name,
        "terms": {key: Term(coefficient=b, mean=m) for key, (b, m) in terms.items()},
        "penalty": 1.0,
        "n": 40,
        "deaths": 30,
        "c_index": Interval(value=c, low=c - 0.1, high=c + 0.1),
        "baseline": CURVE,
    }
    return Variant.model_validate(values | changes)


def model(*variants: Variant) -> ClinicalModel:
    return ClinicalModel(
        schema_version=1, data="made up", table_sha256="0", command="none", seed=0, variants=variants,
        after_treatment=variants[0],
    )  # fmt: skip


FULL = variant("full", {"log_afp": (0.5, 1.0), "child_pugh_b_c": (1.0, 0.25), "multinodular": (0.4, 0.5)})
PART = variant("part", {"log_afp": (0.6, 1.0), "child_pugh_b_c": (1.2, 0.25)})


def test_the_first_variant_whose_variables_are_known_is_used() -> None:
    record = ClinicalRecord(afp_ng_ml=99.0, child_pugh_class="B", tumour_number=3)
    found = clinical_risk(record, model=model(FULL, PART))
    # by hand: 0.5 * (2 - 1) + 1.0 * (1 - 0.25) + 0.4 * (1 - 0.5)
    assert found.log_risk == pytest.approx(1.45)
    assert found.variant == "full"
    assert sum(part.log_hazard for part in found.parts) == pytest.approx(1.45)
    assert found.not_evaluable == ()
    assert (found.n, found.c_index) == (40, FULL.c_index)
    # the first month at which S0 ** exp(1.45) is at most one half
    expected = next(month for month, s in enumerate(CURVE) if s ** math.exp(1.45) <= 0.5)
    assert found.median_survival_months == expected == 3
    less = clinical_risk(ClinicalRecord(afp_ng_ml=99.0, child_pugh_class="B"), model=model(FULL, PART))
    assert less.variant == "part"
    assert less.log_risk == pytest.approx(0.6 + 0.9)
    assert less.not_evaluable == ("number of tumours",)


def test_nothing_is_estimated_where_a_variable_is_missing() -> None:
    found = clinical_risk(ClinicalRecord(afp_ng_ml=99.0), model=model(FULL, PART))
    assert found.log_risk is None
    assert found.median_survival_months is None
    assert found.variant is None
    assert found.parts == ()
    assert found.not_evaluable == ("Child-Pugh class", "number of tumours")


def test_a_variant_no_better_than_a_coin_is_never_used() -> None:
    coin = variant("coin", {"log_afp": (3.0, 1.0)}, c=0.49)
    found = clinical_risk(ClinicalRecord(afp_ng_ml=99.0), model=model(FULL, coin))
    assert found.log_risk is None
    assert found.not_evaluable == ("Child-Pugh class", "number of tumours")


def test_a_survival_that_stays_above_one_half_has_no_median() -> None:
    low = clinical_risk(ClinicalRecord(afp_ng_ml=0.0, child_pugh_class="A"), model=model(PART))
    assert low.log_risk == pytest.approx(-0.9)
    assert low.median_survival_months is None


@pytest.mark.parametrize(
    ("fields", "share", "expected"),
    [
        ({}, None, {}),
        ({"afp_ng_ml": 999.0}, None, {"log_afp": 3.0}),
        ({"child_pugh_score": 7}, None, {"child_pugh_b_c": 1.0}),
        ({"child_pugh_class": "A"}, None, {"child_pugh_b_c": 0.0}),
        (
            {"bilirubin_mg_dl": 1.0, "albumin_g_dl": 4.0, "inr": 1.0, "ascites": "none", "encephalopathy": 0}, None,
            {"child_pugh_b_c": 0.0},
        ),
        ({"portal_vein_invasion": "branch"}, None, {"vascular_invasion": 1.0}),
        ({"portal_vein_invasion": "none", "tumour_number": 1}, None, {"vascular_invasion": 0.0, "multinodular": 0.0}),
        ({}, 0.53, {"over_half_of_liver": 1.0}),
        ({"tumour_liver_fraction_percent": 30.0}, 0.53, {"over_half_of_liver": 0.0}),
    ],
)  # fmt: skip
def test_variables_come_from_the_record_and_nothing_is_invented(
    fields: dict[str, Any], share: float | None, expected: dict[str, float]
) -> None:
    assert clinical_values(ClinicalRecord(**fields), share) == pytest.approx(expected)


def test_a_curve_that_rises_is_refused() -> None:
    with pytest.raises(ValidationError, match="no survival curve"):
        variant("bad", {"log_afp": (1.0, 0.0)}, baseline=(1.0, 0.8, 0.9))
    with pytest.raises(ValidationError, match="no survival curve"):
        variant("bad", {"log_afp": (1.0, 0.0)}, baseline=(1.2, 0.8))


def test_the_shipped_model_is_sober_and_complete() -> None:
    shipped = clinical_model()
    full = shipped.variants[0]
    assert full.n >= 60
    assert 0.5 < full.c_index.value < 0.7
    assert full.c_index.low < full.c_index.value < full.c_index.high
    assert "10.7937/TCIA.5FNA-0924" in shipped.data
    for one in (*shipped.variants, shipped.after_treatment):
        assert one.baseline[0] == 1.0
        assert one.terms.keys() <= MEANING.keys()
        assert one.terms.keys() <= NEEDS.keys()
        assert len(one.baseline) > 36
    assert "responders" not in {name for one in shipped.variants for name in one.terms}
    found = clinical_risk(
        ClinicalRecord(afp_ng_ml=30.0, child_pugh_class="A", portal_vein_invasion="none", tumour_number=1), 0.1
    )
    assert found.variant == full.name
    assert found.median_survival_months is not None
    assert 12 < found.median_survival_months < 60
