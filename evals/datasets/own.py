"""Dataset `own`: a hospital's own gold, as a JSONL or CSV file beside case folders (docs/own-dataset.md)."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evals.datasets.cards import render_card
from evals.datasets.eval_case import Dataset, FollowUp, SearchSpace, content_hash
from evals.datasets.stored_case import StoredCase, plannable
from models.case import Case
from models.clinical_record import ClinicalRecord
from models.collection.splits import folds
from models.errors import InputError
from models.protocol import Protocol
from tools.rulebook import Profile

VERSION = "1"
VARIANT = "gold"
SPACE = SearchSpace("all")
FOLDS = 5
SALT = "own-1"


class _Row(BaseModel):
    """One line. In a CSV file `record` is the name of a file; an empty cell is an absent field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    gold: str = Field(min_length=1)
    given: str | None = None
    case: str | None = None
    record: dict[str, Any] | str | None = None
    months: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    died: bool | None = None


def load_own(path: Path, limit: int | None = None, strict: bool = False, profile: Profile = "eu") -> Dataset:
    """Read the file and the case folders that it names.

    Args:
        path: ``.jsonl`` or ``.csv``; folders and record files are named relative to it and lie beside or below it.
        limit: Most cases; baselines still learn from all.
        strict: See `SearchSpace`.
        profile: See `SearchSpace`.

    Raises:
        InputError: The file, a line, a case or a record can't be used; the sentence names the line.
    """
    text, space = _read(path), replace(SPACE, strict=strict, profile=profile)
    pool: list[StoredCase] = []
    gold_keys: dict[str, str] = {}
    images: dict[str, str] = {}
    for number, row in _rows(path, text):
        if row.case_id in gold_keys:
            raise InputError(f"Line {number} of {path} gives the case {row.case_id} a second time; keep one.")
        case = _case(path, number, row)
        if case is not None:
            images[row.case_id] = case.content_hash
        gold = _protocol(path, number, "gold", row.gold)
        given = None if row.given is None else _protocol(path, number, "given", row.given)
        record = _record(path, number, row, case)
        pool.append(StoredCase(row.case_id, record, {VARIANT: gold}, space, case, given, _follow_up(path, number, row)))
        gold_keys[row.case_id] = gold.key
    if not pool:
        raise InputError(f"{path} has no cases; write one per line as docs/own-dataset.md says.")
    records = {case.case_id: case.record.known() for case in pool}
    after = {case.case_id: case.survival for case in pool if case.survival is not None}
    dealt = folds([case.case_id for case in pool], min(FOLDS, len(pool)), SALT)
    digest = content_hash(
        {
            "dataset": "own",
            "version": VERSION,
            "gold": gold_keys,
            "given": {case.case_id: None if case.given is None else case.given.key for case in pool},
            **({"follow-up": after} if after else {}),
            "records": records,
            "images": images,
            "formulary": SPACE.formulary.content_hash,
            "folds": dealt,
        }
    )
    facts = {
        "version": VERSION,
        "content_hash": digest,
        "file": path.name,
        "file_hash": hashlib.sha256(text.encode()).hexdigest(),
        "cases": len(pool),
        "images": len(images),
        "folds": min(FOLDS, len(pool)),
    }
    return Dataset(
        name="own",
        version=VERSION,
        content_hash=digest,
        card=render_card("own", facts),
        cases=tuple(pool[:limit]),
        variants=(VARIANT,),
        origin="synthetic" if all(case.origin == "synthetic" for case in pool) else "real",
        space=space,
        rows=len(pool),
        pool=tuple(pool),
        folds=dealt,
    )


def _read(path: Path) -> str:
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise InputError(f"{path} is neither JSONL nor CSV; give a .jsonl or .csv file (docs/own-dataset.md).")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"The dataset {path} can't be read: {reason}.") from error


def _rows(path: Path, text: str) -> Iterator[tuple[int, _Row]]:
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text), restkey="(a cell beyond the header)")
        for cells in reader:
            yield reader.line_num, _row(path, reader.line_num, {k: v.strip() for k, v in cells.items() if _given(v)})
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError as error:
            raise InputError(f"Line {number} of {path} is not JSON ({error}); write one object per line.") from error
        yield number, _row(path, number, content)


def _given(cell: object) -> bool:
    return isinstance(cell, list) or (isinstance(cell, str) and bool(cell.strip()))


def _row(path: Path, number: int, content: object) -> _Row:
    try:
        return _Row.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the line"
        raise InputError(
            f"Line {number} of {path} can't be used: {where}: {first['msg'].lower()}; see docs/own-dataset.md."
        ) from error


def _protocol(path: Path, number: int, what: str, text: str) -> Protocol:
    try:
        return SPACE.formulary.parse(text)
    except InputError as error:
        raise InputError(f"Line {number} of {path}: {what} can't be read: {error}") from error


def _follow_up(path: Path, number: int, row: _Row) -> FollowUp | None:
    if row.months is None and row.died is None:
        return None
    if row.months is None or row.died is None or row.given is None:
        raise InputError(
            f"Line {number} of {path} states a follow-up without all of given, months and died: state the protocol "
            "really given, the months followed after it, and whether the patient died then."
        )
    return FollowUp(row.months, row.died)


def _beside(path: Path, number: int, name: str) -> Path:
    """A file or folder that a line names; never outside the folder of the dataset."""
    root = path.resolve().parent
    found = (root / name).resolve()
    if not found.is_relative_to(root):
        raise InputError(f"Line {number} of {path} names {name!r}, outside the folder of the dataset; move it inside.")
    return found


def _case(path: Path, number: int, row: _Row) -> Case | None:
    if row.case is None:
        return None
    folder = _beside(path, number, row.case)
    case = plannable(folder)
    if case is None:
        raise InputError(f"Line {number} of {path}: {row.case!r} is no case folder with labels; `mewm case import` it.")
    if case.case_id != row.case_id:
        raise InputError(f"Line {number} of {path}: the folder {row.case!r} holds {case.case_id}, not {row.case_id}.")
    return case


def _record(path: Path, number: int, row: _Row, case: Case | None) -> ClinicalRecord:
    if case is not None:
        if row.record is not None:
            raise InputError(
                f"Line {number} of {path} gives a record beside the case folder {row.case!r}, which has its own; "
                "keep the one that an agent reads, in the folder."
            )
        return case.record
    if row.record is None:
        return ClinicalRecord()
    try:
        if isinstance(row.record, str):
            return ClinicalRecord.load(_beside(path, number, row.record))
        return ClinicalRecord.from_mapping(row.record)
    except InputError as error:
        raise InputError(f"Line {number} of {path}: {error}") from error
