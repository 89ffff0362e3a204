"""`python -m evals.trained_without`: trains the denoiser again without one of its parts, and writes it as weights.

    python -m evals.trained_without POOL --out runs/baselines --only contrastive --steps 4552

leaves `runs/baselines/without_contrastive/weights`: the shipped networks with that denoiser among them, for
`--without contrastive=FOLDER` of the planning table and `--weights-without` of the full table. Train it for as many
steps as the shipped one. A stopped run goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import load_file

from agent.cli.recorded_command import recorded_command, source_commit
from evals.ablation import CONTROL
from evals.trained_baselines import share_latents
from models.errors import InputError, MewmError
from models.networks.preset import Preset
from models.phantom.pool import PatchPool
from models.training.denoiser import train_denoiser
from models.training.loop import FINAL, Cadence, RunOptions
from models.training.pool import Pool
from models.weights import (
    DEFAULT_WEIGHTS,
    PARTS,
    Manifest,
    build_network,
    load_world_model,
    read_manifest,
    save_world_model,
    told_by_network,
    told_of_network,
)

_OPTIONS = "training.denoiser.options."
CHANGES: dict[str, tuple[str, ...]] = {
    CONTROL: (),
    "contrastive": (f"{_OPTIONS}contrast_weight=0",),
    "attenuation": (f"{_OPTIONS}attenuation_share=0",),
    "paper_losses": (
        "denoiser.objective=noise",
        # the shipped sampling is made for a flow: four steps, and guidance computed once
        "denoiser.steps=10", "denoiser.finalist_steps=10", "denoiser.guidance_at=null",
        f"{_OPTIONS}effect_weight=0", f"{_OPTIONS}outside_weight=1", f"{_OPTIONS}contrast_weight=0.1",
        f"{_OPTIONS}contrast_paper=1", f"{_OPTIONS}contrast_temperature=0.07", f"{_OPTIONS}attenuation_share=1",
    ),
}  # fmt: skip
"""What is left out -> how the shipped preset changes; paper_losses: the paper's own instead of ours; nothing: a
control, which shows how much one training differs from another, and what it costs that the survival network has learned
from drawings of the shipped denoiser."""
BUNDLE = "weights"


def preset_without(what: str, preset: Preset) -> Preset:
    """The preset of weights without a part, a key of `CHANGES`."""
    return preset.changed(CHANGES[what])


def train_without(
    what: str, pool: Pool, out: Path, *, weights: Path = DEFAULT_WEIGHTS, steps: int, seed: int = 0, command: str = ""
) -> Manifest:
    """Train the denoiser without a part in `out/without_WHAT`, or go on, and write its bundle there.

    Args:
        what: Key of `CHANGES`.
        pool: Training data, the shipped denoiser's.
        out: Folder that all trainings on these weights share, and with it the latents.
        weights: Bundle whose other networks are taken.
        steps: Of training.
        seed: Of weights and batches.
        command: For the provenance.

    Raises:
        RunError: see `run_training`.
        WeightsError: the shipped weights can't be read, or the new ones not written.
    """
    shipped, model = read_manifest(weights), load_world_model(weights)
    preset = preset_without(what, model.preset)
    folder = out / f"without_{what}"
    share_latents(out, folder.name)
    identity = shipped.files["autoencoder.safetensors"].sha256[:12]
    options = RunOptions(seed=seed, steps=steps, resume=True, cadence=Cadence(validate_every=0.25))
    train_denoiser(pool, preset, model.autoencoder, folder, options, autoencoder_id=identity)
    denoiser = build_network("denoiser", preset)
    denoiser.load_state_dict(load_file(folder / FINAL))
    networks = {name: model.part(name) for name in PARTS} | {"denoiser": denoiser}
    told = {"denoiser": command, "export": command}
    for key, mine in (("data", pool.data_hash), ("seed", str(seed)), ("commit", source_commit())):
        theirs = {name: told_of_network(name, shipped.provenance.get(key, "unknown")) for name in PARTS}
        told[key] = told_by_network({**theirs, "denoiser": mine})
    return save_world_model(
        networks, preset, folder / BUNDLE, origin=shipped.origin, provenance={**shipped.provenance, **told},
        baseline=shipped.survival_baseline,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("pool", type=Path, help="training pool (`mewm data pool`)")
    parser.add_argument("--out", type=Path, default=Path("runs") / "baselines", help="folder; a stopped run goes on")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, help="bundle whose other networks are taken")
    parser.add_argument("--steps", type=int, required=True, help="of training, as many as the shipped denoiser's")
    parser.add_argument("--only", choices=tuple(CHANGES), action="append", help="one of them; give it several times")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    if arguments.steps < 1:
        parser.error(f"--steps must be at least 1, got {arguments.steps}")
    console = Console()
    command = recorded_command("python -m evals.trained_without")
    try:
        pool: Any = PatchPool.open(arguments.pool)  # frozen, which the interface of pools does not ask for
        for what in arguments.only or CHANGES:
            manifest = train_without(
                what, pool, arguments.out, weights=arguments.weights, steps=arguments.steps, seed=arguments.seed,
                command=command,
            )  # fmt: skip
            console.print(f"without {what}: wrote weights {manifest.weights_hash}")
    except InputError as error:
        parser.error(str(error))
    except MewmError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
