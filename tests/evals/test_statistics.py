from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evals.statistics import bootstrap_mean


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


@pytest.mark.parametrize("values", [[1.0], [], [1.0, float("nan")]])
def test_too_few_or_broken_values_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="two finite values"):
        bootstrap_mean(values)
