"""`mewm eval turing` and `mewm eval reader`: make and score studies with readers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

turing_app = typer.Typer(no_args_is_help=True, help="Visual Turing test: real or simulated?")
reader_app = typer.Typer(no_args_is_help=True, help="Reader study: protocols before and after seeing the plan.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]
Out = Annotated[Path, typer.Option(help="New folder.")]


@turing_app.command("make")
def turing_make(
    out: Out,
    real: Annotated[list[Path], typer.Option(help="Case folder with a scan after treatment; give it several times.")],
    simulated: Annotated[list[Path], typer.Option(help="Folder of a finished plan; give it several times.")],
    each: Annotated[int | None, typer.Option(help="Slices of either kind; by default as many as there are.")] = None,
    seed: Annotated[int, typer.Option(help="Of choice and order.")] = 0,
    window: Annotated[Literal["liver", "oil"], typer.Option(help="Grey scale.")] = "liver",
) -> None:
    """Write shuffled real and simulated slices with a form for the readers, and the key apart from them."""
    from evals.study import KEY, READERS
    from evals.turing import make_turing

    key = make_turing(real, simulated, out, each=each, seed=seed, window=window)
    typer.echo(f"{len(key.slices)} slices. For the readers: {out / READERS}. Keep from them: {out / KEY}.")


@turing_app.command("score")
def turing_score(
    key: Annotated[Path, typer.Argument(help="The key, or the folder that `make` wrote.")],
    forms: Annotated[list[Path], typer.Argument(help="Filled forms (CSV), one a reader, named after the reader.")],
    as_json: AsJson = False,
) -> None:
    """Sensitivity, specificity and accuracy of every reader, with intervals."""
    from evals.turing import read_form, read_key, score_turing, turing_markdown

    found = read_key(key)
    result = score_turing(found, {name: read_form(path, found) for name, path in by_reader(forms).items()})
    typer.echo(result.model_dump_json(indent=1) if as_json else turing_markdown(result), nl=as_json)


@reader_app.command("make")
def reader_make(
    run: Annotated[Path, typer.Argument(help="An evaluation with finished plans (`mewm eval run`).")],
    out: Out,
    limit: Annotated[int | None, typer.Option(help="Most cases.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of choice and order.")] = 0,
) -> None:
    """Write a form in which a reader gives a protocol per case before and after seeing the plan, and the key apart."""
    from evals.reader import make_reader
    from evals.study import KEY, READERS

    key = make_reader(run, out, limit=limit, seed=seed)
    typer.echo(f"{len(key.cases)} cases. For the readers: {out / READERS}. Keep from them: {out / KEY}.")


@reader_app.command("score")
def reader_score(
    key: Annotated[Path, typer.Argument(help="The key, or the folder that `make` wrote.")],
    forms: Annotated[list[Path], typer.Argument(help="Filled forms (CSV), one a reader, named after the reader.")],
    gold: Annotated[
        str | None, typer.Option(help="Gold variant; by default the one that the dataset leads with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """F1, Jaccard, precision and recall before and after, paired by case, and who changed what."""
    from evals.reader import read_form, read_key
    from evals.reader_score import reader_markdown, score_reader

    found = read_key(key)
    filled = {name: read_form(path, found) for name, path in by_reader(forms).items()}
    result = score_reader(found, filled, variant=gold)
    typer.echo(result.model_dump_json(indent=1) if as_json else reader_markdown(result), nl=as_json)


def by_reader(forms: list[Path]) -> dict[str, Path]:
    """Forms by reader: the file's name.

    Raises:
        InputError: two forms of one name.
    """
    from models.errors import InputError

    named: dict[str, Path] = {}
    for path in forms:
        if path.stem in named:
            raise InputError(f"Two forms are named {path.stem} ({named[path.stem]} and {path}): rename one.")
        named[path.stem] = path
    return named
