"""Pooled statistics against scipy, numpy and counting by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from evals.model_card.figures import (
    amplitude,
    correlation,
    deviations,
    figure,
    look_up,
    mean_figure,
    pooled_figure,
    products,
    rank_correlation,
    resampled_figure,
    share_figure,
    slope,
)


@pytest.fixture
def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    out = []
    for _ in range(40):
        x = rng.normal(rng.normal(0, 3), 1.0, 6)
        out.append((x, 0.7 * x + rng.normal(rng.normal(0, 2), 0.5, 6)))
    return out


def sums(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    return np.array([products(*deviations(x, y)) for x, y in pairs])


def test_slope_and_correlation_within_patients_are_those_of_a_fixed_effects_regression(pairs):
    """Least squares with one intercept per patient, solved by numpy."""
    flat_x, flat_y = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    patient = np.kron(np.eye(len(pairs)), np.ones((6, 1)))
    solved, *_ = np.linalg.lstsq(np.column_stack([flat_x, patient]), flat_y, rcond=None)
    assert float(slope(sums(pairs).sum(0))) == pytest.approx(solved[0])
    x, y = (np.concatenate([pair[side] - pair[side].mean() for pair in pairs]) for side in (0, 1))
    assert float(correlation(sums(pairs).sum(0))) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert float(amplitude(sums(pairs).sum(0))) == pytest.approx(y.std() / x.std())


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """200 samples of 30 patients with a true slope of 0.7: about 95 % of the intervals hold it."""
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(200):
        x = rng.normal(0, 1, (30, 4))
        y = 0.7 * x + rng.normal(0, 0.5, x.shape)
        one = pooled_figure(np.array([products(*deviations(a, b)) for a, b in zip(x, y, strict=True)]), slope, trial)
        held += one["low"] <= 0.7 <= one["high"]
    assert 0.88 < held / 200 <= 1.0


def test_patients_are_resampled_and_not_their_protocols():
    """All protocols of a patient are equal: the interval is that of 12 values, not of 600."""
    rng = np.random.default_rng(2)
    values = rng.normal(0, 1, 12)
    blocks = np.stack([50.0 * values, np.full(12, 50.0)], axis=1)
    one = pooled_figure(blocks, lambda s: s[..., 0] / s[..., 1])
    assert one["value"] == pytest.approx(values.mean())
    half = 1.96 * values.std() / np.sqrt(12)
    assert one["high"] - one["low"] == pytest.approx(2 * half, rel=0.15)
    assert one["n"] == 12


def test_ranks_with_ties_are_scipys():
    x, y = [1.0, 2.0, 2.0, 5.0, 0.5], [3.0, 1.0, 1.0, 9.0, 1.0]
    assert rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert rank_correlation([4.0] * 5, x) is None  # nothing to rank
    assert rank_correlation(x, [4.0] * 5) == 0.0  # what differs is not seen
    assert rank_correlation(x[:2], y[:2]) is None


def test_a_share_has_wilsons_interval():
    """0 of 10: the upper end is z^2 / (n + z^2) = 0.2775; 1 of 4 from a published table."""
    none = share_figure([False] * 10)
    assert none["value"] == 0.0
    assert (none["low"], none["high"]) == (0.0, pytest.approx(0.2775, abs=1e-4))
    quarter = share_figure([True, False, False, False])
    expected = stats.binomtest(1, 4).proportion_ci(method="wilson")
    assert (quarter["low"], quarter["high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_what_is_not_there_is_null_and_never_a_number():
    assert mean_figure([None, float("nan")])["value"] is None
    assert mean_figure([2.0, None]) == {"value": 2.0, "low": None, "high": None, "n": 1}
    assert pooled_figure(np.zeros((3, 3)), slope)["value"] is None
    assert "NaN" not in json.dumps([figure(float("nan")), pooled_figure(np.zeros((0, 3)), slope)])


def test_a_resampled_statistic_is_that_of_all_patients():
    values = np.arange(20.0)
    one = resampled_figure(20, lambda index: float(np.median(values[index])))
    assert one["value"] == 9.5
    assert 4 < one["low"] < 9.5 < one["high"] < 15


def test_paths_with_a_star_find_every_figure_and_nothing_else():
    card = {"agents": {"A": {"slope": figure(1.0, n=5), "text": "no"}, "B": {"slope": figure(2.0, n=5)}}, "x": 3}
    assert {name: one["value"] for name, one in look_up(card, "agents.*.slope").items()} == {
        "agents.A.slope": 1.0, "agents.B.slope": 2.0,
    }  # fmt: skip
    assert look_up(card, "agents.C.slope") == {}
    assert look_up(card, "x") == {}
