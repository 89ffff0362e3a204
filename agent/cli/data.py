"""`mewm data`: write synthetic cases and training pools; list, download and import the public collection."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from agent.cli import hcc_tace_seg

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
) -> None:
    """Render a training pool; a finished one with the same arguments is kept."""
    from models.phantom.pool import write_pool

    with Progress() as bar:
        line = bar.add_task("patients", total=n)
        write_pool(n, k, seed, out, workers, lambda done, _: bar.update(line, completed=done))
    typer.echo(f"The pool of {n} patients with {k} protocols each is in {out}.")
