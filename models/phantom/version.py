"""Which phantom this is: its version and a hash of the tables that its truth is computed from."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml

from models.formulary import ITEM_ORDER, Formulary

_TABLES = ("phantom/parameters.yaml", "phantom/appearance.yaml", "toxicity.yaml")


@lru_cache(maxsize=1)
def parameters() -> dict[str, Any]:
    """The cohort's parameters (`parameters.yaml`)."""
    return _table("phantom/parameters.yaml")


@lru_cache(maxsize=1)
def appearance() -> dict[str, Any]:
    """What the scans look like (`appearance.yaml`)."""
    return _table("phantom/appearance.yaml")


def _table(name: str) -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(files("models").joinpath(name).read_text(encoding="utf-8"))
    return table


@lru_cache(maxsize=1)
def phantom_hash() -> str:
    """Short hash of the tables that the truth is computed from: cohort, response, appearance, toxicity, usual doses.

    Comments and layout do not count. The code does not either: tests pin what it makes of the tables.
    """
    formulary = Formulary.load("all")
    doses = {name: dose.reference if (dose := formulary.item(name).dose) else None for name in ITEM_ORDER}
    content = [{name: _table(name) for name in _TABLES}, doses]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
