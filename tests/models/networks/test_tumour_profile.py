from __future__ import annotations

import numpy as np
import pytest

from models.networks.tumour_profile import PROFILE_SIZE, tumour_profile


def scan(contrast: float = 40.0, core: float = 0.0, spacing: float = 2.0, radius_mm: float = 18.0) -> np.ndarray:
    axis = (np.arange(48) - 23.5) * spacing
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    hu = np.where(distance <= radius_mm, 100.0 + contrast, 100.0)
    hu[distance <= core * radius_mm] = 20.0
    return np.stack([hu, distance <= radius_mm])


def profile(spacing: float = 2.0, **options: float) -> np.ndarray:
    hu, tumour = scan(spacing=spacing, **options)
    return tumour_profile(hu, tumour > 0, spacing)


def test_a_plain_ball_by_hand() -> None:
    told = profile()
    assert told.shape == (PROFILE_SIZE,)
    assert told[0] == pytest.approx(np.log(4 / 3 * np.pi * 18**3 / 1000) - 3, abs=0.03)  # log ml
    assert told[2] == pytest.approx(0.5, abs=0.01)  # liver of 100 HU
    assert told[8] == pytest.approx(1.0, abs=0.02)  # median 40 HU above it
    assert not told[13:19].any()  # nothing below 80 HU


def test_enhancement_core_and_offset() -> None:
    plain = profile()
    assert profile(contrast=-30.0)[8] == pytest.approx(-0.75, abs=0.03)
    assert profile(core=0.6)[18] == pytest.approx(0.6**3, abs=0.04)  # share below 80 HU, halfway
    hu, tumour = scan()
    brighter = tumour_profile(hu + 12.0, tumour > 0, 2.0)
    np.testing.assert_allclose(brighter[4:13], plain[4:13], atol=1e-4)  # measured against the liver around


def test_turning_the_patient_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    hu, tumour = scan(core=0.4)
    hu = hu + rng.normal(0, 8, hu.shape)
    before = tumour_profile(hu, tumour > 0, 2.0)
    np.testing.assert_allclose(tumour_profile(hu[::-1].transpose(1, 0, 2), tumour[::-1].transpose(1, 0, 2) > 0, 2.0),
                               before, atol=2e-3)  # fmt: skip


@pytest.mark.parametrize("spacing", [1.5, 4.5])
def test_small_tumours_on_coarse_grids_give_finite_numbers(spacing: float) -> None:
    told = profile(spacing=spacing, radius_mm=5.0)
    assert np.isfinite(told).all()
    assert np.abs(told).max() < 12
    empty = tumour_profile(np.zeros((8, 8, 8)), np.zeros((8, 8, 8), bool), spacing)
    assert not empty.any()
