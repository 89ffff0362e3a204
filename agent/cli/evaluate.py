"""`mewm evaluate-models`: measure the networks on unseen phantoms and write their model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from models.errors import InputError

MODEL_CARD = ("model_card.json", "MODEL_CARD.md")


def evaluate_models(
    n: Annotated[int, typer.Option(help="Unseen phantom patients.")] = 60,
    protocols: Annotated[int, typer.Option(help="Random protocols for each.")] = 6,
    out: Annotated[Path | None, typer.Option(help="Folder of the card; by default that of the weights.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of the bundle; by default the shipped one.")] = None,
) -> None:
    """Measure the networks on unseen synthetic patients and write MODEL_CARD.md and model_card.json."""
    if n < 4 or protocols < 3:
        raise InputError(
            f"A model card needs at least 4 patients and 3 protocols; got --n {n} --protocols {protocols}."
        )
    # the harness loads the networks and the phantom: only when it is asked for
    from evals.world_model import evaluate_models as measure
    from models.weights import DEFAULT_WEIGHTS

    folder = weights or DEFAULT_WEIGHTS
    target = out or folder
    if not target.is_dir():
        raise InputError(f"The folder {target} does not exist; make it, or choose another with --out.")
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        bar = progress.add_task("patients measured", total=n)
        measure(n, protocols, target, folder, lambda done, _: progress.update(bar, completed=done))
    typer.echo((target / MODEL_CARD[1]).read_text(encoding="utf-8"))


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("evaluate-models")(evaluate_models)
