from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest

from models.dicom import DicomFolder, find_series
from models.dicom_stack import read_series, stacking
from models.errors import VolumeError
from models.volume import Volume
from tests.models.synthetic_ct import spoil_slope, trunk, write_series

TRUTH = trunk()
AFFINE = np.array([[2.0, 0, 0, -30], [0, 2.5, 0, -20], [0, 0, 5.0, 100], [0, 0, 0, 1]])
MR, SEG = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.66.4"


def only(folder: Path) -> Volume:
    found = find_series(folder)
    assert len(found.series) == 1
    return read_series(found.series[0])


@pytest.mark.parametrize("coronal", [False, True])
def test_geometry_comes_from_the_headers_not_from_the_file_order(tmp_path: Path, coronal: bool) -> None:
    write_series(tmp_path / "a", TRUTH, seed=1, coronal=coronal)
    write_series(tmp_path / "b", TRUTH, seed=2, coronal=coronal, first_instance=500)
    for folder in ("a", "b"):
        volume = only(tmp_path / folder)
        np.testing.assert_array_equal(volume.data, TRUTH)
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)


def test_an_independent_reader_agrees(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    write_series(tmp_path, TRUTH)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    volume = only(tmp_path)
    for index in ((0, 0, 0), (5, 7, 3), (40, 12, 20)):
        r, a, s, _ = volume.affine @ [*index, 1]
        other = image.TransformPhysicalPointToIndex((-r, -a, s))
        assert image.GetPixel(*other) == volume.data[index]


def test_padding_becomes_air(tmp_path: Path) -> None:
    write_series(tmp_path, TRUTH, padding=-2000)
    volume = only(tmp_path)
    assert (volume.data[-2:, -2:] == -1024).all()
    np.testing.assert_array_equal(volume.data[:-2, :-2], TRUTH[:-2, :-2])


class TestPhasesInOneSeries:
    portal = trunk(aorta_hu=150)

    def check(self, found: DicomFolder) -> None:
        assert [(s.part, s.parts, len(s.slices)) for s in found.series] == [(1, 2, 24), (2, 2, 24)]
        np.testing.assert_array_equal(read_series(found.series[0]).data, TRUTH)
        np.testing.assert_array_equal(read_series(found.series[1]).data, self.portal)

    def test_told_apart_by_acquisition_number(self, tmp_path: Path) -> None:
        write_series(tmp_path, TRUTH, acquisition=4, time="101010")
        write_series(tmp_path / "5", self.portal, acquisition=5, time="101010")
        self.check(find_series(tmp_path))

    def test_told_apart_by_time(self, tmp_path: Path) -> None:
        write_series(tmp_path, TRUTH, acquisition=1, time="101010")
        write_series(tmp_path, self.portal, acquisition=1, time="101050")  # instance numbers repeat too
        self.check(find_series(tmp_path))

    def test_told_apart_by_storage_order(self, tmp_path: Path) -> None:
        write_series(tmp_path / "1", TRUTH, acquisition=None, time="")
        # Same time and no number; only the instance numbers go on.
        write_series(tmp_path / "2", self.portal, acquisition=None, time="", first_instance=25, salt="2")
        self.check(find_series(tmp_path))

    def test_interleaved_at_other_heights(self, tmp_path: Path) -> None:
        write_series(tmp_path, TRUTH, acquisition=1, time="101010")
        write_series(tmp_path, self.portal, acquisition=2, time="101050", origin=(-30.0, -20.0, 101.0))
        self.check(find_series(tmp_path))

    def test_stations_of_one_scan_stay_one_volume(self, tmp_path: Path) -> None:
        write_series(tmp_path, TRUTH[:, :, :12], acquisition=1, time="101010")
        write_series(
            tmp_path, TRUTH[:, :, 12:], acquisition=2, time="101050", origin=(-30.0, -20.0, 160.0), first_instance=13
        )
        np.testing.assert_array_equal(only(tmp_path).data, TRUTH)

    def test_nothing_tells_them_apart(self, tmp_path: Path) -> None:
        write_series(tmp_path / "1", TRUTH, acquisition=None, time="")
        extra, at = self.portal[:, :, 3:4], (-30.0, -20.0, 115.0)
        write_series(tmp_path / "2", extra, acquisition=None, time="", origin=at, salt="2")
        with pytest.raises(VolumeError, match="1 slices at a place where there is one already"):
            only(tmp_path)


def test_the_same_slice_twice_counts_once(tmp_path: Path) -> None:
    write_series(tmp_path / "a", TRUTH)
    write_series(tmp_path / "copy", TRUTH)
    np.testing.assert_array_equal(only(tmp_path).data, TRUTH)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tilt_mm": 1.0}, "gantry tilted by 11.3 degrees"),
        ({"heights": [*range(0, 60, 5), *range(65, 125, 5)]}, "5 mm as a rule, but 10 mm between slices 12 and 13"),
        ({"rescale": False}, "no rescale to HU"),
    ],
)
def test_stacks_that_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    write_series(tmp_path, TRUTH, **options)  # type: ignore[arg-type]
    with pytest.raises(VolumeError, match=message):
        only(tmp_path)


def test_uneven_slices_are_resampled_where_that_is_allowed(tmp_path: Path) -> None:
    """A ramp along the body is linear, so the resampled stack is known everywhere; a slice is missing in the middle."""
    heights = [100.0 + 5 * i for i in range(24) if i != 11]
    ramp = np.broadcast_to((np.array(heights) - 160).astype(np.int16), (48, 40, 23)).copy()
    ramp[:6] = -1000
    write_series(tmp_path, ramp, heights=heights)
    series = find_series(tmp_path).series[0]
    with pytest.raises(VolumeError, match="10 mm between slices 11 and 12"):
        read_series(series)
    with pytest.raises(VolumeError, match=r"10 mm between .* and up to 9 mm could be bridged"):
        read_series(series, max_gap_mm=9)
    volume = read_series(series, max_gap_mm=10)
    assert volume.shape == (48, 40, 24)
    assert volume.spacing_mm == pytest.approx((2.0, 2.5, 5.0))
    np.testing.assert_array_equal(volume.data[20, 20], np.arange(24) * 5 - 60)
    how = stacking(series, max_gap_mm=10)
    marks, affine = how.stack([np.full((40, 48), i, np.uint8) for i in range(23)], whole=True)
    np.testing.assert_allclose(affine, volume.affine)
    assert marks[0, 0].tolist() == [*range(12), *range(11, 23)]  # halfway, the upper slice
    assert stacking(series, max_gap_mm=10).places is not None


def test_several_folders_are_one_search_and_segmentations_are_listed(tmp_path: Path) -> None:
    write_series(tmp_path / "a", TRUTH)
    write_series(tmp_path / "b", TRUTH, series="1.2.3.2", number=2)
    write_series(tmp_path / "seg", TRUTH[:, :, :1], series="1.2.3.4", modality_class=SEG)
    found = find_series(tmp_path / "a", tmp_path / "b", tmp_path / "seg", tmp_path / "a")
    assert [one.uid for one in found.series] == ["1.2.3.1", "1.2.3.2"]
    assert [path.parent.name for path in found.segmentations] == ["seg"]


def test_positions_rounded_to_a_decimal_are_even(tmp_path: Path) -> None:
    write_series(tmp_path, TRUTH, heights=[round(100 + 1.25 * i, 1) for i in range(24)], spacing=(2.0, 2.5, 1.25))
    assert only(tmp_path).spacing_mm[2] == pytest.approx(1.25, abs=0.01)


def test_mixed_sizes_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path, TRUTH[:, :, :12], time="101010")
    write_series(tmp_path, TRUTH[:40, :, 12:], time="101050", origin=(-30.0, -20.0, 160.0), acquisition=2)
    with pytest.raises(VolumeError, match="mixes slices of different size"):
        only(tmp_path)


def test_a_nested_patient_folder_with_other_things_in_it(tmp_path: Path) -> None:
    write_series(tmp_path / "20010203" / "ct", TRUTH, series="1.2.3.1", date="20010203")
    write_series(tmp_path / "20010401" / "ct", TRUTH, series="1.2.3.2", date="20010401", number=7)
    write_series(tmp_path / "20010203" / "mr", TRUTH[:, :, :3], series="1.2.3.3", modality_class=MR)
    write_series(tmp_path / "20010203" / "seg", TRUTH[:, :, :1], series="1.2.3.4", modality_class=SEG)
    (tmp_path / "LICENSE").write_text("free", encoding="utf-8")
    found = find_series(tmp_path)
    days = (datetime.date(2001, 4, 1) - datetime.date(2001, 2, 3)).days
    assert [(s.uid, s.day, s.patient) for s in found.series] == [("1.2.3.1", 0, 1), ("1.2.3.2", days, 1)]
    assert found.describe_other() == "3 MR images, 1 other file, 1 segmentation object"


def test_damaged_pixels_and_a_lost_geometry(tmp_path: Path) -> None:
    write_series(tmp_path / "a", TRUTH)
    one = sorted((tmp_path / "a").iterdir())[3]
    one.write_bytes(one.read_bytes()[:-500])
    with pytest.raises(VolumeError, match=r"can't be decoded"):
        only(tmp_path / "a")
    import pydicom

    write_series(tmp_path / "b", TRUTH)
    two = sorted((tmp_path / "b").iterdir())[3]
    slice_ = pydicom.dcmread(two)
    del slice_.ImagePositionPatient
    slice_.save_as(two)
    with pytest.raises(VolumeError, match=f"{two.name} does not state its position"):
        only(tmp_path / "b")


@pytest.mark.parametrize("slope", ["ab", "1\\2", "1e300", "inf", "nan"])
def test_an_impossible_rescale_is_a_sentence(tmp_path: Path, slope: str) -> None:
    write_series(tmp_path, TRUTH)
    spoil_slope(sorted(tmp_path.iterdir())[3], slope)
    with pytest.raises(VolumeError, match=r"(damaged|impossible) rescale to HU.*; give the original CT series"):
        only(tmp_path)


def test_slices_that_say_no_place_spoil_their_own_series_only(tmp_path: Path) -> None:
    import pydicom

    for name, number in (("good", 1), ("one", 2), ("all", 3)):
        write_series(tmp_path / name, TRUTH, series=f"1.2.3.{number}", number=number, salt=name)
    # The highest slice: without it the rest is an even stack, which must not pass for the whole.
    last = max((tmp_path / "one").iterdir(), key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2]))
    for path in (last, *(tmp_path / "all").iterdir()):
        slice_ = pydicom.dcmread(path)
        slice_.PixelSpacing = None if path == last else [0, 0]
        slice_.save_as(path)
    found = find_series(tmp_path)
    assert [s.uid for s in found.series] == ["1.2.3.1", "1.2.3.2"]
    assert found.describe_other() == f"{TRUTH.shape[2] + 1} unplaceable CT slices"
    np.testing.assert_array_equal(read_series(found.series[0]).data, TRUTH)
    with pytest.raises(VolumeError, match=f"{last.name} does not state its position"):
        read_series(found.series[1])


def test_the_real_patient(real_data: Path) -> None:
    import nibabel as nib

    found = find_series(real_data / "dicom" / "HCC_009")
    assert [(len(s.slices), s.day) for s in found.series] == [(69, 0), (70, 33)]
    volume = read_series(found.series[0])
    stored = nib.as_closest_canonical(nib.load(real_data / "hcc009-native" / "pre_labels.nii.gz"))
    labels = np.asanyarray(stored.dataobj)
    np.testing.assert_allclose(volume.affine, stored.affine, atol=0.01)
    # Figures that were published with the data: aorta 386 HU, liver 70, mass 65.
    for label, hu in ((4, 386), (1, 70), (2, 65)):
        assert volume.data[labels == label].mean() == pytest.approx(hu, rel=0.1)
    assert 2900 < read_series(found.series[1]).data.max() < 3100


def test_the_real_patient_as_an_independent_reader_sees_it(real_data: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    found = find_series(real_data / "dicom" / "HCC_009")
    volume = read_series(found.series[1])
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(found.series[1].slices[0].path.parent)))
    image = reader.Execute()
    x, y = image.GetSpacing()[:2]
    assert volume.spacing_mm == pytest.approx((x, y, 2.5), abs=1e-3)
    theirs = sitk.GetArrayFromImage(image)  # (z, y, x) in LPS
    np.testing.assert_array_equal(volume.data, np.maximum(theirs[:, ::-1, ::-1].transpose(2, 1, 0), -1024))
