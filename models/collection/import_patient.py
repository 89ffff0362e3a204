"""One patient of the collection, from DICOM folders to a case: visits, phases, labels, grid, quality.

The visit before treatment is that of the CT which the experts' segmentation object references; the first visit after it
is the follow-up. Whatever can't be used is left out with its reason; nothing is repaired silently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from models.case import Case, ImageMeta, Phase, Role, write_case
from models.clinical_record import ClinicalRecord
from models.collection.clinical_table import TablePatient
from models.collection.component_filter import filter_components
from models.collection.quality import (
    LEVELS,
    CaseQuality,
    Finding,
    ImageQuality,
    LabelQuality,
    Level,
    judge,
    kept_tags,
    measure_labels,
    readers_mm,
)
from models.collection.segmentation_object import SegmentationObject, read_segmentation
from models.contrast_phase import arterial_aorta_hu, phase_from_labels, phase_from_liver
from models.dicom import DicomFolder, DicomSeries, find_series
from models.dicom_stack import read_series, stacking
from models.errors import MaskError, VolumeError
from models.patch import resample_to_grid
from models.volume import LABEL_NAMES, Volume, read_labels, resample

Grid = Literal["native", "paper", "isotropic"]
_MADE_BY = {"experts": "experts", "corrected_ai": "AI, corrected by a radiologist", "ai": "AI"}


class ImportSettings(BaseModel):
    """How patients are made into cases; see `import.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patient: str
    grids: dict[Grid, tuple[float, float, float] | None]
    min_component_voxels: int
    max_gap_mm: float
    min_measured_voxels: int
    origin_note: str


@cache
def settings() -> ImportSettings:
    """The content of `import.yaml`."""
    text = resources.files("models.collection").joinpath("import.yaml").read_text(encoding="utf-8")
    return ImportSettings.model_validate(yaml.safe_load(text))


@dataclass
class _Scan:
    """One image on its way into the case."""

    series: DicomSeries
    role: Role
    day: int
    volume: Volume
    labels: NDArray[np.uint8] | None = None
    labels_by: str = ""
    dropped: int = 0
    phase: Phase = "unknown"
    phase_from: str = ""
    aorta_hu: float | None = None
    liver_hu: float | None = None
    name: str = ""


@dataclass
class _Patient:
    """What came out of the folders of a patient."""

    scans: list[_Scan]
    findings: list[Finding]
    images: tuple[ImageQuality, ...] = ()
    before: LabelQuality | None = None
    after: LabelQuality | None = None
    follow_up_days: int | None = None
    labelled: _Scan | None = None


def import_patient(
    patient_id: str,
    folders: Sequence[Path],
    out: Path,
    grid: Grid,
    row: TablePatient | None,
    labels: Path | None,
    inputs: str,
) -> tuple[CaseQuality, Case | None]:
    """Make the case of one patient, or say why there can't be one.

    Args:
        patient_id: name in the archive.
        folders: with the DICOM files of this patient.
        out: folder of the new case.
        grid: of `import.yaml`.
        row: the patient in the clinical table; None leaves the record empty.
        labels: NIfTI labels drawn on a CT before treatment, used where there is no segmentation object of the experts.
        inputs: hash over what is read, kept in the quality.

    Returns:
        The quality, whose `case` is still empty, and the case; None where no case could be made.

    Raises:
        CaseError: the case can't be written.
    """
    try:
        patient = _read(patient_id, folders, grid, labels)
    except (VolumeError, MaskError) as error:
        broken = Finding(level="keep_apart", text=_without_folders(str(error), folders))
        return CaseQuality(patient_id=patient_id, case=None, content_hash=None, findings=(broken,), inputs=inputs), None
    images = {ImageMeta(one.name, one.role, one.phase, one.day): one.volume for one in patient.scans}
    labelled = patient.labelled
    after = {one.name: one.labels for one in patient.scans if one.role == "follow_up" and one.labels is not None}
    case = write_case(
        out, patient_id, "real", _origin_note(patient, grid), images,
        labelled.labels if labelled else None, row.record if row else ClinicalRecord(),
        labelled.name if labelled else None, after,
    )  # fmt: skip
    weeks = row.interval_follow_up_weeks if row else None
    findings = [*patient.findings, *judge(patient.images, patient.before, patient.follow_up_days, row)]
    quality = CaseQuality(
        patient_id=patient_id, case=None, content_hash=case.content_hash,
        findings=tuple(
            Finding(level=one.level, text=_without_folders(one.text, folders))
            for one in sorted(findings, key=lambda one: LEVELS.index(one.level))
        ),
        images=patient.images, before=patient.before, after=patient.after, readers_mm=readers_mm(row),
        follow_up_days=patient.follow_up_days, table_follow_up_days=None if weeks is None else round(weeks * 7, 2),
        inputs=inputs,
    )  # fmt: skip
    return quality, case


def _without_folders(text: str, folders: Sequence[Path]) -> str:
    """A message that names files without their folders: an archive writes dates into the names of those."""
    for folder in sorted(map(str, folders), key=len, reverse=True):
        text = text.replace(f"{folder}/", "").replace(folder, "the folder")
    return text


def _read(patient_id: str, folders: Sequence[Path], grid: Grid, labels: Path | None) -> _Patient:
    found = find_series(*folders)
    _check_folder(patient_id, found)
    findings: list[Finding] = []
    if damaged := found.other.get("damaged DICOM file"):
        text = f"{damaged} damaged DICOM files were left out; download the patient again."
        findings.append(Finding(level="look_at", text=text))
    drawn = _resolve(found, findings)
    roles = _visits(found.series, drawn, findings)
    scans = _read_scans(found.series, roles, drawn, findings)
    for scan in scans:
        _take_labels(scan, drawn.get(_key(scan.series), ()), findings)
    patient = _Patient(scans, findings)
    if labels is not None and not any(one.role == "pre" and one.labels is not None for one in scans):
        _take_file(labels, scans)
    sides = settings().grids[grid]
    for scan in scans:
        if sides is not None:
            _regrid(scan, sides)
        if scan.labels is not None:
            scan.labels, scan.dropped = filter_components(scan.labels, settings().min_component_voxels)
    _measure(patient)
    return patient


def _check_folder(patient_id: str, found: DicomFolder) -> None:
    patients = max((one.patient for one in found.series), default=0)
    if patients == 0:
        raise VolumeError(
            f"{patient_id} has no CT series (found: {found.describe_other()}), so there is nothing to import; "
            "download its CT series."
        )
    if patients > 1:
        raise VolumeError(
            f"The folders of {patient_id} hold {len(found.series)} CT series of {patients} patients mixed together; "
            "put each patient into a folder of its own."
        )


def _key(series: DicomSeries) -> tuple[str, int]:
    return series.uid, series.part


def _resolve(found: DicomFolder, findings: list[Finding]) -> dict[tuple[str, int], list[SegmentationObject]]:
    """The segmentation objects by the series that each was drawn on."""
    drawn: dict[tuple[str, int], list[SegmentationObject]] = {}
    for path in found.segmentations:
        try:
            one = read_segmentation(path)
        except MaskError as error:
            findings.append(Finding(level="look_at", text=str(error)))
            continue
        series = one.belongs_to(found.series)
        if series is None:
            text = f"A segmentation object ({_MADE_BY[one.made_by]}) references a CT that is not in the folder."
            findings.append(Finding(level="look_at", text=text))
            continue
        drawn.setdefault(_key(series), []).append(one)
    return drawn


def _visits(
    series: Sequence[DicomSeries],
    drawn: Mapping[tuple[str, int], Sequence[SegmentationObject]],
    findings: list[Finding],
) -> dict[int | None, Role]:
    """Which days are before and after treatment; days that are neither are left out."""
    days = sorted({one.day for one in series if one.day is not None})
    if not days:
        if len({one.uid for one in series}) > 1:
            text = "The series have no dates, so before and after can't be told; all are taken for before treatment."
            findings.append(Finding(level="keep_apart", text=text))
        return {None: "pre"}
    if any(one.day is None for one in series):
        findings.append(Finding(level="look_at", text="A series without a date was left out."))
    by_experts = [
        one.day
        for one in series
        if one.day is not None and any(seg.made_by == "experts" for seg in drawn.get(_key(one), ()))
    ]
    baseline = min(by_experts, default=days[0])
    later = [day for day in days if day > baseline]
    if earlier := [day for day in days if day < baseline]:
        text = f"{len(earlier)} visits before that of the experts' segmentation were left out."
        findings.append(Finding(level="note", text=text))
    if len(later) > 1:
        findings.append(Finding(level="note", text=f"{len(later) - 1} visits after the first follow-up were left out."))
    return {baseline: "pre", **({later[0]: "follow_up"} if later else {})}


def _read_scans(
    series: Sequence[DicomSeries],
    roles: Mapping[int | None, Role],
    drawn: Mapping[tuple[str, int], Sequence[SegmentationObject]],
    findings: list[Finding],
) -> list[_Scan]:
    first = min((day for day in roles if day is not None), default=0)
    scans = []
    for one in series:
        if one.day not in roles:
            continue
        try:
            volume = read_series(one, settings().max_gap_mm)
        except VolumeError as error:
            which = "A series after treatment" if roles[one.day] == "follow_up" else "A series before treatment"
            by_experts = any(seg.made_by == "experts" for seg in drawn.get(_key(one), ()))
            which = "The series that the experts segmented" if by_experts else which
            level: Level = "keep_apart" if by_experts else "look_at"
            findings.append(Finding(level=level, text=f"{which} was left out: {error}"))
            continue
        scans.append(_Scan(one, roles[one.day], (one.day or 0) - first, volume))
    if not any(one.role == "pre" for one in scans):
        reasons = " ".join(one.text for one in findings if one.level != "note")
        raise VolumeError(f"No CT before treatment can be used. {reasons}".strip())
    return scans


def _take_labels(scan: _Scan, drawn: Sequence[SegmentationObject], findings: list[Finding]) -> None:
    """The labels of the best segmentation object: by the experts before treatment, any after it."""
    wanted = ("experts",) if scan.role == "pre" else ("experts", "corrected_ai", "ai")
    fitting = sorted((one for one in drawn if one.made_by in wanted), key=lambda one: wanted.index(one.made_by))
    if not fitting:
        return
    one = fitting[0]
    try:
        planes = one.planes(scan.series)
    except MaskError as error:
        findings.append(Finding(level="keep_apart" if scan.role == "pre" else "look_at", text=str(error)))
        return
    stacked, _ = stacking(scan.series, settings().max_gap_mm).stack(planes, whole=True)
    if not stacked.any():
        findings.append(Finding(level="look_at", text=f"The segmentation object of {one.path.name} marks nothing."))
        return
    scan.labels, scan.labels_by = stacked, _MADE_BY[one.made_by]
    if one.unknown and scan.role == "pre":
        known = ", ".join(LABEL_NAMES.values())
        text = (
            f"{one.unknown} of the {len(one.segments)} segments of the experts are none of {known} and were left out, "
            "so a part of the tumour may be missing."
        )
        findings.append(Finding(level="keep_apart", text=text))


def _take_file(path: Path, scans: Sequence[_Scan]) -> None:
    """Labels from a NIfTI file, for the first image before treatment whose grid they have."""
    refusals: list[MaskError] = []
    for scan in scans:
        if scan.role == "pre":
            try:
                scan.labels, scan.labels_by = read_labels(path, scan.volume), "given file"
            except MaskError as error:
                refusals.append(error)
                continue
            return
    raise refusals[0]


def _regrid(scan: _Scan, sides: tuple[float, float, float]) -> None:
    if scan.labels is not None:
        labels = Volume(scan.labels.astype(np.int16), scan.volume.affine)
        scan.labels = resample(labels, sides, order=0).data.astype(np.uint8)
    volume = resample(scan.volume, sides)
    scan.volume = Volume(np.rint(volume.data).astype(np.int16), volume.affine)


def _measure(patient: _Patient) -> None:
    """Phases, names and quality of the scans, and which of them the labels of the case belong to."""
    for role in ("pre", "follow_up"):
        visit = [one for one in patient.scans if one.role == role]
        source = next((one for one in visit if one.labels is not None), None)
        for scan in visit:
            _tell_phase(scan, source)
        if source is not None and role == "pre":
            patient.labelled = source
            patient.before = measure_labels(source.volume, _labels(source), source.dropped)
        elif source is not None:
            best = next((one for one in visit if one.labels is not None and one.phase == "arterial"), source)
            patient.after = measure_labels(best.volume, _labels(best), best.dropped)
        if role == "follow_up" and visit:
            patient.follow_up_days = visit[0].day
    used: Counter[str] = Counter()
    for scan in patient.scans:
        name = scan.role if scan.phase == "unknown" else f"{scan.role}_{scan.phase}"
        used[name] += 1
        scan.name = name if used[name] == 1 else f"{name}_{used[name]}"
    patient.images = tuple(_image_quality(one) for one in patient.scans)


def _labels(scan: _Scan) -> NDArray[np.uint8]:
    assert scan.labels is not None
    return scan.labels


def _tell_phase(scan: _Scan, source: _Scan | None) -> None:
    """The phase by the HU of aorta and liver: by its own labels, by those of the same visit, or by the image alone."""
    if source is not None:
        own = scan.labels is not None
        labels = _labels(scan) if own else _carried(source, scan)
        liver, aorta = labels == 1, labels == 4
        enough = 1 if own else settings().min_measured_voxels
        scan.liver_hu = float(scan.volume.data[liver].mean()) if liver.sum() >= enough else None
        scan.aorta_hu = float(scan.volume.data[aorta].mean()) if aorta.sum() >= enough else None
        whose = "its labels" if own else "labels of another series of the visit"
        if scan.liver_hu is not None and scan.aorta_hu is not None:
            scan.phase, scan.phase_from = phase_from_labels(scan.volume, labels), f"aorta and liver by {whose}"
        elif scan.liver_hu is not None and phase_from_liver(scan.volume, liver) == "portal":
            scan.phase, scan.phase_from = "portal", f"liver by {whose}"
    if scan.phase == "unknown":
        bright = arterial_aorta_hu(scan.volume)
        scan.phase, scan.phase_from = ("unknown", "") if bright is None else ("arterial", "bright aorta in the image")
        scan.aorta_hu = bright if scan.aorta_hu is None else scan.aorta_hu


def _carried(source: _Scan, scan: _Scan) -> NDArray[np.uint8]:
    """The labels of one series on the grid of another of the same visit, without their rim: the patient breathes."""
    inside = np.zeros(scan.volume.shape, np.uint8)
    for label in (1, 4):
        mask = _labels(source) == label
        core = ndimage.binary_erosion(mask, structure=np.ones((3, 3, 1)))
        if core.any():
            there = resample_to_grid(
                core.astype(np.float32), source.volume.affine, scan.volume.affine, scan.volume.shape
            )
            inside[there > 0.5] = label
    return inside


def _image_quality(scan: _Scan) -> ImageQuality:
    x, y, z = (round(side, 6) for side in scan.volume.spacing_mm)
    return ImageQuality(
        name=scan.name, role=scan.role, phase=scan.phase, day=scan.day, phase_from=scan.phase_from,
        slices=len(scan.series.slices), spacing_mm=(x, y, z),
        aorta_hu=None if scan.aorta_hu is None else round(scan.aorta_hu, 2),
        liver_hu=None if scan.liver_hu is None else round(scan.liver_hu, 2),
        resampled=stacking(scan.series, settings().max_gap_mm).places is not None,
        two_phases=scan.series.parts > 1, labels_by=scan.labels_by, tags=kept_tags(scan.series.slices[0].path),
    )  # fmt: skip


def _origin_note(patient: _Patient, grid: Grid) -> str:
    note = settings().origin_note.format(grid=grid).strip()
    for role, when in (("pre", "before"), ("follow_up", "after")):
        by = sorted({one.labels_by for one in patient.scans if one.role == role and one.labels_by})
        if by:
            note += f" Labels {when} treatment: {', '.join(by)}."
    return note
