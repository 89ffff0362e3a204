"""`mewm case`: import a CT as a case, show what is in a case."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agent.cli import export, register
from models.case import Case
from models.errors import CaseError
from models.volume import LABEL_NAMES

app = typer.Typer(no_args_is_help=True, help="Import a CT as a case, show, register and export what is in a case.")
register.register(app)
export.register(app)


@app.command("import")
def import_(
    src: Annotated[Path, typer.Argument(help="NIfTI file, DICOM series folder, or patient folder of an archive.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new case; it must not exist.")],
    labels: Annotated[
        Path | None, typer.Option(help="NIfTI labels: 1 liver, 2 tumour, 3 portal vein, 4 aorta.")
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Clinical record, YAML or JSON, quantities with units.")] = None,
    series: Annotated[
        str | None,
        typer.Option(help="Number or UID of the DICOM series; several with commas: first study before treatment."),
    ] = None,
    case_id: Annotated[str | None, typer.Option("--id", help="Name of the case; else made from SRC.")] = None,
    tumour_label: Annotated[int, typer.Option(help="Number that means tumour in the labels.", min=1, max=255)] = 2,
) -> None:
    """Make a case of a CT. Without --series, a folder with several series is answered with their list."""
    from models.case_import import import_case

    case = import_case(src, out, labels, record, series, case_id, tumour_label)
    show_case(case, Console())


@app.command()
def show(
    directory: Annotated[Path, typer.Argument(metavar="CASE", help="Case folder.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also draw the case to this PNG file.")] = None,
) -> None:
    """Print what is in a case, after checking its files, and draw it."""
    case = Case.load(directory)
    show_case(case, Console())
    if out is not None:
        from models.case_picture import write_case_picture

        if out.suffix.lower() != ".png":
            raise CaseError(f"The picture is a PNG, but {out} is not named so; give a name that ends in .png.")
        typer.echo(f"Picture: {write_case_picture(case, out)}")


def show_case(case: Case, console: Console) -> None:
    """Print a case as tables.

    Args:
        case: the case.
        console: where to print.
    """
    console.print(f"[bold]Case {case.case_id}[/] ({case.origin}) {escape(case.origin_note)}")
    console.print(f"{escape(str(case.path))}, content {case.content_hash[:12]}", highlight=False)
    default = case.default_image().name
    images = Table("image", "phase", "day", "voxels", "spacing mm", "plan", title="Images")
    for column in images.columns:
        column.no_wrap = True
    for image in case.images:
        images.add_row(
            image.name,
            image.phase,
            str(image.day),
            "x".join(map(str, image.shape)),
            "x".join(f"{side:.3g}" for side in image.spacing_mm),
            "yes" if image.name == default else "",
        )
    console.print(images)
    if note := case.image_note():
        console.print(note, highlight=False)
    if case.labels is None:
        console.print("No labels: liver and tumour are not known, so the case can't be planned.")
    else:
        labels, volume = case.label_array(), case.volume()
        table = Table("label", "volume ml", "mean HU", title=f"Labels, on the grid of {case.labels.image}")
        for value, name in LABEL_NAMES.items():
            inside = labels == value
            if inside.any():
                hu = float(volume.data[inside].mean())
                table.add_row(name, f"{inside.sum() * volume.voxel_ml:.1f}", f"{hu:.0f}")
        console.print(table)
    rows = case.record.to_display()
    if not rows:
        console.print("The clinical record is empty: rules that need it will be not evaluable.")
        return
    record = Table("item", "value", "unit", title="Clinical record")
    for row in rows:
        record.add_row(*row)
    console.print(record)
