"""What the Imaging Data Commons holds of HCC-TACE-Seg, from the index inside the idc-index package: no network needed.

Every patient's visits and series: which is the baseline (the first with a segmentation by the experts), which the first
follow-up after it, what the descriptions say of the phases, who segmented what, how large it is, and what can't be
used. Dates are turned into days since the first visit.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from models.collection.clinical_table import ClinicalTable
from models.collection.segmentation_object import MadeBy, made_by
from models.errors import InputError

COLLECTION = "hcc_tace_seg"
"""Name of the collection in the index."""

ListedPhase = Literal["noncontrast", "arterial", "portal", "enhanced", "unknown"]
VisitRole = Literal["baseline", "follow_up", "other"]


class _TwoPhases(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int
    times: float


class _Words(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    phases: dict[ListedPhase, tuple[str, ...]]
    two_phases: _TwoPhases
    reported: dict[str, str]


@cache
def _words() -> _Words:
    text = resources.files("models.collection").joinpath("series_words.yaml").read_text(encoding="utf-8")
    return _Words.model_validate(yaml.safe_load(text))


class IndexedSeries(BaseModel):
    """One series of the archive.

    Attributes:
        uid, study: SeriesInstanceUID and StudyInstanceUID, public names in the archive.
        modality: CT or SEG.
        description: SeriesDescription; empty where there is none.
        images: files of the series.
        size_bytes: all of them together.
        phase: what the description says; measured again at import.
        made_by: who drew a segmentation object; None for a CT.
        note: what to know before using it.
    """

    model_config = ConfigDict(frozen=True)

    uid: str
    study: str
    modality: Literal["CT", "SEG"]
    description: str
    images: int
    size_bytes: int
    phase: ListedPhase = "unknown"
    made_by: MadeBy | None = None
    note: str = ""


class Visit(BaseModel):
    """The studies of one day, counted from the patient's first."""

    model_config = ConfigDict(frozen=True)

    day: int
    role: VisitRole
    series: tuple[IndexedSeries, ...]

    def of(self, modality: str) -> tuple[IndexedSeries, ...]:
        """Its CT or its SEG series."""
        return tuple(one for one in self.series if one.modality == modality)


class IndexedPatient(BaseModel):
    """One patient: visits by day, and what can't be used or needs care."""

    model_config = ConfigDict(frozen=True)

    patient_id: str
    visits: tuple[Visit, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def visit(self, role: VisitRole) -> Visit | None:
        """The visit with that role, if there is one."""
        return next((one for one in self.visits if one.role == role), None)

    @property
    def follow_up_days(self) -> int | None:
        """Days from the baseline to the first follow-up."""
        before, after = self.visit("baseline"), self.visit("follow_up")
        return None if before is None or after is None else after.day - before.day

    @property
    def size_bytes(self) -> int:
        """Of all its series."""
        return sum(one.size_bytes for visit in self.visits for one in visit.series)


class CollectionIndex(BaseModel):
    """The collection as the installed index lists it."""

    model_config = ConfigDict(frozen=True)

    index_version: str
    patients: tuple[IndexedPatient, ...]

    def series(self, modality: str) -> tuple[IndexedSeries, ...]:
        """Every CT or SEG series of the collection."""
        return tuple(one for patient in self.patients for visit in patient.visits for one in visit.of(modality))

    def choose(self, names: Sequence[str]) -> CollectionIndex:
        """The index narrowed to some patients.

        Raises:
            InputError: a patient is not in the collection.
        """
        known = {one.patient_id for one in self.patients}
        if absent := [name for name in names if name not in known]:
            raise InputError(
                f"{absent[0]} is no patient of the collection, which has {self.patients[0].patient_id} to "
                f"{self.patients[-1].patient_id}."
            )
        chosen = tuple(one for one in self.patients if one.patient_id in set(names))
        return self.model_copy(update={"patients": chosen})


@dataclass(frozen=True)
class IntervalMismatch:
    """A follow-up interval on which index and table disagree.

    Attributes:
        patient_id: name in the archive.
        table_weeks: what the table says.
        archive_days: from the baseline to the chosen follow-up.
        other_visit: whether another visit of the patient would fit, so that the choice is wrong.
        fits_next: name of the next patient in the archive where the table's interval is exactly theirs, else empty.
    """

    patient_id: str
    table_weeks: float
    archive_days: int
    other_visit: bool
    fits_next: str


@dataclass(frozen=True)
class IntervalCheck:
    """How the choice of follow-ups agrees with the intervals of the clinical table."""

    given: int
    agree: int
    mismatches: tuple[IntervalMismatch, ...]


def read_index() -> CollectionIndex:
    """Read the collection from the installed index.

    Raises:
        InputError: idc-index is not installed, or its index does not know the collection.
    """
    try:
        import duckdb
        import idc_index_data
    except ImportError as error:
        raise InputError("Listing the collection needs idc-index; install mewm[collection].") from error
    try:
        found = duckdb.execute(
            "SELECT PatientID, StudyDate, StudyInstanceUID, SeriesInstanceUID, Modality, SeriesDescription, "
            "instanceCount, series_size_MB FROM read_parquet(?) WHERE collection_id = ? AND Modality IN ('CT', 'SEG') "
            "ORDER BY PatientID, StudyDate, StudyInstanceUID, Modality, try_cast(SeriesNumber AS INTEGER), "
            "SeriesInstanceUID",
            [str(idc_index_data.IDC_INDEX_PARQUET_FILEPATH), COLLECTION],
        ).fetchall()
    except duckdb.Error as error:
        raise InputError("The index inside idc-index can't be read; install mewm[collection] again.") from error
    if not found:
        raise InputError(f"The installed index of idc-index lists no series of {COLLECTION}; update idc-index.")
    rows = [(str(row[0]), _day_of(row[1]), _series(row[2:])) for row in found]
    patients = []
    for name, group in itertools.groupby(rows, key=lambda row: row[0]):
        patients.append(_patient(name, [(day, series) for _, day, series in group]))
    return CollectionIndex(index_version=str(idc_index_data.__version__), patients=tuple(patients))


def compare_intervals(index: CollectionIndex, table: ClinicalTable) -> IntervalCheck:
    """Compare the days from baseline to the chosen follow-up with the table's intervals.

    Args:
        index: the whole collection, since the next patient is looked at too.
        table: only patients in it with an interval are compared. Its weeks have two decimals, so one day never hides.
    """
    days = {one.patient_id: one for one in index.patients}
    order = [one.patient_id for one in index.patients]
    given = agree = 0
    mismatches = []
    for row in table.patients:
        weeks = row.interval_follow_up_weeks
        patient = days.get(row.patient_id)
        if weeks is None or patient is None or patient.follow_up_days is None:
            continue
        given += 1
        if _same(patient.follow_up_days, weeks):
            agree += 1
            continue
        before = patient.visit("baseline")
        others = [visit.day - before.day for visit in patient.visits if before is not None and visit is not before]
        following = order.index(row.patient_id) + 1
        neighbour = days[order[following]] if following < len(order) else None
        fits = neighbour is not None and neighbour.follow_up_days is not None
        mismatches.append(
            IntervalMismatch(
                patient_id=row.patient_id,
                table_weeks=weeks,
                archive_days=patient.follow_up_days,
                other_visit=any(_same(day, weeks) for day in others),
                fits_next=neighbour.patient_id
                if neighbour is not None and fits and _same(neighbour.follow_up_days or 0, weeks)
                else "",
            )
        )
    return IntervalCheck(given, agree, tuple(mismatches))


def _same(days: int, weeks: float) -> bool:
    return abs(days - weeks * 7) < 0.5


def _day_of(value: object) -> datetime.date:
    if isinstance(value, datetime.date):
        return value
    try:
        return datetime.date.fromisoformat(str(value))
    except ValueError as error:
        raise InputError("The installed index of idc-index has a study without a date; update idc-index.") from error


def _series(row: Sequence[object]) -> IndexedSeries:
    study, uid, modality, description, images, megabytes = row
    text = str(description or "")
    is_ct = modality == "CT"
    return IndexedSeries(
        uid=str(uid), study=str(study), modality="CT" if is_ct else "SEG", description=text, images=int(str(images)),
        size_bytes=round(float(str(megabytes)) * 1e6), phase=_phase(text) if is_ct else "unknown",
        made_by=None if is_ct else made_by(text),
    )  # fmt: skip


def _phase(description: str) -> ListedPhase:
    text = " ".join(re.findall(r"[a-z0-9]+", description.casefold()))
    for phase, words in _words().phases.items():
        if any(re.search(rf"\b{re.escape(word)}\b", text) for word in words):
            return phase
    return "unknown"


def _patient(name: str, series: Sequence[tuple[datetime.date, IndexedSeries]]) -> IndexedPatient:
    first = min(day for day, _ in series)
    by_day: dict[int, list[IndexedSeries]] = {}
    for day, one in series:
        by_day.setdefault((day - first).days, []).append(one)
    segmented = [day for day in sorted(by_day) if any(one.made_by == "experts" for one in by_day[day])]
    days = sorted(by_day)
    baseline = segmented[0] if segmented else days[0]
    later = [day for day in days if day > baseline]
    roles: dict[int, VisitRole] = {baseline: "baseline", **({later[0]: "follow_up"} if later else {})}
    visits = tuple(Visit(day=day, role=roles.get(day, "other"), series=tuple(_with_notes(by_day[day]))) for day in days)
    patient = IndexedPatient(patient_id=name, visits=visits)
    problems = []
    if not segmented:
        problems.append("no segmentation by the experts, so liver and tumour are not known")
    if not by_day[baseline] or not visits[days.index(baseline)].of("CT"):
        problems.append("no CT at the baseline")
    after = patient.visit("follow_up")
    if after is None:
        problems.append("one visit only, so it is no pair of before and after treatment")
    notes = [_words().reported[name]] if name in _words().reported else []
    if after is not None and not after.of("SEG"):
        notes.append("nothing is segmented after treatment, so the tumour there has to be predicted")
    if len(visits) > 2:
        notes.append(f"{len(visits) - 2} more visits are not used")
    return patient.model_copy(update={"problems": tuple(problems), "notes": tuple(notes)})


def _with_notes(series: Sequence[IndexedSeries]) -> list[IndexedSeries]:
    bound = _words().two_phases
    noted = []
    for one in series:
        others = [other.images for other in series if other is not one and other.modality == "CT"]
        note = ""
        if one.modality == "CT":
            if one.images >= bound.images and one.images >= bound.times * max(others, default=0):
                note = "may hold two phases, which the import tells apart"
            elif one.phase == "noncontrast":
                note = "without contrast, so not to be planned on"
        elif one.made_by != "experts":
            note = "by an AI" if one.made_by == "ai" else "by an AI, corrected by a radiologist"
        noted.append(one.model_copy(update={"note": note}))
    return noted
