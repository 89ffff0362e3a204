from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from sksurv.datasets import load_gbsg2, load_whas500
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import (
    concordance_index_censored,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
    integrated_brier_score,
)

from evals.survival_metrics import (
    Outcomes,
    evaluation_times,
    harrell,
    harrell_interval,
    integrated_brier,
    ipcw,
    kaplan_meier,
    log_rank,
    mse_nelson_aalen,
    nelson_aalen,
    survival_scores,
    time_dependent_auc,
)


@pytest.fixture(scope="module")
def heart():
    """Worcester Heart Attack Study (ships with scikit-survival): 500 patients, days as months, a Cox model on age."""
    x, y = load_whas500()
    inputs = x[["age", "bmi", "hr"]].astype(float).to_numpy()
    model = CoxPHSurvivalAnalysis().fit(inputs[:300], y[:300])
    outcomes = Outcomes(y["lenfol"].astype(float), y["fstat"].astype(bool))
    return outcomes, model, inputs


def small(seed: int, n: int = 40) -> tuple[Outcomes, np.ndarray]:
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=n)
    months = np.ceil(10 * rng.exponential(np.exp(-0.7 * risk))) + 1
    return Outcomes(months, rng.random(n) < 0.7), risk


def test_harrell_is_the_share_of_pairs_in_the_right_order() -> None:
    """Counted pair by pair: of two patients the one who died first must have had the higher risk; ties count half."""
    outcomes, risk = small(1)
    right = total = 0.0
    for i, j in combinations(range(len(risk)), 2):
        first, second = (i, j) if outcomes.months[i] < outcomes.months[j] else (j, i)
        if outcomes.months[i] == outcomes.months[j] or not outcomes.died[first]:
            continue
        total += 1
        right += 1.0 if risk[first] > risk[second] else 0.5 if risk[first] == risk[second] else 0.0
    # pairs that end at the same time count where one died and the other was censored then
    for i, j in combinations(range(len(risk)), 2):
        if outcomes.months[i] == outcomes.months[j] and outcomes.died[i] != outcomes.died[j]:
            dead, alive = (i, j) if outcomes.died[i] else (j, i)
            total += 1
            right += float(risk[dead] > risk[alive])
    assert harrell(outcomes, risk) == pytest.approx(right / total)
    assert harrell(outcomes, -risk) == pytest.approx(1 - right / total)


def test_the_direction_and_the_interval() -> None:
    outcomes, risk = small(2, 120)
    found = harrell_interval(outcomes, risk, draws=100)
    assert 0.6 < found.low < found.mean < found.high < 1.0
    assert found.mean == harrell(outcomes, risk)


def test_metrics_are_those_of_scikit_survival_on_its_own_data(heart) -> None:
    outcomes, model, inputs = heart
    train, test = outcomes.only(np.arange(300)), outcomes.only(np.arange(300, 500))
    risk = model.predict(inputs[300:])
    times = np.array(evaluation_times(test))
    assert len(times) == 9
    low, high = np.quantile(test.months, (0.1, 0.9))
    assert times.min() >= low
    assert times.max() <= high
    assert harrell(test, risk) == concordance_index_censored(test.died, test.months, risk)[0]
    assert ipcw(train, test, risk, times[-1]) == concordance_index_ipcw(train.surv, test.surv, risk, times[-1])[0]
    auc, mean = cumulative_dynamic_auc(train.surv, test.surv, risk, times)
    assert time_dependent_auc(train, test, risk, times) == (pytest.approx(list(auc)), pytest.approx(mean))
    curves = np.array([f(times) for f in model.predict_survival_function(inputs[300:])])
    assert integrated_brier(train, test, curves, times) == integrated_brier_score(train.surv, test.surv, curves, times)

    scores = survival_scores(
        test, risk, train, cut=float(np.median(model.predict(inputs[:300]))),
        survival=lambda t: np.array([f(t) for f in model.predict_survival_function(inputs[300:])]),
    )  # fmt: skip
    assert (scores.n, scores.deaths, scores.not_evaluable) == (200, int(test.died.sum()), {})
    assert scores.harrell is not None
    assert scores.harrell.mean == pytest.approx(harrell(test, risk))
    assert scores.mean_auc == pytest.approx(mean)
    assert scores.integrated_brier == pytest.approx(integrated_brier(train, test, curves, times))
    assert scores.log_rank is not None
    assert scores.log_rank.p < 1e-4


def test_without_censoring_auc_and_brier_are_the_plain_ones() -> None:
    """Nobody censored: the AUC at a time is that of dead against alive, the Brier score a mean square."""
    outcomes, risk = small(3, 80)
    everybody = Outcomes(outcomes.months + np.arange(80) * 1e-3, np.ones(80, bool))
    time = float(np.median(everybody.months))
    auc, _ = time_dependent_auc(everybody, everybody, risk, np.array([time]))
    assert auc[0] == pytest.approx(roc_auc_score(everybody.months <= time, risk))
    times = np.array(evaluation_times(everybody))
    survival = np.clip(0.8 - 0.1 * risk[:, None] - 0.004 * times[None, :], 0.0, 1.0)
    alive = everybody.months[:, None] > times[None, :]
    brier = np.square(alive - survival).mean(0)
    wanted = np.trapezoid(brier, times) / (times[-1] - times[0])
    assert integrated_brier(everybody, everybody, survival, times) == pytest.approx(wanted)


def test_log_rank_and_kaplan_meier_agree_with_scipy(heart) -> None:
    outcomes, _, inputs = heart
    old = inputs[:, 0] > 70

    def censored(mask: np.ndarray) -> stats.CensoredData:
        some = outcomes.only(mask)
        return stats.CensoredData(uncensored=some.months[some.died], right=some.months[~some.died])

    theirs = stats.logrank(censored(old), censored(~old))
    ours = log_rank(outcomes, old)
    assert ours.chi2 == pytest.approx(theirs.statistic**2)
    assert ours.p == pytest.approx(theirs.pvalue)
    curve = kaplan_meier(outcomes)
    estimate = stats.ecdf(censored(np.ones(len(old), bool))).sf
    at = np.array(curve.months)
    assert np.array(curve.values) == pytest.approx(estimate.evaluate(at))
    assert all(low <= value <= high for low, value, high in zip(curve.low, curve.values, curve.high, strict=True))
    assert curve.at_risk == 500


def test_nelson_aalen_is_the_sum_of_deaths_over_those_at_risk() -> None:
    _, y = load_gbsg2()
    outcomes = Outcomes(y["time"].astype(float)[:60], y["cens"].astype(bool)[:60])
    curve = nelson_aalen(outcomes)
    for month, value in zip(curve.months, curve.values, strict=True):
        deaths = [t for t in np.unique(outcomes.months[outcomes.died]) if t <= month]
        steps = [
            ((outcomes.months == t) & outcomes.died).sum() / (outcomes.months >= t).sum() for t in deaths
        ]  # fmt: skip
        assert value == pytest.approx(sum(steps))


def test_the_papers_mse_by_hand_and_its_flaw() -> None:
    """Four deaths: hazards 1/4, 7/12, 13/12, 25/12, scaled 0, 2/11, 5/11, 1. Perfect risk is the wrong way round."""
    outcomes = Outcomes(np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4, bool))
    scaled = np.array([0.0, 2 / 11, 5 / 11, 1.0])
    risk = np.array([3.0, 2.0, 1.0, 0.0])
    assert mse_nelson_aalen(outcomes, risk) == pytest.approx(np.mean((scaled - risk / 3) ** 2))
    assert harrell(outcomes, risk) == 1.0
    assert mse_nelson_aalen(outcomes, risk) > mse_nelson_aalen(outcomes, -risk)
    with pytest.raises(ValueError, match="can't be scaled"):
        mse_nelson_aalen(outcomes, np.ones(4))


def test_what_can_not_be_computed_is_said_and_never_a_number() -> None:
    outcomes = Outcomes(np.array([5.0, 6.0, 7.0, 8.0]), np.zeros(4, bool))  # nobody died
    scores = survival_scores(outcomes, np.array([1.0, 2.0, 3.0, 4.0]))
    assert scores.harrell is None
    assert scores.mean_auc is None
    assert scores.integrated_brier is None
    assert {"harrell", "auc", "integrated_brier", "log_rank"} <= set(scores.not_evaluable)
    with pytest.raises(ValueError, match="finite and above 0"):
        Outcomes(np.array([0.0, 1.0]), np.ones(2, bool))
    with pytest.raises(ValueError, match="do not fit"):
        Outcomes(np.array([1.0]), np.ones(2, bool))
