"""`mewm evaluate-models`: measure the networks on unseen phantoms and write their model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agent.cli.options import DeviceOption
from agent.cli.recorded_command import recorded_command
from models.errors import InputError

WORK = Path("runs") / "evaluate-models"


def evaluate_models(
    patients: Annotated[int | None, typer.Option(help="Unseen patients for dynamics and segmentation.", min=4)] = None,
    survival: Annotated[int | None, typer.Option(help="Unseen patients for survival.", min=8)] = None,
    tumour_free: Annotated[int | None, typer.Option(help="Livers without tumour.", min=4)] = None,
    protocols: Annotated[int | None, typer.Option(help="Random protocols of each patient.", min=4)] = None,
    replicas: Annotated[int | None, typer.Option(help="Simulations of each protocol.", min=2)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few patients: minutes instead of hours, wide intervals.")] = (
        False
    ),
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the card; by default that of the weights, if nothing is measured on fewer."),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of the bundle; by default the shipped one.")] = None,
    work: Annotated[Path, typer.Option(help="Folder of what is done; a stopped evaluation goes on there.")] = WORK,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    device: DeviceOption = "auto",
    planning: Annotated[
        Path | None, typer.Option(help="Result of `python -m evals.planning_table`, for the planning section.")
    ] = None,
    simulators: Annotated[
        Path | None, typer.Option(help="Result of `python -m evals.simulator_table`, for the comparison.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="The full-table.json of `mewm eval table --publish`, for the regret.")
    ] = None,
    real_data: Annotated[
        Path | None, typer.Option(help="Folder of the real development data: also measure HCC_009.")
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="Also draw pictures into this folder.")] = None,
) -> None:
    """Measure the networks on unseen synthetic patients and write MODEL_CARD.md and model_card.json."""
    # the harness loads the networks and the phantom: only when it is asked for
    from evals.model_card.blocks import Sizes
    from evals.model_card.evaluate import evaluate_models as measure
    from evals.model_card.extras import read_extras, read_full_table
    from models.weights import DEFAULT_WEIGHTS

    chosen = {
        "patients": patients, "survival_patients": survival, "tumour_free": tumour_free, "protocols": protocols,
        "replicas": replicas,
    }  # fmt: skip
    base = Sizes.quick() if quick else Sizes()
    sizes = base.model_copy(update={name: value for name, value in chosen.items() if value is not None})
    fewer = sorted(name for name, least in Sizes() if isinstance(least, int) and getattr(sizes, name) < least)
    if fewer and out is None:
        raise InputError(
            f"This measures too little for the card of the weights (fewer than there: {', '.join(fewer)}); give a "
            "folder with --out."
        )
    folder = weights or DEFAULT_WEIGHTS
    target = out or folder
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise InputError(f"The folder {out} can't be made ({exc.strerror}); choose another with --out.") from exc
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    console = Console(stderr=True)
    extra = read_extras(planning=planning, simulators=simulators)
    if table is not None:
        extra["table"] = read_full_table(table)
    if real_data is not None:
        from evals.model_card.real_patient import measure_real_patient

        with console.status("measuring the real patient HCC_009"):
            extra["real_patient"] = measure_real_patient(real_data, work / "real", folder, device, pictures)
    with Progress(*columns, console=console) as progress:
        bars = {}

        def show(block: str, done: int, wanted: int) -> None:
            if block not in bars:
                bars[block] = progress.add_task(block.replace("_", " "), total=wanted)
            progress.update(bars[block], completed=done)

        measure(
            sizes, target, work, weights=folder, device=device, workers=workers, progress=show, extra=extra,
            command=recorded_command(),
        )  # fmt: skip
    if pictures is not None:
        from evals.model_card.pictures import draw_pictures

        with console.status("drawing pictures"):
            written = draw_pictures(pictures, folder, device)
        console.print(f"{len(written)} pictures in {pictures}.")
    typer.echo((target / "MODEL_CARD.md").read_text(encoding="utf-8"))


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("evaluate-models")(evaluate_models)
