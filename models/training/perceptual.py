"""Losses beside the pixel error: hinge GAN, feature matching, and a perceptual loss that needs no download.

The usual perceptual loss compares inner features of a network trained on photographs. Here fixed filters take their
place: derivatives of a Gaussian (edges along the axes, blobs) at three scales, each scaled to unit strength over the
cube, so that fine texture counts as much as a strong edge. LPIPS does the same scaling with learned filters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES = 3
_SMOOTH = (0.25, 0.5, 0.25)
_EDGE = (-0.5, 0.0, 0.5)
_BLOB = (0.5, -1.0, 0.5)


def _bank() -> Tensor:
    """Six separable 3x3x3 filters (6, 1, 3, 3, 3): an edge and a blob along each axis."""
    filters = []
    for axis in range(3):
        for along in (_EDGE, _BLOB):
            parts = [torch.tensor(along if axis == k else _SMOOTH) for k in range(3)]
            filters.append(torch.einsum("i,j,k->ijk", *parts))
    return torch.stack(filters)[:, None]


def perceptual_loss(image: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean absolute difference of the filters' responses over three scales, relative to the target's own strength.

    Args:
        image: (N, 1, S, S, S).
        target: (N, 1, S, S, S).
        weight: (N, 1, S, S, S), not negative.
    """
    bank = _bank().to(image.device)
    total = image.new_zeros(())
    a, b, w = image.float(), target.float(), weight.float()
    with torch.autocast(image.device.type, enabled=False):
        for _ in range(SCALES):
            mine, wanted = F.conv3d(a, bank), F.conv3d(b, bank)
            inner = w[..., 1:-1, 1:-1, 1:-1]
            strength = wanted.square().mean(dim=(0, 2, 3, 4), keepdim=True).sqrt() + 1e-3
            total = total + (inner * (mine - wanted).abs() / strength).sum() / (inner.sum() * bank.shape[0])
            a, b, w = (F.avg_pool3d(volume, 2) for volume in (a, b, w))
    return total / SCALES


def fooling_loss(judged: Sequence[Tensor]) -> Tensor:
    """Hinge loss of the generator, mean over the opponents."""
    return torch.stack([-one.mean() for one in judged]).mean()


def critic_loss(real: Sequence[Tensor], decoded: Sequence[Tensor]) -> Tensor:
    """Hinge loss of the opponents, mean over them."""
    # not MONAI's PatchAdversarialLoss: it puts a tanh before the hinge, after which no judgement is ever sure enough
    parts = [0.5 * (F.relu(1.0 - a).mean() + F.relu(1.0 + b).mean()) for a, b in zip(real, decoded, strict=True)]
    return torch.stack(parts).mean()


def feature_matching_loss(real: Sequence[Tensor], decoded: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of the opponents' inner features; the real ones carry no gradient."""
    return torch.stack([F.l1_loss(b, a.detach()) for a, b in zip(real, decoded, strict=True)]).mean()
