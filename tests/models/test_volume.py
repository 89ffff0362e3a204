from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from models.errors import MaskError, VolumeError
from models.volume import (
    Volume,
    read_labels,
    read_nifti,
    resample,
    same_grid,
    write_label_nifti,
    write_nifti,
)
from tests.models.synthetic_ct import labels_of, trunk

AFFINE = np.array([[2.0, 0, 0, -30], [0, 2.5, 0, -20], [0, 0, 5.0, 100], [0, 0, 0, 1]])


def save(path: Path, data: NDArray[np.generic], affine: NDArray[np.float64] = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def test_any_stored_orientation_reads_as_the_same_ras_volume(tmp_path: Path) -> None:
    truth = trunk()
    for codes in (("R", "A", "S"), ("L", "P", "S"), ("S", "L", "A"), ("P", "I", "R")):
        image = nib.Nifti1Image(truth, AFFINE)
        turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(codes))
        stored = image.as_reoriented(turn)
        nib.save(stored, tmp_path / "ct.nii.gz")
        volume = read_nifti(tmp_path / "ct.nii.gz")
        assert volume.data.dtype == np.int16
        np.testing.assert_array_equal(volume.data, truth)
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-4)
        assert volume.spacing_mm == pytest.approx((2.0, 2.5, 5.0))
        assert volume.voxel_ml == pytest.approx(0.025)


def test_padding_becomes_air_and_nothing_else_changes(tmp_path: Path) -> None:
    padded = trunk()
    padded[:2] = -3024
    volume = read_nifti(save(tmp_path / "ct.nii", padded))
    assert (volume.data[:2] == -1024).all()
    np.testing.assert_array_equal(volume.data[2:], padded[2:])


def test_a_rescale_in_the_header_and_fractions_are_kept(tmp_path: Path) -> None:
    image = nib.Nifti1Image((trunk().astype(np.int32) + 1024).astype(np.uint16), AFFINE)
    image.header.set_slope_inter(1.0, -1024.0)
    nib.save(image, tmp_path / "ct.nii")
    # nibabel stores the array as given and applies the slope on reading
    stored = nib.load(tmp_path / "ct.nii")
    expected = np.asanyarray(stored.dataobj)
    np.testing.assert_array_equal(read_nifti(tmp_path / "ct.nii").data, expected)
    halves = trunk().astype(np.float32) + 0.5
    volume = read_nifti(save(tmp_path / "halves.nii", halves))
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data, halves)


def _nan() -> NDArray[np.float32]:
    data = trunk().astype(np.float32)
    data[3, 4, 5] = np.nan
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((20, 20, 20), np.int16), "value 0 in every voxel"),
        (_nan(), "1 voxels that are NaN"),
        (np.clip(trunk() / 4 + 100, 0, 255).astype(np.uint8), "8-bit"),
        (np.clip(trunk() / 4 + 100, 0, 255).astype(np.int16), "like an 8-bit picture"),
        (np.clip(trunk() / 1000 + 1, 0, 2).astype(np.float32), "like an 8-bit picture"),
        (np.maximum(trunk(), 0) * 9, "not a CT in HU"),  # an MRI: nothing below zero
        (trunk() + 1024, "without its rescale offset"),
        (np.where(trunk() < -500, -2000, trunk() + 1024).astype(np.int16), "without its rescale offset"),
        (np.full((20, 20, 20), -1000, np.int16) + (np.arange(20) == 3).astype(np.int16), "not a CT in HU"),
        (trunk().astype(np.int32) * 200, "no CT in HU does"),
        (trunk()[..., None].repeat(2, axis=3), "4-D; give one 3-D volume"),
        (trunk()[:, :, 0], "2-D; give one 3-D volume"),
        (trunk()[:, :, :1], "a single slice"),
        (trunk()[:, :, :4], "at least 8 a side"),
    ],
)
def test_what_is_no_ct_in_hu_is_refused(tmp_path: Path, data: NDArray[np.generic], message: str) -> None:
    with pytest.raises(VolumeError, match=message):
        read_nifti(save(tmp_path / "ct.nii", data))


def test_a_time_axis_of_one_is_no_fourth_dimension(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_nifti(save(tmp_path / "ct.nii", trunk()[..., None])).data, trunk())


def test_files_that_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="There is no image file"):
        read_nifti(tmp_path / "none.nii.gz")
    for name, content in (("text.nii.gz", b"not gzip"), ("short.nii", b"abc"), ("note.txt", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VolumeError, match="can't be read as NIfTI"):
            read_nifti(tmp_path / name)
    whole = save(tmp_path / "ct.nii.gz", trunk()).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VolumeError, match="can't be read as NIfTI"):
        read_nifti(tmp_path / "cut.nii.gz")


def test_a_flipped_bit_in_a_gzip_file_never_changes_a_voxel(tmp_path: Path) -> None:
    whole = save(tmp_path / "ct.nii.gz", trunk()).read_bytes()
    rng = np.random.default_rng(5)
    refused = 0
    for place in rng.choice(len(whole), 60, replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "flip.nii.gz").write_bytes(damaged)
        try:
            volume = read_nifti(tmp_path / "flip.nii.gz")
        except VolumeError:
            refused += 1
        else:  # a bit that carries nothing: the time in the gzip header, the padding of a block
            np.testing.assert_array_equal(volume.data, trunk())
    assert refused >= 55


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
def test_a_header_that_claims_more_voxels_than_there_are_reserves_no_memory(tmp_path: Path, name: str) -> None:
    content = bytearray(nib.Nifti1Image(trunk(), AFFINE).to_bytes())
    content[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(VolumeError, match="holds less than the 30000 x 30000 x 30000 voxels"):
        read_nifti(tmp_path / name)


@pytest.mark.filterwarnings("error")
def test_a_damaged_header_is_a_sentence(tmp_path: Path) -> None:
    content = nib.Nifti1Image(trunk(), AFFINE).to_bytes()
    rng = np.random.default_rng(6)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        damaged[rng.integers(40, 80)] ^= 1 << int(rng.integers(8))
        (tmp_path / "ct.nii").write_bytes(damaged)
        try:
            read_nifti(tmp_path / "ct.nii")
        except VolumeError:
            refused += 1
    assert refused > 30


def test_a_sheared_grid_is_refused(tmp_path: Path) -> None:
    sheared = AFFINE.copy()
    sheared[1, 2] = 1.0
    with pytest.raises(VolumeError, match=r"11.3 degrees from perpendicular"):
        read_nifti(save(tmp_path / "ct.nii", trunk(), sheared))


def test_written_volumes_come_back_exactly_and_byte_for_byte(tmp_path: Path) -> None:
    data = trunk().copy()
    data[0, 0] = 3071
    for values in (data, data.astype(np.float32) / 3):
        volume = Volume(values, AFFINE)
        write_nifti(volume, tmp_path / "a.nii.gz")
        write_nifti(volume, tmp_path / "b.nii.gz")
        assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
        assert (tmp_path / "a.nii.gz").read_bytes()[4:8] == bytes(4)  # no time of writing in the gzip header
        stored = nib.load(tmp_path / "a.nii.gz")
        assert stored.get_data_dtype() == values.dtype
        np.testing.assert_array_equal(np.asanyarray(stored.dataobj), values)
        np.testing.assert_allclose(stored.affine, AFFINE, atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]
    with pytest.raises(VolumeError, match="can't be written"):
        write_nifti(Volume(data, AFFINE), tmp_path / "none" / "a.nii.gz")


class TestLabels:
    image = Volume(trunk(), AFFINE)
    labels = labels_of((48, 40, 24))

    def test_they_come_back_on_the_image_grid_whatever_their_orientation(self, tmp_path: Path) -> None:
        flipped = nib.Nifti1Image(self.labels, AFFINE).as_reoriented(np.array([[0, -1], [1, -1], [2, 1]]))
        nib.save(flipped, tmp_path / "l.nii.gz")
        np.testing.assert_array_equal(read_labels(tmp_path / "l.nii.gz", self.image), self.labels)
        write_label_nifti(self.labels, AFFINE, tmp_path / "w.nii.gz")
        np.testing.assert_array_equal(read_labels(tmp_path / "w.nii.gz", self.image), self.labels)

    def test_another_shape(self, tmp_path: Path) -> None:
        with pytest.raises(MaskError, match="48 x 40 x 23 voxels, the image has 48 x 40 x 24"):
            read_labels(save(tmp_path / "l.nii", self.labels[:, :, 1:]), self.image)

    @pytest.mark.parametrize(
        ("dtype", "message"),
        [(np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), "holds colours"), (np.complex64, "holds complex numbers")],
    )
    def test_colours_and_complex_numbers(self, tmp_path: Path, dtype: np.dtype[np.void], message: str) -> None:
        other = np.zeros(self.labels.shape, dtype)
        if other.dtype.names is None:
            other[:] = self.labels
        with pytest.raises(MaskError, match=message):
            read_labels(save(tmp_path / "l.nii.gz", other), self.image)

    def test_another_position(self, tmp_path: Path) -> None:
        moved = AFFINE.copy()
        moved[2, 3] += 5
        with pytest.raises(MaskError, match="up to 5 mm"):
            read_labels(save(tmp_path / "l.nii", self.labels, moved), self.image)

    def test_another_spacing(self, tmp_path: Path) -> None:
        finer = AFFINE.copy()
        finer[0, 0] = 1.9
        with pytest.raises(MaskError, match="lie elsewhere"):
            read_labels(save(tmp_path / "l.nii", self.labels, finer), self.image)

    def test_no_tumour(self, tmp_path: Path) -> None:
        without = np.where(self.labels == 2, 1, self.labels).astype(np.uint8)
        with pytest.raises(MaskError, match=r"found: 1 \(liver\), 4 \(aorta\); .*--tumour-label"):
            read_labels(save(tmp_path / "l.nii", without), self.image)

    def test_another_number_means_tumour(self, tmp_path: Path) -> None:
        nine = np.where(self.labels == 2, 9, self.labels).astype(np.uint8)
        path = save(tmp_path / "l.nii", nine)
        with pytest.raises(MaskError, match=r"found: 1 \(liver\), 4 \(aorta\), 9"):
            read_labels(path, self.image)
        np.testing.assert_array_equal(read_labels(path, self.image, tumour_label=9), self.labels)

    def test_a_binary_mask(self, tmp_path: Path) -> None:
        path = save(tmp_path / "l.nii", (self.labels == 2).astype(np.uint8))
        np.testing.assert_array_equal(read_labels(path, self.image, tumour_label=1), np.where(self.labels == 2, 2, 0))

    def test_a_second_meaning_of_two_is_refused(self, tmp_path: Path) -> None:
        swapped = np.array([0, 2, 1, 3, 4], np.uint8)[self.labels]
        with pytest.raises(MaskError, match="hold 2 beside the tumour label 1"):
            read_labels(save(tmp_path / "l.nii", swapped), self.image, tumour_label=1)

    def test_values_that_are_no_labels(self, tmp_path: Path) -> None:
        with pytest.raises(MaskError, match="not whole numbers"):
            read_labels(save(tmp_path / "l.nii", self.labels * 0.5), self.image)
        with pytest.raises(MaskError, match="hold 7 beside"):
            read_labels(save(tmp_path / "l.nii", np.where(self.labels == 4, 7, self.labels)), self.image)


def test_resampling_keeps_what_lies_where() -> None:
    """A linear function of world position stays the same function on any grid, away from the edges."""
    x, y, z = np.meshgrid(*[np.arange(n) for n in (30, 30, 30)], indexing="ij")
    world = (
        np.einsum("ij,jxyz->ixyz", AFFINE[:3, :3], np.stack([x, y, z]).astype(float)) + AFFINE[:3, 3, None, None, None]
    )
    ramp = (3 * world[0] - 2 * world[1] + world[2]).astype(np.float32)
    for spacing in (1.5, (4.0, 5.0, 5.0), 3.0):
        out = resample(Volume(ramp, AFFINE), spacing)
        assert out.spacing_mm == pytest.approx(np.broadcast_to(spacing, 3))
        i, j, k = np.meshgrid(*[np.arange(n) for n in out.shape], indexing="ij")
        at = np.einsum("ij,jxyz->ixyz", out.affine[:3, :3], np.stack([i, j, k]).astype(float))
        at += out.affine[:3, 3, None, None, None]
        inner = tuple(slice(n // 4, -(n // 4)) for n in out.shape)
        np.testing.assert_allclose(out.data[inner], (3 * at[0] - 2 * at[1] + at[2])[inner], atol=0.02)


def test_resampling_keeps_the_field_of_view_and_labels_stay_labels() -> None:
    labels = Volume(labels_of((48, 40, 24)).astype(np.int16), AFFINE)
    fine = resample(labels, 1.0, order=0)
    assert fine.shape == (96, 100, 120)
    assert set(np.unique(fine.data)) <= {0, 1, 2, 4}
    ml = {v: (fine.data == v).sum() * fine.voxel_ml for v in (1, 2)}
    for value, amount in ml.items():
        assert amount == pytest.approx((labels.data == value).sum() * labels.voxel_ml, rel=0.05)
    low = labels.affine @ [-0.5, -0.5, -0.5, 1]
    np.testing.assert_allclose(fine.affine @ [-0.5, -0.5, -0.5, 1], low, atol=1e-9)


def test_same_grid_tells_a_tenth_of_a_voxel() -> None:
    near, far = AFFINE.copy(), AFFINE.copy()
    near[0, 3] += 0.15
    far[0, 3] += 0.25
    assert same_grid((9, 9, 9), AFFINE, (9, 9, 9), near)
    assert not same_grid((9, 9, 9), AFFINE, (9, 9, 9), far)
    assert not same_grid((9, 9, 9), AFFINE, (9, 9, 8), AFFINE)
