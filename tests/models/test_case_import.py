from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from models.case import Case
from models.case_import import import_case, list_series
from models.errors import CaseError, InputError, MaskError, RecordError, SeriesChoiceError, VolumeError
from tests.models.synthetic_ct import labels_of, spoil_slope, trunk, write_series

AFFINE = np.array([[2.0, 0, 0, -30], [0, 2.5, 0, -20], [0, 0, 5.0, 100], [0, 0, 0, 1]])
SHAPE = (64, 56, 32)
BEFORE, AFTER = trunk(SHAPE), trunk(SHAPE, aorta_hu=310)


def save(path: Path, data: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    return path


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    """A patient folder with two studies, as an archive's downloader nests them."""
    folder = tmp_path / "HCC_900"
    write_series(folder / "02-03-2001-NA-CT" / "4.0-LIVER", BEFORE, series="1.2.3.1", removed="YES")
    write_series(
        folder / "03-08-2001-NA-CT" / "3.0-LIVER",
        AFTER,
        series="1.2.3.2",
        date="20010308",
        time="111111",
        removed="YES",
    )
    return folder


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return save(tmp_path / "labels.nii.gz", labels_of(SHAPE))


def test_a_nifti_file(tmp_path: Path, labels: Path) -> None:
    (tmp_path / "r.yaml").write_text("albumin: 38 g/L\n", encoding="utf-8")
    src = save(tmp_path / "scan.nii.gz", BEFORE)
    case = import_case(src, tmp_path / "out" / "c", labels, tmp_path / "r.yaml")
    assert (case.case_id, case.origin, case.record.albumin_g_dl) == ("scan", "real", 3.8)
    np.testing.assert_array_equal(case.volume().data, BEFORE)
    np.testing.assert_array_equal(case.label_array(), labels_of(SHAPE))
    assert Case.load(tmp_path / "out" / "c") == case


def test_one_series_folder_and_no_header_text_in_the_case(tmp_path: Path, patient: Path, labels: Path) -> None:
    src = patient / "02-03-2001-NA-CT" / "4.0-LIVER"
    case = import_case(src, tmp_path / "c", labels)
    np.testing.assert_array_equal(case.volume().data, BEFORE)
    text = (case.path / "case.json").read_text(encoding="utf-8")
    for telling in ("2001", "DOE", "JANE", "P-17", "1.2.3", "LIVER", "ignore"):
        assert telling not in text
    for image in case.path.glob("*.nii.gz"):
        header = nib.load(image).header
        assert bytes(header["descrip"]).strip(b"\0") == b""
    assert case.case_id.startswith("case-")
    assert case.images[0].phase == "arterial"


def test_a_patient_folder_asks_and_several_series_get_roles(tmp_path: Path, patient: Path, labels: Path) -> None:
    with pytest.raises(SeriesChoiceError) as asked:
        import_case(patient, tmp_path / "c", labels)
    message = str(asked.value)
    assert "holds 2 CT series; choose with --series" in message
    assert "1: arterial phase, day 0, 32 slices, 2 x 2.5 x 5 mm" in message
    assert "day 33, 32 slices" in message
    assert not any(telling in message.split("\n", 1)[1] for telling in ("2001", "LIVER", "ignore"))
    assert not (tmp_path / "c").exists()

    # The order of the choice does not matter: the earlier study is the one before treatment.
    case = import_case(patient, tmp_path / "c", labels, series="2, 1")
    assert case.case_id == "HCC_900"
    assert [(i.role, i.day) for i in case.images] == [("pre", 0), ("follow_up", 33)]
    np.testing.assert_array_equal(case.volume(case.follow_up()[0].name).data, AFTER)
    np.testing.assert_array_equal(case.volume().data, BEFORE)

    again = import_case(patient, tmp_path / "d", labels, series="1.2.3.1,1.2.3.2")
    assert again.content_hash == case.content_hash
    for file in case.path.iterdir():
        assert file.read_bytes() == (again.path / file.name).read_bytes()

    # Chosen alone, the later study is the one before treatment, and days count from it.
    alone = import_case(patient, tmp_path / "e", series="2")
    assert [(i.role, i.day) for i in alone.images] == [("pre", 0)]


def test_two_phases_in_one_series_are_listed_and_chosen(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    write_series(folder, BEFORE, acquisition=1, time="101010")
    write_series(folder, AFTER, acquisition=2, time="101050", first_instance=40)
    infos = list_series(folder)
    assert [(i.index, i.part, i.parts, i.slices) for i in infos] == [(1, 1, 2, 32), (2, 2, 2, 32)]
    with pytest.raises(SeriesChoiceError, match="part 2 of 2 in one series"):
        import_case(folder, tmp_path / "c")
    with pytest.raises(SeriesChoiceError, match="holds 2 phases"):
        import_case(folder, tmp_path / "c", series="1.2.3.1")
    np.testing.assert_array_equal(import_case(folder, tmp_path / "c", series="2").volume().data, AFTER)
    both = import_case(folder, tmp_path / "d", series="1,2")
    assert [i.role for i in both.images] == ["pre", "pre"]
    assert len({i.name for i in both.images}) == 2


def test_a_series_that_can_not_be_imported_is_listed_with_the_reason(tmp_path: Path) -> None:
    write_series(tmp_path / "p" / "a", BEFORE, series="1.2.3.1")
    write_series(tmp_path / "p" / "b", BEFORE, series="1.2.3.2", number=2, tilt_mm=1.0)
    write_series(tmp_path / "p" / "c", BEFORE, series="1.2.3.3", number=3)
    spoil_slope(sorted((tmp_path / "p" / "c").iterdir())[3], "ab")
    infos = list_series(tmp_path / "p")
    assert infos[0].problem is None
    assert infos[1].problem is not None
    assert "tilted" in str(infos[1])
    assert "can't be imported: The CT slice" in str(infos[2])
    assert "damaged rescale to HU" in str(infos[2])


def test_a_slice_without_geometry_does_not_refuse_the_patient_folder(tmp_path: Path) -> None:
    import pydicom

    write_series(tmp_path / "p" / "a", BEFORE, series="1.2.3.1")
    write_series(tmp_path / "p" / "b", BEFORE, series="1.2.3.2", number=2)
    spoilt = sorted((tmp_path / "p" / "b").iterdir())[5]
    slice_ = pydicom.dcmread(spoilt)
    del slice_.ImageOrientationPatient
    slice_.save_as(spoilt)
    with pytest.raises(SeriesChoiceError) as asked:
        import_case(tmp_path / "p", tmp_path / "c")
    lines = str(asked.value).splitlines()
    assert "can't be imported" not in lines[1]
    assert spoilt.name in lines[2]
    assert lines[3] == "  beside them, not to be imported as CT: 1 unplaceable CT slice"
    with pytest.raises(VolumeError, match="does not state its position"):
        import_case(tmp_path / "p", tmp_path / "c", series="2")
    np.testing.assert_array_equal(import_case(tmp_path / "p", tmp_path / "c", series="1").volume().data, BEFORE)


def test_bad_choices(tmp_path: Path, patient: Path) -> None:
    for choice, message in (
        ("3", "'3' is none of the 2 series"),
        ("0", "none of"),
        ("x", "none of"),
        ("1,", "none of"),
    ):
        with pytest.raises(SeriesChoiceError, match=message):
            import_case(patient, tmp_path / "c", series=choice)
    write_series(patient / "other", BEFORE, series="1.2.3.9", patient="P-99", removed="YES")
    with pytest.raises(SeriesChoiceError, match="of 2 patients"):
        import_case(patient, tmp_path / "c")
    with pytest.raises(SeriesChoiceError, match="different patients"):
        import_case(patient, tmp_path / "c", series="1,3")
    write_series(patient / "undated", BEFORE, series="1.2.3.8", date=None, removed="YES")
    index = next(i.index for i in list_series(patient) if i.day is None)
    with pytest.raises(SeriesChoiceError, match="has no date"):
        import_case(patient, tmp_path / "c", series=f"1,{index}")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(("removed", "kept"), [("", False), ("YES", True)])
def test_a_folder_named_after_the_patient_names_no_case(tmp_path: Path, removed: str, kept: bool) -> None:
    write_series(tmp_path / "jane doe" / "ct", BEFORE, removed=removed)
    case = import_case(tmp_path / "jane doe", tmp_path / "c")
    assert (case.case_id == "jane_doe") is kept
    assert import_case(tmp_path / "jane doe", tmp_path / "d", case_id="mine").case_id == "mine"


def test_bad_input_leaves_nothing_behind(tmp_path: Path, labels: Path) -> None:
    scan = save(tmp_path / "scan.nii.gz", BEFORE)
    (tmp_path / "empty").mkdir()
    (tmp_path / "r.yaml").write_text("albumin: 38\n", encoding="utf-8")
    (tmp_path / "taken").mkdir()
    (tmp_path / "plain").write_text("x", encoding="utf-8")
    no_tumour = save(tmp_path / "liver.nii.gz", (labels_of(SHAPE) == 1).astype(np.uint8))
    write_series(tmp_path / "mr", BEFORE, modality_class="1.2.840.10008.5.1.4.1.1.4")
    before = sorted(tmp_path.rglob("*"))
    out, too_long = tmp_path / "c", "x" * 300
    for error, arguments in (
        (VolumeError, {"src": tmp_path / "none.nii.gz"}),
        (VolumeError, {"src": tmp_path / "empty"}),
        (VolumeError, {"src": tmp_path / "mr"}),
        (VolumeError, {"src": labels}),
        (MaskError, {"labels": no_tumour}),
        (MaskError, {"labels": tmp_path / "none.nii.gz"}),
        (RecordError, {"record": tmp_path / "r.yaml"}),
        (InputError, {"series": "1"}),
        (CaseError, {"out": tmp_path / "taken"}),
        (CaseError, {"out": tmp_path / "plain" / "c"}),
        (CaseError, {"out": tmp_path / "new" / too_long}),
        (VolumeError, {"src": tmp_path / too_long}),
        (MaskError, {"labels": tmp_path / f"{too_long}.nii.gz"}),
        (RecordError, {"record": tmp_path / too_long}),
    ):
        with pytest.raises(error) as refused:
            import_case(**{"src": scan, "out": out, **arguments})  # type: ignore[arg-type]
        assert str(refused.value).endswith(".")
        assert "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_real_patient(real_data: Path, tmp_path: Path) -> None:
    native = real_data / "hcc009-native" / "pre_labels.nii.gz"
    case = import_case(real_data / "dicom" / "HCC_009", tmp_path / "c", native, series="1,2")
    assert [(i.name, i.shape[2], i.day) for i in case.images] == [
        ("pre_arterial", 69, 0),
        ("follow_up_arterial", 70, 33),
    ]
    labels, volume = case.label_array(), case.volume()
    assert volume.data[labels == 4].mean() == pytest.approx(386, rel=0.1)
    assert (labels == 2).sum() * volume.voxel_ml == pytest.approx(1420, rel=0.02)
    assert "1998" not in (case.path / "case.json").read_text(encoding="utf-8")
