"""What imported patients were really given and what became of them: from the collection's table or from a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.collection.clinical_table import WEEKS_PER_MONTH, read_clinical_table
from models.errors import InputError
from models.formulary import Formulary
from models.protocol import Protocol

COLUMNS = ("case_id", "protocol", "months", "died")
BEADS, OIL = "Drug-eluting beads", "Lipiodol"


@dataclass(frozen=True)
class Given:
    """One patient.

    Attributes:
        protocol: what was given.
        months: survival or time to the end of follow-up; None where it is not known.
        died: whether `months` ended with death.
    """

    protocol: Protocol
    months: float | None
    died: bool | None


def read_given(path: Path) -> Mapping[str, Given]:
    """Read what was given, by case id.

    Args:
        path: the clinical table of HCC-TACE-Seg (``.xlsx``), or a CSV file with the columns `COLUMNS`: the protocol as
            text (``Doxorubicin 50 mg + Lipiodol``), months and died (0 or 1) or both empty.

    Raises:
        InputError: unreadable, other columns, an unknown agent, a case given twice, an impossible time.
    """
    if path.suffix.lower() == ".xlsx":
        return _from_table(path)
    if path.suffix.lower() == ".csv":
        return _from_csv(path)
    raise InputError(f"{path} is neither the clinical table (.xlsx) nor a CSV file; give one of them.")


def conventional(regimen: Protocol) -> Protocol:
    """The protocol behind a regimen of the table, which names drugs and beads but no oil.

    Without beads it was conventional TACE, which is defined by its oil (CIRSE Standards of Practice 2021).
    """
    return regimen if BEADS in regimen.embolics else regimen.with_item("embolic", OIL)


def _from_table(path: Path) -> dict[str, Given]:
    found = {}
    for patient in read_clinical_table(path).patients:
        if patient.regimen is not None:
            months = None if patient.os_weeks is None else patient.os_weeks / WEEKS_PER_MONTH
            known = months is not None and patient.death is not None
            found[patient.patient_id] = Given(
                conventional(patient.regimen), months if known else None, patient.death if known else None
            )
    return found


def _from_csv(path: Path) -> dict[str, Given]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names, rows = tuple(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"The file {path} can't be read as CSV ({error}).") from error
    if sorted(names) != sorted(COLUMNS):
        raise InputError(f"{path} has the columns {', '.join(names) or 'none'}; it needs {', '.join(COLUMNS)}.")
    found: dict[str, Given] = {}
    for number, row in enumerate(rows, start=2):
        case_id = (row["case_id"] or "").strip()
        if not case_id or case_id in found:
            what = f"gives {case_id} a second time" if case_id else "has no case_id"
            raise InputError(f"Line {number} of {path} {what}; correct it.")
        try:
            protocol = Formulary.load("all").parse(row["protocol"] or "")
        except InputError as error:
            raise InputError(f"Line {number} of {path}: {error}") from error
        found[case_id] = Given(protocol, *_outcome(path, number, row["months"], row["died"]))
    return found


def _outcome(path: Path, number: int, months: str | None, died: str | None) -> tuple[float | None, bool | None]:
    words = ((months or "").strip(), (died or "").strip())
    if words == ("", ""):
        return None, None
    try:
        value = float(words[0])
    except ValueError:
        value = -1.0
    if not 0 < value < 1200 or words[1] not in ("0", "1"):
        raise InputError(
            f"Line {number} of {path}: months is {words[0]!r} and died is {words[1]!r}; give a number above 0 and 0 or "
            "1, or leave both empty."
        )
    return value, words[1] == "1"
