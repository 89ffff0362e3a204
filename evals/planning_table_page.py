"""The planning table as Markdown (README, model card) and on the terminal, beside the paper's Table 3."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from rich.console import Console
from rich.table import Table

from evals.model_card.render_card import cell

BASELINE_LABELS = {
    "constant": "best constant protocol (where blocked, the next best)",
    "policy_first": "embedded policy alone, no simulation",
    "random": "random allowed protocol",
    "reachable": "best within the proposed action space (bound)",
}


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters["fig"] = cell
    return environment.from_string(files("evals").joinpath("planning_table.md.j2").read_text(encoding="utf-8"))


def planning_markdown(result: Mapping[str, Any]) -> str:
    """The section of the model card and of the README."""
    return _template().render(result=result, labels=BASELINE_LABELS).strip() + "\n"


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints the table."""
    table = Table(title=f"Mean regret on {result['n']} unseen synthetic patients (0 best allowed, 95 % interval)")
    for column in ("row", "of worst - best", "of random - best", "minus full planner"):
        table.add_column(column)
    for row in result["rows"]:
        label = f"{row['label']} ({row['note']})" if row["note"] else row["label"]
        table.add_row(label, cell(row["of_range"], 3), cell(row["of_random"], 2), cell(row["minus_full"], 3))
    table.add_section()
    for name, label in BASELINE_LABELS.items():
        table.add_row(label, cell(result["baselines"][name], 3), "", cell(result["baselines_minus_full"][name], 3))
    console.print(table)
    console.print(f"Planner's regret over the best constant's: {cell(result['regret_over_constant'])}.")
    for label, why in result["not_run"].items():
        console.print(f"Not measured: {label} ({why}).")
