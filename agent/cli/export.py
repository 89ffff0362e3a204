"""`mewm case export`: a case and what a plan simulated on it, as DICOM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from models.errors import InputError


def case_export(
    directory: Annotated[Path, typer.Argument(metavar="CASE", help="Case folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the DICOM study; it must not exist.")],
    run: Annotated[Path | None, typer.Option(help="Run folder of `mewm plan` on this case.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every finalist of the run; by default the chosen protocol alone.")
    ] = False,
) -> None:
    """Write the planned CT, its labels and what a run simulated as DICOM; simulated series are marked as such."""
    from agent.export import simulated_scans
    from models.case import Case
    from models.dicom_export import export_case

    if every and run is None:
        raise InputError("--all chooses among the finalists of a run; give one with --run.")
    case = Case.load(directory)
    simulated = [] if run is None else simulated_scans(case, run, every)
    console = Console()
    with console.status("Writing") as status:
        written = export_case(case, out, simulated, lambda name: status.update(f"Writing {escape(name)}"))
    for path in written:
        console.print(escape(str(path)), soft_wrap=True, highlight=False)
    if simulated:
        console.print("What was simulated says so in its series description, image type and comment; research only.")


def register(app: typer.Typer) -> None:
    """Mount `export` on `mewm case`."""
    app.command("export")(case_export)
