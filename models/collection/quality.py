"""Quality of an imported case: what was measured on it, against its row of the clinical table, and what that means.

Limits and their sources are in `quality.yaml`. A finding that keeps a case apart says why in one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
import pydicom
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from models.case import Phase, Role
from models.collection.clinical_table import TablePatient
from models.dicom import DAMAGE, untrusted_headers
from models.errors import VolumeError
from models.response import longest_axial_diameter
from models.volume import Volume

Level = Literal["keep_apart", "look_at", "note"]
LEVELS: tuple[Level, ...] = ("keep_apart", "look_at", "note")
"""What follows from a finding, the gravest first: the case is not used; a person should look; nothing."""

_CODE = re.compile(r"[A-Z0-9][A-Z0-9_+ -]{0,15}")
_GAS_HU = -200


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _KeepApart(_Part):
    organ_ml: tuple[float, float]
    liver_hu: tuple[float, float]
    tumour_hu: tuple[float, float]
    max_gas_share: float
    diameter_ratio: tuple[float, float]


class _LookAt(_Part):
    diameter_ratio: tuple[float, float]
    interval_days: float


class _Limits(_Part):
    keep_apart: _KeepApart
    look_at: _LookAt
    kept_tags: dict[str, Literal["number", "code"]]


@cache
def _limits() -> _Limits:
    text = resources.files("models.collection").joinpath("quality.yaml").read_text(encoding="utf-8")
    return _Limits.model_validate(yaml.safe_load(text))


class Finding(_Part):
    """One sentence on a case, and what follows from it."""

    level: Level
    text: str


class ImageQuality(_Part):
    """What was measured on one image.

    Attributes:
        name, role, phase, day: as in the case.
        phase_from: how the phase was found; empty where it is unknown.
        slices: slices of the series.
        spacing_mm: voxel sides in the case.
        aorta_hu, liver_hu: mean HU; None where the structure is not known in this image.
        resampled: whether uneven slices were resampled along the body.
        two_phases: whether its series held more than one phase.
        labels_by: who drew labels on it; empty where nobody did.
        tags: what `quality.yaml` lets through of its headers.
    """

    name: str
    role: Role
    phase: Phase
    day: int
    phase_from: str
    slices: int
    spacing_mm: tuple[float, float, float]
    aorta_hu: float | None
    liver_hu: float | None
    resampled: bool
    two_phases: bool
    labels_by: str
    tags: dict[str, float | str]


class LabelQuality(_Part):
    """What was measured on the labels of one image.

    Attributes:
        liver_ml, tumour_ml, portal_vein_ml, aorta_ml: volumes by label; the liver is that outside of the tumour.
        organ_ml: liver, tumour and portal vein together.
        lesions: separate parts of the tumour.
        longest_mm: longest axial diameter of the largest of them.
        liver_hu, tumour_hu: mean HU.
        gas_share: share of the labelled voxels with the HU of gas.
        dropped_voxels: voxels that the component filter took away.
    """

    liver_ml: float
    tumour_ml: float
    portal_vein_ml: float
    aorta_ml: float
    organ_ml: float
    lesions: int
    longest_mm: float
    liver_hu: float | None
    tumour_hu: float | None
    gas_share: float
    dropped_voxels: int


class CaseQuality(_Part):
    """The quality of one patient's import.

    Attributes:
        patient_id: name in the archive.
        case: folder of the case below that of the collection; None where no case could be made.
        content_hash: of the case.
        findings: what was found, the gravest first.
        images: every image of the case.
        before: labels before treatment.
        after: labels of the follow-up image, drawn by an AI.
        readers_mm: RECIST sums of the readers at baseline, by reader, mm.
        follow_up_days: days between the two visits by the headers; None with one visit.
        table_follow_up_days: the same by the table.
        inputs: hash over everything that the import read.
    """

    patient_id: str
    case: str | None
    content_hash: str | None
    findings: tuple[Finding, ...]
    images: tuple[ImageQuality, ...] = ()
    before: LabelQuality | None = None
    after: LabelQuality | None = None
    readers_mm: dict[int, float] = {}
    follow_up_days: int | None = None
    table_follow_up_days: float | None = None
    inputs: str

    @property
    def passed(self) -> bool:
        """Whether the case may be used."""
        return self.case is not None and all(one.level != "keep_apart" for one in self.findings)

    @property
    def reason(self) -> str:
        """Why it is kept apart; empty where it passed."""
        return " ".join(one.text for one in self.findings if one.level == "keep_apart")


def kept_tags(path: Path) -> dict[str, float | str]:
    """What `quality.yaml` lets through of the headers of a slice.

    Raises:
        VolumeError: the file can't be read.
    """
    wanted = _limits().kept_tags
    try:
        with untrusted_headers():
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(wanted))
    except OSError as error:
        raise VolumeError(f"{path} can't be read: {error.strerror or error}.") from error
    kept: dict[str, float | str] = {}
    for name, kind in wanted.items():
        try:
            text = str(header.get(name, "") or "").strip()
        except DAMAGE:
            continue
        if kind == "code" and _CODE.fullmatch(text):
            kept[name] = text
        elif kind == "number":
            try:
                number = float(text)
            except ValueError:
                continue
            if np.isfinite(number):
                kept[name] = number
    return kept


def measure_labels(volume: Volume, labels: NDArray[np.uint8], dropped_voxels: int = 0) -> LabelQuality:
    """Measure a label volume on its image.

    Args:
        volume: CT in HU.
        labels: (X, Y, Z) on the same grid.
        dropped_voxels: what the component filter took away before.
    """

    def ml(*values: int) -> float:
        return round(float(np.isin(labels, values).sum()) * volume.voxel_ml, 3)

    def hu(value: int) -> float | None:
        inside = labels == value
        return round(float(volume.data[inside].mean()), 2) if inside.any() else None

    parts, lesions = ndimage.label(labels == 2, structure=np.ones((3, 3, 3)))
    longest = 0.0
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        longest = max(longest, longest_axial_diameter(parts[box] == number, volume.spacing_mm))
    labelled = labels != 0
    gas = float((volume.data[labelled] < _GAS_HU).mean()) if labelled.any() else 0.0
    return LabelQuality(
        liver_ml=ml(1), tumour_ml=ml(2), portal_vein_ml=ml(3), aorta_ml=ml(4), organ_ml=ml(1, 2, 3),
        lesions=int(lesions), longest_mm=round(longest, 2), liver_hu=hu(1), tumour_hu=hu(2),
        gas_share=round(gas, 5), dropped_voxels=dropped_voxels,
    )  # fmt: skip


def judge(
    images: Sequence[ImageQuality], before: LabelQuality | None, follow_up_days: int | None, row: TablePatient | None
) -> list[Finding]:
    """What the measurements mean.

    Args:
        images: of the case.
        before: labels before treatment; None where there are none.
        follow_up_days: days between the two visits; None with one visit.
        row: the patient in the clinical table; None where it is not there.
    """
    return [*_judge_labels(before, row), *_judge_phases(images), *_judge_row(images, follow_up_days, row)]


def readers_mm(row: TablePatient | None) -> dict[int, float]:
    """RECIST sums at baseline by reader, mm; empty where the table has none."""
    if row is None:
        return {}
    return {one.reader: one.before for one in row.readings("RECIST") if one.before is not None}


def _judge_labels(before: LabelQuality | None, row: TablePatient | None) -> list[Finding]:
    if before is None:
        text = (
            "There are no labels before treatment, so liver and tumour are not known and the case can't be planned; "
            "download the experts' segmentation object, or give labels with --labels."
        )
        return [Finding(level="look_at", text=text)]
    bound = _limits().keep_apart
    found: list[Finding] = []

    def outside(value: float | None, limits: tuple[float, float], what: str, unit: str) -> None:
        if value is not None and not limits[0] <= value <= limits[1]:
            text = f"{what} is {value:.4g} {unit}, outside {limits[0]:g} to {limits[1]:g}."
            found.append(Finding(level="keep_apart", text=text))

    if before.tumour_ml == 0 or before.liver_ml == 0:
        which = "tumour" if before.tumour_ml == 0 else "liver"
        found.append(Finding(level="keep_apart", text=f"The labels before treatment mark no {which}."))
    outside(before.organ_ml, bound.organ_ml, "The liver with its tumour", "ml")
    outside(before.liver_hu, bound.liver_hu, "The mean of the liver before treatment", "HU")
    outside(before.tumour_hu, bound.tumour_hu, "The mean of the tumour before treatment", "HU")
    if before.gas_share > bound.max_gas_share:
        text = (
            f"{before.gas_share:.0%} of the labelled voxels are gas or lung, so the labels lie beside their structures."
        )
        found.append(Finding(level="keep_apart", text=text))
    sums = list(readers_mm(row).values())
    if sums and before.longest_mm > 0:
        middle = float(np.median(sums))
        ratio = before.longest_mm / middle if middle > 0 else float("inf")
        levels: tuple[tuple[Level, tuple[float, float]], ...] = (
            ("keep_apart", bound.diameter_ratio), ("look_at", _limits().look_at.diameter_ratio)
        )  # fmt: skip
        for level, (low, high) in levels:
            if not low <= ratio <= high:
                text = (
                    f"The largest tumour part is {before.longest_mm:.0f} mm long, {ratio:.2f} times the readers' "
                    f"median of {middle:.0f} mm, outside {low:g} to {high:g}."
                )
                found.append(Finding(level=level, text=text))
                break
    return found


def _judge_phases(images: Sequence[ImageQuality]) -> list[Finding]:
    before = {one.phase for one in images if one.role == "pre"} - {"unknown"}
    after = {one.phase for one in images if one.role == "follow_up"} - {"unknown"}
    found: list[Finding] = []
    if "arterial" not in before:
        found.append(Finding(level="look_at", text="No image before treatment is in the arterial phase."))
    if any(one.role == "follow_up" for one in images) and not before & after:
        text = "No phase is known both before and after treatment, so the pair can't be compared phase by phase."
        found.append(Finding(level="look_at", text=text))
    found += [
        Finding(level="look_at", text=f"The slices of {one.name} were uneven and were resampled along the body.")
        for one in images
        if one.resampled
    ]
    found += [
        Finding(level="note", text=f"The series of {one.name} held more than one phase; they were told apart.")
        for one in images
        if one.two_phases
    ]
    return found


def _judge_row(images: Sequence[ImageQuality], follow_up_days: int | None, row: TablePatient | None) -> list[Finding]:
    found: list[Finding] = []
    if follow_up_days is None:
        found.append(
            Finding(level="look_at", text="There is one visit only, so the case is no pair of before and after.")
        )
    if row is None:
        return [*found, Finding(level="note", text="The patient is not in the clinical table, so the record is empty.")]
    if row.interval_follow_up_weeks is not None and follow_up_days is not None:
        table = row.interval_follow_up_weeks * 7
        if abs(table - follow_up_days) > _limits().look_at.interval_days:
            text = (
                f"The scans are {follow_up_days} days apart, the table says {row.interval_follow_up_weeks:g} weeks "
                f"({table:.0f} days)."
            )
            found.append(Finding(level="look_at", text=text))
    offsets = {
        image.tags["LongitudinalTemporalOffsetFromEvent"]
        for image in images
        if image.role == "pre" and image.tags.get("LongitudinalTemporalEventType") == "DIAGNOSIS"
    }
    if row.interval_baseline_days is not None and offsets and row.interval_baseline_days not in offsets:
        text = (
            f"The scans before treatment are {min(map(float, offsets)):.0f} days from the diagnosis by their headers, "
            f"{row.interval_baseline_days:.0f} by the table."
        )
        found.append(Finding(level="look_at", text=text))
    if row.regimen is None:
        found.append(Finding(level="note", text="The table names no regimen that can be read."))
    found += [Finding(level="note", text=f"Clinical table: {remark}") for remark in row.remarks]
    return found
