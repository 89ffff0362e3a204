"""A report as Markdown."""

from __future__ import annotations

from evals.report.calibration import calibration_text
from evals.report.summary import Summary, run_facts
from evals.report.survival import NOT_EVALUABLE, survival_text
from evals.report.tables import Table, all_tables


def report_markdown(summary: Summary, *, with_cases: bool = True) -> str:
    """The whole report, or its figures without the table of cases."""
    parts = [f"# Evaluation: {summary.label} on {summary.spec.dataset}", ""]
    parts += [f"- {label}: {value}" for label, value in run_facts(summary)]
    if summary.notes:
        parts += ["", *(f"> {note}" for note in summary.notes)]
    for table in all_tables(summary, with_cases=with_cases):
        parts += ["", *table_markdown(table)]
    if summary.calibration is not None:
        parts += ["", "## Calibration of the simulated risk", "", calibration_text(summary.calibration)]
    told = NOT_EVALUABLE if summary.survival is None else survival_text(summary.survival)
    parts += ["", "## Survival by simulated risk", "", told]
    return "\n".join(parts) + "\n"


def table_markdown(table: Table) -> list[str]:
    """One table with its heading."""
    lines = [f"## {table.title}", "", f"{table.lead[:1].upper()}{table.lead[1:]}.", ""]
    lines.append("| " + " | ".join(map(_cell, table.columns)) + " |")
    lines.append("|" + "---|" * len(table.columns))
    for row in table.rows:
        cells = [_cell(cell) for cell in row.cells] + [""] * (len(table.columns) - len(row.cells))
        if row.link:
            cells[0] = f"[{cells[0]}]({row.link})"
        if row.last_link:
            cells[-1] = f"[{cells[-1]}]({row.last_link})"
        lines.append("| " + " | ".join(cells) + " |")
    if table.note:
        lines += ["", table.note]
    return lines


def _cell(text: str) -> str:
    # protocol keys hold a bar, which would end the cell
    return " ".join(text.replace("|", "\\|").split())
