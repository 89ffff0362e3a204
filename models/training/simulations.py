"""Simulated and segmented follow-up scans of some patients of a pool: what the survival network sees when planning."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor

from models.errors import RunError
from models.networks.action import encode_protocols, text_encoder
from models.networks.autoencoder import Autoencoder
from models.networks.denoiser import Denoiser, sample
from models.networks.precision import autocast
from models.networks.preset import Preset
from models.networks.segmenter import Segmenter, Tissue, segmenter_input
from models.networks.tumour_profile import tumour_profile
from models.patch import feather
from models.training.latents import latent_mask
from models.training.pool import Pool, hu_to_unit
from models.training.segmenter import composite


@dataclass(frozen=True)
class Simulator:
    """The trained networks that a simulated follow-up scan needs, and an identity of their weights."""

    autoencoder: Autoencoder
    denoiser: Denoiser
    segmenter: Segmenter
    identity: str


@dataclass(frozen=True)
class Simulations:
    """N patients, K protocols each.

    Attributes:
        row: of each patient index that was simulated.
        scan: (N, K, S, S, S) int16 HU, as the engine composes it.
        tissue: (N, K, S, S, S) uint8, its segmentation.
    """

    row: dict[int, int]
    scan: npt.NDArray[np.int16]
    tissue: npt.NDArray[np.uint8]

    def viable_ml(self, patient: int, pool: Pool) -> npt.NDArray[np.float64]:
        """Viable ml (K,) of all lesions: the truth, corrected by what the simulation shows otherwise in the patch."""
        voxel = float(pool.spacing_mm[patient]) ** 3 / 1000.0
        true = np.expm1(np.asarray(pool.burden[patient, :, 0], dtype=np.float64))
        found = (self.tissue[self.row[patient]] == Tissue.VIABLE).sum(axis=(1, 2, 3))
        there = (np.asarray(pool.post_labels[patient]) == Tissue.VIABLE).sum(axis=(1, 2, 3))
        corrected: npt.NDArray[np.float64] = np.maximum(true + voxel * (found.astype(float) - there), 0.0)
        return corrected


@torch.no_grad()
def simulate_pool(
    simulator: Simulator, pool: Pool, preset: Preset, patients: npt.NDArray[np.int64], folder: Path
) -> Simulations:
    """Simulate every rendered protocol of some patients, or open what an earlier call wrote.

    Args:
        simulator: trained networks, in evaluation mode.
        pool: patches.
        preset: theirs.
        patients: indices.
        folder: of the memory maps; a call that was broken off is continued.

    Raises:
        RunError: the folder can't be written.
    """
    protocols = pool.post.shape[1]
    shape = (len(patients), protocols, *[preset.size] * 3)
    index = folder / "simulations.json"
    chosen = hashlib.sha256(json.dumps(patients.tolist()).encode()).hexdigest()[:12]
    sampling = f"{preset.denoiser.sampler} {preset.denoiser.steps} steps, guidance {preset.denoiser.guidance}"
    told = f"{simulator.identity} {pool.data_hash} {shape} {chosen} {sampling}"
    done = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if index.exists():
            state = json.loads(index.read_text(encoding="utf-8"))
            done = int(state["done"]) if state["fingerprint"] == told else 0
        mode = "r+" if done else "w+"
        scan = np.lib.format.open_memmap(folder / "scan.npy", mode=mode, dtype=np.int16, shape=shape)
        tissue = np.lib.format.open_memmap(folder / "tissue.npy", mode=mode, dtype=np.uint8, shape=shape)
    except (OSError, ValueError) as error:
        raise RunError(f"The simulations in {folder} can't be read or written ({error}); remove the folder.") from error
    low, high = preset.hu_window
    device = next(simulator.denoiser.parameters()).device
    with autocast(device):
        for place in track(range(done, len(patients)), description="simulations", disable=done == len(patients)):
            images, classes = _simulate(simulator, pool, preset, int(patients[place]), device)
            scan[place] = np.rint((images.numpy() + 1.0) * 0.5 * (high - low) + low)
            tissue[place] = classes.numpy()
            if (place + 1) % 16 == 0 or place + 1 == len(patients):
                scan.flush()
                tissue.flush()
                temporary = index.with_suffix(".tmp")
                temporary.write_text(json.dumps({"fingerprint": told, "done": place + 1}), encoding="utf-8")
                temporary.replace(index)
    return Simulations({int(patient): place for place, patient in enumerate(patients)}, scan, tissue)


def _simulate(
    simulator: Simulator, pool: Pool, preset: Preset, patient: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Composites (K, S, S, S) in [-1, 1] and their classes under all protocols, one noise."""
    count = pool.post.shape[1]
    before = hu_to_unit(pool.pre[patient], preset.hu_window)
    tumour = np.asarray(pool.tumour_mask[patient]) > 0
    spacing = float(pool.spacing_mm[patient])
    z = simulator.autoencoder.encode(before[None, None].to(device))
    mask = latent_mask(torch.from_numpy(tumour)[None, None], preset.downsampling).to(device)
    action, text = encode_protocols(pool.protocols[patient], text_encoder(preset.denoiser))
    profile = torch.from_numpy(tumour_profile(np.asarray(pool.pre[patient]), tumour, spacing))
    noise = torch.randn(1, *z.shape[1:], generator=torch.Generator().manual_seed(patient)).to(device)

    def many(one: Tensor) -> Tensor:
        return one.expand(count, *one.shape[1:]).contiguous()

    latent = sample(
        simulator.denoiser, many(noise), many(z), many(mask), action.to(device), text.to(device),
        torch.full((count,), float(np.log2(spacing / 1.5)), device=device), many(profile[None].to(device)),
    )  # fmt: skip
    decoded = simulator.autoencoder.decode(torch.cat([z, latent]))[:, 0].cpu()
    weight = torch.from_numpy(feather(tumour.astype(np.uint8), np.diag([spacing] * 3 + [1.0])))
    images = composite(before, decoded[0], decoded[1:], weight)
    inputs = segmenter_input(images, many(before[None]), many(torch.from_numpy(tumour)[None]))
    classes = simulator.segmenter(inputs.to(device)).argmax(dim=1).to(torch.uint8).cpu()
    return images, classes
