"""Report panel: the report of a plan, and what can be downloaded of it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from agent.export import simulated_scans
from agent.files import unwritable
from agent.plan import Plan
from agent.report.text import timestamp
from agent.run import Standing, open_run
from agent.web.access import Owner
from agent.web.plan_panel import empty, part
from models.case import Case
from models.dicom_export import export_case
from models.errors import RunError

DICOM = "dicom.zip"


def report_html(owner: Owner, folder: Path, plan_id: str, standing: Standing) -> str:
    """Links to the files of a plan, and the report itself; before there is one, why not.

    Args:
        owner: Whose plan it is.
        folder: Its run folder.
        plan_id: Its name in the conversation.
        standing: Where it stands.
    """
    plan = standing.plan
    if plan is None or "report" not in plan.artifacts or not (folder / plan.artifacts["report"]).is_file():
        if standing.status == "waiting":
            return empty(
                f"{plan_id} waits for a decision. Its report and files are written when it is approved or rejected."
            )
        return empty(f"{plan_id} is not ready. Its report and files are written at its end.")
    return part(
        "report",
        plan=plan,
        plan_id=plan_id,
        view=owner.url(folder / plan.artifacts["report"], inline=True),
        documents=_links(
            owner, folder, {"Report": plan.artifacts["report"], "Plan": "plan.json", "Trace": "trace.jsonl"}
        ),
        volumes=[
            (finalist.place, finalist.assessed.key, _links(owner, folder, _volumes(plan, finalist.place)))
            for finalist in plan.finalists
        ],
        dicom=_links(owner, folder, {"DICOM": DICOM}),
        moment=timestamp,
    )


def _volumes(plan: Plan, place: int) -> dict[str, str]:
    named = {"Simulated CT": f"simulated {place}", "Segmentation": f"segmentation {place}"}
    return {label: plan.artifacts[name] for label, name in named.items() if name in plan.artifacts}


def _links(owner: Owner, folder: Path, files: dict[str, str]) -> list[tuple[str, str, str, float]]:
    """Label, name, address and size in MB of the files that are there."""
    return [
        (label, Path(name).name, owner.url(path), path.stat().st_size / 1e6)
        for label, name in files.items()
        if (path := folder / name).is_file()
    ]


def make_dicom(folder: Path) -> Path:
    """Write the case, its labels and the chosen protocol's simulated scan as DICOM, in one archive of the run folder.

    Raises:
        RunError: there is no plan with a protocol, its volumes are gone, or the folder can't be written.
        MewmError: what the export raises.
    """
    case = Case.load(open_run(folder).record.case_path)
    scans = simulated_scans(case, folder, every=False)
    try:
        with tempfile.TemporaryDirectory(prefix=".dicom.", dir=folder) as made:
            export_case(case, Path(made) / "dicom", scans)
            packed = shutil.make_archive(str(Path(made) / "packed"), "zip", made, "dicom")
            return Path(packed).replace(folder / DICOM)
    except OSError as exc:
        raise RunError(unwritable(folder, exc)) from exc
