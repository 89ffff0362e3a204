"""The pictures for a vision model: which slices, which side, which scale, and nothing beside pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from agent.llm_images import WIDTH_PX, carried, case_pictures, chosen_slices
from models.case import Case, ImageMeta, write_case
from models.volume import Volume

SHAPE = (90, 80, 40)
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def body():
    """Liver with a large lesion at small x, which is the patient's left (x grows to the right), and a smaller one."""
    x, y, z = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    labels = np.zeros(SHAPE, np.uint8)
    labels[((x - 45) / 40) ** 2 + ((y - 40) / 30) ** 2 + ((z - 20) / 17) ** 2 < 1] = 1
    labels[(x - 25) ** 2 + (y - 40) ** 2 + (2 * (z - 15)) ** 2 < 81] = 2
    labels[(x - 60) ** 2 + (y - 40) ** 2 + (2 * (z - 29)) ** 2 < 26] = 2
    hu = np.full(SHAPE, -100, np.int16)
    hu[labels == 1] = 60
    hu[labels == 2] = 240
    return hu, labels


def pictures(tmp_path, images, labels):
    write_case(tmp_path / "case", "Smith_1950", "real", "Dr. Jones, 2024-03-12", images, labels, labels_image="a_scan")
    return case_pictures(Case.load(tmp_path / "case"))


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB")).astype(int)


def test_the_slices_go_through_the_largest_lesions_from_head_to_feet():
    _, labels = body()
    # Two lesions leave one place: the slice at 80 % of the tumour's volume.
    areas = (labels == 2).sum(axis=(0, 1))
    at_80 = next(z for z in range(SHAPE[2]) if areas[: z + 1].sum() >= 0.8 * areas.sum())
    assert chosen_slices(labels, 3) == (29, at_80, 15)
    assert chosen_slices(labels, 1) == (15,)
    assert chosen_slices(labels, 2) == (29, 15)
    assert areas[15] == areas.max()
    only = np.where(np.arange(SHAPE[2]) > 24, np.minimum(labels, 1), labels).astype(np.uint8)
    upper, middle, lower = chosen_slices(only, 3)
    assert upper > middle == 15 > lower
    share = np.cumsum((only == 2).sum(axis=(0, 1))) / (only == 2).sum()
    assert share[lower - 1] < 0.2 <= share[lower]
    assert share[upper - 1] < 0.8 <= share[upper]


def test_arterial_and_portal_slices_plain_and_outlined(tmp_path):
    hu, labels = body()
    images = {
        ImageMeta("a_scan", "pre", "arterial"): Volume(hu, AFFINE),
        ImageMeta("p_scan", "pre", "portal"): Volume(hu, AFFINE),
        ImageMeta("late", "pre", "delayed"): Volume(hu, AFFINE),
        ImageMeta("after", "follow_up", "arterial", 30): Volume(hu, AFFINE),
    }
    found = pictures(tmp_path, images, labels)
    assert [p.name for p in found] == [
        f"{phase}-{n}-{kind}" for phase in ("arterial", "portal") for n in (1, 2, 3) for kind in ("plain", "outlined")
    ]
    assert found[0].caption == (
        "arterial phase, axial slice 1 of 3, 42 mm towards the head from the largest section; liver window "
        "(W 360 / L 70 HU); the patient's right is on the left of the picture; scale bar 50 mm; nothing drawn on the "
        "tissue"
    )
    assert "through the largest section of the tumour" in found[4].caption
    assert found[5].caption.endswith("the same slice with the tumour's outline in yellow")


def test_the_patient_s_right_is_on_the_left_and_the_outline_only_on_the_second_copy(tmp_path):
    hu, labels = body()
    found = pictures(tmp_path, {ImageMeta("a_scan", "pre", "arterial"): Volume(hu, AFFINE)}, labels)
    plain, outlined = pixels(found[4]), pixels(found[5])
    assert plain.shape == outlined.shape
    assert plain.shape[1] == WIDTH_PX
    middle = plain[:, :, 0] > 200
    middle[int(plain.shape[0] * 0.45) : int(plain.shape[0] * 0.55), :60] = False  # the letter R
    columns = np.nonzero(middle[40:-60].any(axis=0))[0]
    # The large lesion lies in the patient's left half, which is on the right of the picture.
    assert columns.mean() > WIDTH_PX / 2
    yellow = (outlined[:, :, 0] > 150) & (outlined[:, :, 1] > 150) & (outlined[:, :, 2] < 110)
    assert yellow.sum() > 100
    assert (plain == plain[:, :, :1]).all()
    # Where nothing is drawn, both copies show the same tissue.
    away = ~yellow & (np.abs(plain - outlined).max(axis=2) > 60)
    assert away.sum() < 0.25 * yellow.sum()


def test_the_scale_bar_is_as_long_as_it_says(tmp_path):
    hu, labels = body()
    found = pictures(tmp_path, {ImageMeta("a_scan", "pre", "arterial"): Volume(hu, AFFINE)}, labels)
    row = pixels(found[0])[-12, :, 0]
    lit = np.nonzero(row[WIDTH_PX // 2 :] > 250)[0]
    # The region is the liver (80 voxels wide) and 12 mm on each side: 2 * 79 + 24 mm.
    width_mm = 2.0 * (np.ptp(np.nonzero(labels.any(axis=(1, 2)))[0]) + 1) + 24
    assert np.ptp(lit) * width_mm / WIDTH_PX == pytest.approx(50, abs=1.5)


def test_a_phase_on_another_grid_carries_the_outline_over_and_says_so(tmp_path):
    hu, labels = body()
    shifted = np.diag([1.5, 1.5, 5.0, 1.0])
    shifted[:3, 3] = (10.0, -4.0, 6.0)
    other = Volume(np.zeros((110, 100, 22), np.int16), shifted)
    moved = carried(labels, AFFINE, other)
    # By hand: the voxel of the other grid nearest to the middle of the large lesion, at (50, 80, 45) mm.
    assert moved[round((50 - 10) / 1.5), round((80 + 4) / 1.5), round((45 - 6) / 5)] == 2
    volume = [float((m == 2).sum() * np.prod(s)) for m, s in ((labels, (2, 2, 3)), (moved, (1.5, 1.5, 5)))]
    assert volume[1] == pytest.approx(volume[0], rel=0.15)
    images = {ImageMeta("a_scan", "pre", "arterial"): Volume(hu, AFFINE), ImageMeta("p", "pre", "portal"): other}
    found = pictures(tmp_path, images, labels)
    assert len(found) == 12
    assert found[7].caption.endswith("so it may be off by a breath")
    assert "off by a breath" not in found[1].caption


def test_a_phase_that_does_not_reach_the_tumour_is_left_out(tmp_path):
    hu, labels = body()
    far = AFFINE.copy()
    far[2, 3] = 900.0
    images = {
        ImageMeta("a_scan", "pre", "arterial"): Volume(hu, AFFINE),
        ImageMeta("p", "pre", "portal"): Volume(hu, far),
    }
    assert {p.name.split("-")[0] for p in pictures(tmp_path, images, labels)} == {"arterial"}


def test_without_both_phases_the_image_that_is_planned_on_is_shown(tmp_path):
    hu, labels = body()
    found = pictures(tmp_path, {ImageMeta("a_scan", "pre", "noncontrast"): Volume(hu, AFFINE)}, labels)
    assert len(found) == 6
    assert found[0].caption.startswith("noncontrast phase")


def test_a_picture_holds_nothing_that_identifies(tmp_path):
    hu, labels = body()
    for picture in pictures(tmp_path, {ImageMeta("a_scan", "pre", "arterial"): Volume(hu, AFFINE)}, labels):
        kinds = []
        data, place = picture.png, 8
        while place < len(data):
            length = int.from_bytes(data[place : place + 4], "big")
            kinds.append(data[place + 4 : place + 8])
            place += 12 + length
        assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}
        for text in (picture.name, picture.caption):
            assert not any(word in text for word in ("Smith", "1950", "2024", "Jones", "a_scan"))
