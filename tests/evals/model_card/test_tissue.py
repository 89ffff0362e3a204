"""Overlap and surface distance against brute force; sizes and false tumours by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from evals.model_card.tissue import (
    VIEWS,
    _sizes_before,
    measure_tumour_free,
    overlap,
    score_classes,
    summarise_segmentation,
    surface_mm,
)
from models.engine import Engine
from models.networks.segmenter import Tissue
from models.phantom.cohort import case_affine
from models.phantom.patient import draw_patient
from models.phantom.render import render
from models.response import VIABLE
from models.volume import Volume


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


def test_tumour_as_a_plan_keeps_it_and_the_mask_that_it_was_given_by_counting():
    before, after = ball((10, 10, 10), 6), ball((10, 10, 10), 7)
    near, found = ball((10, 10, 10), 9), ball((10, 10, 10), 7) | ball((20, 20, 20), 3)  # the small ball is far away
    prepared: Any = SimpleNamespace(
        patches=[SimpleNamespace(spacing_mm=1.5)], numbers=before[None].astype(int), near=near[None].astype(int)
    )
    scene: Any = SimpleNamespace(prepared=prepared)
    classes = [np.where(mask, VIABLE, int(Tissue.LIVER)).astype(np.uint8)[None] for mask in (found, after)]
    scores = score_classes(scene, *classes)
    assert scores["tumour_dice"] == pytest.approx(2 * after.sum() / (found.sum() + after.sum()))
    assert scores["tumour_near_dice"] == pytest.approx(1.0)
    assert scores["mask_before_dice"] == pytest.approx(2 * before.sum() / (before.sum() + after.sum()))


def test_errors_of_size_keep_their_sign_and_their_size():
    def row(viable_ml: float) -> dict:
        after = {"viable_ml": [viable_ml, 10.0], "viable_mm": [30.0, 31.0], "longest_mm": [40.0, 40.0]}
        before = {"tumour_ml": [0.0, 8.0], "longest_mm": [0.0, 25.0]}
        return {
            "views": {view: {"tumour_dice": 0.8, "oil_dice": None} for view in VIEWS},
            "sizes": {"pre": before, "post": after, "simulated_post": after},
        }

    free = [{"false_ml": value, "liver_dice": 0.9} for value in (0.0, 0.0, 0.2, 0.0)]
    found = summarise_segmentation([row(12.0), row(9.0)], free)
    assert found["sizes"]["post"]["viable_ml"]["error"]["value"] == pytest.approx(0.5)
    assert found["sizes"]["post"]["viable_ml"]["absolute_error"]["value"] == pytest.approx(1.5)
    assert found["sizes"]["pre"]["tumour_ml"]["error"]["value"] == pytest.approx(-8.0)
    assert found["false_tumour_rate"]["value"] == 0.25
    assert found["post"]["oil_dice"]["value"] is None


def test_sizes_before_are_of_all_tumours_and_of_the_largest():
    mask = ball((8, 8, 8), 5) | ball((20, 20, 20), 2)
    ml, mm = _sizes_before(mask, Volume(np.zeros(mask.shape, np.int16), np.diag([2.0, 2.0, 2.0, 1.0])))
    assert ml == pytest.approx(mask.sum() * 0.008)
    assert mm == pytest.approx(22.0)  # 11 voxels across; the small ball is 5
    assert _sizes_before(mask & False, Volume(np.zeros(mask.shape, np.int16), np.eye(4))) == (0.0, 0.0)


def test_a_liver_without_tumour_has_no_thrombus_either():
    """It is tumour in the portal vein, and bright as one."""
    seeds = range(980000, 980040)
    seed = next(seed for seed in seeds if draw_patient(seed).record.portal_vein_invasion == "main")
    drawn = []

    class Looking(Engine):
        def __init__(self) -> None:
            """No networks are needed."""

        def segment_volume(self, volume: Volume) -> np.ndarray:
            drawn.append(volume.data)
            return np.zeros(volume.data.shape, np.uint8)

    measure_tumour_free(seed, Looking())
    patient, shape = draw_patient(seed), drawn[0].shape
    with_clot = np.rint(render(patient, case_affine(), shape, with_tumour=False).hu).astype(np.int16)
    record = patient.record.model_copy(update={"portal_vein_invasion": "none"})
    free = np.rint(render(replace(patient, record=record), case_affine(), shape, with_tumour=False).hu).astype(np.int16)
    assert np.array_equal(drawn[0], free)
    assert not np.array_equal(drawn[0], with_clot)
