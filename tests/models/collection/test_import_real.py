"""The one real patient at hand, with a segmentation object made of its published labels, against the measured facts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.case import Case
from models.collection.clinical_table import ClinicalTable, read_clinical_table
from models.collection.import_collection import import_collection
from models.collection.quality import CaseQuality
from models.response import longest_axial_diameter
from models.volume import load_exact_labels
from tests.models.collection.synthetic_patient import write_segmentation
from tests.models.collection.test_import_collection import files_of, killed


@pytest.fixture(scope="module")
def table(real_data: Path) -> ClinicalTable:
    return read_clinical_table(real_data / "clinical" / "HCC-TACE-Seg_clinical_data-V2.dev.xlsx")


@pytest.fixture(scope="module")
def download(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders as the TCIA downloader wrote them (links to the files), and the object beside them."""
    folder = tmp_path_factory.mktemp("tcia")
    for path in (real_data / "dicom").rglob("*.dcm"):
        link = folder / path.relative_to(real_data / "dicom")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    study = next((folder / "HCC_009").glob("02-15-1998*"))
    marks, _ = load_exact_labels(real_data / "hcc009-native" / "pre_labels.nii.gz")
    write_segmentation(study / "300.000000-Segmentation-00001" / "1-1.dcm", next(study.glob("4.*")), marks)
    return folder


@pytest.fixture(scope="module")
def imported(
    download: Path, table: ClinicalTable, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CaseQuality, Case, Path]:
    out = tmp_path_factory.mktemp("cases")
    (quality,) = import_collection(download, table, out)
    assert quality.case == "HCC_009"
    return quality, Case.load(out / "HCC_009"), out


def test_the_measured_facts_come_back(imported: tuple[CaseQuality, Case, Path]) -> None:
    quality, case, _ = imported
    assert (quality.passed, quality.findings) == (True, ())
    before, after = case.images
    assert (before.name, before.shape, before.day) == ("pre_arterial", (512, 512, 69), 0)
    assert (after.name, after.shape, after.day) == ("follow_up_arterial", (512, 512, 70), 33)
    assert before.spacing_mm == pytest.approx((0.742, 0.742, 2.5), abs=0.001)
    volume, marks = case.volume(), case.label_array()
    for label, hu, ml in ((4, 386, None), (1, 70, 1239), (2, 65, 1420)):
        assert float(volume.data[marks == label].mean()) == pytest.approx(hu, rel=0.10)
        if ml is not None:
            assert float((marks == label).sum()) * volume.voxel_ml == pytest.approx(ml, rel=0.05)
    assert longest_axial_diameter(marks == 2, volume.spacing_mm) == pytest.approx(170, rel=0.02)
    oil = case.volume(after.name).data
    assert 2000 < oil.max() <= 2950 * 1.1
    assert oil.min() == -1024
    assert case.record.afp_ng_ml == 209147


def test_the_quality_is_what_the_case_holds(imported: tuple[CaseQuality, Case, Path]) -> None:
    quality, case, _ = imported
    assert quality.before is not None
    assert quality.before.aorta_ml > 1
    assert quality.before.longest_mm == pytest.approx(171, abs=2)
    assert quality.readers_mm == {1: 150.7, 2: 153.0, 3: 150.0}
    assert quality.table_follow_up_days == pytest.approx(33, abs=0.05)
    arterial = quality.images[0]
    assert (arterial.phase, arterial.labels_by) == ("arterial", "experts")
    assert arterial.aorta_hu == pytest.approx(386, rel=0.10)
    # The headers count from the diagnosis as the table does.
    assert arterial.tags["LongitudinalTemporalOffsetFromEvent"] == -8
    assert quality.content_hash == case.content_hash


def test_no_date_of_the_patient_is_left(imported: tuple[CaseQuality, Case, Path]) -> None:
    _, _, out = imported
    for path in out.rglob("*"):
        if path.suffix in (".json", ".html", ".csv"):
            assert b"1998" not in path.read_bytes(), path


def test_killed_half_way_and_resumed_gives_the_same_bytes(
    imported: tuple[CaseQuality, Case, Path], download: Path, table: ClinicalTable, tmp_path: Path
) -> None:
    killed(download, table, tmp_path, "HCC_009", "first image")
    assert not (tmp_path / "HCC_009").exists()
    import_collection(download, table, tmp_path)
    assert files_of(tmp_path) == files_of(imported[2])


def test_the_grid_of_the_paper_keeps_the_volumes(
    real_data: Path, download: Path, table: ClinicalTable, tmp_path: Path
) -> None:
    (quality,) = import_collection(download, table, tmp_path, grid="paper")
    case = Case.load(tmp_path / "HCC_009")
    assert case.volume().spacing_mm == pytest.approx((0.8, 0.8, 3.0))
    assert quality.before is not None
    assert quality.before.liver_ml == pytest.approx(1239, rel=0.05)
    assert quality.before.tumour_ml == pytest.approx(1420, rel=0.05)
    assert np.unique(case.label_array()).tolist() == [0, 1, 2, 3, 4]
