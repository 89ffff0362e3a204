"""Segmenter, the paper's assistant model: an nnU-Net-like DynUNet on one CT patch."""

from __future__ import annotations

from enum import IntEnum

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


class Segmenter(nn.Module):
    """CT patch in [-1, 1] (N, 1, S, S, S) -> logits (N, 5, S, S, S) in the order of `Tissue`."""

    def __init__(self, preset: SegmenterPreset) -> None:
        """Build with random weights; every filter after the first halves the grid."""
        super().__init__()
        levels = len(preset.filters)
        self.net = DynUNet(
            spatial_dims=3, in_channels=1, out_channels=len(Tissue), kernel_size=[3] * levels,
            strides=[1] + [2] * (levels - 1), upsample_kernel_size=[2] * (levels - 1), filters=preset.filters,
            norm_name=("INSTANCE", {"affine": True}),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32. The edge of x must be divisible by 2 to the number of levels less one."""
        logits: Tensor = self.net(x)
        return logits.float()
