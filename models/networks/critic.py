"""The autoencoder's opponents: a 3D PatchGAN on cubes and a 2D one on axial slices, as in DiffTumor's VQ-GAN."""

from __future__ import annotations

import torch
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn


class Critics(nn.Module):
    """Cube (N, 1, S, S, S) -> judgements and inner features of both opponents."""

    def __init__(self, channels: int = 16, layers: int = 2) -> None:
        """Args: channels: of the first layer. layers: that halve the grid."""
        super().__init__()
        # no batch statistics: real and decoded cubes come in batches of their own
        self.cube, self.slice = (
            PatchDiscriminator(
                spatial_dims=dims, channels=channels, in_channels=1, num_layers_d=layers, norm="INSTANCE"
            )
            for dims in (3, 2)
        )

    def forward(self, x: Tensor, depth: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Judge.

        Args:
            x: (N, 1, S, S, S) in [-1, 1].
            depth: (N,) index of the axial slice that the 2D opponent sees.

        Returns:
            Judgements (one tensor of each opponent, float32), inner features (all layers of both, float32).
        """
        planes = torch.stack([cube[..., int(index)] for cube, index in zip(x, depth, strict=True)])
        judged, features = [], []
        for critic, seen in ((self.cube, x), (self.slice, planes)):
            *inner, last = critic(seen)
            judged.append(last.float())
            features += [layer.float() for layer in inner]
        return judged, features
