from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import duckdb
import pytest

from models.collection.download import download, names_of, series_folder
from models.collection.idc_index import CollectionIndex, IndexedPatient, IndexedSeries, Visit
from models.errors import DownloadError, InputError


def series(uid: str, modality: str = "CT", images: int = 3, size: int = 300) -> IndexedSeries:
    return IndexedSeries(
        uid=uid, study="9", modality="CT" if modality == "CT" else "SEG", description="", images=images, size_bytes=size
    )


def patient(name: str, *of: IndexedSeries) -> IndexedPatient:
    return IndexedPatient(patient_id=name, visits=(Visit(day=0, role="baseline", series=of),))


INDEX = CollectionIndex(
    index_version="1",
    patients=(patient("HCC_901", series("1"), series("2", "SEG", 1, 70)), patient("HCC_902", series("3"))),
)
SIZES = {"1": [100, 100, 100], "2": [70], "3": [100, 150, 50]}


class Client:
    """Writes what the archive would send; can stop half way."""

    def __init__(self, sizes: dict[str, list[int]], die_after: int | None = None) -> None:
        self.sizes, self.asked, self.die_after = sizes, [], die_after
        self.options: dict[str, Any] = {}
        self.written = 0

    def download_from_selection(self, downloadDir: str, **options: Any) -> None:
        self.asked.append(list(options["seriesInstanceUID"]))
        self.options = options
        for patient in INDEX.patients:
            for one in patient.visits[0].series:
                if one.uid in options["seriesInstanceUID"]:
                    folder = series_folder(Path(downloadDir), patient.patient_id, one)
                    folder.mkdir(parents=True, exist_ok=True)
                    for number, size in enumerate(self.sizes[one.uid]):
                        if self.die_after is not None and self.written >= self.die_after:
                            raise KeyboardInterrupt
                        (folder / f"{number}.dcm").write_bytes(b"x" * size)
                        self.written += 1


def test_everything_arrives_and_a_second_run_fetches_nothing(tmp_path: Path) -> None:
    client = Client(SIZES)
    seen: list[tuple[int, int, str]] = []
    done = download(INDEX, tmp_path, client, lambda *now: seen.append(now))
    assert (done.series, done.fetched_bytes, done.kept_bytes) == (3, 670, 0)
    assert client.asked == [["1", "2"], ["3"]]
    assert client.options["use_s5cmd_sync"] is True
    assert (tmp_path / "hcc_tace_seg" / "HCC_901" / "9" / "SEG_2" / "0.dcm").stat().st_size == 70
    assert seen[-1] == (670, 670, "HCC_902")
    again = Client(SIZES)
    done = download(INDEX, tmp_path, again)
    assert (done.fetched_bytes, done.kept_bytes, again.asked) == (0, 670, [])


def test_the_folders_are_those_that_idc_index_makes(tmp_path: Path) -> None:
    from idc_index import IDCClient

    client = Client(SIZES)
    download(INDEX, tmp_path, client)
    path = IDCClient._generate_sql_concat_for_building_directory(
        dirTemplate=client.options["dirTemplate"], downloadDir=str(tmp_path)
    )
    names = {
        "collection_id": "hcc_tace_seg", "PatientID": "HCC_901", "StudyInstanceUID": "9", "Modality": "CT",
        "SeriesInstanceUID": "1",
    }  # fmt: skip
    row = ", ".join(f"'{value}' AS {name}" for name, value in names.items())
    found = duckdb.sql(f"SELECT {path} FROM (SELECT {row})").fetchone()
    assert found is not None
    assert Path(found[0]) == series_folder(tmp_path, "HCC_901", INDEX.patients[0].visits[0].series[0])


def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        download(INDEX, tmp_path, Client(SIZES, die_after=4))
    (tmp_path / "hcc_tace_seg" / "HCC_901" / "9" / "CT_1" / "2.dcm").write_bytes(b"half")
    client = Client(SIZES)
    done = download(INDEX, tmp_path, client)
    assert client.asked == [["1"], ["3"]]
    assert (done.fetched_bytes, done.kept_bytes) == (600, 70)


def test_a_series_that_is_too_small_or_too_short_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DownloadError, match=r"2 of 3 series are incomplete \(first CT 1 of HCC_901: 3 of 3 files, 299 of"
    ):
        download(INDEX, tmp_path, Client({"1": [100, 100, 99], "2": [70], "3": [300]}))


def test_a_full_disk_is_said_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 900, 100))
    client = Client(SIZES)
    with pytest.raises(DownloadError, match="GB free; choose fewer patients"):
        download(INDEX, tmp_path, client)
    assert client.asked == []
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="Nothing can be written to"):
        download(INDEX, tmp_path / "file" / "x", client)


def test_names() -> None:
    assert names_of(["HCC_001, HCC_002", "HCC_001", ""]) == ["HCC_001", "HCC_002"]
