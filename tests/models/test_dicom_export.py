from __future__ import annotations

from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from scipy.spatial.transform import Rotation

from models.case import Case, ImageMeta, write_case
from models.case_import import import_case, list_series
from models.clinical_record import ClinicalRecord
from models.collection.segmentation_object import read_segmentation
from models.dicom import find_series
from models.dicom_export import SimulatedScan, export_case
from models.errors import CaseError, VolumeError
from models.volume import Volume, to_ras
from tests.models.synthetic_ct import labels_of, trunk

SHAPE = (44, 40, 24)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine(degrees: float = 0.0) -> np.ndarray:
    """Voxels of 1.95 x 2.05 x 2.5 mm, turned against the body's axes; numbers that no decimal writes exactly."""
    out = np.eye(4)
    turn = Rotation.from_euler("xyz", [degrees, 0.5 * degrees, -0.7 * degrees], degrees=True).as_matrix()
    out[:3, :3] = turn @ np.diag([1.95 + 1 / 300, 2.05, 2.5])
    out[:3, 3] = (-41.0 / 3, 17.7, -312.3456789)
    return out


def a_case(folder: Path, degrees: float = 0.0, **options: object) -> Case:
    volume = Volume(trunk(SHAPE), affine(degrees))
    images = {
        ImageMeta("pre_arterial", "pre", "arterial"): volume,
        ImageMeta("after", "follow_up", "portal", 40): volume,
    }
    record = ClinicalRecord(age_years=66.0, bclc="B", afp_ng_ml=321.0)
    values = {"case_id": "c-7", "origin": "real", "origin_note": "A test.", **options}
    return write_case(folder, images=images, labels=labels_of(SHAPE), record=record, **values)  # type: ignore[arg-type]


def a_scan(case: Case) -> SimulatedScan:
    labels, volume = case.label_array(), case.volume()
    data, tissue = volume.data.copy(), np.zeros(SHAPE, np.uint8)
    tissue[labels == 2] = 2
    tissue[28:31, 18:22, 9:12] = 3
    tissue[30:32, 20:24, 10:13] = 4
    data[tissue == 4] = 615
    return SimulatedScan(
        "simulated_1", Volume(data, volume.affine), tissue, "Doxorubicin 50 mg | Lipiodol", "ab12", "synthetic"
    )


def slices(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("degrees", [0.0, 6.0])
def test_highdicom_reads_the_same_volumes_at_the_same_place(degrees: float, tmp_path: Path) -> None:
    case = a_case(tmp_path / "c", degrees)
    scan = a_scan(case)
    written = export_case(case, tmp_path / "out", [scan])
    assert [p.name for p in written] == ["pre_arterial", "labels.dcm", "simulated_1", "simulated_1_tissue.dcm"]
    for name, expected in (("pre_arterial", case.volume()), ("simulated_1", scan.volume)):
        found = hd.get_volume_from_series(slices(tmp_path / "out" / name))
        data, place = to_ras(np.asarray(found.array), LPS @ found.affine)
        np.testing.assert_array_equal(data, expected.data)
        np.testing.assert_allclose(place, expected.affine, atol=1e-6)
    for name, expected_labels, names in (
        ("labels.dcm", case.label_array(), {1: "Liver", 2: "Tumour", 3: "Aorta"}),
        ("simulated_1_tissue.dcm", scan.tissue, {1: "Viable tumour", 2: "Necrotic tumour", 3: "Lipiodol"}),
    ):
        segments = hd.seg.segread(tmp_path / "out" / name)
        assert {n: str(segments.get_segment_description(n).segment_label) for n in segments.segment_numbers} == names
        ct = "pre_arterial" if name == "labels.dcm" else "simulated_1"
        planes = segments.get_pixels_by_source_instance(
            [str(one.SOPInstanceUID) for one in slices(tmp_path / "out" / ct)],
            combine_segments=True, ignore_spatial_locations=True, assert_missing_frames_are_empty=True,
        )  # fmt: skip
        values = np.array([0, *sorted(v for v in np.unique(expected_labels) if v)])
        back = values[planes.transpose(2, 1, 0)[::-1, ::-1]]
        np.testing.assert_array_equal(back, expected_labels)


def test_our_own_importer_reads_the_same_case(tmp_path: Path) -> None:
    case = a_case(tmp_path / "c", 4.0)
    scan = a_scan(case)
    export_case(case, tmp_path / "out", [scan])
    found = list_series(tmp_path / "out")
    assert [(one.slices, one.problem) for one in found] == [(24, None), (24, None)]
    for number, expected in ((1, case.volume()), (2, scan.volume)):
        back = import_case(tmp_path / "out", tmp_path / f"back{number}", series=str(number))
        volume = back.volume()
        assert volume.data.dtype == np.int16
        np.testing.assert_array_equal(volume.data, expected.data)
        np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-6)
    # the labels find their CT by reference, not by folder
    series = find_series(tmp_path / "out").series
    for file, position, expected_labels in (
        ("labels.dcm", 0, case.label_array()),
        ("simulated_1_tissue.dcm", 1, np.where(np.isin(scan.tissue, (2, 3)), 2, 0)),
    ):
        seg = read_segmentation(tmp_path / "out" / file)
        ct = seg.belongs_to(series)
        assert ct is series[position]
        planes = np.stack(seg.planes(ct), axis=-1)  # (rows, columns, slices)
        np.testing.assert_array_equal(planes.transpose(1, 0, 2)[::-1, ::-1], expected_labels)


def test_what_is_simulated_says_so_and_nobody_is_named(tmp_path: Path) -> None:
    case = a_case(tmp_path / "c")
    export_case(case, tmp_path / "out", [a_scan(case)])
    every = [pydicom.dcmread(path) for path in sorted((tmp_path / "out").rglob("*.dcm"))]
    assert len(every) == 2 * 24 + 2
    assert {one.StudyInstanceUID for one in every} == {every[0].StudyInstanceUID}
    assert {one.FrameOfReferenceUID for one in every} == {every[0].FrameOfReferenceUID}
    assert len({one.SOPInstanceUID for one in every}) == len(every)
    for one in every:
        assert (one.PatientID, str(one.PatientName), one.PatientIdentityRemoved) == ("c-7", "c-7^", "YES")
        assert one.StudyDate == one.StudyTime == one.PatientBirthDate == one.PatientSex == ""
        for name in ("SeriesDate", "AcquisitionDate", "AcquisitionTime", "PatientAge", "InstitutionName"):
            assert name not in one
        assert not any(element.tag.is_private for element in one)
        assert "66" not in str(one.get("AdditionalPatientHistory", ""))
    simulated = [one for one in every if one.SyntheticData == "YES"]
    assert len(simulated) == 24 + 1
    assert all("SIMULATED" in one.SeriesDescription for one in simulated)
    for one in simulated:
        if one.Modality == "CT":
            assert list(one.ImageType) == ["DERIVED", "SECONDARY", "AXIAL", "SIMULATED"]
            assert "not an observation" in one.ImageComments
            assert "Doxorubicin 50 mg | Lipiodol" in one.DerivationDescription
    real = {one.SOPInstanceUID for one in every if one.Modality == "CT" and one.SyntheticData == "NO"}
    assert {one.SourceImageSequence[0].ReferencedSOPInstanceUID for one in simulated if one.Modality == "CT"} == real
    maker = pydicom.dcmread(tmp_path / "out" / "labels.dcm").SegmentSequence[0]
    assert "not recorded" in maker.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName


def test_a_phantom_is_marked_as_synthetic(tmp_path: Path) -> None:
    case = a_case(tmp_path / "c", origin="synthetic")
    export_case(case, tmp_path / "out")
    for path in (tmp_path / "out").rglob("*.dcm"):
        one = pydicom.dcmread(path)
        assert one.SyntheticData == "YES"
        assert one.Modality == "SEG" or ("SYNTHETIC" in one.SeriesDescription and "SYNTHETIC" in one.ImageType)


def test_equal_content_has_equal_identifiers_and_other_content_others(tmp_path: Path) -> None:
    case = a_case(tmp_path / "c")
    scan = a_scan(case)
    for name in ("one", "two"):
        export_case(case, tmp_path / name, [scan])
    other = SimulatedScan(
        scan.name, Volume(scan.volume.data + np.int16(1), scan.volume.affine), scan.tissue, scan.protocol, "ab12", "x"
    )
    export_case(case, tmp_path / "three", [other])
    uid = [slices(tmp_path / name / "simulated_1")[0].SeriesInstanceUID for name in ("one", "two", "three")]
    assert uid[0] == uid[1] != uid[2]
    first, second = ((tmp_path / name / "simulated_1" / "0001.dcm").read_bytes() for name in ("one", "two"))
    assert first == second


def test_refusals_leave_nothing(tmp_path: Path) -> None:
    case = a_case(tmp_path / "c")
    scan = a_scan(case)
    moved = scan.volume.affine.copy()
    moved[0, 3] += 30
    shifted = SimulatedScan("s", Volume(scan.volume.data, moved), scan.tissue, "p", "w", "synthetic")
    with pytest.raises(VolumeError, match="not on the grid"):
        export_case(case, tmp_path / "out", [shifted])
    sheared = affine()
    sheared[0, 1] = 0.004
    bent = write_case(
        tmp_path / "s", "s", "real", "A test.", {ImageMeta("pre"): Volume(trunk(SHAPE), sheared)}, labels_of(SHAPE)
    )
    with pytest.raises(VolumeError, match="sheared"):
        export_case(bent, tmp_path / "out")
    empty = SimulatedScan("s", scan.volume, np.zeros(SHAPE, np.uint8), "p", "w", "synthetic")
    with pytest.raises(CaseError, match="nothing to mark"):
        export_case(case, tmp_path / "out", [empty])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "s"]
    (tmp_path / "out").mkdir()
    with pytest.raises(CaseError, match="exists already"):
        export_case(case, tmp_path / "out")


def test_the_real_patient(real_data: Path, tmp_path: Path) -> None:
    """HCC_009 as downloaded, to a case, to DICOM and back: every HU and every corner."""
    labels = real_data / "hcc009-native" / "pre_labels.nii.gz"
    case = import_case(real_data / "dicom" / "HCC_009", tmp_path / "c", labels, series="1", case_id="HCC_009")
    export_case(case, tmp_path / "out")
    back = import_case(tmp_path / "out", tmp_path / "back")
    np.testing.assert_array_equal(back.volume().data, case.volume().data)
    np.testing.assert_allclose(back.volume().affine, case.volume().affine, atol=1e-6)
    assert back.default_image().phase == "arterial"
