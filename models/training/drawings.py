"""Follow-up scans that the trained world model draws of some patients of a pool, as the engine composes them."""

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
from models.networks.response_head import SHARES
from models.networks.tumour_profile import tumour_profile
from models.patch import feather
from models.training.latents import latent_mask
from models.training.pool import Pool, hu_to_unit

DONE = "drawings.json"
_FLUSH_EVERY = 16  # patients


@dataclass(frozen=True)
class Painter:
    """The trained networks that a drawn scan needs, and an identity of their weights."""

    autoencoder: Autoencoder
    denoiser: Denoiser
    identity: str


@dataclass(frozen=True)
class Drawings:
    """N patients, K protocols each.

    Attributes:
        patients: (N,) indices into the pool.
        scan: (N, K, S, S, S) int16 HU.
        shares: (N, K, 4) of the original tumour that were meant to be drawn, in the order of `SHARES`.
    """

    patients: npt.NDArray[np.int64]
    scan: npt.NDArray[np.int16]
    shares: npt.NDArray[np.float32]


def composite(before: Tensor, decoded_before: Tensor, decoded_after: Tensor, weight: Tensor) -> Tensor:
    """What the networks see of a simulated scan, all in [-1, 1]: exact outside the feather."""
    return (before + weight * (decoded_after - decoded_before)).clamp(-1.0, 1.0)


@torch.no_grad()
def draw_patient(painter: Painter, pool: Pool, preset: Preset, patient: int, seed: int) -> tuple[Tensor, Tensor]:
    """The follow-up scans of one patient under all rendered protocols, with one noise.

    Args:
        painter: trained networks, in evaluation mode.
        pool: patches.
        preset: theirs.
        patient: index into the pool.
        seed: of the noise.

    Returns:
        Composites (K, S, S, S) in [-1, 1], and the shares (K, 4) that the response head meant, both on the CPU.
    """
    device = next(painter.denoiser.parameters()).device
    count = pool.post.shape[1]
    before = hu_to_unit(pool.pre[patient], preset.hu_window)
    tumour = np.asarray(pool.tumour_mask[patient]) > 0
    spacing = float(pool.spacing_mm[patient])
    z = painter.autoencoder.encode(before[None, None].to(device))
    mask = latent_mask(torch.from_numpy(tumour)[None, None], preset.downsampling).to(device)
    action, text = (
        part.to(device) for part in encode_protocols(pool.protocols[patient], text_encoder(preset.denoiser))
    )
    profile = torch.from_numpy(tumour_profile(np.asarray(pool.pre[patient]), tumour, spacing)).to(device)
    noise = torch.randn(1, *z.shape[1:], generator=torch.Generator().manual_seed(seed)).to(device)

    def many(one: Tensor) -> Tensor:
        return one.expand(count, *one.shape[1:]).contiguous()

    known = many(z), many(mask), action
    seen = torch.full((count,), float(np.log2(spacing / 1.5)), device=device), many(profile[None])
    shares = painter.denoiser.predict_shares(*known, *seen)
    latent = sample(painter.denoiser, many(noise), *known, text, *seen, shares=shares)
    decoded = painter.autoencoder.decode(torch.cat([z, latent]))[:, 0].cpu()
    weight = torch.from_numpy(feather(tumour.astype(np.uint8), np.diag([spacing] * 3 + [1.0])))
    return composite(before, decoded[0], decoded[1:], weight), shares.float().cpu()


def draw_pool(
    painter: Painter, pool: Pool, preset: Preset, patients: npt.NDArray[np.int64], seed: int, folder: Path
) -> Drawings:
    """Draw every rendered protocol of some patients, or open what an earlier call wrote.

    Args:
        painter: trained networks, in evaluation mode.
        pool: patches.
        preset: theirs.
        patients: indices.
        seed: of the noise, beside the patient's index.
        folder: of the memory maps; a call that was broken off is continued.

    Raises:
        RunError: the folder can't be read or written.
    """
    protocols = pool.post.shape[1]
    index = folder / DONE
    who = hashlib.sha256(np.ascontiguousarray(patients).tobytes()).hexdigest()[:16]
    sampler = preset.denoiser
    sampling = f"{sampler.sampler} {sampler.steps} {sampler.guidance} {sampler.guidance_at}"
    told = f"{painter.identity} {sampling} {pool.data_hash} {who} {protocols} {preset.size} seed {seed}"
    done = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if index.exists():
            state = json.loads(index.read_text(encoding="utf-8"))
            done = int(state["done"]) if state["fingerprint"] == told else 0
        if not done:  # it is of other drawings, over which these are written
            index.unlink(missing_ok=True)
        mode = "r+" if done else "w+"
        scan = np.lib.format.open_memmap(
            folder / "scan.npy", mode=mode, dtype=np.int16, shape=(len(patients), protocols, *[preset.size] * 3)
        )
        shares = np.lib.format.open_memmap(
            folder / "shares.npy", mode=mode, dtype=np.float32, shape=(len(patients), protocols, len(SHARES))
        )
    except (OSError, ValueError) as error:
        raise RunError(f"The drawings in {folder} can't be read or written ({error}); remove the folder.") from error
    low, high = preset.hu_window
    with autocast(next(painter.denoiser.parameters()).device):
        for place in track(range(done, len(patients)), description="drawings", disable=done == len(patients)):
            patient = int(patients[place])
            images, meant = draw_patient(painter, pool, preset, patient, (seed << 32) + patient)
            scan[place] = np.rint((images.numpy() + 1.0) * 0.5 * (high - low) + low)
            shares[place] = meant.numpy()
            if (place + 1) % _FLUSH_EVERY == 0 or place + 1 == len(patients):
                scan.flush()
                shares.flush()
                temporary = index.with_suffix(".tmp")
                temporary.write_text(json.dumps({"fingerprint": told, "done": place + 1}), encoding="utf-8")
                temporary.replace(index)
    return Drawings(patients, scan, shares)
