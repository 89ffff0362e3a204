from __future__ import annotations

import socket
from pathlib import Path

import duckdb
import idc_index_data
import pytest

from models.collection.clinical_table import read_clinical_table
from models.collection.idc_index import CollectionIndex, compare_intervals, read_index
from models.errors import InputError
from tests.models.collection.synthetic_patient import write_table


@pytest.fixture(scope="module")
def packaged() -> CollectionIndex:
    return read_index()


def test_the_packaged_index_lists_the_whole_collection(
    packaged: CollectionIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the index is inside the package")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert read_index() == packaged
    assert [one.patient_id for one in packaged.patients] == [f"HCC_{n:03d}" for n in range(1, 106)]
    assert (len(packaged.series("CT")), len(packaged.series("SEG"))) == (572, 448)
    assert sum(one.size_bytes for one in packaged.series("CT")) == pytest.approx(27.3e9, rel=0.005)
    by = [one.made_by for one in packaged.series("SEG")]
    assert (by.count("experts"), by.count("ai"), by.count("corrected_ai")) == (105, 318, 25)


def test_every_patient_has_a_baseline_with_the_experts_and_a_follow_up(packaged: CollectionIndex) -> None:
    for patient in packaged.patients:
        before, after = patient.visit("baseline"), patient.visit("follow_up")
        assert before is not None
        assert after is not None
        assert before.day < after.day
        assert [one.made_by for one in before.of("SEG")].count("experts") == 1
        assert before.of("CT")
        assert after.of("CT")
        assert patient.problems == ()


def test_the_patient_that_is_known_by_its_headers(packaged: CollectionIndex, real_data: Path) -> None:
    patient = packaged.choose(["HCC_009"]).patients[0]
    assert patient.follow_up_days == 33  # 1998-02-15 to 1998-03-20
    listed = {one.images: one.size_bytes for visit in patient.visits for one in visit.of("CT")}
    for folder, images in (("02-15-1998*/4.*", 69), ("03-20-1998*/105.*", 70)):
        files = list(next((real_data / "dicom" / "HCC_009").glob(folder)).glob("*.dcm"))
        assert len(files) == images
    assert listed[70] == sum(path.stat().st_size for path in files)
    before = patient.visit("baseline")
    assert before is not None
    assert [(one.description, one.phase) for one in before.of("CT")] == [
        ("PRE LIVER", "noncontrast"),
        ("Recon 2: LIVER 3 PHASE (C/A/P)", "enhanced"),
        ("LIVER 3 PHASE (C/A/P)", "enhanced"),
    ]


def test_the_follow_ups_against_the_tables_intervals(packaged: CollectionIndex, real_data: Path) -> None:
    table = read_clinical_table(real_data / "clinical" / "HCC-TACE-Seg_clinical_data-V2.dev.xlsx")
    check = compare_intervals(packaged, table)
    assert (check.given, check.agree) == (63, 53)
    # Every patient has two visits in the archive, so no other choice would agree better: the table differs from it.
    assert not any(one.other_visit for one in check.mismatches)
    assert {one.patient_id: one.fits_next for one in check.mismatches} == {
        "HCC_077": "", "HCC_082": "HCC_083", "HCC_083": "HCC_084", "HCC_090": "HCC_091", "HCC_092": "HCC_093",
        "HCC_093": "HCC_094", "HCC_095": "", "HCC_097": "HCC_098", "HCC_100": "HCC_101", "HCC_102": "HCC_103",
    }  # fmt: skip


Row = tuple[str, str, str, str, str, str | None, int, float]


def small(monkeypatch: pytest.MonkeyPatch, folder: Path, rows: list[Row]) -> None:
    """An index file with these rows: patient, date, study, series, modality, description, images, MB."""
    names = "PatientID, StudyDate, StudyInstanceUID, SeriesInstanceUID, Modality, SeriesDescription, instanceCount"
    connection = duckdb.connect()
    connection.execute(
        f"CREATE TABLE t ({names.replace(',', ' VARCHAR,')} BIGINT, series_size_MB DOUBLE, collection_id VARCHAR, "
        "SeriesNumber VARCHAR)"
    )
    for row in rows:
        connection.execute("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'hcc_tace_seg', NULL)", list(row))
    connection.execute(f"COPY t TO '{folder / 'index.parquet'}' (FORMAT parquet)")
    monkeypatch.setattr(idc_index_data, "IDC_INDEX_PARQUET_FILEPATH", folder / "index.parquet")


def test_visits_are_chosen_by_the_experts_segmentation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small(monkeypatch, tmp_path, [
        ("HCC_901", "2001-02-01", "0", "1", "CT", "PRE LIVER", 20, 10.0),
        ("HCC_901", "2001-02-11", "1", "2", "CT", "ARTERIAL", 60, 30.0),
        ("HCC_901", "2001-02-11", "1", "3", "SEG", "Segmentation", 1, 5.000001),
        ("HCC_901", "2001-04-01", "2", "4", "CT", None, 200, 100.0),
        ("HCC_901", "2001-04-01", "2", "5", "CT", "VENOUS", 60, 30.0),
        ("HCC_901", "2001-06-01", "3", "6", "CT", "LIVER 2PHASE CAP", 60, 30.0),
        ("HCC_902", "2001-02-01", "4", "7", "CT", "ARTERIAL", 60, 30.0),
        ("HCC_902", "2001-02-01", "4", "8", "SEG", "AIMI liver-tumor AI segmentation", 1, 1.0),
    ])  # fmt: skip
    one, two = read_index().patients
    assert [(visit.day, visit.role) for visit in one.visits] == [
        (0, "other"), (10, "baseline"), (59, "follow_up"), (120, "other"),
    ]  # fmt: skip
    assert one.follow_up_days == 49
    assert [series.phase for visit in one.visits for series in visit.of("CT")] == [
        "noncontrast", "arterial", "unknown", "portal", "enhanced",
    ]  # fmt: skip
    assert one.visits[1].of("SEG")[0].size_bytes == 5_000_001
    assert "two phases" in one.visits[2].series[0].note
    assert one.problems == ()
    assert two.problems == (
        "no segmentation by the experts, so liver and tumour are not known",
        "one visit only, so it is no pair of before and after treatment",
    )
    check = compare_intervals(
        read_index(),
        read_clinical_table(write_table(tmp_path / "t.xlsx", {"Interval_FU": 15.71}, {"TCIA_ID": "HCC_902"})),
    )
    assert (check.given, check.agree) == (1, 0)  # a patient without follow-up is not compared
    assert check.mismatches[0].other_visit  # 110 days: the last visit


def test_an_index_without_the_collection_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small(monkeypatch, tmp_path, [])
    with pytest.raises(InputError, match="lists no series of hcc_tace_seg"):
        read_index()


def test_an_unknown_patient_is_said(packaged: CollectionIndex) -> None:
    with pytest.raises(InputError, match="HCC_106 is no patient of the collection, which has HCC_001 to HCC_105"):
        packaged.choose(["HCC_105", "HCC_106"])
