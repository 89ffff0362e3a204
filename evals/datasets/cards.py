"""Data cards: Markdown files of this package, with the figures of the loaded dataset filled in."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from string import Template


def render_card(name: str, facts: Mapping[str, object]) -> str:
    """The card ``NAME.md`` with every ``$field`` replaced.

    Raises:
        KeyError: The card asks for a field that is not in `facts`; a packaging error, not the user's.
    """
    text = files("evals.datasets").joinpath(f"{name}.md").read_text(encoding="utf-8")
    return Template(text).substitute(facts)
