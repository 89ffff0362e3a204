"""Write the reports of an evaluation: `report.md`, `report.html` and `report.json` in its folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from agent.files import write_text
from evals.report.calibration import calibration_text
from evals.report.charts import Curve, Mark, calibration_svg, interval_svg, scatter_svg, strip_svg, survival_svg
from evals.report.markdown import report_markdown
from evals.report.pages import render_page
from evals.report.summary import Board, Summary, run_facts, summarise
from evals.report.survival import NOT_EVALUABLE, survival_text
from evals.report.tables import case_table, confusion, effort, further, leaderboard, published, reach, versus
from evals.results import EvalRun

NAMES = ("report.md", "report.html", "report.json")


def write_reports(
    runs: Sequence[EvalRun],
    folder: Path | None = None,
    *,
    not_run: Mapping[str, str] | None = None,
    copied: bool = False,
) -> Summary:
    """Write all three, into the lead's folder unless another is given.

    Args:
        runs: On the same data, the lead first.
        folder: Where the reports go.
        not_run: Further lines of the leaderboard that could not be run, and why.
        copied: The lead's traces lie in the folder of the reports too.

    Raises:
        InputError: the runs can't be reported together.
        RunError: the folder can't be written.
    """
    summary = summarise(runs, not_run=not_run)
    target = runs[0].folder if folder is None else folder
    if target != runs[0].folder and not copied:
        summary = _linked_from(summary, runs[0].folder, target)
    for name, text in zip(NAMES, (report_markdown(summary), report_html(summary), report_json(summary)), strict=True):
        write_text(target / name, text)
    return summary


def _linked_from(summary: Summary, lead: Path, target: Path) -> Summary:
    """The same summary with traces named relative to the folder that the reports go to."""
    way = Path(os.path.relpath(lead.resolve(), target.resolve()))
    cases = []
    for case in summary.cases:
        traces = {"trace": case.trace, "alone_trace": case.alone_trace}
        there = {name: (way / trace).as_posix() for name, trace in traces.items() if trace is not None}
        cases.append(case.model_copy(update=there))
    return summary.model_copy(update={"cases": tuple(cases)})


def report_json(summary: Summary) -> str:
    """The summary as JSON."""
    return summary.model_dump_json(indent=1) + "\n"


def report_html(summary: Summary) -> str:
    """One page that needs no network, no script and no other file to be read; traces are linked, not loaded."""
    lead_board = summary.boards[0]
    quality = "regret" if summary.regrets else "f1"
    panel = summary.survival
    groups = (("lower simulated risk", panel.lower), ("higher", panel.higher)) if panel else ()
    curves = [Curve(name, c.months, c.values, c.low, c.high, c.at_risk) for name, c in groups]
    groups = (("lower simulated risk", panel.lower_hazard), ("higher", panel.higher_hazard)) if panel else ()
    hazards = [Curve(name, c.months, c.values, c.low, c.high, c.at_risk) for name, c in groups]
    return render_page(
        "report.html.j2",
        summary=summary,
        facts=run_facts(summary),
        boards=[table for board in summary.boards for table in (leaderboard(summary, board), further(board))],
        published=published(),
        versus=versus(summary),
        effort=effort(summary),
        reach=reach(summary),
        confusions=[confusion(summary, board.variant) for board in summary.boards],
        cases=case_table(summary),
        f1_svg=[
            (board.variant, Markup(interval_svg(_marks(board, "f1", 100.0), "F1 % (more is better)")))
            for board in summary.boards
        ],
        regret_svg=Markup(interval_svg(_marks(lead_board, "regret", 1.0), "regret (less is better)", 3)),
        strip_svg=Markup(strip_svg(summary.regrets, "regret of each case: 0 best allowed, 1 worst", summary.label)),
        cost_svg=Markup(_cost(lead_board, quality)),
        calibration_svg=Markup(
            calibration_svg(summary.calibration.pairs, "simulated log hazard", "true") if summary.calibration else ""
        ),
        calibration=calibration_text(summary.calibration) if summary.calibration else "",
        survival_svg=Markup(survival_svg(curves)),
        hazard_svg=Markup(survival_svg(hazards, hazard=True)),
        survival=survival_text(panel) if panel else NOT_EVALUABLE,
    )


def _marks(board: Board, metric: str, factor: float) -> list[Mark]:
    marks = []
    for line in board.lines:
        figure = line.figures.get(metric)
        if figure is not None:
            low = None if figure.low is None else figure.low * factor
            high = None if figure.high is None else figure.high * factor
            marks.append(Mark(line.label, figure.mean * factor, low, high, line.lead))
    return marks


def _cost(board: Board, quality: str) -> str:
    """Quality against effort: money where any was spent, else what was simulated, else seconds.

    Seconds say little where evaluations share their simulations, or the machine with others.
    """
    spent = [
        name
        for name in ("cost_usd", "simulations", "seconds")
        if any((figure := line.figures.get(name)) is not None and figure.mean > 0 for line in board.lines)
    ]
    name = spent[0] if spent else "seconds"
    axis = {"cost_usd": "cost per case (USD, list price)", "simulations": "simulations per case",
            "seconds": "seconds per case"}[name]  # fmt: skip
    factor, label = (1.0, "regret (less is better)") if quality == "regret" else (100.0, "F1 %")
    points = []
    for line in board.lines:
        figure, effort_ = line.figures.get(quality), line.figures.get(name)
        asked = line.who in ("own", "fallback", "alone") or line.who.startswith("run")
        if figure is not None and not (effort_ is None and asked):
            points.append((line.label, effort_.mean if effort_ else 0.0, figure.mean * factor, line.lead))
    return scatter_svg(points, axis, label)
