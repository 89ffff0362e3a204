"""`mewm train`: train the networks of the world model and export them as a bundle."""

from __future__ import annotations

import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from models.errors import InputError

if TYPE_CHECKING:
    from models.weights import PartName

COMMAND = "command.txt"
ORDER: tuple[PartName, ...] = ("autoencoder", "denoiser", "segmenter", "survival")

Data = Annotated[Path, typer.Option(help="Folder of a pool made by `mewm data pool`.")]
Out = Annotated[Path, typer.Option(help="Folder of the run; each network gets a sub-folder.")]
PresetName = Annotated[str, typer.Option("--preset", help="Name of a file in models/presets.")]
Seed = Annotated[int, typer.Option(help="Seed of weights and batches.")]
Minutes = Annotated[float | None, typer.Option(help="Training time; by default the preset's.")]
Steps = Annotated[int | None, typer.Option(help="Stop after so many steps instead: reproducible bit for bit.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out; finished networks are kept.")]

_train = typer.Typer(no_args_is_help=True, help="Train the world model and export its weights.")


def _run(
    parts: tuple[PartName, ...], data: Path, out: Path, preset_name: str, seed: int, minutes: float | None,
    steps: int | None, resume: bool,
) -> None:  # fmt: skip
    from models.networks.preset import Preset
    from models.phantom.pool import PatchPool
    from models.training.autoencoder import train_autoencoder
    from models.training.denoiser import train_denoiser
    from models.training.export import load_trained_autoencoder
    from models.training.segmenter import train_segmenter
    from models.training.survival import train_survival

    if minutes is not None and minutes <= 0:
        raise InputError(f"--minutes must be above 0, not {minutes:g}.")
    if steps is not None and steps < 1:
        raise InputError(f"--steps must be at least 1, not {steps}.")
    preset = Preset.load(preset_name)
    pool: Any = PatchPool.open(data)
    if pool.pre.shape[1] != preset.size:
        raise InputError(
            f"The pool in {data} has cubes of {pool.pre.shape[1]} voxels; preset '{preset_name}' needs {preset.size}."
        )
    budget: dict[str, Any] = {"seed": seed, "minutes": minutes, "steps": steps, "resume": resume}
    trainers = {"denoiser": train_denoiser, "segmenter": train_segmenter, "survival": train_survival}
    for name in parts:
        if name == "autoencoder":
            result = train_autoencoder(pool, preset, out / name, **budget)
        else:
            autoencoder, identity = load_trained_autoencoder(out, preset)
            result = trainers[name](pool, preset, autoencoder, out / name, autoencoder_id=identity, **budget)
        # what was really run, for the provenance of the exported weights
        (out / name / COMMAND).write_text(_command_line() + "\n", encoding="utf-8")
        figures = ", ".join(f"{key} {value:.4g}" for key, value in result.metrics.items())
        typer.echo(f"{name}: {result.step} steps in {result.seconds / 60:.1f} min; {figures}")


def _command_line() -> str:
    """The command of this process, with folders by name only."""
    return "mewm " + shlex.join(Path(word).name if "/" in word else word for word in sys.argv[1:])


def _command(name: PartName) -> None:
    @_train.command(name, help=f"Train the {name}.")
    def command(
        data: Data, out: Out, preset: PresetName = "small", seed: Seed = 0, minutes: Minutes = None,
        steps: Steps = None, resume: Resume = False,
    ) -> None:  # fmt: skip
        _run((name,), data, out, preset, seed, minutes, steps, resume)


for _name in ORDER:
    _command(_name)


@_train.command("all")
def train_all(
    data: Data, out: Out, preset: PresetName = "small", seed: Seed = 0, steps: Steps = None, resume: Resume = False
) -> None:
    """Train all four networks in turn, each for the minutes of the preset."""
    _run(ORDER, data, out, preset, seed, None, steps, resume)


def _recorded(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise InputError(f"{path} is missing: train this network with `mewm train` before exporting.") from None


@_train.command("export")
def export(
    run: Annotated[Path, typer.Argument(help="The --out folder of the training.")],
    data: Data,
    preset: PresetName = "small",
    seed: Seed = 0,
    weights: Annotated[Path | None, typer.Option(help="Folder of the bundle; by default the shipped one.")] = None,
) -> None:
    """Write the trained networks as a bundle of safetensors files with a manifest."""
    from models.networks.preset import Preset
    from models.phantom.pool import PatchPool
    from models.training.export import export_bundle
    from models.weights import DEFAULT_WEIGHTS

    folder = DEFAULT_WEIGHTS if weights is None else weights
    provenance: dict[str, str] = {
        **{str(name): _recorded(run / name / COMMAND) for name in ORDER},
        "export": _command_line(),
        "seed": str(seed),
        "data": str(PatchPool.open(data).data_hash),
        "date": datetime.now(UTC).date().isoformat(),
    }
    manifest = export_bundle(run, Preset.load(preset), folder, origin="synthetic", provenance=provenance)
    total = sum(file.bytes for file in manifest.files.values()) / 2**20
    typer.echo(f"Wrote weights {manifest.weights_hash} ({total:.1f} MiB) to {folder}.")


def register(app: typer.Typer) -> None:
    """Mount `train` on the `mewm` command."""
    app.add_typer(_train, name="train")
