import numpy as np
import pytest

from models.survival_curve import median_survival, survival_at


def test_survival_mathematics():
    baseline = (1.0, 0.8, 0.6, 0.4)
    assert survival_at(baseline, 0.0) == baseline
    assert survival_at(baseline, np.log(2.0)) == pytest.approx([1.0, 0.64, 0.36, 0.16])
    assert median_survival((0, 6, 12, 18), baseline) == 18
    assert median_survival((0, 6, 12, 18), survival_at(baseline, np.log(2.0))) == 12
    assert median_survival((0, 6, 12, 18), survival_at(baseline, -5.0)) is None
    assert survival_at(baseline, 1e6)[1] == 0.0
    assert survival_at((), 0.3) == ()
