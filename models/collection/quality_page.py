"""The quality page of a case and the quality table of the collection: self-contained HTML, JSON and CSV."""

from __future__ import annotations

import base64
import csv
import io
import os
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from pydantic import ValidationError

from models.collection.quality import CaseQuality
from models.errors import CaseError

FOLDER = "quality"
_WORDS = {"keep_apart": "Kept apart", "look_at": "Look at", "note": "Note"}
_COLUMNS = (
    "patient", "verdict", "reason", "phases before", "phases after", "aorta HU", "liver HU", "liver ml", "tumour ml",
    "parts", "longest mm", "reader 1 mm", "reader 2 mm", "reader 3 mm", "follow-up days", "table days",
    "tumour ml after (AI)", "to look at",
)  # fmt: skip


def write_case_quality(folder: Path, quality: CaseQuality, picture: bytes | None) -> None:
    """Write the page of a case and, last, its JSON: where that exists, the import of the patient is complete.

    Args:
        folder: of the collection's cases.
        quality: of the case.
        picture: PNG for the page.

    Raises:
        CaseError: the files can't be written.
    """
    page = _render(
        title=f"Quality of {quality.patient_id}", case=quality, words=_WORDS, number=_number,
        picture=base64.b64encode(picture).decode() if picture else "",
    )  # fmt: skip
    _write(folder / FOLDER / f"{quality.patient_id}.html", page)
    _write(_json_path(folder, quality.patient_id), quality.model_dump_json(indent=2) + "\n")


def read_case_quality(folder: Path, patient_id: str) -> CaseQuality | None:
    """What was written for a patient; None where nothing or something else is there."""
    try:
        return CaseQuality.model_validate_json(_json_path(folder, patient_id).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return None


def forget_case_quality(folder: Path, patient_id: str) -> None:
    """Take away the mark that a patient's import is complete.

    Raises:
        CaseError: it can't be removed.
    """
    try:
        _json_path(folder, patient_id).unlink(missing_ok=True)
    except OSError as error:
        raise CaseError(f"{_json_path(folder, patient_id)} can't be replaced: {error.strerror}.") from error


def write_collection_quality(folder: Path) -> list[CaseQuality]:
    """Write `index.html` and `collection.csv` over every patient imported so far, and return them.

    Raises:
        CaseError: the files can't be written.
    """
    names = sorted(path.stem for path in (folder / FOLDER).glob("*.json"))
    cases = [one for one in (read_case_quality(folder, name) for name in names) if one is not None]
    rows = [(one.patient_id, _row(one)) for one in cases]
    page = _render(title="Quality of the collection", cases=cases, columns=_COLUMNS, rows=rows)
    _write(folder / FOLDER / "index.html", page)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(line for _, line in rows)
    _write(folder / FOLDER / "collection.csv", text.getvalue())
    return cases


def _json_path(folder: Path, patient_id: str) -> Path:
    return folder / FOLDER / f"{patient_id}.json"


def _row(one: CaseQuality) -> list[str]:
    labelled = next((image for image in one.images if image.labels_by and image.role == "pre"), None)
    before = one.before
    phases = [
        ", ".join(image.phase for image in one.images if image.role == role) or "-" for role in ("pre", "follow_up")
    ]
    return [
        one.patient_id, "passed" if one.passed else "kept apart", one.reason, *phases,
        _number(labelled.aorta_hu if labelled else None, 0), _number(labelled.liver_hu if labelled else None, 0),
        _number(before.liver_ml if before else None, 0), _number(before.tumour_ml if before else None, 1),
        str(before.lesions) if before else "-", _number(before.longest_mm if before else None, 1),
        *(_number(one.readers_mm.get(reader), 1) for reader in (1, 2, 3)),
        _number(one.follow_up_days, 0), _number(one.table_follow_up_days, 0),
        _number(one.after.tumour_ml if one.after else None, 1),
        " ".join(finding.text for finding in one.findings if finding.level == "look_at"),
    ]  # fmt: skip


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _render(**content: Any) -> str:
    template = resources.files("models.collection").joinpath("quality.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(**content)


def _write(path: Path, text: str) -> None:
    """Write a file at once or not at all."""
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        partial = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        if partial is not None:
            partial.unlink(missing_ok=True)
        raise CaseError(f"{path} can't be written: {error.strerror}.") from error
