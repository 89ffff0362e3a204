"""The clinical table of HCC-TACE-Seg, typed by its glossary (`clinical_table.yaml`): units explicit, nothing imputed.

A value that is not given is None. A value that can't be what its column says is None too, and remarked. What the three
readers saw is kept reader by reader: they disagree in about half of the patients.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from models.clinical_record import ClinicalRecord
from models.errors import InputError, RecordError
from models.formulary import Formulary
from models.protocol import Protocol

WEEKS_PER_MONTH = 4.345
"""As the MeWM paper turns the weeks of the table into months (its Table 4)."""

Criterion = Literal["RECIST", "mRECIST", "EASL"]
Category = Literal["CR", "PR", "SD", "PD"]
Value = str | int | float | bool
Cell = str | int | float | bool | None


class _Column(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    field: str
    kind: Literal["text", "number", "yes_no", "choice"]
    unit: str = ""
    glossary: str = ""
    low: float = -math.inf
    choices: dict[str, str | int] = {}


class _Readings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    readers: tuple[int, ...]
    unit: Literal["mm", "mm2"]
    codes: dict[int, Category]


class _Sheets(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    glossary: str


class _Layout(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sheets: _Sheets
    absent: tuple[str, ...]
    columns: dict[str, _Column]
    readings: dict[Criterion, _Readings]
    inferred: str
    phrases: dict[str, str]
    typing_errors: dict[str, str]


@cache
def _layout() -> _Layout:
    text = resources.files("models.collection").joinpath("clinical_table.yaml").read_text(encoding="utf-8")
    return _Layout.model_validate(yaml.safe_load(text))


@dataclass(frozen=True)
class ReaderResponse:
    """What one reader measured by one criterion.

    Attributes:
        reader: 1, 2 or 3.
        criterion: RECIST (whole diameters), mRECIST (viable diameters) or EASL (viable area).
        before: sum at baseline, in `unit`.
        after: sum at follow-up, in `unit`.
        unit: mm for diameters, mm2 for areas.
        code: the response as the table writes it.
        category: the response; None where the table gives none or its code is not explained (EASL).
    """

    reader: int
    criterion: Criterion
    before: float | None
    after: float | None
    unit: Literal["mm", "mm2"]
    code: int | None
    category: Category | None


@dataclass(frozen=True)
class TablePatient:
    """One row of the table.

    Attributes:
        patient_id: name in the archive, such as ``HCC_009``.
        record: the fields that a clinical record has; age is that at diagnosis.
        regimen_text: the cell of the regimen; None where the table has ``NA``.
        regimen: the agents of that text and no others; None where there is none or it can't be read.
        os_weeks: overall survival, to death or to the end of follow-up.
        death: True died, False alive or lost to follow-up.
        ttp_weeks: time to progression or to its censoring.
        progression: True progressed, False censored.
        interval_baseline_days: days between diagnosis and baseline CT as the table has it, either sign. The glossary
            says diagnosis minus CT, but the headers of HCC_009 (CT 8 days before the diagnosis, table -8) say CT minus
            diagnosis.
        interval_follow_up_weeks: follow-up minus baseline CT as the table has it; a negative one is remarked. From
            HCC_082 on the column seems to be shifted by a row (see `idc_index.compare_intervals`): prefer the scans'.
        readers: one entry per reader and criterion with anything in it.
        values: every other column that is given, under its name in `clinical_table.yaml`; `unit_of` says the unit.
        remarks: values that could not be used, and why.
    """

    patient_id: str
    record: ClinicalRecord
    regimen_text: str | None
    regimen: Protocol | None
    os_weeks: float | None
    death: bool | None
    ttp_weeks: float | None
    progression: bool | None
    interval_baseline_days: float | None
    interval_follow_up_weeks: float | None
    readers: tuple[ReaderResponse, ...]
    values: dict[str, Value]
    remarks: tuple[str, ...]

    def readings(self, criterion: Criterion) -> tuple[ReaderResponse, ...]:
        """What the readers measured by one criterion, by reader."""
        return tuple(one for one in self.readers if one.criterion == criterion)

    def categories(self, criterion: Criterion) -> tuple[Category, ...]:
        """The responses that the readers gave, by reader, absent ones left out; they may differ."""
        return tuple(one.category for one in self.readings(criterion) if one.category is not None)


@dataclass(frozen=True)
class ClinicalTable:
    """The rows in the order of the file. `content_hash` is the SHA-256 of the file."""

    patients: tuple[TablePatient, ...]
    content_hash: str

    def patient(self, patient_id: str) -> TablePatient | None:
        """The row of a patient, or None where the table has none."""
        return next((one for one in self.patients if one.patient_id == patient_id), None)


def unit_of(field: str) -> str:
    """The unit of a field of `TablePatient.values` or of a column of the table; empty for what has none."""
    for name, column in _layout().columns.items():
        if field in (name, column.field):
            return column.unit
    raise KeyError(field)


def read_clinical_table(path: Path) -> ClinicalTable:
    """Read the table as the archive publishes it (XLSX with its glossary sheet).

    Raises:
        RecordError: missing or unreadable file, a missing sheet or column, a glossary that states another unit, a row
            without patient or a patient twice.
    """
    data, cells, glossary = _read_workbook(Path(path))
    layout = _layout()
    header = [str(name).strip() if name is not None else "" for name in cells[0]] if cells else []
    wanted = [*layout.columns, *_reading_columns()]
    if missing := [name for name in wanted if name not in header]:
        raise RecordError(
            f"The clinical table {path} lacks {len(missing)} of {len(wanted)} columns (first {missing[0]!r}); "
            "give HCC-TACE-Seg_clinical_data-V2.xlsx as the archive publishes it."
        )
    for name, column in layout.columns.items():
        said = glossary.get(name, "")
        if column.glossary.casefold() not in said.casefold():
            raise RecordError(
                f"The glossary of {path} does not say {column.glossary!r} for {name} (it says {said!r}), so its unit "
                "is not sure; give HCC-TACE-Seg_clinical_data-V2.xlsx as the archive publishes it."
            )
    patients: list[TablePatient] = []
    seen: set[str] = set()
    for number, line in enumerate(cells[1:], start=2):
        row = {title: _cell(value) for title, value in zip(header, line, strict=False)}
        if all(value is None for value in row.values()):
            continue
        patient_id = row["TCIA_ID"]
        if not isinstance(patient_id, str) or patient_id in seen:
            what = f"gives {patient_id} a second time" if patient_id in seen else "has no patient in TCIA_ID"
            raise RecordError(f"Row {number} of the clinical table {path} {what}; correct the table.")
        seen.add(patient_id)
        patients.append(_patient(patient_id, row))
    if not patients:
        raise RecordError(f"The clinical table {path} has no rows; give the table as the archive publishes it.")
    return ClinicalTable(tuple(patients), hashlib.sha256(data).hexdigest())


def parse_regimen(text: str) -> Protocol:
    """The agents that a text of the regimen column names, typing errors resolved by `clinical_table.yaml`.

    Raises:
        InputError: an agent that neither the list nor the formulary knows.
    """
    layout = _layout()
    folded = " ".join(text.casefold().split())
    for phrase, meaning in layout.phrases.items():
        folded = folded.replace(phrase, meaning)
    words = [layout.typing_errors.get(word.strip(), word.strip()) for word in folded.split(",")]
    return Formulary.load("all").parse(", ".join(words))


def _read_workbook(path: Path) -> tuple[bytes, list[tuple[object, ...]], dict[str, str]]:
    """The bytes of the file, the rows of its data sheet, and its glossary by column."""
    try:
        import openpyxl
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError as error:
        raise RecordError("Reading the clinical table needs openpyxl; install mewm[collection].") from error
    sheets = _layout().sheets
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"The clinical table {path} can't be read: {error.strerror}; check the path.") from error
    try:
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
        if missing := [name for name in (sheets.data, sheets.glossary) if name not in book.sheetnames]:
            found = ", ".join(book.sheetnames)
            raise RecordError(f"The clinical table {path} has no sheet {missing[0]!r} (found: {found}).")
        cells = [tuple(row) for row in book[sheets.data].iter_rows(values_only=True)]
        glossary = {
            str(row[0]).strip(): " ".join(str(row[1]).split())
            for row in book[sheets.glossary].iter_rows(values_only=True, max_col=2)
            if row[0] is not None
        }
    except (
        zipfile.BadZipFile, zlib.error, InvalidFileException, SyntaxError, EOFError, ValueError, KeyError, TypeError,
        IndexError, AttributeError, OverflowError, RuntimeError,
    ) as error:  # fmt: skip  # what a damaged archive makes zipfile and openpyxl raise
        raise RecordError(f"{path} is not a readable XLSX file; give the table as the archive publishes it.") from error
    return data, cells, glossary


def _cell(value: object) -> Cell:
    """A cell as a plain value; every way of writing "not given" is None."""
    if isinstance(value, str):
        text = " ".join(value.split())
        return None if not text or text.casefold() in _layout().absent else text
    if isinstance(value, float) and math.isnan(value):
        return None
    return value if isinstance(value, (int, float, bool)) else None if value is None else str(value)


def _reading_columns() -> list[str]:
    return [
        f"{reader}_{criterion}{suffix}"
        for criterion, readings in _layout().readings.items()
        for reader in readings.readers
        for suffix in ("_BL", "_FU", "")
    ]


def _patient(name: str, row: Mapping[str, Cell]) -> TablePatient:
    remarks: list[str] = []
    values: dict[str, Value] = {}
    for title, column in _layout().columns.items():
        if (cell := row[title]) is None:
            continue
        value = _value(cell, column)
        if value is None:
            remarks.append(
                f"{title} is {cell!r}, which is no {_KINDS[column.kind]} of this column; taken as not given."
            )
        else:
            values[column.field] = value
    weeks = _number(values.pop("interval_follow_up_weeks", None))
    if weeks is not None and weeks < 0:
        remarks.append(f"Interval_FU is {weeks:g} weeks, a follow-up before the baseline; kept as it stands.")
    del values["patient_id"]
    text = values.pop("regimen", None)
    regimen: Protocol | None = None
    if text is not None:
        try:
            regimen = parse_regimen(str(text))
        except InputError as error:
            remarks.append(f"chemotherapy is {text!r}, which can't be read: {error}")
    readers = tuple(_readings(row, remarks))
    death, progression = values.pop("death", None), values.pop("progression", None)
    return TablePatient(
        patient_id=name,
        record=_record(values, remarks),
        regimen_text=None if text is None else str(text),
        regimen=regimen,
        os_weeks=_number(values.pop("os_weeks", None)),
        death=None if death is None else bool(death),
        ttp_weeks=_number(values.pop("ttp_weeks", None)),
        progression=None if progression is None else bool(progression),
        interval_baseline_days=_number(values.pop("interval_baseline_days", None)),
        interval_follow_up_weeks=weeks,
        readers=readers,
        values=values,
        remarks=tuple(remarks),
    )


_KINDS = {"text": "text", "number": "number", "yes_no": "yes or no (1 or 0)", "choice": "choice"}


def _value(cell: Cell, column: _Column) -> Value | None:
    """The value of a cell that is given, or None where it can't be what the column says."""
    if column.kind == "text":
        return str(cell)
    if column.kind == "choice":
        return column.choices.get(_plain(cell).casefold())
    number = _as_number(cell)
    if column.kind == "yes_no":
        return {0.0: False, 1.0: True}.get(number) if number is not None else None
    return number if number is not None and number >= column.low else None


def _plain(cell: Cell) -> str:
    """A cell as text; 1.0 is written 1."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _as_number(cell: Cell) -> float | None:
    if isinstance(cell, bool) or cell is None:
        return None
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _number(value: Value | None) -> float | None:
    return None if value is None else float(value)


def _readings(row: Mapping[str, Cell], remarks: list[str]) -> list[ReaderResponse]:
    found = []
    for criterion, readings in _layout().readings.items():
        for reader in readings.readers:
            sums: list[float | None] = []
            for suffix in ("_BL", "_FU"):
                cell = row[f"{reader}_{criterion}{suffix}"]
                number = _as_number(cell)
                if cell is not None and (number is None or number < 0):
                    remarks.append(f"{reader}_{criterion}{suffix} is {cell!r}, which is no size; taken as not given.")
                    number = None
                sums.append(number)
            given = _as_number(row[f"{reader}_{criterion}"])
            code = int(given) if given is not None and given.is_integer() else None
            category = readings.codes.get(code) if code is not None else None
            if readings.codes and category is None and row[f"{reader}_{criterion}"] is not None:
                remarks.append(f"{reader}_{criterion} is {row[f'{reader}_{criterion}']!r}, which is no known code.")
            if code is not None or any(one is not None for one in sums):
                found.append(ReaderResponse(reader, criterion, sums[0], sums[1], readings.unit, code, category))
    return found


def _record(values: dict[str, Value], remarks: list[str]) -> ClinicalRecord:
    """The clinical record that the columns state; what they leave open stays unknown.

    A performance group of two grades is no grade, a multinodular tumour no number, a thrombosed portal vein no branch.
    Nodal or distant metastasis is extrahepatic spread, as in the BCLC staging.
    """
    fields: dict[str, object] = {
        name: values[name]
        for name in ("age_years", "sex", "afp_ng_ml", "child_pugh_class", "bclc", "cirrhosis")
        if name in values
    }
    if values.get("performance_group") == "0":
        fields["ecog"] = 0
    if values.get("nodularity") == "uninodular":
        fields["tumour_number"] = 1
    spread = [values.get("metastasis"), values.get("lymph_nodes")]
    if any(one is True for one in spread) or all(one is False for one in spread):
        fields["extrahepatic_spread"] = True in spread
    if values.get("portal_vein_thrombosis") is False and values.get("vascular_invasion") is False:
        fields["portal_vein_invasion"] = "none"
    known = {}
    for name, value in fields.items():
        try:
            ClinicalRecord.model_validate({name: value})
        except ValidationError as error:
            message = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
            remarks.append(f"{name} is not used: {message}.")
            continue
        known[name] = value
    return ClinicalRecord.model_validate(known)
