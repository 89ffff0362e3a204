"""Overlap and surface distance against brute force; sizes and false tumours by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from evals.model_card.tissue import VIEWS, overlap, summarise_segmentation, surface_mm


def ball(centre: tuple[float, float, float], radius: float, size: int = 24) -> np.ndarray:
    grid = np.ogrid[:size, :size, :size]
    return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2


def test_dice_by_counting():
    one, other = ball((10, 10, 10), 6), ball((13, 10, 10), 6)
    assert overlap(one, other) == pytest.approx(2 * (one & other).sum() / (one.sum() + other.sum()))
    assert overlap(one, one) == pytest.approx(1.0)
    assert overlap(one, np.zeros_like(one)) == pytest.approx(0.0)
    assert overlap(np.zeros_like(one), np.zeros_like(one)) is None


def test_surface_distance_by_brute_force_over_all_pairs_of_border_voxels():
    one, other, spacing = ball((10, 10, 10), 6), ball((12, 11, 10), 7), 1.5
    borders = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) * spacing for mask in (one, other)]
    table = cdist(*borders)
    nearest = np.concatenate([table.min(0), table.min(1)])
    assert surface_mm(one, other, [spacing] * 3) == pytest.approx(nearest.mean(), rel=0.02)
    assert surface_mm(one, np.zeros_like(one), [spacing] * 3) is None


def test_errors_of_size_keep_their_sign_and_their_size():
    row = {
        "views": {view: {"tumour_dice": 0.8, "oil_dice": None} for view in VIEWS},
        "sizes": {"viable_ml": [12.0, 10.0], "viable_mm": [30.0, 31.0], "longest_mm": [40.0, 40.0]},
    }
    other = {**row, "sizes": {"viable_ml": [9.0, 10.0], "viable_mm": [30.0, 33.0], "longest_mm": [41.0, 40.0]}}
    free = [{"false_ml": value, "liver_dice": 0.9} for value in (0.0, 0.0, 0.2, 0.0)]
    found = summarise_segmentation([row, other], free)
    assert found["sizes_on_post"]["viable_ml_error"]["value"] == pytest.approx(0.5)
    assert found["sizes_on_post"]["viable_ml_absolute_error"]["value"] == pytest.approx(1.5)
    assert found["false_tumour_rate"]["value"] == 0.25
    assert found["post"]["oil_dice"]["value"] is None
