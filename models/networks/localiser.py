"""Localiser: finds liver and tumour on a CT of which nothing is known; the low-resolution stage of an nnU-Net cascade.

The segmenter reads a patch around a known tumour beside the scan before treatment. Telling the liver from muscle and
spleen on a whole scan takes a wider view and no fine detail: a network of its own, on a coarser grid.
"""

from __future__ import annotations

from enum import IntEnum

from torch import Tensor, nn

from models.networks.preset import LocaliserPreset
from models.networks.segmenter import dyn_unet


class Region(IntEnum):
    """Classes of the localiser; a tumour is one whether it lives or not."""

    OTHER = 0
    LIVER = 1
    TUMOUR = 2


class Localiser(nn.Module):
    """CT (N, 1, S, S, S) in [-1, 1] -> logits (N, 3, S, S, S) in the order of `Region`."""

    def __init__(self, preset: LocaliserPreset) -> None:
        """Build with random weights; every filter after the first halves the grid."""
        super().__init__()
        self.net = dyn_unet(1, len(Region), preset.filters)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32. The edge of x must be divisible by 2 to the number of levels less one."""
        logits: Tensor = self.net(x)
        return logits.float()
