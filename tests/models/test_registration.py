from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from models.errors import MaskError, VolumeError
from models.registration import Registration, register
from models.registration_check import Fit, Report, jacobian, problems
from models.registration_settings import settings
from models.volume import Volume
from tests.models.scan_pair import OIL_RADIUS, Motion, Points, ScanPair, errors_mm, make_pair

MOTION = Motion(shift=(14.0, -10.0, 9.0), degrees=5.0, bend_mm=9.0)
BALL_ML = 4 / 3 * np.pi * OIL_RADIUS**3 / 1000


def carried(found: Registration, points: Points) -> Points:
    """Points of the scan before treatment carried to the follow-up, RAS mm."""
    turn = np.array([-1.0, -1.0, 1.0])
    return np.array([found.transform.TransformPoint((p * turn).tolist()) for p in points]) * turn


@pytest.fixture(scope="module")
def pair() -> ScanPair:
    return make_pair(MOTION)


@pytest.fixture(scope="module")
def found(pair: ScanPair) -> Registration:
    return register(pair.fixed, pair.moving, pair.fixed_labels)


def test_a_known_motion_is_found(pair: ScanPair, found: Registration) -> None:
    """Voxels of 4 mm: the tissue of the liver is found to 1.5 mm on average, 4 mm for 95 % of it."""
    wrong = errors_mm(pair, pair.liver_points)
    assert wrong.mean() > 15
    error = errors_mm(pair, carried(found, pair.liver_points))
    assert error.mean() < 1.5
    assert np.quantile(error, 0.95) < 4.0


def test_the_deformation_is_found_beyond_the_rigid_part(pair: ScanPair, found: Registration) -> None:
    rigid = Registration(sitk.CompositeTransform(found.transform).GetNthTransform(0), found.report)
    error = errors_mm(pair, carried(rigid, pair.liver_points))
    assert np.quantile(error, 0.95) > 1.5 * np.quantile(errors_mm(pair, carried(found, pair.liver_points)), 0.95)
    report = found.report
    assert report.usable, report.problems
    assert report.as_scanned.similarity < 0.6 < 0.97 < report.deformed.similarity
    assert report.folding_share == 0
    assert 2 < report.deformation_p95_mm < 12
    assert report.rotation_degrees == pytest.approx(5.6, abs=1.0)
    assert report.seen_share == 1.0


def test_the_oil_lies_in_the_tumour_afterwards(pair: ScanPair, found: Registration) -> None:
    assert found.report.deformed.oil_in_tumour_ml == pytest.approx(BALL_ML, rel=0.15)
    # warped once, to the grid before treatment
    warped = found.apply(pair.moving, pair.fixed)
    assert warped.shape == pair.fixed.shape
    assert warped.data.dtype == np.int16
    voxels = np.argwhere(warped.data > 400)
    oil = (voxels * 4.0 + pair.fixed.affine[:3, 3])[pair.fixed_labels[tuple(voxels.T)] == 2]
    np.testing.assert_allclose(oil.mean(axis=0), (50.0, 15.0, 5.0), atol=3.0)


def test_equal_input_gives_an_equal_transform(pair: ScanPair, found: Registration) -> None:
    again = register(pair.fixed, pair.moving, pair.fixed_labels)
    assert again.report == found.report
    assert np.array_equal(carried(again, pair.liver_points[::50]), carried(found, pair.liver_points[::50]))


def test_marked_livers_lead_even_where_the_tables_are_far_apart() -> None:
    table = (310.0, 40.0, -900.0)
    pair = make_pair(MOTION, seed=1, table=table)
    found = register(pair.fixed, pair.moving, pair.fixed_labels, pair.moving_labels)
    assert found.report.as_scanned.liver_dice == 0.0
    assert found.report.deformed.liver_dice is not None
    assert found.report.deformed.liver_dice > 0.93
    assert errors_mm(pair, carried(found, pair.liver_points), table).mean() < 2.0


def test_without_labels_the_body_leads_and_a_far_table_is_found() -> None:
    table = (150.0, -60.0, 400.0)
    pair = make_pair(Motion(shift=(8.0, 6.0, -5.0), degrees=3.0), seed=2, table=table)
    found = register(pair.fixed, pair.moving)
    assert found.report.deformed.oil_in_tumour_ml is None
    assert errors_mm(pair, carried(found, pair.liver_points), table).mean() < 3.0


def test_a_tumour_alone_is_left_out_but_is_no_liver(pair: ScanPair) -> None:
    marks = np.where(pair.fixed_labels == 2, 2, 0).astype(np.uint8)
    found = register(pair.fixed, pair.moving, marks)
    report = found.report.deformed
    assert report.oil_in_liver_ml is None
    assert report.oil_near_tumour_share is None
    assert report.oil_in_tumour_ml == pytest.approx(BALL_ML, rel=0.35)
    assert errors_mm(pair, carried(found, pair.liver_points)).mean() < 3.0


def test_a_rigid_motion_is_found_by_the_rigid_part() -> None:
    """Euler angles of 10 and 5 degrees about z and x make one turn of 11.2 degrees: cos(a/2) = cos(5)cos(2.5)."""
    pair = make_pair(Motion(shift=(14.0, -10.0, 9.0), degrees=10.0))
    found = register(pair.fixed, pair.moving, pair.fixed_labels)
    angle = 2 * np.degrees(np.arccos(np.cos(np.radians(5.0)) * np.cos(np.radians(2.5))))
    assert found.report.rotation_degrees == pytest.approx(angle, abs=0.8)
    rigid = Registration(sitk.CompositeTransform(found.transform).GetNthTransform(0), found.report)
    assert errors_mm(pair, carried(rigid, pair.liver_points)).mean() < 0.8
    assert errors_mm(pair, carried(found, pair.liver_points)).mean() < 1.5


def test_a_mirrored_follow_up_is_marked(pair: ScanPair) -> None:
    turned = Volume(np.ascontiguousarray(pair.moving.data[::-1]), pair.moving.affine)
    report = register(pair.fixed, turned, pair.fixed_labels).report
    assert not report.usable
    assert report.problems


def test_a_scan_of_a_few_slices_is_refused(pair: ScanPair) -> None:
    few = Volume(np.ascontiguousarray(pair.moving.data[:, :, :8]), pair.moving.affine)
    with pytest.raises(VolumeError, match="too little of the liver region"):
        register(pair.fixed, few, pair.fixed_labels)


def test_a_scan_of_nothing_is_refused(pair: ScanPair) -> None:
    air = Volume(np.full(pair.moving.shape, -1000, np.int16), pair.moving.affine)
    with pytest.raises(VolumeError, match="same patient"):
        register(pair.fixed, air, pair.fixed_labels)
    with pytest.raises(VolumeError, match="shows no body"):
        register(air, pair.moving)


def test_labels_of_another_scan_are_refused(pair: ScanPair) -> None:
    with pytest.raises(MaskError, match="fit no scan"):
        register(pair.fixed, pair.moving, pair.fixed_labels[1:])


def test_the_jacobian_of_a_linear_map_is_its_determinant() -> None:
    affine = np.diag([-2.0, 3.0, 5.0, 1.0])
    affine[:3, 3] = (7.0, -4.0, 1.0)
    index = np.stack(np.meshgrid(*[np.arange(6.0)] * 3, indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    linear = np.array([[0.1, 0.02, 0.0], [-0.05, -0.2, 0.03], [0.0, 0.1, 0.3]])
    np.testing.assert_allclose(jacobian(world @ linear.T, affine), np.linalg.det(np.eye(3) + linear), rtol=1e-9)
    mirrored = np.zeros_like(world)
    mirrored[..., 0] = -2 * world[..., 0]
    np.testing.assert_allclose(jacobian(mirrored, affine), -1.0)


def _report(fit: dict[str, float | None], **figures: float) -> Report:
    fine = Fit(
        similarity=0.9, oil_in_tumour_ml=20.0, oil_in_liver_ml=22.0, oil_near_tumour_share=0.95, liver_dice=0.92
    ).model_copy(update=fit)
    values = {"seen_share": 1.0, "rotation_degrees": 2.0, "deformation_p95_mm": 9.0, "folding_share": 0.0} | figures
    return Report(
        usable=True, problems=(), as_scanned=fine, rigid=fine, deformed=fine, shift_mm=(0, 0, 0),
        deformation_max_mm=12.0, jacobian_range=(0.7, 1.3), **values,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fit", "figures", "told"),
    [
        ({"liver_dice": 0.80}, {}, "Dice of 0.80"),
        ({"similarity": 0.5}, {}, "correlate with 0.50"),
        ({"oil_near_tumour_share": 0.3}, {}, "30% of the 22 ml of oil"),
        ({}, {"seen_share": 0.7}, "shows 70% of the liver"),
        ({}, {"folding_share": 0.02}, "folds in 2.00%"),
        ({}, {"deformation_p95_mm": 45.0}, "reaches 45 mm"),
        ({}, {"rotation_degrees": 40.0}, "turned by 40 degrees"),
    ],
)
def test_each_limit_marks_a_pair(fit: dict[str, float | None], figures: dict[str, float], told: str) -> None:
    assert problems(_report({})) == ()
    found = problems(_report(fit, **figures))
    assert len(found) == 1
    assert told in found[0]


def test_what_can_not_be_judged_is_not_held_against_a_pair() -> None:
    nothing = {"liver_dice": None, "oil_in_tumour_ml": None, "oil_in_liver_ml": None, "oil_near_tumour_share": None}
    assert problems(_report(nothing)) == ()
    little = settings().accept.min_oil_ml - 0.1
    assert problems(_report({"oil_in_liver_ml": little, "oil_near_tumour_share": 0.0})) == ()
