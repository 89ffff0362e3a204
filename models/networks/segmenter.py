"""Segmenter, the paper's assistant model: an nnU-Net-like DynUNet on a CT patch beside the one before treatment.

On a follow-up alone, living tumour can't be told from liver, nor dead tumour from what was dark before. A radiologist
reads it beside the scan before treatment; so does this network.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from models.networks.preset import SegmenterPreset


class Tissue(IntEnum):
    """Classes of the segmenter, of the pool's labels and of segmentations on disk."""

    BACKGROUND = 0
    LIVER = 1
    VIABLE = 2
    NECROTIC = 3
    OIL = 4


CHANNELS = 3


def segmenter_input(scan: Tensor, before: Tensor, mask: Tensor) -> Tensor:
    """What the segmenter sees, on one patch grid.

    Args:
        scan: (..., S, S, S) CT to segment, in [-1, 1].
        before: CT before treatment, in [-1, 1]; the scan itself where that is the one to segment.
        mask: tumour before treatment, 0 or 1.

    Returns:
        (..., 3, S, S, S), the three in this order.
    """
    return torch.stack([scan, before, mask.to(scan.dtype)], dim=-4)


def dyn_unet(inputs: int, outputs: int, filters: Sequence[int]) -> DynUNet:
    """MONAI's network after nnU-Net; every filter after the first halves the grid."""
    levels = len(filters)
    return DynUNet(
        spatial_dims=3, in_channels=inputs, out_channels=outputs, kernel_size=[3] * levels,
        strides=[1] + [2] * (levels - 1), upsample_kernel_size=[2] * (levels - 1), filters=filters,
        norm_name=("INSTANCE", {"affine": True}),
    )  # fmt: skip


class Segmenter(nn.Module):
    """`segmenter_input` (N, 3, S, S, S) -> logits (N, 5, S, S, S) in the order of `Tissue`."""

    def __init__(self, preset: SegmenterPreset) -> None:
        """Build with random weights; every filter after the first halves the grid."""
        super().__init__()
        self.net = dyn_unet(CHANNELS, len(Tissue), preset.filters)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32, in evaluation `without_comb`.

        The edge of x must be divisible by 2 to the number of levels less one.
        """
        logits: Tensor = self.net(x)
        return logits.float() if self.training else without_comb(logits.float())


def without_comb(logits: Tensor) -> Tensor:
    """Logits (N, C, X, Y, Z) without what alternates from voxel to voxel.

    Transposed convolutions leave a comb of two voxels (Odena et al., Distill 2016, doi:10.23915/distill.00003), which
    showed as stripes of living tumour. Weights of 1, 2 and 1 over three voxels along every axis remove it altogether.
    """
    for axis in (2, 3, 4):
        size = logits.shape[axis]
        wide = torch.cat([logits.narrow(axis, 0, 1), logits, logits.narrow(axis, size - 1, 1)], dim=axis)
        logits = 0.5 * logits + 0.25 * (wide.narrow(axis, 0, size) + wide.narrow(axis, 2, size))
    return logits
