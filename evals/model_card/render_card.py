"""Renders the model card: `model_card.json` as Markdown, the same figures rounded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template


@lru_cache(maxsize=1)
def _template() -> Template:
    # Markdown, not HTML: nothing is escaped, and nothing in a card comes from a case
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters |= {"fig": cell, "num": number}
    text = files("evals.model_card").joinpath("MODEL_CARD.md.j2").read_text(encoding="utf-8")
    return environment.from_string(text)


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def cell(figure: Mapping[str, Any] | None, digits: int = 2) -> str:
    """``0.92 [0.88, 0.96]``; a dash where nothing was measured."""
    if figure is None or figure["value"] is None:
        return "-"
    if figure["low"] is None or figure["high"] is None:
        return number(figure["value"], digits)
    return f"{figure['value']:.{digits}f} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


def render_card(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    return _template().render(card=card).strip() + "\n"
