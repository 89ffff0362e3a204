"""Latents of a whole pool, computed once: the denoiser never needs to encode during training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from models.errors import RunError
from models.networks.autoencoder import Autoencoder
from models.networks.precision import autocast
from models.networks.preset import Preset
from models.networks.tumour_profile import PROFILE_SIZE, tumour_profile
from models.training.pool import Pool, hu_to_unit

_FLUSH_EVERY = 32  # patients


@dataclass(frozen=True)
class Latents:
    """Normalised latents of a pool as float16 memory maps.

    Attributes:
        pre: (P, C, s, s, s). post: (P, K, C, s, s, s).
        mask: (P, 1, s, s, s) share of each cell that was tumour before treatment.
        profile: (P, PROFILE_SIZE) from `models.networks.tumour_profile`, float32.
    """

    pre: npt.NDArray[np.float16]
    post: npt.NDArray[np.float16]
    mask: npt.NDArray[np.float16]
    profile: npt.NDArray[np.float32]


def latent_mask(mask: Tensor, downsampling: int) -> Tensor:
    """Tumour mask (N, 1, S, S, S) in [0, 1] -> share of each latent cell (N, 1, s, s, s)."""
    return F.avg_pool3d(mask.float(), downsampling)


@torch.no_grad()
def compute_latents(autoencoder: Autoencoder, pool: Pool, preset: Preset, folder: Path, autoencoder_id: str) -> Latents:
    """Encode every cube of the pool, or open what an earlier call wrote; an interrupted call is continued.

    Args:
        autoencoder: trained, in evaluation mode.
        pool: all of its patients are encoded.
        preset: the autoencoder's.
        folder: of the memory maps.
        autoencoder_id: of the weights; with another one the latents are made anew.

    Raises:
        RunError: the folder can't be written.
    """
    patients, protocols = pool.post.shape[:2]
    cube = (preset.latent_size,) * 3
    channels = preset.autoencoder.latent_channels
    shapes = {
        "pre": (patients, channels, *cube), "post": (patients, protocols, channels, *cube),
        "mask": (patients, 1, *cube), "profile": (patients, PROFILE_SIZE),
    }  # fmt: skip
    index = folder / "latents.json"
    fingerprint = f"{autoencoder_id} {pool.data_hash} {shapes['post']} {shapes['profile']}"
    device = next(autoencoder.parameters()).device
    done = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if index.exists():
            state = json.loads(index.read_text(encoding="utf-8"))
            done = int(state["done"]) if state["fingerprint"] == fingerprint else 0
        if not done:  # it is of other latents, over which these are written
            index.unlink(missing_ok=True)
        arrays = {
            name: np.lib.format.open_memmap(
                folder / f"{name}.npy",
                mode="r+" if done else "w+",
                shape=None if done else shape,
                dtype=np.float32 if name == "profile" else np.float16,
            )
            for name, shape in shapes.items()
        }
    except (OSError, ValueError) as error:
        raise RunError(f"The latents in {folder} can't be read or written ({error}); remove the folder.") from error
    autoencoder.eval()
    with autocast(device):
        for patient in track(range(done, patients), description="latents", disable=done == patients):
            scans = [pool.pre[patient], *pool.post[patient]]
            units = torch.stack([hu_to_unit(scan, preset.hu_window) for scan in scans])[:, None]
            z = autoencoder.encode(units.to(device)).cpu()
            arrays["pre"][patient] = z[0].numpy()
            arrays["post"][patient] = z[1:].numpy()
            tumour = np.array(pool.tumour_mask[patient])
            arrays["mask"][patient] = latent_mask(torch.from_numpy(tumour)[None, None], autoencoder.downsampling)[0]
            arrays["profile"][patient] = tumour_profile(
                np.asarray(pool.pre[patient]), tumour > 0, float(pool.spacing_mm[patient])
            )
            if (patient + 1) % _FLUSH_EVERY == 0 or patient + 1 == patients:
                for array in arrays.values():
                    array.flush()
                temporary = index.with_suffix(".tmp")
                temporary.write_text(json.dumps({"fingerprint": fingerprint, "done": patient + 1}), encoding="utf-8")
                temporary.replace(index)
    return Latents(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes})
