"""`mewm case export`: a case and what a plan simulated on it, as DICOM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from models.errors import InputError, RunError

if TYPE_CHECKING:
    from models.case import Case
    from models.dicom_export import SimulatedScan


def case_export(
    directory: Annotated[Path, typer.Argument(metavar="CASE", help="Case folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the DICOM study; it must not exist.")],
    run: Annotated[Path | None, typer.Option(help="Run folder of `mewm plan` on this case.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every finalist of the run; by default the chosen protocol alone.")
    ] = False,
) -> None:
    """Write the planned CT, its labels and what a run simulated as DICOM; simulated series are marked as such."""
    from models.case import Case
    from models.dicom_export import export_case

    if every and run is None:
        raise InputError("--all chooses among the finalists of a run; give one with --run.")
    case = Case.load(directory)
    simulated = [] if run is None else _simulated(case, run, every)
    console = Console()
    with console.status("Writing") as status:
        written = export_case(case, out, simulated, lambda name: status.update(f"Writing {escape(name)}"))
    for path in written:
        console.print(escape(str(path)), soft_wrap=True, highlight=False)
    if simulated:
        console.print("What was simulated says so in its series description, image type and comment; research only.")


def _simulated(case: Case, folder: Path, every: bool) -> list[SimulatedScan]:
    """The simulated scans that a run left, the chosen protocol first.

    Raises:
        RunError: no plan there, a plan on another case, without a protocol, or whose volumes are gone.
    """
    from agent.export import finalist_folder
    from agent.plan import read_plan
    from agent.run import open_run
    from models.dicom_export import SimulatedScan
    from models.volume import load_exact, load_exact_labels

    record, plan = open_run(folder).record, read_plan(folder / "plan.json")
    if record.case_hash != case.with_changes(record.changes).content_hash:
        raise RunError(f"The run in {folder} is of another case than {case.path}; give the run of this case.")
    if plan.chosen is None:
        raise RunError(f"The plan in {folder} is blocked and chose no protocol, so there is nothing to export of it.")
    found = []
    for finalist in plan.finalists if every else (plan.chosen,):
        place = folder / finalist_folder(finalist)
        try:
            about = json.loads((place / "about.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"The simulated scan in {place} can't be read; run `mewm plan` again.") from error
        found.append(
            SimulatedScan(
                name=f"simulated_{finalist.place}",
                volume=load_exact(place / "simulated.nii.gz"),
                tissue=load_exact_labels(place / "segmentation.nii.gz")[0],
                protocol=about["protocol"],
                weights_hash=about["weights_hash"],
                trained_on=about["models_trained_on"],
            )
        )
    return found


def register(app: typer.Typer) -> None:
    """Mount `export` on `mewm case`."""
    app.command("export")(case_export)
