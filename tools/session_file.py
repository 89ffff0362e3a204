"""Session file: what a person states about the session (technique, catheter position, diluent), read from YAML or JSON.

As in a clinical record, nothing is guessed: an unknown field is an error, and a quantity has to say its unit, in its
name or beside its number.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.errors import InputError
from models.strict_yaml import read_mapping
from tools.rule_facts import SessionFacts

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*(\S.*)")


def load_session(path: Path) -> SessionFacts:
    """Read a session file.

    Args:
        path: ``.yaml``, ``.yml`` or ``.json``: a mapping of the fields of `SessionFacts` to values. A quantity is a
            number under its full name (``prior_mitomycin_mg: 20``), or a text with the unit under its full name or the
            name without the unit (``prior_mitomycin: 20 mg``).

    Raises:
        InputError: the file can't be read, a field is unknown or given twice, a value is impossible, or a unit is
            missing or another than the field's.
    """
    data = read_mapping(path, "session file", InputError)
    values: dict[str, Any] = {}
    for key, raw in data.items():
        name = _field(str(key).strip(), path)
        if name in values:
            raise InputError(f"The session file {path} gives {name} twice; keep one.")
        values[name] = _value(str(key).strip(), name, raw, path)
    try:
        return SessionFacts.model_validate(values)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where, message = ".".join(map(str, first["loc"])), str(first["msg"])
        said = f"{where} is {first['input']!r}: {message[0].lower()}{message[1:]}"
        raise InputError(f"The session file {path} can't be used: {said}.") from exc


def _units() -> dict[str, str]:
    """Unit of each quantity, by field."""
    extras = {name: field.json_schema_extra for name, field in SessionFacts.model_fields.items()}
    return {name: str(extra["unit"]) for name, extra in extras.items() if isinstance(extra, dict)}


def _short(name: str) -> str:
    """``prior_mitomycin`` of ``prior_mitomycin_mg``."""
    unit = _units().get(name)
    return name if unit is None else name.removesuffix("_" + unit.replace("/", "_"))


def _field(key: str, path: Path) -> str:
    known = {spelling: name for name in SessionFacts.model_fields for spelling in (name, _short(name))}
    if key in known:
        return known[key]
    near = difflib.get_close_matches(key.lower(), known, n=3, cutoff=0.5)
    hint = f"near it are {', '.join(near)}" if near else f"known are {', '.join(SessionFacts.model_fields)}"
    raise InputError(f"The session file {path} has a field {key!r} that is not known; {hint}.")


def _value(key: str, name: str, raw: object, path: Path) -> object:
    unit = _units().get(name)
    if unit is None or raw is None:
        return raw
    number, said = raw, unit if key == name else ""  # the full name says the unit
    if isinstance(raw, Mapping) and set(raw) == {"value", "unit"}:
        number, said = raw["value"], str(raw["unit"]).strip()
    elif isinstance(raw, str):
        match = _QUANTITY.fullmatch(raw.strip())
        if match is None:
            raise InputError(f"The session file {path}: {key} is {raw!r}, not a number with a unit as in '12 {unit}'.")
        number, said = float(match.group(1)), match.group(2)
    if not said:
        raise InputError(f"The session file {path}: {key} is {raw!r} without a unit; write it with {unit}.")
    if "".join(said.split()).lower() != unit:
        raise InputError(f"The session file {path}: {key} is in {said!r}, which is not known for it; use {unit}.")
    return number
