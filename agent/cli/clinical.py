"""`mewm train clinical`: fit the clinical survival model and write its coefficients and its card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from models.errors import RunError

COEFFICIENTS, CARD = "clinical_survival.yaml", "clinical_survival.md"


def train_clinical(
    clinical: Annotated[Path, typer.Option(help="Clinical table, HCC-TACE-Seg_clinical_data-V2.xlsx.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the two files; by default where the program reads them."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of folds and bootstrap.", min=0)] = 0,
) -> None:
    """Fit the clinical survival model on the table, cross-validate it, and write coefficients and model card."""
    from importlib import resources

    from agent.files import write_text
    from models.collection.clinical_table import read_clinical_table
    from models.training.clinical_card import clinical_card
    from models.training.clinical_survival import study, study_steps, to_yaml

    table = read_clinical_table(clinical)
    folder = Path(str(resources.files("models"))) if out is None else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"The folder {folder} can't be written: {error.strerror}.") from error
    command = f"mewm train clinical --clinical {clinical.name} --seed {seed}"
    with Progress(console=Console(stderr=True)) as bar:
        line = bar.add_task("cross-validation", total=study_steps())
        found = study(table, seed, command, lambda: bar.update(line, advance=1))
    head = f"# The clinical survival model, made by: {command}\n# Its card is {CARD}; run the command, don't edit.\n"
    write_text(folder / COEFFICIENTS, head + to_yaml(found.model))
    write_text(folder / CARD, clinical_card(found))
    full = found.model.variants[0]
    c = full.c_index
    typer.echo(
        f"Cross-validated c-index {c.value:.3f} ({c.low:.3f} to {c.high:.3f}), n = {full.n}, {full.deaths} deaths. "
        f"Wrote {folder / COEFFICIENTS} and {folder / CARD}."
    )


def register(app: typer.Typer) -> None:
    """Mount `clinical` on `mewm train`."""
    app.command("clinical")(train_clinical)
