"""`mewm train`: train the networks of the world model and export them as a bundle."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli import clinical
from agent.cli.data import render_pool
from agent.cli.recorded_command import recorded_command, source_commit
from models.errors import InputError

if TYPE_CHECKING:
    from models.networks.preset import Preset
    from models.weights import Origin, PartName

COMMAND = "command.txt"
DATA = "data.json"
ORDER: tuple[PartName, ...] = ("autoencoder", "denoiser", "segmenter", "localiser", "survival")

PHANTOM, PATIENTS, PROTOCOLS = Path("phantom"), 3000, 4
"""Word for --data, and the pool that it stands for: that of the shipped weights."""

Data = Annotated[
    Path,
    typer.Option(
        help="Pool made by `mewm data pool`; or a folder of imported, registered cases; or `phantom`: a pool of "
        f"{PATIENTS} patients is rendered into --out first."
    ),
]
Given = Annotated[
    Path | None,
    typer.Option(help="What real cases were given: clinical table (.xlsx) or CSV (case_id,protocol,months,died)."),
]
Mix = Annotated[
    str | None, typer.Option(help="POOL:RATIO: phantoms beside real cases, so many drawn for one real cube.")
]
Out = Annotated[Path, typer.Option(help="Folder of the run; each network gets a sub-folder.")]
PresetName = Annotated[str, typer.Option("--preset", help="Name of a file in models/presets.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of weights and batches.")]
Minutes = Annotated[float | None, typer.Option(help="Training time; by default the preset's.")]
Steps = Annotated[int | None, typer.Option(help="Stop after so many steps instead: reproducible bit for bit.")]
Change = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE: another value of the preset, as denoiser.objective=noise; repeatable."),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out; finished networks are kept.")]

_train = typer.Typer(no_args_is_help=True, help="Train the world model and export its weights.")
clinical.register(_train)


def _run(
    parts: tuple[PartName, ...], data: Path, out: Path, preset_name: str, seed: int, minutes: float | None,
    steps: int | None, resume: bool, given: Path | None, mix: str | None, changes: list[str] | None, device: str,
) -> None:  # fmt: skip
    from models.networks.preset import Preset
    from models.training.loop import FINAL, RunOptions
    from models.training.parts import absent_for_simulations, choose_device, train_part
    from models.training.processes import Processes

    if minutes is not None and minutes <= 0:
        raise InputError(f"--minutes must be above 0, not {minutes:g}.")
    if steps is not None and steps < 1:
        raise InputError(f"--steps must be at least 1, not {steps}.")
    preset = Preset.load(preset_name, changes or ())
    me = Processes.join()
    place = choose_device(device)
    budgets = shared_out(minutes, parts, preset)
    pool = me.in_turn(lambda: _open(data, out, preset, given, mix, parts))
    origin = getattr(pool, "origin", "synthetic")
    for name in parts:
        if me.first and (absent := absent_for_simulations(name, out)):
            typer.echo(f"There is no trained {' and no '.join(absent)} in {out}: the {name} sees no simulated scans.")
        finished = (out / name / FINAL).exists()
        options = RunOptions(seed=seed, minutes=budgets[name], steps=steps, resume=resume)
        result = train_part(name, pool, preset, out, options, origin=origin, device=place)
        if not me.first:
            continue
        # what was really run, for the provenance of the exported weights; a finished network was not trained again
        if not (finished and (out / name / DATA).exists()):
            (out / name / COMMAND).write_text(recorded_command() + "\n", encoding="utf-8")
            about = {
                "data_hash": pool.data_hash, "origin": origin, "commit": source_commit(), "seed": seed,
                "steps": result.step,
            }  # fmt: skip
            (out / name / DATA).write_text(json.dumps(about) + "\n", encoding="utf-8")
        figures = ", ".join(f"{key} {value:.4g}" for key, value in result.metrics.items())
        typer.echo(f"{name}: {result.step} steps in {result.seconds / 60:.1f} min; {figures}")


def shared_out(minutes: float | None, parts: tuple[PartName, ...], preset: Preset) -> dict[PartName, float | None]:
    """Minutes of each network: all of them in the proportions of the preset; None leaves the preset's own."""
    own = {name: float(getattr(preset.training, name).minutes) for name in parts}
    total = sum(own.values())
    return {name: None if minutes is None else minutes * value / total for name, value in own.items()}


def _open(
    data: Path, out: Path, preset: Preset, given: Path | None, mix: str | None, parts: tuple[PartName, ...]
) -> Any:
    """The training data, after saying what of real cases is used.

    Raises:
        InputError: see `open_training_data`; or the survival network is to be trained without what it needs.
    """
    from rich.progress import Progress

    from models.training.mixed_pool import TrainingData, open_training_data

    if data == PHANTOM and not data.exists():
        if given is not None or mix is not None:  # before minutes of rendering
            raise InputError("--given and --mix go with a folder of real cases in --data, not with phantom.")
        data = out / "pool"
        render_pool(PATIENTS, PROTOCOLS, 0, data, 2, preset)
    with Progress(transient=True) as bar:
        line = bar.add_task("cutting cubes of real cases", total=None, visible=given is not None)
        pool = open_training_data(
            data, out, preset, given, mix, lambda done, total: bar.update(line, completed=done, total=total)
        )
    if not isinstance(pool, TrainingData):
        return pool
    for case_id, reason in pool.left_out.items():
        typer.echo(f"{case_id} is left out: {reason}")
    drawn = "" if pool.ratio is None else f", {pool.ratio:.3g} phantoms drawn for one real cube"
    typer.echo(f"Training data {pool.data_hash} ({pool.origin}{drawn}).")
    if "survival" in parts and (pool.ratio is None or pool.without_outcome):
        lacking = f"; no outcome: {', '.join(pool.without_outcome)}" if pool.without_outcome else ""
        raise InputError(
            "The survival network needs phantoms beside the real cases (--mix), whose true hazard it is validated on, "
            f"and months and died of every real patient{lacking}."
        )
    return pool


def _command(name: PartName) -> None:
    @_train.command(name, help=f"Train the {name}.")
    def command(
        data: Data, out: Out, preset: PresetName = "small", seed: Seed = 0, minutes: Minutes = None,
        steps: Steps = None, resume: Resume = False, given: Given = None, mix: Mix = None, change: Change = None,
        device: Device = "auto",
    ) -> None:  # fmt: skip
        _run((name,), data, out, preset, seed, minutes, steps, resume, given, mix, change, device)


for _name in ORDER:
    _command(_name)


@_train.command("all")
def train_all(
    data: Data, out: Out, preset: PresetName = "small", seed: Seed = 0, minutes: Minutes = None, steps: Steps = None,
    resume: Resume = False, given: Given = None, mix: Mix = None, change: Change = None, device: Device = "auto",
) -> None:  # fmt: skip
    """Train all networks in turn, each for the minutes of the preset; --minutes is shared out in its proportions."""
    _run(ORDER, data, out, preset, seed, minutes, steps, resume, given, mix, change, device)


def _recorded(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise InputError(f"{path} is missing: train this network with `mewm train` before exporting.") from None


def _trained_on(run: Path, data: Path | None) -> tuple[dict[str, str], Origin]:
    """What the networks of a run were trained on (`data`), by which commits and with which seeds; the data's origin.

    Raises:
        InputError: the run does not say so, and `data` is not given.
    """
    from models.phantom.pool import PatchPool
    from models.weights import told_by_network

    files = [run / name / DATA for name in ORDER]
    if all(file.exists() for file in files):
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        origins = {str(one["origin"]) for one in found}
        origin: Origin = "mixed" if len(origins) > 1 else origins.pop()  # type: ignore[assignment]
        told = {
            key: told_by_network({n: str(one.get(name, "unknown")) for n, one in zip(ORDER, found, strict=True)})
            for key, name in (("data", "data_hash"), ("seed", "seed"), ("commit", "commit"))
        } | {
            "steps": ", ".join(f"{name} {one.get('steps', 'unknown')}" for name, one in zip(ORDER, found, strict=True)),
        }
        return told, origin
    if data is None:
        raise InputError(f"The run in {run} does not say what it was trained on; give its pool with --data.")
    return {"data": str(PatchPool.open(data).data_hash), "seed": "unknown", "commit": "unknown"}, "synthetic"


@_train.command("export")
def export(
    run: Annotated[Path, typer.Argument(help="The --out folder of the training.")],
    data: Annotated[Path | None, typer.Option(help="Its pool, where the run does not say what it was.")] = None,
    preset: PresetName = "small",
    change: Change = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of the bundle; by default the shipped one.")] = None,
) -> None:
    """Write the trained networks as a bundle of safetensors files with a manifest."""
    from models.networks.preset import Preset
    from models.training.export import export_bundle
    from models.weights import DEFAULT_WEIGHTS

    folder = DEFAULT_WEIGHTS if weights is None else weights
    told, origin = _trained_on(run, data)
    provenance: dict[str, str] = {
        **{str(name): _recorded(run / name / COMMAND) for name in ORDER},
        "export": recorded_command(),
        **told,
        "date": datetime.now(UTC).date().isoformat(),
    }
    manifest = export_bundle(run, Preset.load(preset, change or ()), folder, origin=origin, provenance=provenance)
    total = sum(file.bytes for file in manifest.files.values()) / 2**20
    typer.echo(f"Wrote weights {manifest.weights_hash} ({total:.1f} MiB) to {folder}.")


@_train.command("unpack")
def unpack(
    run: Annotated[Path, typer.Argument(help="Folder of a run, as --out of the training.")],
    only: Annotated[list[str] | None, typer.Option(help="One of the networks; repeatable. By default all.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of the bundle; by default the shipped one.")] = None,
) -> None:
    """Write the networks of a bundle as finished runs: another network can be trained on them, and exported with them.

    For example to train the survival network again on the shipped others:
    `mewm train unpack runs/again --only autoencoder --only denoiser --only segmenter --only localiser`, then
    `mewm train survival --data POOL --out runs/again`.
    """
    from models.training.export import unpack_bundle
    from models.weights import DEFAULT_WEIGHTS, read_manifest, told_of_network

    wanted = [name for name in ORDER if name in (only or ORDER)]
    if unknown := sorted(set(only or ()) - set(ORDER)):
        raise InputError(f"There is no network '{unknown[0]}'; the networks are {', '.join(ORDER)}.")
    folder = DEFAULT_WEIGHTS if weights is None else weights
    manifest = read_manifest(folder)
    told = manifest.provenance
    steps = dict(one.split(" ", 1) for one in told.get("steps", "").split(", ") if " " in one)
    notes: dict[PartName, dict[str, str]] = {}
    for name in wanted:
        about = {
            "data_hash": told_of_network(name, told.get("data", "unknown")), "origin": manifest.origin,
            "commit": told_of_network(name, told.get("commit", "unknown")),
            "seed": told_of_network(name, told.get("seed", "unknown")), "steps": steps.get(name, "unknown"),
        }  # fmt: skip
        notes[name] = {COMMAND: told.get(name, "unknown") + "\n", DATA: json.dumps(about) + "\n"}
    unpack_bundle(folder, run, wanted, notes)
    typer.echo(f"Wrote {', '.join(wanted)} of the weights {manifest.weights_hash} to {run}.")


@_train.command("attenuation-picture")
def attenuation_picture(
    out: Annotated[Path, typer.Option(help="PNG file.")] = Path("docs/attenuation.png"),
    seed: Annotated[int, typer.Option(min=0, help="Phantom patient that is shown.")] = 900_007,
) -> None:
    """Draw what the attenuation of the training does to a phantom's tumour, levels 1 to 4."""
    from models.training.attenuation_picture import draw_attenuation

    picture = draw_attenuation(seed)
    try:
        picture.save(out, format="PNG")
    except OSError as error:
        raise InputError(f"The picture can't be written to {out}: {error.strerror}; choose another --out.") from error
    typer.echo(f"Wrote {out}.")


def register(app: typer.Typer) -> None:
    """Mount `train` on the `mewm` command."""
    app.add_typer(_train, name="train")
