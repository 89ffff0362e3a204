from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from evals.statistics import bootstrap_mean, holm, paired_difference, sign_flip_p


def test_the_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).gamma(2.0, 1.0, 40)
    ours = bootstrap_mean(values)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.03)
    assert ours.high == pytest.approx(theirs.high, abs=0.03)
    assert ours.n == 40
    narrow = bootstrap_mean(values, level=0.5)
    assert ours.low < narrow.low < narrow.high < ours.high


@pytest.mark.parametrize("values", [[1.0], [], [1.0, float("nan")]])
def test_too_few_or_broken_values_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="two finite values"):
        bootstrap_mean(values)


def by_case(values: np.ndarray) -> dict[str, float]:
    return {f"case-{index:03d}": float(value) for index, value in enumerate(values)}


def brute_force(differences: np.ndarray) -> float:
    """Every sign pattern written out."""
    observed = abs(differences.mean())
    means = [abs(np.mean(differences * signs)) for signs in product((1, -1), repeat=len(differences))]
    return float(np.mean([mean >= observed - 1e-12 for mean in means]))


@pytest.mark.parametrize("n", [2, 5, 9])
def test_the_exact_p_value_is_that_of_every_sign_pattern(n: int) -> None:
    rng = np.random.default_rng(n)
    differences = np.round(rng.normal(0.3, 1.0, n), 1)  # rounded: ties and zeros among the sums
    assert sign_flip_p(differences) == pytest.approx(brute_force(differences))
    theirs = stats.permutation_test(
        (differences, np.zeros(n)), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=np.inf,
    )  # fmt: skip
    assert sign_flip_p(differences) == pytest.approx(theirs.pvalue)


def test_beyond_twenty_cases_signs_are_drawn_and_p_is_never_zero() -> None:
    """The exact p of 20 values is known; with one case more that changes nothing (a zero) it is drawn."""
    differences = np.random.default_rng(8).normal(0.25, 1.0, 20)
    exact = sign_flip_p(differences)
    assert 0.02 < exact < 0.98
    drawn = sign_flip_p(np.append(differences, 0.0), draws=20_000)
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20_000))
    assert sign_flip_p(np.full(30, 1.0), draws=999) == pytest.approx(1 / 1000)
    assert sign_flip_p(np.zeros(5)) == sign_flip_p(np.zeros(25)) == 1.0


def test_two_runs_are_paired_by_case() -> None:
    a = {f"c{i}": value for i, value in enumerate([0.9, 0.5, 0.7, 0.4, 0.8, 0.6, 1.0, 0.2])}
    b = {f"c{i}": value for i, value in enumerate([0.8, 0.5, 0.5, 0.5, 0.4, 0.3, 0.9, 0.1])} | {"only b": 1.0}
    found = paired_difference(a | {"only a": 0.0}, b)
    differences = np.array([0.1, 0.0, 0.2, -0.1, 0.4, 0.3, 0.1, 0.1])
    assert found.mean == pytest.approx(differences.mean())
    assert (found.wins, found.ties, found.losses, found.n) == (6, 1, 1, 8)
    assert found.p == pytest.approx(brute_force(differences))
    assert found.missing == ("only a", "only b")
    assert found.low < found.mean < found.high
    # whichever way round it is written
    turned = paired_difference(b, a | {"only a": 0.0})
    assert (turned.mean, turned.p) == (pytest.approx(-found.mean), found.p)
    assert (turned.wins, turned.losses) == (1, 6)
    regret = paired_difference(a, b, lower_is_better=True)
    assert (regret.mean, regret.wins, regret.losses) == (pytest.approx(found.mean), 1, 6)


def test_the_paired_interval_is_that_of_the_differences() -> None:
    """Values that differ widely between cases and little within: only pairing sees it."""
    base = np.linspace(0, 1, 15)
    noise = np.random.default_rng(0).normal(0.05, 0.01, 15)
    found = paired_difference(by_case(base + noise), by_case(base))
    assert found.low > 0.03
    assert found.high - found.low < 0.02
    assert found.low == pytest.approx(bootstrap_mean(noise).low)


def test_the_smallest_detectable_difference_is_found_with_a_power_of_eighty_percent() -> None:
    """Against the exact power of the t test (noncentral t)."""
    rng = np.random.default_rng(4)
    for n in (8, 20, 60):
        sample = rng.normal(0.0, 1.0, n)
        found = paired_difference(by_case(sample), by_case(np.zeros(n)), draws=100)
        assert found.smallest_detectable is not None
        limit = stats.t.ppf(0.975, n - 1)
        shift = found.smallest_detectable / sample.std(ddof=1) * np.sqrt(n)
        power = stats.nct.sf(limit, n - 1, shift) + stats.nct.cdf(-limit, n - 1, shift)
        assert power == pytest.approx(0.8, abs=0.02)


def test_five_cases_can_show_no_difference() -> None:
    """2 of 2^5 sign patterns are 6 %."""
    rows = {str(i): float(i + 1) for i in range(6)}
    five = {k: v for k, v in rows.items() if k != "5"}
    assert paired_difference(five, dict.fromkeys(five, 0.0)).p == pytest.approx(2 / 32)
    assert paired_difference(five, dict.fromkeys(five, 0.0)).smallest_detectable is None
    assert paired_difference(rows, dict.fromkeys(rows, 0.0)).smallest_detectable is not None


def test_fewer_than_two_common_cases_are_refused() -> None:
    with pytest.raises(ValueError, match="two finite values"):
        paired_difference({"a": 1.0, "b": 1.0}, {"b": 0.5, "c": 0.5})


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, never falling."""
    adjusted = holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02})
    assert list(adjusted) == ["d", "a", "c", "b"]
    assert adjusted == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_holm_rejects_what_its_step_down_procedure_rejects() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        p = {str(i): float(value) for i, value in enumerate(rng.beta(0.5, 3.0, 6))}
        rejected: set[str] = set()
        left = sorted(p, key=p.__getitem__)
        while left and p[left[0]] <= 0.05 / len(left):
            rejected.add(left.pop(0))
        assert {name for name, value in holm(p).items() if value <= 0.05} == rejected


def test_a_ratio_of_means_resamples_differences_and_units_of_a_case_together():
    rng = np.random.default_rng(3)
    units = rng.gamma(1.0, 1.0, 15)
    lost, other = units * rng.uniform(0, 1, 15), units * rng.uniform(0, 1, 15)
    found = paired_difference(by_case(lost), by_case(other), unit=by_case(units))
    theirs = stats.bootstrap(
        (lost - other, units), lambda a, b, axis: a.mean(axis) / b.mean(axis), paired=True, method="percentile",
        n_resamples=20_000, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found.mean == pytest.approx((lost - other).mean() / units.mean())
    assert (found.low, found.high) == (pytest.approx(theirs.low, abs=0.01), pytest.approx(theirs.high, abs=0.01))
    assert found.p == paired_difference(by_case(lost), by_case(other)).p

    half = paired_difference(by_case(0.5 * units), by_case(0.0 * units), unit=by_case(units))
    assert (half.mean, half.low, half.high) == (pytest.approx(0.5),) * 3  # whoever is drawn
    nothing = paired_difference(by_case(0.0 * units), by_case(0.0 * units), unit=by_case(0.0 * units))
    assert (nothing.mean, nothing.low, nothing.high) == (0.0, 0.0, 0.0)
