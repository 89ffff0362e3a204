"""Figures of longer commands that the card shows beside its own: planning and the comparison of simulators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.errors import InputError


def read_extras(**files: Path | None) -> dict[str, Any]:
    """The content of result files by group; those that are None are left out.

    Raises:
        InputError: a file is missing or holds no results of that command.
    """
    found: dict[str, Any] = {}
    for group, path in files.items():
        if path is None:
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"The results {path} can't be read: {error.strerror}.") from error
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is no JSON file; give the result that the command wrote.") from error
        if not isinstance(content, dict) or content.get("group") != group:
            raise InputError(f"{path} holds no results for --{group}; give the file that its command wrote.")
        found[group] = content
    return found
