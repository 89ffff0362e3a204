"""Downloading patients of HCC-TACE-Seg through idc-index: resumable, every series checked for its files and bytes.

idc-index (with s5cmd) fetches and retries; it reports no failure, so what arrived is counted here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from models.collection.idc_index import COLLECTION, CollectionIndex, IndexedSeries
from models.errors import DownloadError, InputError

_TEMPLATE = "%collection_id/%PatientID/%StudyInstanceUID/%Modality_%SeriesInstanceUID"
Progress = Callable[[int, int, str], None]


class Client(Protocol):
    """The part of `idc_index.IDCClient` that is used."""

    def download_from_selection(self, downloadDir: str, **options: Any) -> None:
        """Fetch series into a folder."""


@dataclass(frozen=True)
class Download:
    """What a download did.

    Attributes:
        series: that are complete now.
        fetched_bytes: of the series that were not complete before.
        kept_bytes: of those that were.
        folder: with the patients.
    """

    series: int
    fetched_bytes: int
    kept_bytes: int
    folder: Path


def download(
    index: CollectionIndex, out: Path, client: Client | None = None, progress: Progress | None = None
) -> Download:
    """Fetch every series of the patients of an index that is not complete yet.

    Args:
        index: see `CollectionIndex.choose`.
        out: folder; the files go to ``hcc_tace_seg/<patient>/<study>/<modality>_<series>/``.
        client: else one of idc-index is made.
        progress: called with (bytes done, all, patient).

    Raises:
        InputError: idc-index is not installed, or the folder can't be written.
        DownloadError: no room on the disk, or series are incomplete after the transfer.
    """
    everything = [
        (patient.patient_id, one, series_folder(out, patient.patient_id, one))
        for patient in index.patients
        for visit in patient.visits
        for one in visit.series
    ]
    total = sum(one.size_bytes for _, one, _ in everything)
    missing = [entry for entry in everything if not _complete(entry[1], entry[2])]
    kept = total - sum(one.size_bytes for _, one, _ in missing)
    _make_room(out, total - kept)
    done = kept
    failed: list[tuple[str, IndexedSeries, Path]] = []
    if missing and client is None:
        client = _client()
    for patient in index.patients:
        wanted = [entry for entry in missing if entry[0] == patient.patient_id]
        if wanted and client is not None:
            if progress is not None:
                progress(done, total, patient.patient_id)
            client.download_from_selection(
                str(out), seriesInstanceUID=[one.uid for _, one, _ in wanted], quiet=True, show_progress_bar=False,
                use_s5cmd_sync=True, dirTemplate=_TEMPLATE,
            )  # fmt: skip
            failed += [entry for entry in wanted if not _complete(entry[1], entry[2])]
            done += sum(one.size_bytes for _, one, _ in wanted)
        if progress is not None:
            progress(done, total, patient.patient_id)
    if failed:
        name, one, folder = failed[0]
        files, size = _count(folder)
        raise DownloadError(
            f"{len(failed)} of {len(everything)} series are incomplete (first {one.modality} {one.uid} of {name}: "
            f"{files} of {one.images} files, {size} of {one.size_bytes} bytes); check the network and run the same "
            "command again."
        )
    return Download(len(everything), total - kept, kept, out / COLLECTION)


def series_folder(out: Path, patient_id: str, series: IndexedSeries) -> Path:
    """Where a series lies below the folder of a download."""
    return out / COLLECTION / patient_id / series.study / f"{series.modality}_{series.uid}"


def _complete(series: IndexedSeries, folder: Path) -> bool:
    return _count(folder) == (series.images, series.size_bytes)


def _count(folder: Path) -> tuple[int, int]:
    """Files and bytes of a series folder."""
    try:
        sizes = [path.stat().st_size for path in folder.glob("*.dcm")]
    except OSError as error:
        raise InputError(f"The folder {folder} can't be read: {error.strerror}.") from error
    return len(sizes), sum(sizes)


def _make_room(out: Path, needed: int) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out).free
    except OSError as error:
        raise InputError(f"Nothing can be written to {out}: {error.strerror}; choose another folder.") from error
    if free < needed:
        raise DownloadError(
            f"{needed / 1e9:.1f} GB are to be downloaded and {out} has {free / 1e9:.1f} GB free; choose fewer patients "
            "or another disk."
        )


def _client() -> Client:
    try:
        from idc_index import IDCClient
    except ImportError as error:
        raise InputError("Downloading needs idc-index; install mewm[collection].") from error
    client: Client = IDCClient()
    return client


def names_of(texts: Sequence[str]) -> list[str]:
    """Patients as they are given on a command line: repeated, with commas, or both."""
    return list(dict.fromkeys(name.strip() for text in texts for name in text.split(",") if name.strip()))
