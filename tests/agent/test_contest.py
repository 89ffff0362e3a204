import math

import numpy as np
import pytest
from scipy import stats

from agent.contest import confidence, contested, gain, levels, mean_se, paired, ranking, t_interval


def table_of(rows: dict[str, list[float]], first: int = 0) -> dict[str, dict[int, float]]:
    return {key: {first + n: value for n, value in enumerate(values)} for key, values in rows.items()}


def test_paired_difference_agrees_with_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=9), rng.normal(0.7, size=9)
    difference = paired(table_of({"a": list(a), "b": list(b)}), "a", "b")
    reference = stats.ttest_rel(b, a)
    low, high = reference.confidence_interval(0.95)
    assert difference.mean == pytest.approx(np.mean(b - a))
    assert difference.interval == pytest.approx((low, high))
    assert difference.tied == (low <= 0 <= high)


def test_paired_uses_only_common_seeds():
    difference = paired({"a": {0: 1.0, 1: 2.0, 5: 99.0}, "b": {0: 2.0, 1: 3.0, 7: -99.0}}, "a", "b")
    assert (difference.mean, difference.se, difference.n) == (1.0, 0.0, 2)
    assert not difference.tied
    with pytest.raises(ValueError, match="never simulated with the same seed"):
        paired({"a": {0: 1.0}, "b": {1: 1.0}}, "a", "b")


def test_one_seed_can_not_tell_protocols_apart():
    assert paired({"a": {0: 1.0}, "b": {0: 5.0}}, "a", "b").tied


def test_levels_take_out_what_an_extra_seed_does_to_all():
    # Seed 2 is 10 worse for everybody; only `a` and `b` were simulated with it. By plain means `c` would win.
    table = {
        "a": {0: 1.0, 1: 1.2, 2: 11.1},
        "b": {0: 2.0, 1: 2.2, 2: 12.1},
        "c": {0: 1.5, 1: 1.7},
    }
    level = levels(table, ["a", "b", "c"])
    assert level["b"] - level["a"] == pytest.approx(1.0)
    assert level["c"] - level["a"] == pytest.approx(0.5)
    assert ranking(table, ["c", "b", "a"]) == ["a", "c", "b"]


def test_levels_are_plain_means_for_equal_seeds():
    table = table_of({"a": [1.0, 2.0], "b": [0.0, 5.0]})
    assert levels(table, ["a", "b"]) == {"a": 1.5, "b": 2.5}


def test_contested_finds_the_open_places_only():
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 5, size=4)
    means = {"a": 0.0, "b": 1.0, "c": 1.02, "d": 4.0}
    table = table_of({key: list(mean + shared + rng.normal(0, 0.05, size=4)) for key, mean in means.items()})
    assert sorted(contested(table, list(means), 2)) == ["b", "c"]
    assert contested(table, list(means), 1) == []
    assert contested(table, list(means), 4) == []


def test_contested_is_open_with_a_single_replica():
    assert contested(table_of({"a": [0.0], "b": [9.0]}), ["a", "b"], 1) == ["a", "b"]


def test_confidence_of_a_clear_and_of_an_even_contest():
    clear = table_of({"a": [0.0, 0.1, 0.2, 0.1], "b": [5.0, 5.1, 5.3, 5.2]})
    assert confidence(clear, "a", ["a", "b"], seed=0) == 1.0
    assert confidence(clear, "b", ["a", "b"], seed=0) == 0.0
    even = table_of({"a": [0.0, 1.0] * 4, "b": [1.0, 0.0] * 4})
    share = confidence(even, "a", ["a", "b"], seed=0)
    # 4 of 8 draws from the better half is an exact tie (27 % of the resamples), which each of the two gets half of.
    assert share == pytest.approx(0.5, abs=0.03)
    assert confidence(table_of({"a": [0.0], "b": [1.0]}), "a", ["a", "b"], seed=0) is None


def test_exact_ties_share_the_confidence():
    row = [0.3, 0.1, 0.7, 0.2]
    twins = table_of({"a": row, "b": row})
    assert confidence(twins, "a", ["a", "b"], seed=0) == confidence(twins, "b", ["a", "b"], seed=0) == 0.5
    three = table_of({"a": row, "b": row, "c": [v + 1.0 for v in row]})
    assert [confidence(three, key, ["a", "b", "c"], seed=0) for key in "abc"] == [0.5, 0.5, 0.0]


def test_t_interval_agrees_with_scipy():
    values = np.random.default_rng(4).normal(2.0, 0.5, size=5)
    reference = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    mean, se = mean_se(list(values))
    assert t_interval(mean, se, 5) == pytest.approx((reference.low, reference.high))
    assert t_interval(1.0, None, 1) is None


def test_a_gain_takes_its_spread_from_all_beams():
    # On two seeds `a` and `before` differ by exactly 0.1 each time, so their own spread says that nothing is open.
    table = table_of({"before": [1.1, 2.1], "a": [1.0, 2.0], "b": [1.0, 2.6], "c": [1.5, 2.1]})
    own = paired(table, "a", "before")
    assert own.se == pytest.approx(0.0)
    found = gain(table, "a", "before", ["a", "b", "c"])
    # Variances of the differences on two seeds: 0 for `before`, 0.18 for b - a (0, 0.6), 0.08 for c - a (0.5, 0.1).
    assert found.mean == pytest.approx(0.1)
    assert found.se == pytest.approx(math.sqrt((0.0 + 0.18 + 0.08) / 3 / 2))
    assert gain(table_of({"a": [1.0], "before": [2.0]}), "a", "before", []).se is None
