import math

import pytest
from scipy import stats

from agent.assess import dose_shown, estimate, median_months, survival_curve
from agent.plan import Estimate
from agent.state import Baseline
from models.formulary import Formulary
from models.survival_curve import median_survival, survival_at

BASELINE = Baseline(times_months=(0.0, 12.0, 24.0, 36.0), survival=(1.0, 0.8, 0.55, 0.4))


@pytest.mark.parametrize("log_risk", [-1.0, 0.0, 0.3, 2.0])
def test_curve_and_median_follow_from_the_baseline(log_risk):
    curve = survival_curve(BASELINE, Estimate(mean=log_risk, se=0.1, n=8))
    assert curve is not None
    assert curve.survival == pytest.approx(survival_at(BASELINE.survival, log_risk))
    half = 0.1 * stats.t.ppf(0.975, 7)
    assert curve.lower == pytest.approx([s ** math.exp(log_risk + half) for s in BASELINE.survival])
    assert curve.upper == pytest.approx([s ** math.exp(log_risk - half) for s in BASELINE.survival])
    expected = median_survival(BASELINE.times_months, survival_at(BASELINE.survival, log_risk))
    assert median_months(BASELINE, log_risk) == expected


def test_without_a_baseline_there_is_no_curve():
    assert survival_curve(None, Estimate(mean=0.0, se=None, n=1)) is None
    assert median_months(None, 0.0) is None


def test_estimate_of_one_replica_has_no_standard_error():
    assert estimate([2.0]) == Estimate(mean=2.0, se=None, n=1)
    assert estimate([1.0, 3.0]).se == pytest.approx(math.sqrt(2) / math.sqrt(2))


def test_every_agent_is_dosed_by_a_range_or_says_that_there_is_none():
    formulary = Formulary.load("all")
    for item in formulary.items:
        shown = dose_shown(item.name, formulary, on_beads=False)
        if item.dose is None:
            assert (shown.low, shown.high) == (None, None)
            assert "no dose" in shown.text
        else:
            assert (shown.low, shown.high, shown.unit) == (item.dose.low, item.dose.high, item.dose.unit)
            assert f"{item.dose.low:g}" in shown.text
            assert item.dose.unit in shown.text


def test_a_drug_for_beads_has_the_range_for_loading_them():
    formulary = Formulary.load("all")
    loaded = [item for item in formulary.items if item.dose_with_beads is not None]
    for item in loaded:
        assert dose_shown(item.name, formulary, on_beads=True).high == item.dose_with_beads.high
