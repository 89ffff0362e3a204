"""Trains one of the networks, with what it needs of those that were trained before it in the same folder."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from models.errors import InputError
from models.networks.denoiser import Denoiser
from models.networks.preset import Preset
from models.networks.segmenter import Segmenter
from models.training.autoencoder import train_autoencoder
from models.training.denoiser import train_denoiser
from models.training.drawings import Painter
from models.training.export import load_trained, load_trained_autoencoder
from models.training.localiser import train_localiser
from models.training.loop import FINAL, RunOptions, RunResult
from models.training.pool import Pool
from models.training.segmenter import train_segmenter
from models.training.simulations import Simulator
from models.training.survival import train_survival
from models.weights import PartName


def choose_device(name: str) -> str:
    """The device to train on: "auto" is CUDA where there is it. Of several processes each takes a GPU of its own.

    Raises:
        InputError: no such device.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"The device must be auto, cpu or cuda, not '{name}'.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("The device 'cuda' was asked for but torch sees no CUDA device: use --device cpu.")
    if name == "cpu" or not torch.cuda.is_available():
        return "cpu"
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())  # torchrun numbers them
    return "cuda"


def absent_for_simulations(name: PartName, out: Path) -> tuple[PartName, ...]:
    """The networks without which this one sees true scans only, as far as they are not trained in `out`."""
    needs: dict[PartName, tuple[PartName, ...]] = {"segmenter": ("denoiser",), "survival": ("denoiser", "segmenter")}
    return tuple(part for part in needs.get(name, ()) if not (out / part / FINAL).exists())


def train_part(
    name: PartName, pool: Pool, preset: Preset, out: Path, options: RunOptions, *, origin: str = "synthetic",
    device: str = "cpu",
) -> RunResult:  # fmt: skip
    """Train one network in `out/<name>`.

    The segmenter sees simulated scans where a trained denoiser lies in `out`, the survival network where denoiser and
    segmenter do; in the order of `PARTS` both have what they need.

    Args:
        name: of the network.
        pool: patches.
        preset: sizes and settings.
        out: folder of the run of all networks.
        options: seed, budget and so on.
        origin: of the pool's data.
        device: "cpu" or "cuda".

    Raises:
        WeightsError: a network that this one needs is not trained.
        RunError: see `run_training`.
    """
    if name == "autoencoder":
        return train_autoencoder(pool, preset, out / name, options, device)
    if name == "localiser":
        return train_localiser(pool, preset, out / name, options, device)
    autoencoder, identity = load_trained_autoencoder(out, preset)
    autoencoder.to(device)
    if name == "denoiser":
        return train_denoiser(pool, preset, autoencoder, out / name, options, autoencoder_id=identity)
    denoiser, denoiser_id = None, "none"
    absent = absent_for_simulations(name, out)
    if "denoiser" not in absent:
        network, denoiser_id = load_trained("denoiser", out, preset)
        assert isinstance(network, Denoiser)
        denoiser = network.to(device)
    if name == "segmenter":
        return train_segmenter(
            pool, preset, autoencoder, out / name, options, autoencoder_id=identity, denoiser=denoiser,
            denoiser_id=denoiser_id,
        )  # fmt: skip
    simulator = None
    if denoiser is not None and not absent:
        network, segmenter_id = load_trained("segmenter", out, preset)
        assert isinstance(network, Segmenter)
        painter = Painter(autoencoder.eval(), denoiser.eval(), f"{identity} {denoiser_id}")
        simulator = Simulator(painter, network.to(device).eval(), f"{painter.identity} {segmenter_id}")
    return train_survival(
        pool, preset, autoencoder, out / name, options, autoencoder_id=identity, origin=origin, simulator=simulator
    )
