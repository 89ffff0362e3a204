"""Morpho-Gaussian attenuation: the mask m'_0 of the paper (section 3.2), with which z'_0 of equation (2) is made.

Training only. From the level of the effect, 1 (hardly any) to 4 (the tumour disappears), the tumour's mask is shrunk
by morphology, blurred, and the tumour before treatment fades towards the liver around it by what the mask has lost. The
higher the level, the less of the tumour is left to see. The paper's own code never did it (the product of image and
mask cancelled out); here kernel and blur go with the tumour's size, and the figures are the project's own.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS: Final = (1, 2, 3, 4)
_EROSION: Final = {1: 0.0, 2: 0.04, 3: 0.10, 4: 0.22}  # of the tumour's size (cube root of its volume)
_BLUR: Final = {1: 0.02, 2: 0.05, 3: 0.08, 4: 0.12}
_STRENGTH: Final = {1: 0.10, 2: 0.35, 3: 0.65, 4: 0.95}  # how far the lost part fades
_KEEPS: Final = {1: 1.00, 2: 0.85, 3: 0.60, 4: 0.25}  # what is left at most in the middle
_DEAD: Final = (0.15, 0.45, 0.80)  # dead share of the tumour that separates the levels


def level_of_share(dead: float) -> int:
    """Level of the share of the tumour that does not live after treatment, 0 to 1.

    What was dead before treatment counts: a tumour with a necrotic core of more than 0.15 is never at level 1.
    """
    return 1 + sum(dead > limit for limit in _DEAD)


def attenuated_mask(mask: Tensor, level: int) -> Tensor:
    """m'_0: the mask eroded, dilated back by half (to smooth it), scaled and blurred.

    Args:
        mask: (S, S, S) of 0 and 1.
        level: 1 to 4.

    Returns:
        (S, S, S) in [0, 1], 0 outside the mask; its sum falls with every level (a single voxel may rise a little where
        the wider blur of a higher level reaches, but `attenuate` fades every voxel more).

    Raises:
        ValueError: no such level.
    """
    if level not in LEVELS:
        raise ValueError(f"the attenuation level is 1 to 4, not {level}")
    inside = mask.float()
    size = float(inside.sum()) ** (1.0 / 3.0)
    shrunk = inside
    radius = round(_EROSION[level] * size)
    for _ in range(radius):
        shrunk = -F.max_pool3d(-shrunk[None, None], 3, 1, 1)[0, 0]
    for _ in range(radius // 2):
        shrunk = F.max_pool3d(shrunk[None, None], 3, 1, 1)[0, 0] * inside
    blurred = _blur(shrunk, max(0.5, _BLUR[level] * size)) * _KEEPS[level]
    return (blurred * inside).clamp(0.0, 1.0)


def attenuate(scan: Tensor, mask: Tensor, level: int) -> Tensor:
    """The scan before treatment as the denoiser sees it in training.

    Args:
        scan: (S, S, S) in [-1, 1].
        mask: (S, S, S) of 0 and 1, the tumour.
        level: 1 to 4.

    Returns:
        (S, S, S): the tumour faded towards the median of what is around it where m'_0 has lost it; unchanged outside.
    """
    inside = mask.float()
    ring = F.max_pool3d(inside[None, None], 7, 1, 3)[0, 0] > inside
    if not bool(ring.any()):
        return scan
    around = scan[ring].median()  # some of the ring may be bone or lung
    fade = inside * (1.0 - attenuated_mask(mask, level)) * _STRENGTH[level]
    return scan + fade * (around - scan)


def _blur(volume: Tensor, sigma: float) -> Tensor:
    reach = max(1, round(3 * sigma))
    place = torch.arange(-reach, reach + 1, dtype=torch.float32, device=volume.device)
    taps = torch.exp(-0.5 * (place / sigma) ** 2)
    taps = taps / taps.sum()
    out = volume[None, None]
    for axis in range(3):
        shape, pad = [1, 1, 1, 1, 1], [0] * 6
        shape[2 + axis] = taps.numel()
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = reach
        out = F.conv3d(F.pad(out, pad, mode="replicate"), taps.view(shape))
    return out[0, 0]
