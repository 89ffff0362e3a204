"""Losses that MONAI does not have: weighted reconstruction, rectified flow with paired actions, Cox with Efron ties."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_l1(image: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean absolute difference, voxels weighted. All (N, 1, S, S, S)."""
    return (weight * (image - target).abs()).sum() / weight.sum()


def weighted_square(image: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean squared difference, voxels weighted: unlike the absolute one it does not round thin structures down."""
    return (weight * (image - target).square()).sum() / weight.sum()


def gradient_difference(image: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean absolute difference of the finite differences along the three axes, weighted: punishes blurred edges."""
    total = image.new_zeros(())
    error = image - target
    for axis in (-3, -2, -1):
        length = error.shape[axis] - 1
        difference = error.narrow(axis, 1, length) - error.narrow(axis, 0, length)
        along = weight.narrow(axis, 1, length)
        total = total + (along * difference.abs()).sum() / along.sum()
    return total / 3.0


def region_weights(mask: Tensor) -> Tensor:
    """Weight of each latent cell for the action's effect: the tumour's share of it, and half for the ring around.

    Args:
        mask: (N, 1, s, s, s) in [0, 1].
    """
    ring = F.max_pool3d(mask, 3, stride=1, padding=1)
    return torch.maximum(mask, 0.5 * (ring > 0.05).to(mask.dtype))


def _region_mean(squared: Tensor, weight: Tensor) -> Tensor:
    per_sample = (squared * weight).sum(dim=(1, 2, 3, 4)) / (
        weight.sum(dim=(1, 2, 3, 4)).clamp_min(1e-3) * squared.shape[1]
    )
    return per_sample.mean()


def flow_loss(velocity: Tensor, target: Tensor, region: Tensor, outside: float) -> Tensor:
    """Rectified-flow loss: squared velocity error inside the tumour region plus `outside` times that elsewhere.

    Each sample counts alike, however small its tumour. velocity, target (N, C, s, s, s); region (N, 1, s, s, s) in
    [0, 1].
    """
    squared = (velocity - target).square()
    return _region_mean(squared, region) + outside * _region_mean(squared, 1.0 - region)


def paired_effect_loss(velocity: Tensor, target: Tensor, region: Tensor) -> Tensor:
    """Squared error of the *difference* that the protocol makes.

    Samples 2i and 2i+1 are the same patient, noise and time under two protocols, so the noise cancels in the difference
    of the targets and what is left is the effect of the action alone.
    """
    effect = (velocity[0::2] - velocity[1::2]) - (target[0::2] - target[1::2])
    return 0.5 * _region_mean(effect.square(), region[0::2])


def cox_efron(log_risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Negative Cox partial log-likelihood per event, ties after Efron (1977).

    Args:
        log_risk: (N,) total log-hazard (a fixed offset is simply added before).
        time: (N,) event or censoring time.
        event: (N,) bool, False where censored.

    Returns:
        Scalar; 0 (with gradient 0) when there is no event.
    """
    order = torch.argsort(time, descending=True, stable=True)
    risk, when, died = log_risk.double()[order], time[order], event.bool()[order]
    deaths_total = died.sum()
    if deaths_total == 0:
        return log_risk.sum() * 0.0
    hazard = torch.exp(risk - risk.detach().max())
    _, group = torch.unique_consecutive(when, return_inverse=True)
    groups = int(group.max()) + 1
    at_risk = hazard.new_zeros(groups).index_add(0, group, hazard).cumsum(0)
    dying = hazard.new_zeros(groups).index_add(0, group, hazard * died)
    deaths = hazard.new_zeros(groups).index_add(0, group, died.to(hazard.dtype))
    own = group[died]
    before = died.to(hazard.dtype).cumsum(0)[died] - 1.0  # deaths listed earlier, over all groups
    rank = before - (deaths.cumsum(0) - deaths)[own]
    denominator = at_risk[own] - rank / deaths[own] * dying[own]
    log_likelihood = (risk[died] - risk.detach().max()).sum() - torch.log(denominator).sum()
    return (-log_likelihood / deaths_total).to(log_risk.dtype)
