"""Study: what both studies with readers leave and read: forms for the readers, the key apart from them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from agent.files import write_text
from evals.report.pages import render_page
from models.errors import InputError, RunError

KEY, READERS = "key.json", "for-readers"

KeyT = TypeVar("KeyT", bound=BaseModel)


def refuse_taken(out: Path) -> None:
    """A study is made in a new folder.

    Raises:
        InputError: the folder holds something already, or is a file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is no empty folder: choose another with --out.")


def write_study(
    out: Path,
    kind: str,
    key: BaseModel,
    columns: Sequence[str],
    names: Sequence[str],
    pictures: Mapping[str, bytes] | None = None,
    **values: Any,
) -> None:
    """Write pictures, both forms and the key.

    Args:
        out: New folder.
        kind: ``turing`` or ``reader``: the template of the page.
        key: What the readers must not see.
        columns: Of the CSV form, the first one names the question.
        names: Of the questions.
        pictures: PNG files by name that lie beside the forms.
        values: What the template needs, besides the form's name.

    Raises:
        RunError: the folder can't be written.
    """
    readers = out / READERS
    try:
        readers.mkdir(parents=True)
        for name, png in (pictures or {}).items():
            (readers / name).parent.mkdir(exist_ok=True)
            (readers / name).write_bytes(png)
    except OSError as exc:
        raise RunError(f"The folder {out} can't be written ({exc.strerror}): choose another with --out.") from exc
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([name, *[""] * (len(columns) - 1)] for name in names)
    write_text(readers / "form.csv", text.getvalue())
    form = f"{kind}-{hashlib.sha256(key.model_dump_json().encode()).hexdigest()[:12]}"
    write_text(readers / "form.html", render_page(f"{kind}.html.j2", form=form, **values))
    # written last: a folder with a key is complete
    write_text(out / KEY, key.model_dump_json(indent=1) + "\n")


def read_study_key(path: Path, kind: type[KeyT], command: str) -> KeyT:
    """Read a key, given as file or as the folder of the study.

    Args:
        path: File or folder.
        kind: Model of the key.
        command: That wrote it, for the sentence of an error.

    Raises:
        InputError: it is missing or damaged.
    """
    file = path / KEY if path.is_dir() else path
    try:
        return kind.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"There is no key at {file}: give the folder that `{command}` wrote.") from None
    except (OSError, ValueError) as exc:  # pydantic's error is a ValueError
        raise InputError(f"The key {file} can't be read ({type(exc).__name__}): make the study again.") from exc


def read_form_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a filled CSV form by column; a cell that a line lacks is None.

    Raises:
        InputError: the file can't be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [dict(row) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise InputError(f"The form {path} can't be read ({exc}).") from exc
