"""Vector quantiser with EMA codebook, data-dependent initialisation and dead-code restart.

MONAI's own quantiser collapsed to one code here with its default initialisation; these two measures (both part of the
VQ-GAN 3D of medical diffusion and DiffTumor) prevent it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EmaQuantiser(nn.Module):
    """Replaces each vector by its nearest code; the codebook follows the vectors by an exponential moving average.

    In training mode the first batch initialises the codebook, every call moves it, and codes whose moving count falls
    below `restart_below` are replaced by random vectors of the batch. In evaluation mode nothing changes.
    """

    embedding: Tensor
    ema_count: Tensor
    ema_sum: Tensor
    initialised: Tensor

    def __init__(self, codes: int, dim: int, decay: float = 0.99, restart_below: float = 0.5) -> None:
        """Args: codes: size of the codebook. dim: length of a code. decay: of the moving averages."""
        super().__init__()
        self.decay = decay
        self.restart_below = restart_below
        self.register_buffer("embedding", torch.randn(codes, dim))
        self.register_buffer("ema_count", torch.ones(codes))
        self.register_buffer("ema_sum", torch.zeros(codes, dim))
        self.register_buffer("initialised", torch.zeros(1))

    def nearest(self, flat: Tensor) -> Tensor:
        """Index of the nearest code. flat (M, dim) -> (M,) int64."""
        distance = self.embedding.square().sum(1) - 2.0 * flat @ self.embedding.t()
        return distance.argmin(1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise.

        Args:
            z: (N, dim, ...) float32.

        Returns:
            The codes in the shape of z (no gradient to z), and the perplexity of their use (scalar; 1 means collapse).
        """
        with torch.no_grad():
            flat = z.detach().movedim(1, -1).reshape(-1, z.shape[1]).float()
            if self.training and not bool(self.initialised):
                self._initialise(flat)
            index = self.nearest(flat)
            count = torch.bincount(index, minlength=self.embedding.shape[0]).to(flat.dtype)
            quantised = self.embedding[index].reshape(*z.movedim(1, -1).shape).movedim(-1, 1)
            if self.training:
                self._follow(flat, index, count)
            share = count / count.sum()
            perplexity = torch.exp(-(share * torch.log(share + 1e-10)).sum())
        return quantised, perplexity

    def _initialise(self, flat: Tensor) -> None:
        self.embedding.copy_(self._draw(flat, self.embedding.shape[0]))
        self.ema_sum.copy_(self.embedding)
        self.ema_count.fill_(1.0)
        self.initialised.fill_(1.0)

    @staticmethod
    def _draw(flat: Tensor, count: int) -> Tensor:
        return flat[torch.randint(0, flat.shape[0], (count,), device=flat.device)]

    def _follow(self, flat: Tensor, index: Tensor, count: Tensor) -> None:
        total = torch.zeros_like(self.ema_sum).index_add_(0, index, flat)
        self.ema_count.mul_(self.decay).add_(count, alpha=1 - self.decay)
        self.ema_sum.mul_(self.decay).add_(total, alpha=1 - self.decay)
        dead = self.ema_count < self.restart_below
        replacement = self._draw(flat, self.embedding.shape[0])
        self.ema_sum.copy_(torch.where(dead[:, None], replacement, self.ema_sum))
        self.ema_count.copy_(torch.where(dead, torch.ones_like(self.ema_count), self.ema_count))
        self.embedding.copy_(self.ema_sum / self.ema_count[:, None])
