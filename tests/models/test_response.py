"""Response measures against balls, ellipses and brute force."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.distance import pdist

from models.response import (
    LesionState,
    compare,
    criteria,
    largest_axial_area,
    longest_axial_diameter,
    measure_lesion,
    nearest_lesion,
    target_lesions,
)


def ellipsoid(shape, spacing, radii, angle=0.0):
    grid = np.stack(
        np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij")
    )
    x = grid[0] * np.cos(angle) + grid[1] * np.sin(angle)
    y = -grid[0] * np.sin(angle) + grid[1] * np.cos(angle)
    return (x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (grid[2] / radii[2]) ** 2 <= 1


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (0.8, 0.8, 2.5), (0.7, 1.1, 3.0)])
@pytest.mark.parametrize("diameter", [12.0, 30.0, 55.0])
def test_diameter_and_area_of_a_ball(spacing, diameter):
    ball = ellipsoid((90, 90, 41), spacing, (diameter / 2,) * 3)
    assert longest_axial_diameter(ball, spacing) == pytest.approx(diameter, abs=1.1 * max(spacing[:2]))
    assert largest_axial_area(ball, spacing) == pytest.approx(np.pi * diameter**2 / 4, rel=0.06)


def test_diameter_of_a_turned_ellipse():
    mask = ellipsoid((100, 100, 9), (1.0, 1.0, 1.0), (40.0, 10.0, 3.0), angle=0.6)
    assert longest_axial_diameter(mask, (1.0, 1.0, 1.0)) == pytest.approx(80.0, abs=1.0)


def test_diameter_is_axial_not_spatial():
    needle = np.zeros((10, 10, 60), dtype=bool)
    needle[4, 4, :] = True
    assert longest_axial_diameter(needle, (1.5, 1.5, 1.5)) == pytest.approx(1.5)


def test_diameter_against_all_pairs_of_voxels():
    rng = np.random.default_rng(7)
    for _ in range(10):
        mask = rng.random((14, 11, 3)) < 0.15
        mask[0, 0, 0] = True
        chords = []
        for z in range(3):
            points = np.argwhere(mask[:, :, z]) * [0.8, 1.3]
            chords.append(pdist(points).max(initial=0.0) if len(points) > 1 else 0.0)
        # centre to centre, plus at most the larger in-plane voxel and at least the smaller one
        found = longest_axial_diameter(mask, (0.8, 1.3, 2.0))
        assert max(chords) + 0.8 - 0.01 <= found <= max(chords) + 1.3 + 0.01


def test_an_empty_mask_has_no_size():
    empty = np.zeros((5, 5, 5), dtype=bool)
    assert longest_axial_diameter(empty, (1, 1, 1)) == 0.0
    assert largest_axial_area(empty, (1, 1, 1)) == 0.0
    assert largest_axial_area(np.zeros((5, 5, 0)), (1, 1, 1)) == 0.0


def test_nearest_lesion_against_brute_force():
    index = np.zeros((20, 20, 8), dtype=np.int16)
    index[3:6, 3:6, 2:4] = 1
    index[14:17, 12:15, 4:6] = 2
    spacing = (1.0, 1.5, 2.5)
    found = nearest_lesion(index, spacing, 5.0)
    points = {n: np.argwhere(index == n) * spacing for n in (1, 2)}
    for voxel in itertools.product(range(20), range(20), range(8)):
        distance = {n: np.linalg.norm(p - np.array(voxel) * spacing, axis=1).min() for n, p in points.items()}
        best = min(distance, key=lambda n: distance[n])
        if abs(distance[1] - distance[2]) > 1e-9:
            assert found[voxel] == (best if distance[best] <= 5.0 else 0)


def shell(outer: float, inner: float, shape=(64, 64, 64), spacing=1.5):
    """Viable rim around a necrotic core."""
    tissue = np.zeros(shape, dtype=np.uint8)
    tissue[ellipsoid(shape, (spacing,) * 3, (outer,) * 3)] = 2
    tissue[ellipsoid(shape, (spacing,) * 3, (inner,) * 3)] = 3
    return tissue


def test_volumes_of_rim_and_core():
    state = measure_lesion(1, shell(24.0, 16.0), (1.5,) * 3)
    ball = lambda r: 4 / 3 * np.pi * r**3 / 1000  # noqa: E731
    assert state.necrotic_ml == pytest.approx(ball(16), rel=0.03)
    assert state.viable_ml == pytest.approx(ball(24) - ball(16), rel=0.03)
    assert state.oil_ml == 0
    assert state.longest_mm == pytest.approx(48, abs=1.6)
    assert state.viable_mm == pytest.approx(48, abs=1.6)


def test_viable_diameter_is_that_of_one_connected_part():
    tissue = shell(24.0, 24.0)
    tissue[6:14, 30:34, 30:34] = 2  # 8 x 4 voxels
    tissue[50:56, 30:34, 30:34] = 2  # 6 x 4 voxels, far away
    state = measure_lesion(1, tissue, (1.5,) * 3)
    assert state.viable_mm == pytest.approx(1.5 * (np.hypot(7, 3) + 1), abs=0.2)
    assert state.longest_mm > 60


def test_a_speck_counts_as_volume_but_not_as_a_diameter():
    tissue = shell(15.0, 15.0)
    tissue[2, 2, 2] = 2
    state = measure_lesion(1, tissue, (1.5,) * 3)
    assert state.viable_ml == pytest.approx(1.5**3 / 1000)
    assert (state.viable_mm, state.viable_mm2) == (0.0, 0.0)


def state(lesion: int, longest: float, viable: float, area: float | None = None) -> LesionState:
    return LesionState(lesion, longest, viable, viable**2 if area is None else area, viable / 10, 0.0, 0.0)


def test_targets_are_the_two_longest_measurable_lesions():
    assert target_lesions([state(1, 30, 30), state(2, 50, 50), state(3, 40, 40)]) == (2, 3)
    assert target_lesions([state(1, 30, 30), state(2, 9, 9)]) == (1,)
    assert target_lesions([state(1, 8, 8), state(2, 9, 9)]) == (2,)


@pytest.mark.parametrize(
    ("after", "category"),
    [(0.0, "CR"), (35.0, "PR"), (35.1, "SD"), (50.0, "SD"), (59.9, "SD"), (60.0, "PD"), (80.0, "PD")],
)
def test_mrecist_thresholds(after: float, category: str):
    assert compare([state(1, 50, 50)], [state(1, 50, after)]).mrecist.category == category


@pytest.mark.parametrize(
    ("area", "category"), [(0.0, "CR"), (500.0, "PR"), (501.0, "SD"), (1250.0, "SD"), (1251.0, "PD")]
)
def test_easl_thresholds(area: float, category: str):
    after = state(1, 50, 0 if area == 0 else 40, area)
    assert compare([state(1, 50, 50, 1000.0)], [after]).easl.category == category


def test_viable_tissue_in_another_lesion_excludes_complete_response():
    before = [state(1, 60, 60), state(2, 40, 40), state(3, 12, 12)]
    after = [state(1, 60, 0), state(2, 40, 0), state(3, 12, 12)]
    result = compare(before, after)
    assert result.targets == (1, 2)
    assert (result.mrecist.percent, result.mrecist.category) == (-100.0, "PR")


def test_nothing_viable_before_is_not_evaluable():
    change = compare([state(1, 50, 0)], [state(1, 50, 20)]).mrecist
    assert (change.percent, change.category) == (None, "NE")


def test_different_lesions_are_a_bug():
    with pytest.raises(ValueError, match="different lesions"):
        compare([state(1, 50, 50)], [state(2, 50, 50)])


def test_thresholds_name_their_sources():
    rules = criteria()
    assert all("20" in source for source in (rules.mrecist.source, rules.easl.source, rules.targets.source))


def test_the_real_tumour_is_170_mm_long(real_data: Path):
    image = nib.as_closest_canonical(nib.load(real_data / "hcc009-2.5mm" / "pre_labels.nii.gz"))
    spacing = image.header.get_zooms()
    assert longest_axial_diameter(np.asarray(image.dataobj) == 2, spacing) == pytest.approx(170, abs=4)
