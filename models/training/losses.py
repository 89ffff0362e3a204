"""Losses that MONAI does not have: weighted reconstruction, rectified flow with paired actions, Cox with Efron ties."""

from __future__ import annotations

from collections.abc import Sequence

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


def denoising_loss(predicted: Tensor, target: Tensor, region: Tensor, outside: float) -> Tensor:
    """Equation (2) of the paper, weighted: squared error inside the tumour region plus `outside` times that elsewhere.

    The paper weighs all cells alike; here a tumour that is a few cells of the patch counts as much as a large one.

    The target is the noise, or a rectified flow's velocity (see `models.networks.diffusion`). Each sample counts alike,
    however small its tumour. predicted, target (N, C, s, s, s); region (N, 1, s, s, s) in [0, 1].
    """
    squared = (predicted - target).square()
    return _region_mean(squared, region) + outside * _region_mean(squared, 1.0 - region)


def paired_effect_loss(predicted: Tensor, target: Tensor, region: Tensor) -> Tensor:
    """Squared error of the *difference* that the protocol makes.

    Samples 2i and 2i+1 are the same patient, noise and time under two protocols, so the noise cancels in the difference
    of the targets and what is left is the effect of the action alone.
    """
    effect = (predicted[0::2] - predicted[1::2]) - (target[0::2] - target[1::2])
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


def discrete_hazard_loss(logits: Tensor, time: Tensor, event: Tensor, edges: Sequence[float]) -> Tensor:
    """Negative log-likelihood of survival times under a hazard per interval, per sample (Gensheimer 2019).

    A death counts in the interval that it falls into, a censored patient in the intervals that were survived whole; who
    outlives the last edge survived them all. Nobody who was censored counts as dead.

    Args:
        logits: (N, I) of the probability to die in each interval, given survival to its start.
        time: (N,) months.
        event: (N,) bool.
        edges: I ends of the intervals, rising; the first begins at 0.
    """
    ends = torch.tensor(edges, dtype=time.dtype, device=time.device)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    survived = (time[:, None] >= ends).to(logits.dtype)
    died = (event[:, None] & (time[:, None] >= starts) & (time[:, None] < ends)).to(logits.dtype)
    log_death, log_life = F.logsigmoid(logits), F.logsigmoid(-logits)
    return -(died * log_death + survived * log_life).sum(dim=1).mean()
