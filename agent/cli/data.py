"""`mewm data`: write synthetic cases and training pools; list, download and import the public collection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, TimeElapsedColumn

from agent.cli import hcc_tace_seg

if TYPE_CHECKING:
    from models.networks.preset import Preset

app = typer.Typer(no_args_is_help=True, help="Write synthetic data (phantoms); get and import the public collection.")
app.add_typer(hcc_tace_seg.app, name="hcc-tace-seg")


@app.command("phantom")
def phantom(
    n: Annotated[int, typer.Option("--n", min=1, help="Number of cases.")],
    out: Annotated[Path, typer.Option(help="Folder that gets one case folder per patient.")],
    seed: Annotated[int, typer.Option(help="Seed of the first patient.")] = 0,
    truth: Annotated[
        Path | None,
        typer.Option(help="Folder for the truth (true response, follow-up, survival), apart from the cases."),
    ] = None,
) -> None:
    """Write synthetic cases that `mewm plan` can read; the truth goes to a folder of its own."""
    from models.phantom.cohort import truth_folder, write_cohort

    truth = truth or truth_folder(out)
    with Progress() as bar:
        line = bar.add_task("cases", total=n)
        write_cohort(n, seed, out, truth, lambda done, _: bar.update(line, completed=done))
    typer.echo(f"Wrote {n} synthetic cases to {out}, their truth to {truth}.")


@app.command("pool")
def pool(
    n: Annotated[int, typer.Option("--n", min=8, help="Number of patients.")],
    out: Annotated[Path, typer.Option(help="Folder of the pool.")],
    k: Annotated[int, typer.Option("--k", min=2, help="Protocols per patient.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the first patient.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    preset: Annotated[str, typer.Option(help="Preset that is trained on it: it gives cubes and voxels.")] = "small",
) -> None:
    """Render a training pool; a finished one with the same arguments is kept, a broken-off one is gone on with."""
    from models.networks.preset import Preset

    render_pool(n, k, seed, out, workers, Preset.load(preset))
    typer.echo(f"The pool of {n} patients with {k} protocols each is in {out}.")


def render_pool(n: int, k: int, seed: int, out: Path, workers: int, preset: Preset) -> None:
    """Render a training pool for a preset, with a progress bar; see `write_pool`."""
    from models.phantom.pool import write_pool

    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        line = bar.add_task("patients", total=n)
        write_pool(
            n, k, seed, out, workers, lambda done, _: bar.update(line, completed=done),
            size=preset.size, finest_mm=preset.spacing_mm,
        )  # fmt: skip


@app.command("card")
def card(
    out: Annotated[Path, typer.Option(help="Folder of the card: Markdown, JSON, HTML and a picture.")],
    table: Annotated[
        Path | None,
        typer.Option(help="Clinical table of HCC-TACE-Seg (.xlsx); without it the real figures of the shipped card."),
    ] = None,
    scans: Annotated[
        Path | None,
        typer.Option(help="Folder with a real patient's pre_arterial, pre_portal, post_arterial and pre_labels NIfTI."),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Phantoms of the distributions.")] = 400,
    hardness_n: Annotated[int, typer.Option(help="Phantoms of the hardness figures.")] = 200,
    scans_n: Annotated[int, typer.Option(help="Phantoms whose scans are rendered and measured.")] = 120,
) -> None:
    """Set the phantom cohort beside the real collection, and show how hard it is to plan for."""
    from evals.phantom_card import measure_card, write_card

    command = f"mewm data card --n {n} --hardness-n {hardness_n} --scans-n {scans_n}"
    command += (" --table TABLE" if table else "") + (" --scans FOLDER" if scans else "")
    totals = {"patients": n, "scans": scans_n, "hardness": hardness_n, "visibility": scans_n}
    with Progress() as bar:
        lines = {name: bar.add_task(name, total=total) for name, total in totals.items()}
        figures = measure_card(n, hardness_n, scans_n, table, scans, command, lambda part: bar.advance(lines[part]))
    write_card(figures, out)
    for name, met in figures["hardness"]["met"].items():
        typer.echo(f"{'met' if met else 'MISSED'}: {name}")
    typer.echo(f"The data card is in {out}.")
