"""HTML pages of the harness: templates of this folder, everything inserted is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render_page(template: str, **values: Any) -> str:
    """A page as text.

    Args:
        template: File name in this folder.
        values: What the template needs; a missing one is an error. Only text that is `Markup` already is not escaped:
            the SVG of `evals.report.charts`, which escapes what data brings in.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
