"""Write `report.html`: one file that needs no network, no script and no other file to be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from agent.files import write_text
from agent.plan import Plan
from agent.report import grounds, view
from agent.report.charts import risk_svg, survival_svg
from agent.report.slices import (
    LIVER_WINDOW,
    OIL_WINDOW,
    STYLES,
    Frame,
    choose_frame,
    make_panel,
    panel_svg,
)
from agent.report.text import number, paragraphs, timestamp
from agent.report.tree import tree_svg
from models.case import Case
from tools.compose_outcome import compose_outcome
from tools.workspace import Workspace

REPORT_NAME = "report.html"


def write_report(plan: Plan, workspace: Workspace, run_dir: Path) -> Path:
    """Write the report of a plan into its run folder.

    The page embeds slices of the case and, for the chosen protocol and at most two runners-up, of the replica whose
    objective is nearest to the mean. Outcomes are composed one after another, so that one at a time lies in memory.

    Args:
        plan: The plan, blocked or not.
        workspace: Holds the case and the outcomes that the plan refers to.
        run_dir: The run folder; it must exist.

    Returns:
        The path of `report.html`. The file is replaced in one step: a reader sees the old page or the new one.

    Raises:
        RunError: The file can't be written.
        CaseError: The case is missing or was changed.
        ToolError: An outcome of the plan is not in the run's artifacts.
    """
    case = workspace.case(plan.case_id)
    finalists = view.named_finalists(plan)
    gallery, frame = _gallery(plan, finalists, workspace)
    html = render(plan, case_facts=_case_facts(case), gallery=gallery, frame=frame)
    path = Path(run_dir) / REPORT_NAME
    write_text(path, html)
    return path


def _case_facts(case: Case) -> list[tuple[str, str]]:
    """What is known of the patient, from the clinical record, as label and value with unit."""
    return [(label, f"{value} {unit}".strip()) for label, value, unit in case.record.to_display()]


def _gallery(plan: Plan, finalists: Sequence[view.Named], workspace: Workspace) -> tuple[list[dict[str, Any]], Frame]:
    """All panels: one entry per slice position with one SVG per column (before, then each finalist)."""
    before, labels = workspace.image(plan.case_id)
    frame = choose_frame(labels, before.affine)

    def column(title: str, data: NDArray[Any], segmentation: NDArray[np.uint8] | None) -> list[str]:
        return [panel_svg(make_panel(title, frame, k, data, labels, segmentation)) for k in frame.positions]

    columns = [column("Before treatment", before.data, None)]
    for named in finalists:
        volume, segmentation = compose_outcome(named.finalist.assessed.shown_replica.outcome_id, workspace=workspace)
        columns.append(column(f"Simulated after {named.key}", volume.data, segmentation))
    entries = [
        {
            "number": k + 1,
            "mm": number(frame.position_mm(k), 1, signed=True),
            "key": k in frame.key,
            "widest": k == frame.widest,
            "panels": [Markup(svgs[i]) for svgs in columns],
        }
        for i, k in enumerate(frame.positions)
    ]
    return entries, frame


def render(
    plan: Plan, *, case_facts: Sequence[tuple[str, str]], gallery: Sequence[dict[str, Any]], frame: Frame
) -> str:
    """The page as text.

    Args:
        plan: The plan.
        case_facts: Label and value of the clinical record.
        gallery: Slices from feet to head, each with a panel per column.
        frame: The region that the panels share.
    """
    finalists = view.named_finalists(plan)
    shown = {f.key for f in finalists}
    others = [a for a in plan.assessed if a.key not in shown and a.complete and a.allowed]
    fired, fired_elsewhere = grounds.rule_rows(plan, finalists)
    unclear, unclear_elsewhere = grounds.rule_rows(plan, finalists, "not_evaluable")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Markup below comes from our own SVG writers, which escape what a plan or a case brings in.
    return environment.get_template("report.html.j2").render(
        plan=plan,
        synthetic=plan.origin.model_origin == "synthetic",
        finalists=finalists,
        dose_line=view.dose_line(plan.chosen) if plan.chosen else "",
        headline=view.headline(plan),
        gallery=gallery,
        frame=frame,
        styles=STYLES if finalists else STYLES[:1],
        windows=(LIVER_WINDOW, OIL_WINDOW),
        start=next((i for i, entry in enumerate(gallery) if entry["widest"]), 0),
        response=view.response_rows(plan, finalists),
        risk=view.risk_rows(finalists),
        survival=view.survival_rows(finalists),
        survival_svg=Markup(survival_svg([f.finalist for f in finalists], [f"{f.name}: {f.key}" for f in finalists])),
        risk_svg=Markup(risk_svg([f.finalist for f in finalists], others)),
        tree_svg=Markup(tree_svg(plan)),
        tree=grounds.tree_rows(plan),
        others=len(others),
        fired=fired,
        fired_elsewhere=fired_elsewhere,
        unclear=[*unclear, *unclear_elsewhere],
        missing=grounds.missing_inputs(plan, finalists, [*unclear, *unclear_elsewhere]),
        origins=grounds.origin_rows(plan),
        created=timestamp(plan.execution.created),
        moment=timestamp,
        refused=plan.rejected is not None and plan.rejected.gate == "actions",
        put_in_by=next((a.by for a in reversed(plan.approvals) if (a.gate, a.decision) == ("plan", "edit")), ""),
        weights=view.weights_sentence(plan),
        goal=", ".join(name.replace("_", " ") for name in plan.goal.names),
        case_facts=case_facts,
        scores=grounds.score_rows(plan),
        clinical=grounds.clinical_rows(plan),
        clinical_note=grounds.clinical_sentences(plan),
        rationale=paragraphs(plan.explanation),
        observation=paragraphs(plan.observation),
    )
