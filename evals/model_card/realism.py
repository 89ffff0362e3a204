"""Realism: does a simulated scan look like a true one? Against the true scan of the same protocol, inside the tumour.

The reference is a second true scan of the same state: other noise, kernel and breathing. No simulation can be nearer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics.regression import compute_ssim_and_cs
from scipy.stats import wasserstein_distance

from evals.model_card.figures import Figure, figure, mean_figure
from evals.model_card.scene import Scene
from models.engine import Engine

KERNEL = 7
"""Edge of the SSIM window in voxels: about 10 mm at 1.5 mm. Its border voxels have no value."""
FEWEST_FOR_FRECHET = 40
"""Fewer scans than twice the features give no covariance worth a distance."""

Scan = npt.NDArray[np.int16]


def compare(scene: Scene, simulated: Scan, true: Scan) -> dict[str, Any]:
    """SSIM, Wasserstein distance of HU and mean absolute difference inside the tumour, and both scans' features.

    Args:
        scene: The patient.
        simulated: (L, S, S, S) HU.
        true: (L, S, S, S) HU.
    """
    window = scene.engine.model.preset.hu_window
    one, other = (np.clip(scan.astype(np.float32), *window) for scan in (simulated, true))
    tumour = scene.prepared.numbers > 0
    return {
        "ssim": masked_ssim(one, other, tumour, window[1] - window[0]),
        "wasserstein_hu": float(wasserstein_distance(one[tumour], other[tumour])),
        "mae_hu": float(np.abs(one - other)[tumour].mean()),
        "features": encoder_features(scene.engine, simulated, tumour)[0].tolist(),
        "true_features": encoder_features(scene.engine, true, tumour)[0].tolist(),
    }


def masked_ssim(
    one: npt.NDArray[np.float32], other: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], data_range: float
) -> float:
    """Structural similarity (Wang et al. 2004, MONAI's), mean over the windows that are centred in the mask.

    Args:
        one: (L, S, S, S).
        other: The same shape.
        mask: Where the windows' centres lie.
        data_range: Of the values.
    """
    values, _ = compute_ssim_and_cs(
        torch.from_numpy(one)[:, None], torch.from_numpy(other)[:, None], spatial_dims=3, kernel_size=(KERNEL,) * 3,
        kernel_sigma=(1.5,) * 3, data_range=data_range,
    )  # fmt: skip
    inner = slice(KERNEL // 2, -(KERNEL // 2))
    centred = mask[:, inner, inner, inner]
    seen = values.numpy()[:, 0]
    return float(seen[centred].mean()) if centred.any() else float("nan")


def encoder_features(engine: Engine, scans: npt.NDArray[np.generic], tumour: npt.NDArray[np.bool_]) -> Any:
    """Features of scans in the latent space of our own autoencoder: per channel mean, spread and steps in the tumour.

    Args:
        engine: Its autoencoder encodes.
        scans: (N, S, S, S) HU.
        tumour: (N, S, S, S) the original tumour.

    Returns:
        (N, 5 C): for each of the C latent channels the mean and standard deviation inside the tumour and the mean
        absolute step along the three axes.
    """
    low, high = engine.model.preset.hu_window
    unit = (torch.from_numpy(np.clip(scans.astype(np.float32), low, high)) - low) * (2.0 / (high - low)) - 1.0
    mask = torch.from_numpy(tumour.astype(np.float32))[:, None]
    with torch.inference_mode():
        parts = [engine.model.autoencoder.encode(cube[None, None].to(engine.device)).cpu() for cube in unit]
    latent = torch.cat(parts)
    weight = torch.nn.functional.avg_pool3d(mask, engine.model.preset.downsampling).clamp_min(1e-4)
    total = weight.sum(dim=(2, 3, 4))
    mean = (latent * weight).sum(dim=(2, 3, 4)) / total
    centred = latent - mean[:, :, None, None, None]
    features = [mean, torch.sqrt((centred.square() * weight).sum(dim=(2, 3, 4)) / total)]
    for axis in (2, 3, 4):
        step = latent.diff(dim=axis).abs()
        along = weight.narrow(axis, 1, weight.shape[axis] - 1)
        features.append((step * along).sum(dim=(2, 3, 4)) / along.sum(dim=(2, 3, 4)))
    return torch.cat(features, dim=1).double().numpy()


def frechet(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Fréchet distance between two sets of features (N, F) as Gaussians; NaN for too few rows.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); the trace of the root is the sum of the roots of the eigenvalues.

    Source:
        Dowson and Landau, J Multivar Anal 1982.
    """
    if min(len(one), len(other)) < FEWEST_FOR_FRECHET:
        return float("nan")
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    roots = np.sqrt(np.clip(np.linalg.eigvals(first @ second).real, 0.0, None))
    gap = one.mean(0) - other.mean(0)
    return float(gap @ gap + np.trace(first) + np.trace(second) - 2.0 * roots.sum())


def summarise_realism(rows: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """Figures over patients; the Fréchet distance is on our own encoder and compares with nothing outside.

    It has no interval: a resample repeats patients, which makes both covariances poorer and the distance larger, so
    that the percentiles of resamples lie above the value and may leave it out.
    """
    mine, true = (np.array([row[name] for row in rows]) for name in ("features", "true_features"))
    return {
        **{name: mean_figure([row[name] for row in rows]) for name in ("ssim", "wasserstein_hu", "mae_hu")},
        "frechet_own_encoder": figure(frechet(mine, true), n=len(rows)),
    }
