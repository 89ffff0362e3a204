"""Files that the program writes: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from models.errors import RunError

_UNFINISHED = ".unfinished-"


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: beside its place, then renamed.

    Raises:
        RunError: the folder can't be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=_UNFINISHED, dir=path.parent)
    except OSError as exc:
        raise RunError(unwritable(path.parent, exc)) from exc
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as exc:
        raise RunError(unwritable(path.parent, exc)) from exc
    finally:
        temporary.unlink(missing_ok=True)


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing, or only what a kill left of a file that was being written.

    Raises:
        RunError: it can't be read.
    """
    try:
        return all(path.name.startswith(_UNFINISHED) for path in folder.iterdir())
    except OSError as exc:
        raise RunError(f"The folder {folder} can't be read ({exc.strerror}): choose another.") from exc


def unwritable(folder: Path, exc: OSError) -> str:
    """The sentence for a folder that can't be written."""
    return f"The folder {folder} can't be written ({exc.strerror}): choose another, or free space."


def make_folder(path: Path) -> Path:
    """Make a folder where there is none.

    Raises:
        RunError: it can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise RunError(unwritable(path, exc)) from exc
    return path
