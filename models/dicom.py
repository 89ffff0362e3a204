"""DICOM CT: finding the series, and the phases within one, in a folder.

What belongs together is told by identifiers, positions and acquisition numbers, never by file names or their order.
Header text is data of unknown origin: it is compared, never shown, never stored. `models.dicom_stack` makes a volume.
"""

from __future__ import annotations

import datetime
import itertools
import os
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError

from models.errors import VolumeError
from models.volume import limits

_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
_SEGMENTATION, _LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
_OTHER_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2.1": "enhanced (multi-frame) CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR image",
    _SEGMENTATION: "segmentation object",
    _LABEL_MAP: "segmentation object",
    "1.2.840.10008.5.1.4.1.1.7": "secondary capture",
    "1.2.840.10008.5.1.4.1.1.481.3": "structure set",
    "1.2.840.10008.5.1.4.1.1.128": "PET image",
    "1.2.840.10008.1.3.10": "DICOMDIR",
}
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "PatientID", "PatientName", "PatientIdentityRemoved",
    "StudyDate", "SeriesDate", "AcquisitionDate", "SeriesNumber", "AcquisitionNumber", "AcquisitionTime",
    "InstanceNumber", "ImageType", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns",
]  # fmt: skip
DAMAGE = (
    InvalidDicomError, BytesLengthException, ValueError, AttributeError, KeyError, TypeError, IndexError, EOFError,
    OverflowError, RuntimeError, struct.error,
)  # fmt: skip
"""What damaged DICOM makes pydicom and highdicom raise."""

POSITION_MM = 0.01  # two slices closer than this stand at the same place


@dataclass(frozen=True)
class Slice:
    """What the header of one CT slice says, and where its pixels are."""

    path: Path
    sop_uid: str
    series_uid: str
    patient: str
    patient_words: tuple[str, ...]
    date: datetime.date | None
    series_number: int
    acquisition: int | None
    time: str
    instance: int
    position: tuple[float, ...]
    direction: tuple[float, ...]
    pixel_mm: tuple[float, ...]
    rows: int
    columns: int

    @property
    def height(self) -> float:
        """Position along the stacking direction, mm."""
        normal = np.cross(self.direction[:3], self.direction[3:])
        return float(np.dot(self.position, normal))


@dataclass(frozen=True)
class UnusableSlice:
    """A CT slice whose header does not say where it is, and the series that it spoils."""

    path: Path
    series_uid: str
    patient_words: tuple[str, ...]
    problem: str


@dataclass(frozen=True)
class DicomSeries:
    """The slices of one phase of one CT series, sorted along the body.

    Attributes:
        uid: SeriesInstanceUID.
        part, parts: which of how many phases that the series holds; 1 of 1 for an ordinary series.
        patient: number of the patient within the folder, from 1.
        day: days since the first study of that patient in the folder; None where no date is given.
        problem: why the series can't be stacked, told by its headers; None where they are in order.
    """

    uid: str
    part: int
    parts: int
    patient: int
    day: int | None
    slices: tuple[Slice, ...] = field(repr=False)
    problem: str | None = None

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Pixel sides and the median slice distance, mm."""
        heights = [s.height for s in self.slices]
        return self.slices[0].pixel_mm[1], self.slices[0].pixel_mm[0], float(np.median(np.diff(heights)))


@dataclass(frozen=True)
class DicomFolder:
    """The CT series of a folder and a count of everything else in it; `segmentations` are files of that rest."""

    series: tuple[DicomSeries, ...]
    other: dict[str, int]
    patient_words: frozenset[str]
    segmentations: tuple[Path, ...] = ()

    def describe_other(self) -> str:
        """For example ``3 segmentation objects, 2 other files``; ``nothing`` for an empty folder."""
        parts = [f"{n} {what}{'s' if n > 1 else ''}" for what, n in sorted(self.other.items())]
        return ", ".join(parts) or "nothing"


@contextmanager
def untrusted_headers() -> Iterator[None]:
    """Odd header values are read as they are; each value that matters is checked here."""
    with pydicom.config.disable_value_validation():
        yield


def find_series(*folders: Path | str) -> DicomFolder:
    """Find every CT series, and every phase within one, in folders and below them.

    Args:
        folders: one series, one study, or a patient folder as an archive's downloader writes it; or several of them.

    Returns:
        Series sorted by patient, day, series number and phase.

    Raises:
        VolumeError: a folder can't be read. A CT slice without its geometry spoils its own series only.
    """
    other: Counter[str] = Counter()
    segmentations: list[Path] = []
    by_series: dict[str, dict[str, Slice]] = defaultdict(dict)
    unusable: dict[str, list[UnusableSlice]] = defaultdict(list)
    words: set[str] = set()
    with untrusted_headers():
        for path in sorted({path for folder in folders for path in _files(Path(folder))}):
            found = _read_header(path)
            if isinstance(found, str):
                other[found] += 1
                if found == _OTHER_CLASSES[_SEGMENTATION]:
                    segmentations.append(path)
                continue
            words.update(found.patient_words)
            if isinstance(found, UnusableSlice):
                other["unplaceable CT slice"] += 1
                unusable[found.series_uid].append(found)
            else:
                by_series[found.series_uid].setdefault(found.sop_uid, found)  # the same slice twice counts once
    patients = {name: n for n, name in enumerate(sorted({_one(s).patient for s in by_series.values()}), start=1)}
    first_day: dict[str, datetime.date] = {}
    for slices in by_series.values():
        one = _one(slices)
        if one.date is not None:
            first_day[one.patient] = min(one.date, first_day.get(one.patient, one.date))
    series: list[tuple[tuple[Any, ...], DicomSeries]] = []
    for uid, slices in by_series.items():
        one = _one(slices)
        day = None if one.date is None else (one.date - first_day[one.patient]).days
        groups = [g for g in _split_phases(list(slices.values())) if len(g) >= limits().min_voxels_per_axis]
        if not groups:
            other["CT series of a few slices"] += 1
        for part, group in enumerate(groups, start=1):
            problem = _problem(unusable[uid]) if uid in unusable else None
            entry = DicomSeries(uid, part, len(groups), patients[one.patient], day, tuple(group), problem)
            order = (entry.patient, day is None, day or 0, one.series_number, uid, part)
            series.append((order, entry))
    ordered = tuple(one for _, one in sorted(series, key=lambda pair: pair[0]))
    return DicomFolder(ordered, dict(other), frozenset(words), tuple(segmentations))


def _problem(unusable: Sequence[UnusableSlice]) -> str:
    """Why the other slices of these ones' series are not taken alone: the stack would lack a part and not show it."""
    more = f" and {len(unusable) - 1} more of its series" if len(unusable) > 1 else ""
    return f"The CT slice {unusable[0].path}{more} {unusable[0].problem}; export the series again."


def _one(slices: dict[str, Slice]) -> Slice:
    return slices[min(slices)]


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise VolumeError(f"There is no folder {folder}; check the path.")

    def refuse(error: OSError) -> None:
        raise VolumeError(f"The folder {error.filename} can't be read: {error.strerror}.") from error

    return sorted(
        Path(root) / name
        for root, _, names in os.walk(folder, onerror=refuse)
        for name in names
        if not name.startswith(".")
    )


def _read_header(path: Path) -> Slice | UnusableSlice | str:
    """The header of a CT slice, what is wrong with it, or what else the file is."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
    except InvalidDicomError:
        return "NIfTI file" if path.name.endswith((".nii", ".nii.gz")) else "other file"
    except OSError as error:
        raise VolumeError(f"{path} can't be read: {error.strerror or error}.") from error
    except DAMAGE:
        return "damaged DICOM file"
    try:
        return _interpret(header, path)
    except DAMAGE:  # values are decoded when they are asked for
        return "damaged DICOM file"


def _interpret(header: pydicom.Dataset, path: Path) -> Slice | UnusableSlice | str:
    kind = str(header.get("SOPClassUID", ""))
    if kind != _CT_IMAGE:
        return _OTHER_CLASSES.get(kind, "other DICOM object")
    if "LOCALIZER" in [str(part).upper() for part in _many(header.get("ImageType"))]:
        return "localizer image"
    series_uid = str(header.get("SeriesInstanceUID", ""))
    removed = str(header.get("PatientIdentityRemoved", "")).upper() == "YES"
    identity = f"{header.get('PatientID', '')}^{header.get('PatientName', '')}"
    words = () if removed else tuple(w for w in identity.lower().replace(" ", "^").split("^") if len(w) > 2)
    try:
        position = _floats(header.get("ImagePositionPatient"), 3)
        direction = _floats(header.get("ImageOrientationPatient"), 6)
        pixel_mm = _floats(header.get("PixelSpacing"), 2)
        rows, columns = int(header.get("Rows")), int(header.get("Columns"))
    except (TypeError, ValueError):
        return UnusableSlice(path, series_uid, words, "does not state its position, direction or pixel size")
    axes = np.array(direction).reshape(2, 3)
    if min(pixel_mm) <= 0 or not np.allclose(axes @ axes.T, np.eye(2), atol=0.01):
        return UnusableSlice(path, series_uid, words, "states an impossible direction or pixel size")
    return Slice(
        path=path,
        sop_uid=str(header.get("SOPInstanceUID", path)),
        series_uid=series_uid,
        patient=str(header.get("PatientID", "")),
        patient_words=words,
        date=next((d for d in map(_date, _dates(header)) if d is not None), None),
        series_number=_int(header.get("SeriesNumber")) or 0,
        acquisition=_int(header.get("AcquisitionNumber")),
        time=str(header.get("AcquisitionTime", "") or ""),
        instance=_int(header.get("InstanceNumber")) or 0,
        position=position,
        direction=direction,
        pixel_mm=pixel_mm,
        rows=rows,
        columns=columns,
    )


def _dates(header: pydicom.Dataset) -> Iterable[object]:
    return (header.get(tag) for tag in ("StudyDate", "SeriesDate", "AcquisitionDate"))


def _date(value: object) -> datetime.date | None:
    try:
        return datetime.datetime.strptime(str(value or "").strip(), "%Y%m%d").date()
    except ValueError:
        return None


def _many(value: object) -> Sequence[object]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _int(value: object) -> int | None:
    try:
        return int(str(value))
    except ValueError:
        return None


def _floats(value: object, n: int) -> tuple[float, ...]:
    numbers = tuple(float(str(v)) for v in _many(value))
    if len(numbers) != n or not np.isfinite(numbers).all():
        raise ValueError(f"not {n} numbers")
    return numbers


def _split_phases(slices: list[Slice]) -> list[list[Slice]]:
    """Tell apart phases that were stored in one series; each comes back sorted along the body.

    Slices that never stand at the same place twice are one volume. Otherwise the first of acquisition number,
    acquisition time and storage order that splits them into groups without repetition decides; if none does, the series
    comes back whole, and `dicom_stack.read_series` says what is wrong with it.
    """
    ordered = sorted(slices, key=lambda s: (s.height, s.acquisition or 0, s.time, s.instance, s.sop_uid))
    if not _overlap(ordered):
        return [ordered]
    candidates = [_grouped(ordered, lambda s: s.acquisition), _grouped(ordered, lambda s: s.time), _runs(ordered)]
    for groups in candidates:
        if len(groups) > 1 and all(len(g) >= limits().min_voxels_per_axis and not _repeats(g) for g in groups):
            return groups
    return [ordered]


def _overlap(ordered: list[Slice]) -> bool:
    """Whether places repeat, or acquisitions that cover the same range interleave."""
    if _repeats(ordered):
        return True
    groups = [g for g in _grouped(ordered, lambda s: s.acquisition) if len(g) >= limits().min_voxels_per_axis]
    for i, one in enumerate(groups):
        for two in groups[i + 1 :]:
            shared = min(one[-1].height, two[-1].height) - max(one[0].height, two[0].height)
            shorter = min(one[-1].height - one[0].height, two[-1].height - two[0].height)
            if shared > 0.5 * shorter:
                return True
    return False


def _repeats(ordered: list[Slice]) -> bool:
    return any(b.height - a.height < POSITION_MM for a, b in itertools.pairwise(ordered))


def _grouped(ordered: list[Slice], key: Callable[[Slice], object]) -> list[list[Slice]]:
    """Groups by a header value, the earliest acquired first; each keeps the order along the body."""
    groups: dict[object, list[Slice]] = defaultdict(list)
    for one in ordered:
        groups[key(one)].append(one)
    return sorted(groups.values(), key=lambda g: min((s.time, s.acquisition or 0, s.instance) for s in g))


def _runs(ordered: list[Slice]) -> list[list[Slice]]:
    """Runs in the order of storage; a new one begins where a place comes again."""
    runs: list[list[Slice]] = [[]]
    seen: set[int] = set()
    for one in sorted(ordered, key=lambda s: (s.instance, s.sop_uid)):
        place = round(one.height / POSITION_MM / 2)
        if place in seen:
            runs.append([])
            seen = set()
        seen.add(place)
        runs[-1].append(one)
    return [sorted(run, key=lambda s: s.height) for run in runs]


def rebase_days(series: Sequence[DicomSeries]) -> tuple[DicomSeries, ...]:
    """The same series with days counted from the earliest of them."""
    days = [s.day for s in series if s.day is not None]
    return tuple(s if s.day is None else replace(s, day=s.day - min(days)) for s in series)
