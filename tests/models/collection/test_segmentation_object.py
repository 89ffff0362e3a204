from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from models.collection.segmentation_object import made_by, read_segmentation
from models.dicom import DicomSeries, find_series
from models.dicom_stack import stacking
from models.errors import MaskError
from tests.models.collection.synthetic_patient import SPACING, abdomen, labels, write_segmentation
from tests.models.synthetic_ct import write_series

TRUTH = labels()


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    write_series(tmp_path / "ct", abdomen(), spacing=SPACING)
    return tmp_path / "ct"


def on(series: DicomSeries, path: Path) -> np.ndarray:
    return stacking(series).stack(read_segmentation(path).planes(series), whole=True)[0]


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_labels_come_back_voxel_by_voxel(tmp_path: Path, ct: Path, kind: str) -> None:
    write_segmentation(tmp_path / "s.dcm", ct, TRUTH, kind=kind, values=(2, 4, 1, 3))
    series = find_series(ct).series[0]
    found = read_segmentation(tmp_path / "s.dcm")
    assert (found.made_by, found.unknown) == ("experts", 0)
    assert [segment.label for segment in found.segments] == [2, 4, 1, 3]
    np.testing.assert_array_equal(on(series, tmp_path / "s.dcm"), TRUTH)


@pytest.mark.parametrize("values", [(1, 2, 3), (3, 2, 1)])
def test_tumour_and_portal_vein_lie_on_top_of_a_whole_liver(tmp_path: Path, ct: Path, values: tuple[int, ...]) -> None:
    write_segmentation(tmp_path / "s.dcm", ct, TRUTH, values=values, whole_liver=True)
    found = on(find_series(ct).series[0], tmp_path / "s.dcm")
    np.testing.assert_array_equal(found, np.where(TRUTH == 4, 0, TRUTH))


def test_frames_are_laid_by_their_position_not_by_their_order(tmp_path: Path, ct: Path) -> None:
    write_segmentation(tmp_path / "s.dcm", ct, TRUTH)
    data = pydicom.dcmread(tmp_path / "s.dcm")
    frames = list(data.PerFrameFunctionalGroupsSequence)
    order = np.random.default_rng(3).permutation(len(frames))
    pixels = data.pixel_array
    data.PerFrameFunctionalGroupsSequence = [frames[i] for i in order]
    data.PixelData = np.packbits(pixels[order].ravel(), bitorder="little").tobytes()
    data.save_as(tmp_path / "mixed.dcm")
    np.testing.assert_array_equal(on(find_series(ct).series[0], tmp_path / "mixed.dcm"), TRUTH)


def test_a_mirrored_object_lands_where_it_belongs(tmp_path: Path, ct: Path) -> None:
    """Rows stored from the patient's left to the right, with the orientation that says so."""
    write_segmentation(tmp_path / "s.dcm", ct, TRUTH)
    data = pydicom.dcmread(tmp_path / "s.dcm")
    mirrored = data.pixel_array[:, :, ::-1]
    data.PixelData = np.packbits(mirrored.ravel(), bitorder="little").tobytes()
    orientation = data.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    orientation.ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]
    for frame in data.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0]
        x, y, z = place.ImagePositionPatient
        place.ImagePositionPatient = [x + (data.Columns - 1) * SPACING[0], y, z]
    data.save_as(tmp_path / "mirrored.dcm")
    np.testing.assert_array_equal(on(find_series(ct).series[0], tmp_path / "mirrored.dcm"), TRUTH)


def test_an_object_of_another_field_of_view_is_cut_to_the_slices(tmp_path: Path, ct: Path) -> None:
    write_segmentation(tmp_path / "s.dcm", ct, TRUTH)
    data = pydicom.dcmread(tmp_path / "s.dcm")
    for frame in data.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0]
        x, y, z = place.ImagePositionPatient
        place.ImagePositionPatient = [x + 2 * SPACING[0], y - SPACING[1], z + 0.4]  # 0.4 mm: rounded positions
    data.save_as(tmp_path / "moved.dcm")
    found = on(find_series(ct).series[0], tmp_path / "moved.dcm")
    # DICOM x runs to the left and y to the back: -2 voxels and +1 voxel in RAS
    np.testing.assert_array_equal(found[:-2, 1:], TRUTH[2:, :-1])


def test_it_belongs_to_the_phase_whose_slices_it_references(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", abdomen(), spacing=SPACING, acquisition=1)
    write_series(tmp_path / "ct" / "2", abdomen(150, 110), spacing=SPACING, acquisition=2, time="101055")
    write_series(tmp_path / "other", abdomen(), spacing=SPACING, series="1.2.3.2", number=2)
    write_series(tmp_path / "alone", abdomen(150, 110), spacing=SPACING, acquisition=2, time="101055")
    write_segmentation(tmp_path / "s.dcm", tmp_path / "alone", TRUTH)
    series = find_series(tmp_path / "ct", tmp_path / "other").series
    assert len(series) == 3
    chosen = read_segmentation(tmp_path / "s.dcm").belongs_to(series)
    assert chosen is not None
    assert (chosen.uid, chosen.part) == ("1.2.3.1", 2)
    assert read_segmentation(tmp_path / "s.dcm").belongs_to(series[2:]) is None


def test_who_drew_it_and_what_it_does_not_know(tmp_path: Path, ct: Path) -> None:
    write_segmentation(tmp_path / "ai.dcm", ct, TRUTH, description="x", automatic=True, values=(1, 2))
    assert read_segmentation(tmp_path / "ai.dcm").made_by == "ai"
    assert made_by("AIMI liver-tumor AI segmentation") == "ai"
    assert made_by("AIMI liver-tumor radiologist 7 corrected segmentation") == "corrected_ai"
    assert made_by("Segmentation") == "experts"
    dead = TRUTH.copy()
    dead[40:42, 22:25, 10:14] = 9
    write_segmentation(tmp_path / "dead.dcm", ct, dead, values=(1, 2, 3, 4, 9))
    found = read_segmentation(tmp_path / "dead.dcm")
    assert (found.unknown, len(found.segments)) == (1, 5)
    np.testing.assert_array_equal(on(find_series(ct).series[0], tmp_path / "dead.dcm"), np.where(dead == 9, 0, dead))


def test_codes_tell_where_labels_do_not(tmp_path: Path, ct: Path) -> None:
    write_segmentation(tmp_path / "s.dcm", ct, TRUTH)
    data = pydicom.dcmread(tmp_path / "s.dcm")
    for item in data.SegmentSequence:
        item.SegmentLabel = f"Segment {item.SegmentNumber}"
    data.save_as(tmp_path / "s.dcm")
    np.testing.assert_array_equal(on(find_series(ct).series[0], tmp_path / "s.dcm"), TRUTH)


def test_what_is_no_usable_segmentation_is_refused(tmp_path: Path, ct: Path) -> None:
    series = find_series(ct).series[0]
    with pytest.raises(MaskError, match="can't be read: No such file"):
        read_segmentation(tmp_path / "none.dcm")
    (tmp_path / "text.dcm").write_text("no DICOM", encoding="utf-8")
    with pytest.raises(MaskError, match="damaged or of an unknown form"):
        read_segmentation(tmp_path / "text.dcm")
    with pytest.raises(MaskError, match="damaged or of an unknown form"):
        read_segmentation(next(ct.glob("*.dcm")))  # a CT slice
    write_segmentation(tmp_path / "s.dcm", ct, TRUTH)
    data = pydicom.dcmread(tmp_path / "s.dcm")
    for frame in data.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0]
        place.ImagePositionPatient = [*place.ImagePositionPatient[:2], place.ImagePositionPatient[2] + 500]
    data.save_as(tmp_path / "far.dcm")
    with pytest.raises(MaskError, match="none of the slices"):
        read_segmentation(tmp_path / "far.dcm").planes(series)
    data = pydicom.dcmread(tmp_path / "s.dcm")
    shared = data.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    shared.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    data.save_as(tmp_path / "across.dcm")
    with pytest.raises(MaskError, match="lies across the slices"):
        read_segmentation(tmp_path / "across.dcm").planes(series)
    data = pydicom.dcmread(tmp_path / "s.dcm")
    data.PixelData = data.PixelData[: len(data.PixelData) // 2]
    data.save_as(tmp_path / "short.dcm")
    with pytest.raises(MaskError, match="can't be read; download it again"):
        read_segmentation(tmp_path / "short.dcm").planes(series)
