from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from models import case as case_module
from models.case import Case
from models.collection import import_collection as import_module
from models.collection.clinical_table import ClinicalTable, read_clinical_table
from models.collection.component_filter import filter_components
from models.collection.import_collection import find_patients, import_collection
from models.collection.quality import CaseQuality
from models.errors import CaseError, InputError, VolumeError
from models.volume import write_label_nifti
from tests.models.collection.synthetic_patient import (
    SHAPE,
    SPACING,
    abdomen,
    labels,
    write_patient,
    write_segmentation,
    write_table,
)
from tests.models.synthetic_ct import write_series

TRUTH = labels()


@pytest.fixture
def table(tmp_path: Path) -> ClinicalTable:
    rows: list[dict[str, object]] = [{"TCIA_ID": f"HCC_90{n}"} for n in range(1, 5)]
    return read_clinical_table(write_table(tmp_path / "table.xlsx", *rows))


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def one(src: Path, table: ClinicalTable, out: Path, **options: Any) -> tuple[CaseQuality, Case]:
    (quality,) = import_collection(src, table, out, **options)
    assert quality.case is not None, quality.findings
    return quality, Case.load(out / quality.case)


def write_one_scan(root: Path, patient: str = "HCC_901") -> None:
    """A patient with one CT and its segmentation object: enough where the number of images does not matter."""
    ct = root / patient / "ct"
    write_series(ct, abdomen(), spacing=SPACING, patient=patient, series=f"1.2.3.{patient[-3:]}.1")
    write_segmentation(root / patient / "seg" / "1-1.dcm", ct, TRUTH)


def texts(quality: CaseQuality) -> str:
    return " ".join(finding.text for finding in quality.findings)


@pytest.mark.parametrize("idc", [False, True], ids=["TCIA folders", "IDC folders"])
def test_a_patient_becomes_a_case(tmp_path: Path, table: ClinicalTable, idc: bool) -> None:
    write_patient(tmp_path / "data", idc=idc)
    (tmp_path / "data" / "LICENSE").write_text("CC BY 4.0", encoding="utf-8")
    quality, case = one(tmp_path / "data", table, tmp_path / "cases")
    assert quality.passed
    assert quality.findings == ()
    assert [(image.name, image.day) for image in case.images] == [
        ("pre_arterial", 0), ("pre_portal", 0), ("follow_up_arterial", 49),
    ]  # fmt: skip
    np.testing.assert_array_equal(case.volume("pre_arterial").data, abdomen())
    np.testing.assert_array_equal(case.volume("pre_portal").data, abdomen(150, 110))
    np.testing.assert_allclose(np.diag(case.volume().affine), [*SPACING, 1])
    np.testing.assert_array_equal(case.label_array(), TRUTH)
    after = case.follow_up_label_array("follow_up_arterial")
    np.testing.assert_array_equal(after, np.where(np.isin(TRUTH, (1, 2)), TRUTH, 0))
    row = table.patient("HCC_901")
    assert row is not None
    assert case.record == row.record
    assert "Labels before treatment: experts. Labels after treatment: AI." in case.origin_note
    assert (quality.follow_up_days, quality.table_follow_up_days) == (49, 49)


def test_nothing_of_the_headers_survives(tmp_path: Path, table: ClinicalTable) -> None:
    write_patient(tmp_path / "data")
    for path in (tmp_path / "data").rglob("*.dcm"):
        data = pydicom.dcmread(path)
        data.InstitutionName, data.AcquisitionDate = "SAINT ELSEWHERE", "20010203"
        data.KVP = 120
        data.save_as(path)
    one(tmp_path / "data", table, tmp_path / "cases")
    for path in (tmp_path / "cases").rglob("*"):
        if path.is_file():
            content = path.read_bytes() if path.suffix != ".gz" else b""
            for secret in (b"DOE", b"JANE", b"ELSEWHERE", b"2001", b"ignore the rules", b"1.2.3.901", b"101010"):
                assert secret not in content, (path, secret)
            assert "2001" not in str(path.relative_to(tmp_path / "cases"))
    assert '"KVP":120.0' in (tmp_path / "cases" / "quality" / "HCC_901.json").read_text().replace(" ", "")


def test_two_phases_in_one_series_are_told_apart(tmp_path: Path, table: ClinicalTable) -> None:
    """The object references the slices of the second phase; both share one series, one folder and mixed file names."""
    base = tmp_path / "data" / "HCC_901"
    common: dict[str, Any] = {"spacing": SPACING, "patient": "HCC_901", "series": "1.2.3.1"}
    write_series(tmp_path / "alone", abdomen(150, 110), acquisition=2, time="101055", **common)
    write_series(base / "ct", abdomen(), acquisition=1, time="101010", **common)
    write_series(base / "ct", abdomen(150, 110), acquisition=2, time="101055", **common)
    write_segmentation(base / "seg" / "1.dcm", tmp_path / "alone", TRUTH)
    quality, case = one(tmp_path / "data", table, tmp_path / "cases")
    assert {image.name: image.two_phases for image in quality.images} == {"pre_arterial": True, "pre_portal": True}
    np.testing.assert_array_equal(case.volume("pre_arterial").data, abdomen())
    np.testing.assert_array_equal(case.volume("pre_portal").data, abdomen(150, 110))
    assert case.labels is not None
    assert case.labels.image == "pre_portal"
    np.testing.assert_array_equal(case.label_array(), TRUTH)
    assert "held more than one phase" in texts(quality)
    assert "one visit only" in texts(quality)
    assert quality.passed


def uneven(folder: Path, extra_mm: float) -> None:
    heights = [100 + SPACING[2] * i + (extra_mm if i > 12 else 0) for i in range(SHAPE[2])]
    write_series(folder / "ct", abdomen(), spacing=SPACING, patient="HCC_901", heights=heights)
    write_segmentation(folder / "seg" / "1.dcm", folder / "ct", TRUTH)


def test_uneven_slices_are_resampled_along_the_body(tmp_path: Path, table: ClinicalTable) -> None:
    uneven(tmp_path / "data", 1.4)
    quality, case = one(tmp_path / "data", table, tmp_path / "cases")
    assert quality.passed
    assert "were uneven and were resampled" in texts(quality)
    volume, found = case.volume(), case.label_array()
    assert volume.spacing_mm[2] == pytest.approx((23 * 6 + 1.4) / 23)
    assert volume.shape == found.shape
    # Every voxel where the slices above and below agree is exact, and no label is off by more than half a slice.
    top = 100 + 23 * 6 + 1.4
    heights = np.linspace(100, top, volume.shape[2])
    source = np.array([100 + 6 * i + (1.4 if i > 12 else 0) for i in range(24)])
    for k, height in enumerate(heights):
        nearest = int(np.abs(source - height).argmin())
        np.testing.assert_array_equal(found[..., k], TRUTH[..., nearest])
    assert (volume.data[10, 10, :] == -1000).all()


def test_a_wide_gap_is_refused_with_its_place(tmp_path: Path, table: ClinicalTable) -> None:
    uneven(tmp_path / "data", 12.0)
    (quality,) = import_collection(tmp_path / "data", table, tmp_path / "cases")
    assert (quality.passed, quality.case) == (False, None)
    assert "18 mm between slices 13 and 14 of the stack and up to 7.5 mm could be bridged" in quality.reason
    assert "experts segmented" in quality.reason
    assert not (tmp_path / "cases" / "HCC_901").exists()
    assert "18 mm between" in (tmp_path / "cases" / "quality" / "HCC_901.html").read_text(encoding="utf-8")


def test_a_damaged_slice_is_said(tmp_path: Path, table: ClinicalTable) -> None:
    write_one_scan(tmp_path / "data")
    ct = tmp_path / "data" / "HCC_901" / "ct"
    middle = sorted(ct.iterdir(), key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2]))[20]
    content = middle.read_bytes()
    middle.write_bytes(content[:138] + b"\x67" + content[139:])  # a wrong length in the first element
    (quality,) = import_collection(tmp_path / "data", table, tmp_path / "cases")
    assert not quality.passed  # 12 mm between slices of 6 mm are too much to invent
    assert "1 damaged DICOM files were left out" in quality.reason
    assert "12 mm between slices" in quality.reason


@pytest.mark.parametrize("padding", [-2048, -3024])
def test_padding_becomes_air(tmp_path: Path, table: ClinicalTable, padding: int) -> None:
    # Padding without its tag: only the HU tell. -1024 is the offset of the raw values of `write_series`.
    data = abdomen()
    data[:3] = padding
    write_series(tmp_path / "data" / "ct", data, spacing=SPACING, patient="HCC_901")
    write_segmentation(tmp_path / "data" / "seg" / "1.dcm", tmp_path / "data" / "ct", TRUTH)
    _, case = one(tmp_path / "data", table, tmp_path / "cases")
    assert case.volume().data.min() == -1024
    assert (case.volume().data[:3] == -1024).all()
    np.testing.assert_array_equal(case.volume().data[3:], abdomen()[3:])


def test_the_grids_keep_volumes_and_places(tmp_path: Path, table: ClinicalTable) -> None:
    write_one_scan(tmp_path / "data")
    sizes = {"paper": (0.8, 0.8, 3.0), "isotropic": (1.0, 1.0, 1.0)}
    native, _ = one(tmp_path / "data", table, tmp_path / "native")
    assert native.before is not None
    for grid, sides in sizes.items():
        quality, case = one(tmp_path / "data", table, tmp_path / grid, grid=grid)
        volume, found = case.volume(), case.label_array()
        assert volume.spacing_mm == pytest.approx(sides)
        assert volume.data.dtype == np.int16
        assert quality.before is not None
        for name in ("liver_ml", "tumour_ml"):
            assert getattr(quality.before, name) == pytest.approx(getattr(native.before, name), rel=0.02)
        middle = case.volume().affine @ [*np.mean(np.nonzero(found == 2), axis=1), 1]
        truth = np.diag([*SPACING, 1]) @ [*np.mean(np.nonzero(TRUTH == 2), axis=1), 1] + [-30, -20, 100, 0]
        np.testing.assert_allclose(middle[:3], truth[:3], atol=1.0)


def test_small_parts_are_taken_away() -> None:
    marks = np.zeros((40, 40, 40), np.uint8)
    marks[5:25, 5:25, 5:25] = 1
    marks[8:14, 8:14, 8:14] = 2  # 216 voxels inside the liver
    marks[15:22, 15:22, 15:22] = 2  # 343
    marks[30:34, 30:34, 30:34] = 2  # 64 apart from it
    marks[35:38, 5:8, 5:8] = 1  # 27 of liver apart
    marks[0:2, 0:2, 0:2] = 4  # 8 of the aorta, which is no mass
    found, dropped = filter_components(marks, 300)
    assert (found[8:14, 8:14, 8:14] == 1).all()
    assert (found[15:22, 15:22, 15:22] == 2).all()
    assert not found[30:].any()
    assert (found[0:2, 0:2, 0:2] == 4).all()
    assert dropped == 216 + 64 + 27
    kept, dropped = filter_components(marks, 64)
    assert dropped == 27
    assert (kept[30:34, 30:34, 30:34] == 2).all()


def test_the_filter_is_applied_on_the_grid_of_the_case(tmp_path: Path, table: ClinicalTable) -> None:
    write_patient(tmp_path / "data")
    marks = TRUTH.copy()
    marks[47:50, 30:33, 10:13] = 2  # 27 native voxels of 0.15 ml: noise here, 2109 voxels on the paper's grid
    write_segmentation(tmp_path / "data" / "HCC_901" / "02-03-2001-NA-CT ABD-10001" / "SEG_1" / "1-1.dcm",
                       tmp_path / "data" / "HCC_901" / "02-03-2001-NA-CT ABD-10001" / "1.000000-LIVER-1",
                       marks, series="1.2.3.901.9")  # fmt: skip
    quality, _ = one(tmp_path / "data", table, tmp_path / "native")
    assert quality.before is not None
    assert (quality.before.lesions, quality.before.dropped_voxels) == (1, 27)
    quality, _ = one(tmp_path / "data", table, tmp_path / "paper", grid="paper")
    assert quality.before is not None
    assert (quality.before.lesions, quality.before.dropped_voxels) == (2, 0)


def test_one_visit_no_segmentation_and_different_phases(tmp_path: Path, table: ClinicalTable) -> None:
    write_series(tmp_path / "data" / "a", abdomen(150, 110), spacing=SPACING, patient="HCC_901")
    quality, case = one(tmp_path / "data", table, tmp_path / "cases")
    assert quality.passed  # a case without labels is a case; it says that it can't be planned
    assert case.labels is None
    assert "no labels before treatment" in texts(quality)
    assert "one visit only" in texts(quality)
    assert "No image before treatment is in the arterial phase" in texts(quality)
    write_label_nifti(TRUTH, case.volume().affine, tmp_path / "marks.nii.gz")
    quality, case = one(tmp_path / "data", table, tmp_path / "cases", labels={"HCC_901": tmp_path / "marks.nii.gz"})
    np.testing.assert_array_equal(case.label_array(), TRUTH)
    assert case.images[0].name == "pre_portal"
    write_series(
        tmp_path / "data" / "b", abdomen(), spacing=SPACING, patient="HCC_901", series="1.2.3.2", date="20010324"
    )
    quality, _ = one(tmp_path / "data", table, tmp_path / "cases", labels={"HCC_901": tmp_path / "marks.nii.gz"})
    assert "No phase is known both before and after" in texts(quality)


def test_the_experts_visit_is_the_baseline_and_the_next_one_the_follow_up(tmp_path: Path, table: ClinicalTable) -> None:
    for number, date in enumerate(("20010101", "20010203", "20010324", "20010601"), start=1):
        write_series(tmp_path / "data" / str(number), abdomen(), spacing=SPACING, patient="HCC_901",
                     series=f"1.2.3.{number}", date=date)  # fmt: skip
    write_segmentation(tmp_path / "data" / "seg" / "1.dcm", tmp_path / "data" / "2", TRUTH)
    quality, case = one(tmp_path / "data", table, tmp_path / "cases")
    assert [(image.role, image.day) for image in case.images] == [("pre", 0), ("follow_up", 49)]
    assert "1 visits before" in texts(quality)
    assert "1 visits after the first follow-up" in texts(quality)


def test_a_failing_case_is_kept_apart_and_comes_back_when_it_is_mended(tmp_path: Path, table: ClinicalTable) -> None:
    base = write_patient(tmp_path / "data") / "02-03-2001-NA-CT ABD-10001"
    dead = TRUTH.copy()
    dead[40:42, 22:25, 10:14] = 9
    write_segmentation(
        base / "SEG_1" / "1-1.dcm", base / "1.000000-LIVER-1", dead, series="1.2.3.901.9", values=(1, 2, 3, 4, 9)
    )
    quality, _ = one(tmp_path / "data", table, tmp_path / "cases")
    assert (quality.passed, quality.case) == (False, "kept_apart/HCC_901")
    assert "1 of the 5 segments of the experts are none of liver, tumour, portal vein, aorta" in quality.reason
    assert not (tmp_path / "cases" / "HCC_901").exists()
    write_segmentation(base / "SEG_1" / "1-1.dcm", base / "1.000000-LIVER-1", TRUTH, series="1.2.3.901.9")
    quality, _ = one(tmp_path / "data", table, tmp_path / "cases")
    assert (quality.passed, quality.case) == (True, "HCC_901")
    assert not (tmp_path / "cases" / "kept_apart" / "HCC_901").exists()


def test_an_object_without_its_ct_and_a_damaged_one_are_said(tmp_path: Path, table: ClinicalTable) -> None:
    base = write_patient(tmp_path / "data") / "03-24-2001-NA-CT ABD-10002"
    write_series(tmp_path / "gone", abdomen(), spacing=SPACING, patient="HCC_901", series="1.2.3.99", salt="gone")
    write_segmentation(base / "SEG_3" / "1.dcm", tmp_path / "gone", TRUTH, series="1.2.3.901.11")
    data = pydicom.dcmread(base / "SEG_2" / "1-1.dcm")
    del data.SegmentSequence
    data.save_as(base / "SEG_2" / "1-1.dcm")
    quality, _ = one(tmp_path / "data", table, tmp_path / "cases")
    assert "references a CT that is not in the folder" in texts(quality)
    assert "The segmentation 1-1.dcm is damaged" in texts(quality)  # the folder would tell the date
    assert quality.passed


def test_folders_that_can_not_be_imported_get_a_sentence(tmp_path: Path, table: ClinicalTable) -> None:
    with pytest.raises(VolumeError, match="There is no folder"):
        find_patients(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VolumeError, match="holds no patient of HCC-TACE-Seg; download some"):
        find_patients(tmp_path / "empty")
    write_series(tmp_path / "hospital" / "a", abdomen(), patient="P-17")
    with pytest.raises(VolumeError, match=r"\(1 folders hold other patients\)"):
        find_patients(tmp_path / "hospital")
    write_series(tmp_path / "mixed", abdomen(), spacing=SPACING, patient="HCC_901")
    write_series(tmp_path / "mixed" / "b", abdomen(), spacing=SPACING, patient="HCC_902", series="1.2.3.2")
    for path in (tmp_path / "mixed" / "b").iterdir():
        path.rename(tmp_path / "mixed" / f"b-{path.name}")
    (quality,) = import_collection(tmp_path / "mixed", table, tmp_path / "cases")
    assert "hold 2 CT series of 2 patients mixed together" in quality.reason
    write_patient(tmp_path / "seg")
    shutil.rmtree(tmp_path / "seg" / "HCC_901" / "03-24-2001-NA-CT ABD-10002")
    for number in (1, 2):
        shutil.rmtree(tmp_path / "seg" / "HCC_901" / "02-03-2001-NA-CT ABD-10001" / f"{number}.000000-LIVER-{number}")
    (quality,) = import_collection(tmp_path / "seg", table, tmp_path / "cases2")
    assert "no CT series (found: 1 segmentation object)" in quality.reason
    with pytest.raises(InputError, match="HCC_904 is not in"):
        import_collection(tmp_path / "seg", table, tmp_path / "cases2", patients=["HCC_904"])
    with pytest.raises(InputError, match="no labels file"):
        import_collection(tmp_path / "seg", table, tmp_path / "cases2", labels={"HCC_901": tmp_path / "x.nii.gz"})


def test_importing_twice_gives_the_same_bytes_and_skips_what_is_there(tmp_path: Path, table: ClinicalTable) -> None:
    for name in ("HCC_901", "HCC_902"):
        write_one_scan(tmp_path / "data", name)
    import_collection(tmp_path / "data", table, tmp_path / "a", jobs=2)
    import_collection(tmp_path / "data", table, tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("HCC_*/*")}
    import_collection(tmp_path / "data", table, tmp_path / "a")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("HCC_*/*")}
    # a changed case is made again, and only that one
    (tmp_path / "a" / "HCC_902" / "pre_arterial.nii.gz").write_bytes(b"broken")
    import_collection(tmp_path / "data", table, tmp_path / "a")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("HCC_*/*")}
    assert {path.parent.name for path in before if before[path] != after[path]} == {"HCC_902"}


def test_progress_counts_every_patient(tmp_path: Path, table: ClinicalTable) -> None:
    for name in ("HCC_901", "HCC_902"):
        write_one_scan(tmp_path / "data", name)
    seen: list[tuple[int, int, str]] = []
    for _ in range(2):
        import_collection(
            tmp_path / "data", table, tmp_path / "a", progress=lambda n, of, last: seen.append((n, of, last.patient_id))
        )
    assert seen == [(1, 2, "HCC_901"), (2, 2, "HCC_902")] * 2


def import_and_die(src: Path, table: ClinicalTable, out: Path, patient: str, moment: str) -> None:
    """Import in this process and kill it: with the first image of a patient written, or its case but no quality."""

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    write_image = case_module._write_image

    def write_and_die(folder: Path, *rest: Any) -> object:
        written = write_image(folder, *rest)
        if patient in folder.name:
            die()
        return written

    if moment == "first image":
        case_module._write_image = write_and_die  # type: ignore[assignment]
    else:
        import_module.write_case_quality = lambda _, quality, __: die() if quality.patient_id == patient else None
    import_collection(src, table, out)


def killed(src: Path, table: ClinicalTable, out: Path, patient: str, moment: str) -> None:
    arguments = (src, table, out, patient, moment)
    process = multiprocessing.get_context("spawn").Process(target=import_and_die, args=arguments)
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("moment", ["first image", "case without quality"])
def test_a_killed_import_goes_on(tmp_path: Path, table: ClinicalTable, moment: str) -> None:
    for name in ("HCC_901", "HCC_902"):
        write_one_scan(tmp_path / "data", name)
    import_collection(tmp_path / "data", table, tmp_path / "whole")
    out = tmp_path / "killed"
    killed(tmp_path / "data", table, out, "HCC_902", moment)
    assert bool(list(out.glob("..HCC_902.building.partial-*/pre_arterial.nii.gz"))) == (moment == "first image")
    assert (out / "HCC_902").exists() == (moment != "first image")
    import_collection(tmp_path / "data", table, out)
    assert files_of(out) == files_of(tmp_path / "whole")  # nothing half written is left either


def test_a_second_import_into_the_same_folder_waits_outside(tmp_path: Path, table: ClinicalTable) -> None:
    import fcntl

    write_patient(tmp_path / "data", segmented=False)
    (tmp_path / "cases").mkdir()
    with (tmp_path / "cases" / ".import.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CaseError, match="Another import is writing"):
            import_collection(tmp_path / "data", table, tmp_path / "cases")


def test_a_folder_that_is_no_case_is_not_touched(tmp_path: Path, table: ClinicalTable) -> None:
    write_patient(tmp_path / "data", segmented=False)
    (tmp_path / "cases" / "HCC_901").mkdir(parents=True)
    (tmp_path / "cases" / "HCC_901" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(CaseError, match="exists and is no case"):
        import_collection(tmp_path / "data", table, tmp_path / "cases")
    assert (tmp_path / "cases" / "HCC_901" / "thesis.txt").read_text(encoding="utf-8") == "mine"
