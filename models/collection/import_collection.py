"""Importing downloaded HCC-TACE-Seg patients as cases: in parallel, resumable, the same bytes every time.

What comes out below the folder of the cases:

    HCC_009/               a case that passed
    kept_apart/HCC_017/    a case that failed its quality checks; the reason stands in its quality page
    quality/               a page and a JSON per patient, `index.html` and `collection.csv` over all of them

A patient is complete when its JSON is there, and is skipped while neither its files nor the settings change.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pydicom
from threadpoolctl import threadpool_limits

from models.case import Case
from models.case_picture import draw_case
from models.collection.clinical_table import ClinicalTable, TablePatient
from models.collection.import_patient import Grid, import_patient, settings
from models.collection.quality import CaseQuality
from models.collection.quality_page import (
    forget_case_quality,
    read_case_quality,
    write_case_quality,
    write_collection_quality,
)
from models.dicom import DAMAGE, untrusted_headers
from models.errors import CaseError, InputError, VolumeError

VERSION = 1
"""Of what an import makes; a new one imports every patient again."""

KEPT_APART = "kept_apart"
_LOCK = ".import.lock"
Progress = Callable[[int, int, CaseQuality], None]


@dataclass(frozen=True)
class FoundPatients:
    """Patients of the collection in a folder, and how many folders hold somebody else or no DICOM at all."""

    folders: dict[str, tuple[Path, ...]]
    others: int
    without_dicom: int


@dataclass(frozen=True)
class _Job:
    patient_id: str
    folders: tuple[Path, ...]
    out: Path
    grid: Grid
    row: TablePatient | None
    labels: Path | None
    inputs: str


def find_patients(src: Path) -> FoundPatients:
    """The patients of HCC-TACE-Seg below a folder, told by the headers of the files, never by folder names.

    Args:
        src: as idc-index or the TCIA downloader wrote it, or any folder of series below it.

    Raises:
        VolumeError: no such folder, it can't be read, or no patient of the collection is in it.
    """
    if not src.is_dir():
        raise VolumeError(f"There is no folder {src}; give the folder of the download.")
    folders: dict[str, list[Path]] = {}
    others = without = 0

    def refuse(error: OSError) -> None:
        raise VolumeError(f"The folder {error.filename} can't be read: {error.strerror}.") from error

    for root, _, names in sorted(os.walk(src, onerror=refuse)):
        files = [Path(root) / name for name in sorted(names) if not name.startswith(".")]
        if not files:
            continue
        patient = next((name for name in map(_patient_of, files) if name is not None), None)
        if patient is None:
            without += 1
        elif re.fullmatch(settings().patient, patient):
            folders.setdefault(patient, []).append(Path(root))
        else:
            others += 1
    if not folders:
        other = f" ({others} folders hold other patients)" if others else ""
        raise VolumeError(
            f"{src} holds no patient of HCC-TACE-Seg{other}; download some with `mewm data hcc-tace-seg download`, or "
            "import another patient with `mewm case import`."
        )
    return FoundPatients({name: tuple(folders[name]) for name in sorted(folders)}, others, without)


def import_collection(
    src: Path,
    table: ClinicalTable,
    out: Path,
    *,
    grid: Grid = "native",
    jobs: int = 1,
    patients: Sequence[str] | None = None,
    labels: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
) -> list[CaseQuality]:
    """Import every patient below a folder, skipping those that are complete.

    Args:
        src: see `find_patients`.
        table: the clinical table.
        out: folder of the cases; made where missing.
        grid: voxel size of the cases, see `import.yaml`.
        jobs: processes.
        patients: only these; None for all.
        labels: NIfTI labels by patient, for those without a segmentation object.
        progress: called with (patients done, all, quality of the last).

    Returns:
        The quality of every patient asked for, by name.

    Raises:
        VolumeError: nothing to import in `src`.
        InputError: a patient is asked for that is not there, or a labels file is missing.
        CaseError: a case can't be written, or another import works on `out`.
    """
    found = find_patients(src)
    wanted = list(found.folders) if patients is None else sorted(set(patients))
    given = dict(labels or {})
    if absent := [name for name in (*wanted, *given) if name not in found.folders]:
        raise InputError(
            f"{absent[0]} is not in {src}, which holds {len(found.folders)} patients ({_some(list(found.folders))})."
        )
    if gone := [path for path in given.values() if not path.is_file()]:
        raise InputError(f"There is no labels file {gone[0]}; check --labels.")
    with _alone(out):
        done: dict[str, CaseQuality] = {}
        todo: list[_Job] = []
        for name in wanted:
            job = _job(name, found.folders[name], out, grid, table.patient(name), given.get(name))
            quality = _complete(job)
            if quality is None:
                todo.append(job)
            else:
                done[name] = quality
                _report(progress, done, wanted, quality)
        for quality in _run(todo, jobs):
            done[quality.patient_id] = quality
            _report(progress, done, wanted, quality)
        write_collection_quality(out)
    return [done[name] for name in wanted]


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]} to {names[-1]}"


def _report(
    progress: Progress | None, done: Mapping[str, CaseQuality], wanted: Sequence[str], last: CaseQuality
) -> None:
    if progress is not None:
        progress(len(done), len(wanted), last)


def _patient_of(path: Path) -> str | None:
    """PatientID of a file; None where it is no DICOM."""
    try:
        with untrusted_headers():
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
            return str(header.get("PatientID", ""))
    except OSError as error:
        raise VolumeError(f"{path} can't be read: {error.strerror or error}.") from error
    except DAMAGE:
        return None


def _job(
    name: str, folders: tuple[Path, ...], out: Path, grid: Grid, row: TablePatient | None, labels: Path | None
) -> _Job:
    files = [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]
    files += [labels] if labels is not None else []
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    content = json.dumps([VERSION, grid, settings().model_dump(mode="json"), repr(row), stats], sort_keys=True)
    return _Job(name, folders, out, grid, row, labels, hashlib.sha256(content.encode()).hexdigest())


def _complete(job: _Job) -> CaseQuality | None:
    """The quality of a patient whose import is finished and whole; None where it has to be done."""
    quality = read_case_quality(job.out, job.patient_id)
    if quality is None or quality.inputs != job.inputs:
        return None
    if quality.case is None:
        return quality
    try:
        case = Case.load(job.out / quality.case)
    except CaseError:
        return None
    return quality if case.content_hash == quality.content_hash else None


def _run(todo: Sequence[_Job], jobs: int) -> Iterator[CaseQuality]:
    if jobs <= 1 or len(todo) <= 1:
        yield from map(_import_one, todo)
        return
    # A fresh process each, since a fork of one with threads may hang.
    executor = ProcessPoolExecutor(min(jobs, len(todo)), mp_context=get_context("spawn"), initializer=_finish_patient)
    try:
        for future in as_completed([executor.submit(_import_one, job) for job in todo]):
            yield future.result()
    finally:
        executor.shutdown(cancel_futures=True)


def _finish_patient() -> None:
    """Let Ctrl-C end the import between two patients instead of in the middle of one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _import_one(job: _Job) -> CaseQuality:
    """Import one patient; its JSON is written last, so what was cut short is done again."""
    forget_case_quality(job.out, job.patient_id)
    places = (job.out / job.patient_id, job.out / KEPT_APART / job.patient_id)
    building = job.out / f".{job.patient_id}.building"
    for path in places:
        if path.exists() and not (path / "case.json").is_file():
            raise CaseError(f"{path} exists and is no case; remove it or choose another folder for the cases.")
        _remove(path)
    with threadpool_limits(1):
        quality, case = import_patient(job.patient_id, job.folders, building, job.grid, job.row, job.labels, job.inputs)
        picture = draw_case(case) if case is not None else None
    if case is not None:
        place = places[1 if quality.reason else 0]
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            building.rename(place)
        except OSError as error:
            raise CaseError(f"The case can't be moved to {place}: {error.strerror}.") from error
        quality = quality.model_copy(update={"case": place.relative_to(job.out).as_posix()})
    write_case_quality(job.out, quality, picture)
    return quality


def _remove(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
    except OSError as error:
        raise CaseError(f"{path} is left from an earlier import and can't be removed: {error.strerror}.") from error


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other imports out of the folder, and clear away what a killed one left half written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / _LOCK).open("w")
    except OSError as error:
        raise CaseError(f"Cases can't be written to {out}: {error.strerror}; choose another folder.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CaseError(f"Another import is writing to {out}; wait for it or choose another folder.") from error
        for path in (*out.glob(".*.building"), *out.glob("..*.building.partial-*")):
            _remove(path)
        yield
