"""Order and calibration of risks against brute force and against data whose truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sksurv.metrics import concordance_index_censored

from evals.model_card import survival
from evals.model_card.survival import (
    FOLDS,
    Pairs,
    calibrate,
    cox_out_of_fold,
    share_of_oracle,
    summarise_risk,
    summarise_survival,
)
from models.weights import SurvivalBaseline


def cohort(n: int = 400, seed: int = 0) -> dict[str, Any]:
    """Exponential survival with a hazard of exp(risk) / 24 a month, censored at random."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(0, 1, n)
    time = rng.exponential(24.0 / np.exp(risk))
    end = rng.uniform(6, 60, n)
    return {"risk": risk, "months": np.minimum(time, end) + 1e-3, "died": time <= end}


def concordance(months: np.ndarray, died: np.ndarray, risk: np.ndarray) -> float:
    return float(concordance_index_censored(died, months, risk)[0])


def test_all_resamples_at_once_are_scikit_survivals_one_by_one():
    """Times in whole months, so that many are tied; risks tied too."""
    data = cohort(80)
    months, risk = np.ceil(data["months"] / 4), np.round(data["risk"], 1)
    pairs = Pairs(months, data["died"], draws=20, seed=3)
    found = pairs.c_index(risk)
    assert found[0] == pytest.approx(concordance(months, data["died"], risk))
    index = np.random.default_rng(3).integers(0, 80, (20, 80))
    one_by_one = [concordance(months[i], data["died"][i], risk[i]) for i in index]
    np.testing.assert_allclose(found[1:], one_by_one, atol=1e-5)
    interval = pairs.figure(found)
    assert interval["low"] == pytest.approx(np.quantile(one_by_one, 0.025), abs=1e-5)
    assert interval["n"] == 80


def test_the_oracle_is_one_and_a_coin_is_nothing():
    data = cohort(1000)
    pairs = Pairs(data["months"], data["died"], draws=50)
    best = pairs.c_index(data["risk"])
    np.testing.assert_allclose(share_of_oracle(best, best), 1.0)
    coin = pairs.c_index(np.random.default_rng(9).normal(0, 1, 1000))
    assert abs(share_of_oracle(coin, best)[0]) < 0.15
    assert share_of_oracle(np.array([0.7]), np.array([0.75]))[0] == pytest.approx(0.8)
    assert np.isnan(share_of_oracle(np.array([0.7]), np.array([0.5]))[0])


def test_a_calibrated_risk_has_slope_one_and_a_halved_one_two(monkeypatch):
    monkeypatch.setattr(survival, "SLOPE_DRAWS", 10)
    data = cohort(800)
    months = tuple(float(m) for m in range(61))
    baseline = SurvivalBaseline(
        times_months=months, survival=tuple(float(np.exp(-m / 24.0)) for m in months), n=800, data_origin="synthetic"
    )
    right = calibrate(data["months"], data["died"], data["risk"], baseline)
    assert right["slope"]["value"] == pytest.approx(1.0, abs=0.12)
    assert right["mean_absolute_error"]["value"] < 0.06
    assert [row["observed"]["n"] for row in right["groups"][::3]] == [160] * 5
    # survival falls from the first group to the last, as drawn: 24 months at risk r means exp(-exp(r))
    at_two_years = [row for row in right["groups"] if row["months"] == 24.0]
    observed = [row["observed"]["value"] for row in at_two_years]
    assert observed == sorted(observed, reverse=True)
    halved = calibrate(data["months"], data["died"], data["risk"] / 2, baseline)
    assert halved["slope"]["value"] == pytest.approx(2 * right["slope"]["value"], rel=0.01)
    assert halved["mean_absolute_error"]["value"] > right["mean_absolute_error"]["value"]
    assert calibrate(data["months"], data["died"], data["risk"], None)["groups"] == []


def test_observed_survival_and_its_interval_are_greenwoods_by_hand(monkeypatch):
    """The first fifth by risk at 12 months: product of the shares who live on, and Greenwood's variance of its log."""
    monkeypatch.setattr(survival, "SLOPE_DRAWS", 2)
    data = cohort(200)
    months, died = np.ceil(data["months"]), data["died"]
    baseline = SurvivalBaseline(times_months=(0.0, 60.0), survival=(1.0, 0.1), n=200, data_origin="synthetic")
    found = calibrate(months, died, data["risk"], baseline)["groups"][0]
    group = np.argsort(data["risk"])[:40]
    alive, variance = 1.0, 0.0
    for month in range(1, int(found["months"]) + 1):
        at_risk = int((months[group] >= month).sum())
        deaths = int((died[group] & (months[group] == month)).sum())
        alive *= 1 - deaths / at_risk
        variance += deaths / (at_risk * (at_risk - deaths))
    assert 0 < alive < 1
    half = 1.959963984540054 * np.sqrt(variance) / abs(np.log(alive))
    low, high = (alive ** np.exp(sign * half) for sign in (1, -1))
    assert found["observed"] == pytest.approx({"value": alive, "low": low, "high": high, "n": 40})


def test_the_cox_model_never_sees_whom_it_judges():
    """Features that are pure noise, more than patients per fold could bear: in sample they would order patients."""
    rng = np.random.default_rng(4)
    data = cohort(200)
    noise = rng.normal(0, 1, (200, 30))
    found = cox_out_of_fold(noise, data["months"], data["died"])
    assert abs(concordance(data["months"], data["died"], found) - 0.5) < 0.09
    known = np.column_stack([data["risk"], np.ones(200)])
    found = cox_out_of_fold(known, data["months"], data["died"])
    best = concordance(data["months"], data["died"], data["risk"])
    assert concordance(data["months"], data["died"], found) == pytest.approx(best, abs=0.02)
    assert FOLDS == 5


def test_all_figures_of_a_cohort(monkeypatch):
    monkeypatch.setattr(survival, "SLOPE_DRAWS", 10)
    monkeypatch.setattr(survival, "DRAWS", 100)
    data = cohort(120)
    rng = np.random.default_rng(1)
    rows = [
        {
            "seed": i, "months": float(data["months"][i]), "died": bool(data["died"][i]),
            "oracle": float(data["risk"][i]), "true": float(data["risk"][i] + rng.normal(0, 0.3)),
            "simulated": float(data["risk"][i] + rng.normal(0, 1.0)),
            "before": [float(data["risk"][i] + rng.normal(0, 2.0)), 1.0, 0.2], "record": [0.0, 1.0],
            "viable": float(data["risk"][i] + rng.normal(0, 1.0)),
        }
        for i in range(120)
    ]  # fmt: skip
    found = summarise_survival(rows, None)
    c = {name: one["value"] for name, one in found["c_index"].items()}
    assert c["oracle"] > c["true"] > c["simulated"] > 0.5
    assert c["cox_with_viable_ml"] > c["cox_before"]
    assert 0 < found["share_of_oracle"]["simulated"]["value"] < found["share_of_oracle"]["true"]["value"] < 1.1
    assert found["deaths"] == data["died"].sum()


def test_the_order_within_a_patient_takes_no_notice_of_levels():
    def patient(level: float, sign: float) -> list[dict[str, Any]]:
        return [
            {"true_risk": level + i, "risk_on_true": 5 * level + i, "risk_on_simulated": [sign * i, sign * i + 0.1]}
            for i in range(5)
        ]

    found = summarise_risk([patient(0.0, 1.0), patient(100.0, -1.0)])
    assert found["on_true_scans"]["value"] == pytest.approx(1.0)
    assert found["on_simulated_scans"]["value"] == pytest.approx(0.0)
