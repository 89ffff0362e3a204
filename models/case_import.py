"""Importing a case: a NIfTI file, one DICOM series, or a patient folder as an archive's downloader writes it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.case import Case, ImageMeta, Phase, Role, check_free, safe_name, write_case
from models.clinical_record import ClinicalRecord
from models.contrast_phase import phase_from_image, phase_from_labels
from models.dicom import DicomFolder, DicomSeries, find_series, rebase_days
from models.dicom_stack import read_series
from models.errors import InputError, MaskError, SeriesChoiceError, VolumeError
from models.volume import Volume, read_labels, read_nifti

# Names that hold a date, as archives' study folders do: 02-15-1998, 1998-02-15, 19980215.
_DATED = re.compile(r"\d{1,4}[-_.]\d{1,2}[-_.]\d{1,4}|(?<!\d)\d{8}(?!\d)")


@dataclass(frozen=True)
class SeriesInfo:
    """One line of the list that a folder with several series is answered with.

    Attributes:
        index: what `--series` takes.
        uid: SeriesInstanceUID; `--series` takes it too where the series holds one phase.
        phase: measured from the HU, never read from header text; ``unknown`` where that is not safe.
        day: days since the patient's first study in the folder; None without dates.
        slices: number of slices.
        spacing_mm: pixel sides and slice distance.
        part: which of `parts` phases in one series.
        parts: how many phases the series holds.
        patient: number of the patient within the folder, from 1.
        problem: why the series can't be imported, or None.
    """

    index: int
    uid: str
    phase: Phase
    day: int | None
    slices: int
    spacing_mm: tuple[float, float, float]
    part: int
    parts: int
    patient: int
    problem: str | None

    def __str__(self) -> str:
        day = "no date" if self.day is None else f"day {self.day}"
        x, y, z = self.spacing_mm
        text = f"{self.index}: {self.phase} phase, {day}, {self.slices} slices, {x:.3g} x {y:.3g} x {z:.3g} mm"
        if self.parts > 1:
            text += f", part {self.part} of {self.parts} in one series"
        if self.problem:
            text += f" - can't be imported: {self.problem}"
        return text


def list_series(src: Path | str) -> list[SeriesInfo]:
    """The CT series and phases of a DICOM folder, in the order that `--series` counts them.

    Every series is read to measure its phase.

    Raises:
        VolumeError: no such folder, or no CT series in it.
    """
    return [_inform(number, series) for number, series in enumerate(_find(Path(src)).series, start=1)]


def import_case(
    src: Path | str,
    out: Path | str,
    labels: Path | str | None = None,
    record: Path | str | None = None,
    series: str | None = None,
    case_id: str | None = None,
    tumour_label: int = 2,
) -> Case:
    """Make a case folder of a CT; equal input gives equal bytes.

    Args:
        src: NIfTI file, or a folder with DICOM slices at any depth.
        out: folder of the new case.
        labels: NIfTI labels drawn on one of the pre-treatment images.
        record: clinical record, YAML or JSON with units.
        series: number or SeriesInstanceUID of the series to take, several with commas. The first study among them is
            before treatment, later ones are follow-up.
        case_id: name of the case; else made from the name of `src`, or from the image content where that name could
            tell who the patient is or when the scan was.
        tumour_label: number that means tumour in `labels`.

    Raises:
        SeriesChoiceError: several series and no choice, or a choice that names none of them.
        VolumeError, MaskError, RecordError, CaseError: as the readers and `write_case` say.
    """
    src, out = Path(src), Path(out)
    check_free(out, "case")
    clinical = ClinicalRecord.load(record) if record is not None else ClinicalRecord()
    if _is_folder(src):
        found = _find(src)
        chosen = _choose(found, series, src)
        scans = [(_role(one, chosen), one.day or 0, read_series(one)) for one in chosen]
        note = f"Imported from {len(scans)} DICOM CT series." if len(scans) > 1 else "Imported from a DICOM CT series."
        telling = _tells_who_or_when(src, found)
    else:
        if series is not None:
            raise InputError(f"{src} is a file and holds no series; leave --series out.")
        if src.suffix.lower() in (".dcm", ".ima"):
            raise VolumeError(f"{src} is one slice; give the folder of the DICOM series.")
        scans = [("pre", 0, read_nifti(src))]
        note = "Imported from a NIfTI file."
        telling = _DATED.search(src.name) is not None
    label_array, labelled = _fit_labels(labels, scans, tumour_label) if labels is not None else (None, None)
    images: dict[ImageMeta, Volume] = {}
    used: Counter[str] = Counter()
    labels_image = None
    for number, (role, day, volume) in enumerate(scans):
        if number == labelled and label_array is not None:
            phase = phase_from_labels(volume, label_array)
            phase = phase_from_image(volume) if phase == "unknown" else phase
        else:
            phase = phase_from_image(volume)
        name = role if phase == "unknown" else f"{role}_{phase}"
        used[name] += 1
        name = name if used[name] == 1 else f"{name}_{used[name]}"
        images[ImageMeta(name, role, phase, day)] = volume
        if number == labelled:
            labels_image = name
    if case_id is None:
        stem = src.resolve().name.removesuffix(".gz").removesuffix(".nii")
        case_id = f"case-{_fingerprint(scans[0][2])}" if telling else safe_name(stem)
    return write_case(out, case_id, "real", note, images, label_array, clinical, labels_image)


def _is_folder(src: Path) -> bool:
    try:
        if not src.exists():
            raise VolumeError(f"There is no file or folder {src}; check the path.")
        return src.is_dir()
    except OSError as error:
        raise VolumeError(f"{src} can't be read: {error.strerror}; check the path.") from error


def _find(src: Path) -> DicomFolder:
    found = find_series(src)
    if not found.series:
        raise VolumeError(
            f"{src} holds no CT series (found: {found.describe_other()}); "
            "give a folder with the slices of a CT series, or one NIfTI file."
        )
    return found


def _inform(number: int, series: DicomSeries) -> SeriesInfo:
    phase: Phase = "unknown"
    problem = None
    try:
        phase = phase_from_image(read_series(series))
    except VolumeError as error:
        problem = str(error)
    return SeriesInfo(
        number, series.uid, phase, series.day, len(series.slices), series.spacing_mm, series.part, series.parts,
        series.patient, problem,
    )  # fmt: skip


def _choose(found: DicomFolder, choice: str | None, src: Path) -> tuple[DicomSeries, ...]:
    series = found.series
    if choice is None:
        if len(series) == 1:
            return rebase_days(series)
        raise SeriesChoiceError(_listing(found, src))
    taken: list[DicomSeries] = []
    for word in (part.strip() for part in choice.split(",")):
        fitting = [s for s in series if s.uid == word]
        if word.isdecimal() and 1 <= int(word) <= len(series):
            fitting = [series[int(word) - 1]]
        if not fitting:
            raise SeriesChoiceError(f"--series {word!r} is none of the {len(series)} series; {_listing(found, src)}")
        if len(fitting) > 1:
            raise SeriesChoiceError(f"--series {word!r} holds {len(fitting)} phases; {_listing(found, src)}")
        if fitting[0] not in taken:
            taken.append(fitting[0])
    if len({s.patient for s in taken}) > 1:
        raise SeriesChoiceError(f"--series {choice} names series of different patients; choose those of one patient.")
    if len(taken) > 1 and any(s.day is None for s in taken):
        raise SeriesChoiceError(
            f"--series {choice} names several series and one has no date, so before and after can't be told; take one."
        )
    return tuple(sorted(rebase_days(taken), key=lambda s: s.day or 0))


def _listing(found: DicomFolder, src: Path) -> str:
    """The sentence and the list that ask for a choice."""
    infos = [_inform(number, one) for number, one in enumerate(found.series, start=1)]
    patients = max(info.patient for info in infos)
    lines = [f"  {info}" + (f", patient {info.patient}" if patients > 1 else "") for info in infos]
    if found.other:
        lines.append(f"  beside them, not to be imported as CT: {found.describe_other()}")
    whose = f" of {patients} patients" if patients > 1 else ""
    return (
        f"{src} holds {len(infos)} CT series{whose}; choose with --series, for example --series 1, or several as in "
        "--series 1,2 (the first study is before treatment, later ones are follow-up):\n" + "\n".join(lines)
    )


def _role(one: DicomSeries, chosen: Sequence[DicomSeries]) -> Role:
    return "pre" if (one.day or 0) == min(s.day or 0 for s in chosen) else "follow_up"


def _fit_labels(
    path: Path | str, scans: Sequence[tuple[Role, int, Volume]], tumour_label: int
) -> tuple[NDArray[np.uint8], int]:
    """The labels and the number of the scan whose grid they have; an arterial one where several have it."""
    refusals: list[MaskError] = []
    fitting: list[tuple[NDArray[np.uint8], int]] = []
    for number, (role, _, volume) in enumerate(scans):
        if role == "pre":
            try:
                fitting.append((read_labels(path, volume, tumour_label), number))
            except MaskError as error:
                refusals.append(error)
    if not fitting:
        raise refusals[0]
    arterial = [one for one in fitting if phase_from_labels(scans[one[1]][2], one[0]) == "arterial"]
    return (arterial or fitting)[0]


def _tells_who_or_when(src: Path, found: DicomFolder) -> bool:
    """Whether the name of a folder could give away a date, header text, or an identifier that was never removed."""
    name = src.resolve().name.lower()
    holds_slices = any(s.path.parent.resolve() == src.resolve() for one in found.series for s in one.slices)
    return holds_slices or _DATED.search(name) is not None or any(word in name for word in found.patient_words)


def _fingerprint(volume: Volume) -> str:
    return hashlib.sha256(np.ascontiguousarray(volume.data).tobytes()).hexdigest()[:8]
