"""`python -m evals.trained_baselines`: trains what the world model is compared with, through its own training loop.

    python -m evals.trained_baselines POOL --out runs/baselines --minutes 20

trains, each for as long and from the same latents of the shipped autoencoder: the full denoiser again (so that the
table compares equals), the same diffusion without action (after DiffTumor, Chen et al. 2024), with text only (after
TextoMorph, Li et al. 2025), and the direct image regressor of the planning table. A stopped run goes on.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from safetensors.torch import load_file

from evals.image_regressor import ImageRegressor, RegressorTask
from evals.simulators import WorldModelSimulator
from models.engine import Engine
from models.errors import InputError, MewmError
from models.networks.denoiser import Denoiser
from models.networks.preset import Preset
from models.phantom.pool import PatchPool
from models.training.denoiser import train_denoiser
from models.training.loop import FINAL, METRICS, Cadence, RunOptions, RunResult, run_training
from models.training.pool import Pool
from models.weights import DEFAULT_WEIGHTS, load_world_model, read_manifest

MINUTES = 20.0
Condition = Literal["action", "text", "none"]


DENOISERS: dict[str, tuple[Condition, str]] = {
    "retrained": ("action", "the world model, trained as long"),
    "without_action": ("none", "diffusion without action (after DiffTumor)"),
    "text_only": ("text", "diffusion with text only (after TextoMorph)"),
}
REGRESSOR = "image_regressor"
VALIDATIONS = 20
"""Of the regressor, over its training."""
NAMES = (*DENOISERS, REGRESSOR)
LATENTS = "latents"


def preset_for(name: str, preset: Preset) -> Preset:
    """The shipped preset with the condition of a baseline. Without an action there is nothing to guide or contrast."""
    if name not in DENOISERS:
        return preset
    condition = DENOISERS[name][0]
    sizes: dict[str, Any] = {"condition": condition}
    training = preset.training.denoiser
    if condition == "none":
        sizes["guidance"] = 1.0
        training = training.model_copy(update={"options": {**training.options, "contrast_weight": 0.0}})
    return preset.model_copy(
        update={
            "denoiser": preset.denoiser.model_copy(update=sizes),
            "training": preset.training.model_copy(update={"denoiser": training}),
        }
    )


def train_baseline(
    name: str, pool: Pool, out: Path, *, weights: Path = DEFAULT_WEIGHTS, minutes: float = MINUTES,
    steps: int | None = None, seed: int = 0,
) -> RunResult:  # fmt: skip
    """Train one of `NAMES` in `out/name`, or go on.

    Args:
        name: What.
        pool: Training data.
        out: Folder of all baselines; they share the latents.
        weights: Bundle whose autoencoder and preset are used.
        minutes: Training time.
        steps: Overrides `minutes` and makes the run reproducible.
        seed: Of weights and batches.

    Raises:
        RunError: see `run_training`.
    """
    model = load_world_model(weights)
    preset = preset_for(name, model.preset)
    identity = read_manifest(weights).files["autoencoder.safetensors"].sha256[:12]
    often = 1.0 / VALIDATIONS if name == REGRESSOR else 0.25
    options = RunOptions(seed=seed, minutes=minutes, steps=steps, resume=True, cadence=Cadence(validate_every=often))
    if name != REGRESSOR:
        share_latents(out, name)
        return train_denoiser(pool, preset, model.autoencoder, out / name, options, autoencoder_id=identity)
    torch.manual_seed(seed)
    # more time must not make it worse: the best validation is kept, and the whole time is used
    best = {"watch": "within_patient_rank", "patience": VALIDATIONS}
    training = preset.training.survival.model_copy(update=best)
    fixed = f"{preset.model_dump_json()} {training.model_dump_json()} {pool.data_hash} {seed}"
    digest = hashlib.sha256(fixed.encode()).hexdigest()
    task = RegressorTask(pool, preset)
    return run_training(task, training, out / name, options, fingerprint=f"{name} {digest[:16]}")


def share_latents(out: Path, name: str) -> None:
    """One folder of latents for all denoisers: they are the same, and large."""
    (out / LATENTS).mkdir(parents=True, exist_ok=True)
    (out / name).mkdir(exist_ok=True)
    link = out / name / LATENTS
    if not link.exists():
        link.symlink_to(Path("..") / LATENTS, target_is_directory=True)


def trained_simulators(run: Path, weights: Path, engine: Engine) -> tuple[list[WorldModelSimulator], dict[str, str]]:
    """The trained simulators of a folder on the engine's other networks, and why the missing ones are not there.

    Args:
        run: `--out` of the training.
        weights: The bundle that they were trained with.
        engine: Its device, precision and batch.
    """
    model = engine.model
    found: list[WorldModelSimulator] = []
    not_run: dict[str, str] = {}
    for name, (_, label) in DENOISERS.items():
        path = run / name / FINAL
        if not path.exists():
            not_run[label] = f"not trained: python -m evals.trained_baselines POOL --out {run.name} --only {name}"
            continue
        preset = preset_for(name, read_manifest(weights).preset)
        network = Denoiser(preset.denoiser, preset.autoencoder.latent_channels)
        network.load_state_dict(load_file(path))
        network.requires_grad_(False).eval().to(engine.device)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        other = replace(model, denoiser=network, preset=preset, weights_hash=f"{model.weights_hash}-{name}-{digest}")
        own = Engine(engine.device, model=other, precision=engine.precision, batch=engine.batch)
        found.append(WorldModelSimulator(own, name, label))
    return found, not_run


def trained_minutes(run: Path) -> str:
    """How long the trained simulators of a folder were trained, as their own metrics say: ``20``, or ``18 to 20``."""
    found = {minutes for name in DENOISERS if (minutes := minutes_of(run, name)) is not None}
    return " to ".join(f"{value}" for value in sorted({min(found), max(found)})) if found else "no"


def minutes_of(run: Path, name: str) -> int | None:
    """Minutes that a network of a folder was trained, as its own metrics say; None where it was not."""
    if not (run / name / FINAL).exists():
        return None
    with (run / name / METRICS).open(newline="", encoding="utf-8") as file:
        return round(max(float(row["seconds"]) for row in csv.DictReader(file)) / 60.0)


def load_regressor(run: Path, preset: Preset) -> ImageRegressor | None:
    """The trained image regressor of a folder; None where it was not trained."""
    path = run / REGRESSOR / FINAL
    if not path.exists():
        return None
    network = ImageRegressor(preset)
    network.load_state_dict(load_file(path))
    network.requires_grad_(False).eval()
    return network


def main(argv: Sequence[str] | None = None, train: Callable[..., RunResult] = train_baseline) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("pool", type=Path, help="training pool (`mewm data pool`)")
    parser.add_argument("--out", type=Path, default=Path("runs") / "baselines", help="folder; a stopped run goes on")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, help="bundle whose autoencoder is used")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="training time of each")
    parser.add_argument("--only", choices=NAMES, action="append", help="one of them; give it several times")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    if arguments.minutes <= 0:
        parser.error(f"--minutes must be above 0, got {arguments.minutes:g}")
    console = Console()
    try:
        pool: Any = PatchPool.open(arguments.pool)  # frozen, which the interface of pools does not ask for
        for name in arguments.only or NAMES:
            result = train(
                name, pool, arguments.out, weights=arguments.weights, minutes=arguments.minutes, seed=arguments.seed
            )
            figures = ", ".join(f"{key} {value:.3g}" for key, value in result.metrics.items())
            console.print(f"{name}: {result.step} steps in {result.seconds / 60:.1f} min; {figures}")
    except InputError as error:
        parser.error(str(error))
    except MewmError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
