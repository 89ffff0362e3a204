"""Patches against analytic phantoms: balls of known size on grids with unequal voxels."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from models.errors import MaskError
from models.patch import (
    FEATHER_MM,
    Patch,
    apply_change,
    boxes_around,
    crop,
    crop_lesions,
    crop_mask,
    describe_patches,
    feather,
    lesion_components,
    paste,
    plan_patches,
    resample_to_grid,
)
from models.volume import Volume

SPACING = (0.8, 0.8, 2.5)


def affine_of(spacing: tuple[float, float, float], origin: tuple[float, float, float] = (-60.0, 15.0, -300.0)):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def world(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1).astype(float)
    return grid @ affine[:3, :3].T + affine[:3, 3]


def balls(shape, affine, centres, radii) -> NDArray[np.uint8]:
    """Label 2 inside balls (voxel index centre, mm radius), label 1 elsewhere."""
    points = world(shape, affine)
    labels = np.ones(shape, dtype=np.uint8)
    for centre, radius in zip(centres, radii, strict=True):
        middle = np.asarray(centre) @ affine[:3, :3].T + affine[:3, 3]
        labels[np.linalg.norm(points - middle, axis=-1) <= radius] = 2
    return labels


def test_lesions_are_numbered_by_size_and_specks_are_counted():
    affine = affine_of(SPACING)
    labels = balls((120, 120, 48), affine, [(30, 30, 12), (90, 90, 36)], [8.0, 14.0])
    labels[5, 5, 5] = 2  # 0.0016 ml
    lesions = lesion_components(labels, affine)
    assert lesions.count == 2
    assert lesions.index[90, 90, 36] == 1
    assert lesions.index[30, 30, 12] == 2
    assert lesions.volumes_ml[0] == pytest.approx(4 / 3 * np.pi * 14**3 / 1000, rel=0.03)
    assert lesions.volumes_ml[1] == pytest.approx(4 / 3 * np.pi * 8**3 / 1000, rel=0.03)
    assert (lesions.specks, lesions.index[5, 5, 5]) == (1, 0)
    assert lesions.specks_ml == pytest.approx(0.0016)


def test_diagonal_neighbours_are_one_lesion():
    labels = np.zeros((20, 20, 20), dtype=np.uint8)
    labels[2:8, 2:8, 2:8] = 2
    labels[8:12, 8:12, 8:12] = 2
    assert lesion_components(labels, affine_of((1.0, 1.0, 1.0))).count == 1


def test_a_tumour_of_specks_only_is_kept():
    labels = np.zeros((10, 10, 10), dtype=np.uint8)
    labels[4, 4, 4] = 2
    assert lesion_components(labels, np.eye(4)).count == 1


def test_labels_without_tumour_are_an_error():
    with pytest.raises(MaskError, match="label 2"):
        lesion_components(np.ones((4, 4, 4), dtype=np.uint8), np.eye(4))


def test_near_lesions_share_a_patch_and_far_ones_do_not():
    affine = affine_of((1.0, 1.0, 1.0))
    shape = (260, 60, 60)
    labels = balls(shape, affine, [(30, 30, 30), (60, 30, 30), (220, 30, 30)], [12.0, 10.0, 8.0])
    patches = plan_patches(labels, affine)
    assert [patch.lesions for patch in patches] == [(1, 2), (3,)]
    assert {patch.spacing_mm for patch in patches} == {1.5}


@pytest.mark.parametrize("diameter", [60.0, 100.0, 170.0])
def test_every_lesion_lies_in_its_patch_with_a_margin(diameter: float):
    affine = affine_of((2.0, 2.0, 2.5))
    shape = (100, 100, 90)
    labels = balls(shape, affine, [(50, 50, 40)], [diameter / 2])
    (patch,) = plan_patches(labels, affine)
    inside = world(shape, affine)[labels == 2]
    index = (inside - patch.affine[:3, 3]) / patch.spacing_mm
    assert index.min() > 0.05 * patch.size
    assert index.max() < 0.95 * patch.size
    assert patch.spacing_mm == (1.5 if diameter < 76 else pytest.approx(diameter / 51.2, abs=0.15))
    assert "coarser" in describe_patches([patch], lesion_components(labels, affine)) or diameter < 76


def test_every_lesion_is_in_exactly_one_patch():
    rng = np.random.default_rng(4)
    affine = affine_of((1.5, 1.5, 3.0))
    centres = rng.uniform([10, 10, 6], [170, 170, 60], (14, 3))
    labels = balls((180, 180, 66), affine, centres, rng.uniform(4, 9, 14))
    patches = plan_patches(labels, affine)
    numbers = sorted(number for patch in patches for number in patch.lesions)
    assert numbers == list(range(1, lesion_components(labels, affine).count + 1))
    for patch in patches:
        share = crop_mask(labels == 2, affine, patch)
        found = crop_lesions(lesion_components(labels, affine), affine, patch)
        assert set(patch.lesions) <= set(np.unique(found).tolist())
        assert share.max() > 0.5


def test_a_lesion_larger_than_the_coarsest_cube_is_refused():
    labels = np.full((100, 20, 20), 2, dtype=np.uint8)
    with pytest.raises(MaskError, match="300 mm"):
        plan_patches(labels, affine_of((3.0, 3.0, 3.0)))


def test_crop_reproduces_a_linear_field_on_unequal_and_turned_grids():
    angle = np.deg2rad(20)
    turned = affine_of(SPACING)
    turned[:3, :3] = (
        np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]) @ turned[:3, :3]
    )
    slope = np.array([1.5, -0.7, 2.0])
    for affine in (affine_of(SPACING), turned):
        shape = (150, 150, 50)
        data = (world(shape, affine) @ slope).astype(np.float32)
        centre = np.array([75, 75, 25]) @ affine[:3, :3].T + affine[:3, 3]
        patch_affine = np.diag([0.7, 0.7, 0.7, 1.0])
        patch_affine[:3, 3] = centre - 0.7 * 31.5
        patch = Patch(0, patch_affine, 64, 0.7, (1,))
        expected = world((64, 64, 64), patch_affine) @ slope
        np.testing.assert_allclose(crop(Volume(data, affine), patch), expected, atol=0.02)


def test_outside_the_volume_a_patch_repeats_its_border():
    affine = affine_of((1.5, 1.5, 1.5), (0.0, 0.0, 0.0))
    data = np.full((40, 40, 40), 50, dtype=np.int16)
    data[0] = 90
    volume = Volume(data, affine)
    labels = balls((40, 40, 40), affine, [(2, 20, 20)], [9.0])
    (patch,) = plan_patches(labels, affine)
    cube = crop(volume, patch)
    points = world((64, 64, 64), patch.affine)
    beyond = ((points < -0.75) | (points > 39.5 * 1.5)).any(axis=-1)
    assert beyond.any()
    assert (cube[points[..., 0] < -0.75] == 90).all()
    assert (cube[beyond & (points[..., 0] > 1.5)] == 50).all()


def test_a_change_starts_at_the_window_where_it_points_back_into_it():
    before = np.array([2000.0, 2000.0, -900.0, -900.0, 40.0, 2000.0], np.float32)
    change = np.array([-570.0, 30.0, 200.0, -5.0, 60.0, 0.0], np.float32)
    full = apply_change(before, change, np.ones(6, np.float32), (-175.0, 600.0))
    np.testing.assert_allclose(full, [30.0, 2030.0, 25.0, -905.0, 100.0, 2000.0])
    half = apply_change(before, change, np.full(6, 0.5, np.float32), (-175.0, 600.0))
    np.testing.assert_allclose(half, (before + full) / 2)
    np.testing.assert_array_equal(apply_change(before, change, np.zeros(6, np.float32), (-175.0, 600.0)), before)


def test_coarse_patches_are_smoothed_not_aliased():
    # A chequerboard at the voxel scale has mean 0: picking voxels would give +-100.
    index = np.indices((128, 128, 128)).sum(axis=0)
    volume = Volume(np.where(index % 2 == 0, 100, -100).astype(np.int16), np.eye(4))
    patch_affine = np.diag([4.0, 4.0, 4.0, 1.0])
    patch_affine[:3, 3] = 32.0
    assert np.abs(crop(volume, Patch(0, patch_affine, 16, 4.0, (1,)))).max() < 1.0


def test_the_mask_keeps_its_volume_on_the_patch_grid():
    affine = affine_of(SPACING)
    labels = balls((150, 150, 50), affine, [(75, 75, 25)], [25.0])
    (patch,) = plan_patches(labels, affine)
    share = crop_mask(labels == 2, affine, patch)
    true_ml = 4 / 3 * np.pi * 25**3 / 1000
    assert float(share.sum()) * 1.5**3 / 1000 == pytest.approx(true_ml, rel=0.03)
    assert float((share >= 0.5).sum()) * 1.5**3 / 1000 == pytest.approx(true_ml, rel=0.04)


def test_a_lesion_too_thin_for_a_coarse_patch_is_not_lost():
    affine = np.eye(4)
    labels = np.zeros((200, 60, 60), dtype=np.uint8)
    labels[:, 30, 30] = 2  # a needle of 200 mm: its patch has voxels of 3.9 mm
    (patch,) = plan_patches(labels, affine)
    found = crop_lesions(lesion_components(labels, affine), affine, patch)
    assert patch.spacing_mm > 3.8
    assert (found == 1).sum() >= 50


def test_feather_against_brute_force_distances():
    affine = affine_of(SPACING)
    shape = (60, 60, 20)
    mask = balls(shape, affine, [(28, 31, 9)], [7.0]) == 2
    weight = feather(mask, affine)
    points = world(shape, affine)
    inside = points[mask]
    distance = np.array([np.linalg.norm(inside - p, axis=1).min() for p in points.reshape(-1, 3)]).reshape(shape)
    expected = np.where(distance < FEATHER_MM, 0.5 * (1 + np.cos(np.pi * distance / FEATHER_MM)), 0.0)
    np.testing.assert_allclose(weight, expected, atol=1e-6)
    assert (weight[mask] == 1.0).all()
    assert (weight[distance >= FEATHER_MM] == 0.0).all()


def test_feather_of_an_empty_mask_is_zero():
    assert not feather(np.zeros((5, 5, 5), dtype=bool), np.eye(4)).any()


@pytest.mark.parametrize(
    ("centres", "radii"),
    [
        ([(50, 50, 20)], [15.0]),
        ([(2, 60, 1)], [12.0]),  # at the volume's corner
        ([(20, 20, 10), (130, 130, 40)], [10.0, 9.0]),  # two patches
        ([(60, 60, 20), (92, 60, 20)], [12.0, 11.0]),  # feathers meet
    ],
)
def test_paste_adds_the_difference_inside_and_nothing_beyond_the_feather(centres, radii):
    rng = np.random.default_rng(0)
    affine = affine_of(SPACING)
    shape = (150, 150, 50)
    volume = Volume(rng.integers(-170, 560, shape).astype(np.int16), affine)
    before = volume.data.copy()
    labels = balls(shape, affine, centres, radii)
    patches = plan_patches(labels, affine)
    differences = [np.full((64, 64, 64), 37, dtype=np.int16) for _ in patches]
    after = paste(volume, labels == 2, patches, differences)
    assert (after.data.dtype, after.data.shape) == (np.int16, shape)
    np.testing.assert_array_equal(after.affine, affine)
    np.testing.assert_array_equal(volume.data, before)
    weight = feather(labels == 2, affine)
    np.testing.assert_array_equal(after.data[weight == 0], before[weight == 0])
    np.testing.assert_array_equal(after.data[labels == 2], before[labels == 2] + 37)
    np.testing.assert_allclose(after.data - before, weight * 37, atol=0.51)


def test_paste_has_no_seam_between_patches():
    # Two lesions 10 mm apart in different patches, changed by opposite amounts.
    affine = affine_of((1.0, 1.0, 1.0))
    shape = (150, 120, 120)
    labels = balls(shape, affine, [(52, 60, 60), (112, 60, 60)], [42.0, 8.0])
    patches = plan_patches(labels, affine)
    assert len(patches) == 2
    volume = Volume(np.zeros(shape, dtype=np.int16), affine)
    change = [np.full((64, 64, 64), 100.0), np.full((64, 64, 64), -100.0)]
    line = paste(volume, labels == 2, patches, change).data[:, 60, 60].astype(int)
    assert line[52] == 100
    assert line[112] == -100
    assert np.abs(np.diff(line)).max() <= 40  # falls to 0 over 8 mm: a cosine's steepest step is 20, two meet


def test_paste_keeps_float_volumes_exact_outside():
    rng = np.random.default_rng(1)
    affine = affine_of((2.5, 2.5, 2.5))
    volume = Volume(rng.normal(0, 100, (60, 60, 40)).astype(np.float32), affine)
    labels = balls((60, 60, 40), affine, [(30, 30, 20)], [20.0])
    after = paste(volume, labels == 2, plan_patches(labels, affine), [np.full((64, 64, 64), 5.0)])
    weight = feather(labels == 2, affine)
    assert after.data.dtype == np.float32
    np.testing.assert_array_equal(after.data[weight == 0], volume.data[weight == 0])


def test_resampling_there_and_back_keeps_a_smooth_image():
    affine = affine_of((2.5, 2.5, 2.5), (0.0, 0.0, 0.0))
    points = world((40, 40, 40), affine)
    data = (100 * np.sin(points[..., 0] / 20) * np.cos(points[..., 1] / 25)).astype(np.float32)
    fine_affine = affine_of((1.25, 1.25, 1.25), (0.0, 0.0, 0.0))
    fine = resample_to_grid(data, affine, fine_affine, (79, 79, 79))
    back = resample_to_grid(fine, fine_affine, affine, (40, 40, 40))
    assert np.abs(back - data)[2:-2, 2:-2, 2:-2].max() < 2.0


def test_the_real_tumour_fits_one_coarse_patch(real_data: Path):
    image = nib.as_closest_canonical(nib.load(real_data / "hcc009-2.5mm" / "pre_labels.nii.gz"))
    labels, affine = np.asarray(image.dataobj).astype(np.uint8), image.affine
    lesions = lesion_components(labels, affine)
    (patch,) = plan_patches(labels, affine)
    assert lesions.count == 1
    assert lesions.volumes_ml[0] == pytest.approx(1420, abs=1)  # the data's README
    assert patch.spacing_mm == pytest.approx(3.4, abs=0.1)
    share = crop_mask(labels == 2, affine, patch)
    assert float(share.sum()) * patch.spacing_mm**3 / 1000 == pytest.approx(1420, rel=0.02)


def test_boxes_hold_what_is_set_and_have_one_shape():
    inside = np.zeros((3, 64, 64, 64), dtype=bool)
    inside[0, 20:41, 1:9, 30:34] = True
    inside[1, 50:63, 30:33, 0:64] = True  # the third cube is empty: it counts whole
    for count, expected in ((1, (40, 24, 24)), (2, (40, 24, 64)), (3, (64, 64, 64))):
        boxes = boxes_around(inside[:count], margin=8, least=24, step=8, cell=4)
        for one, box in zip(inside, boxes, strict=False):
            assert tuple(s.stop - s.start for s in box) == expected
            assert all(s.start % 4 == 0 and s.start >= 0 and s.stop <= 64 for s in box)
            wide = ndimage.binary_dilation(one, np.ones((17, 17, 17), bool)) if one.any() else one
            assert wide[box].sum() == wide.sum()  # the margin too, where the cube goes on
