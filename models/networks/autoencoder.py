"""Autoencoder: 3D VQ-GAN between a CT patch and a latent cube at a quarter of its edge.

Encoder and decoder are MONAI's; the quantiser is our own (see `models.networks.quantiser`). The diffusion works on the
latent *before* quantisation, normalised per channel with statistics that the training stores.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from monai.networks.nets.vqvae import Decoder, Encoder
from torch import Tensor, nn

from models.networks.preset import AutoencoderPreset
from models.networks.quantiser import EmaQuantiser


class Reconstruction(NamedTuple):
    """What a training step needs from one pass: image, commitment loss (scalar), perplexity (scalar)."""

    image: Tensor
    commitment: Tensor
    perplexity: Tensor


class Autoencoder(nn.Module):
    """CT patch (N, 1, S, S, S) in [-1, 1] <-> normalised latent (N, C, S/4, S/4, S/4) for two-level presets."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, preset: AutoencoderPreset) -> None:
        """Build with random weights; `preset` holds the sizes."""
        super().__init__()
        self.preset = preset
        levels = len(preset.channels)
        self.encoder = Encoder(
            spatial_dims=3, in_channels=1, out_channels=preset.latent_channels, channels=preset.channels,
            num_res_layers=preset.res_layers, num_res_channels=preset.channels,
            downsample_parameters=[(2, 4, 1, 1)] * levels, dropout=0.0, act="RELU",
        )  # fmt: skip
        self.decoder = Decoder(
            spatial_dims=3, in_channels=preset.latent_channels, out_channels=1, channels=preset.channels,
            num_res_layers=preset.res_layers, num_res_channels=preset.channels,
            upsample_parameters=[(2, 4, 1, 1, 0)] * levels, dropout=0.0, act="RELU", output_act=None,
        )  # fmt: skip
        self.quantisers = nn.ModuleList(
            EmaQuantiser(preset.codes, preset.latent_channels) for _ in range(preset.code_levels)
        )
        shape = (1, preset.latent_channels, 1, 1, 1)
        self.register_buffer("latent_mean", torch.zeros(shape))
        self.register_buffer("latent_std", torch.ones(shape))

    @property
    def latent_channels(self) -> int:
        """Channels of the latent."""
        return self.preset.latent_channels

    @property
    def downsampling(self) -> int:
        """Voxels per latent cell along one edge."""
        return int(2 ** len(self.preset.channels))

    def quantise(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Residual quantisation of a raw latent (N, C, ...): sum of the codes of all levels, perplexity of level 1."""
        total = torch.zeros_like(raw, dtype=torch.float32)
        perplexities = []
        for quantiser in self.quantisers:
            codes, perplexity = quantiser(raw.float() - total)
            total = total + codes
            perplexities.append(perplexity)
        return total, perplexities[0]

    def encode(self, x: Tensor) -> Tensor:
        """Patch (N, 1, S, S, S) in [-1, 1] -> normalised latent before quantisation, float32."""
        raw: Tensor = self.encoder(x)
        return (raw.float() - self.latent_mean) / self.latent_std

    def decode(self, z: Tensor) -> Tensor:
        """Normalised latent (N, C, s, s, s) -> patch (N, 1, S, S, S), float32, clamped to [-1, 1]."""
        raw = z.float() * self.latent_std + self.latent_mean
        if self.preset.decode_codes:
            raw = self.quantise(raw)[0]
        image: Tensor = self.decoder(raw)
        return image.float().clamp(-1.0, 1.0)

    def forward(self, x: Tensor, quantised_share: float = 1.0) -> Reconstruction:
        """Encode, quantise with straight-through gradient, decode.

        Args:
            x: (N, 1, S, S, S) in [-1, 1].
            quantised_share: probability, per sample, that the decoder sees codes rather than the continuous latent.
                Below 1 the decoder learns both, so that fine structure need not pass through the codebook.
        """
        raw = self.encoder(x).float()
        codes, perplexity = self.quantise(raw)
        commitment = (raw - codes.detach()).square().mean()
        through = raw + (codes - raw).detach()
        if quantised_share < 1.0:
            use_codes = torch.rand(raw.shape[0], 1, 1, 1, 1, device=raw.device) < quantised_share
            through = torch.where(use_codes, through, raw)
        return Reconstruction(self.decoder(through).float(), commitment, perplexity)

    @torch.no_grad()
    def set_latent_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Store the per-channel mean and standard deviation (C,) of raw latents."""
        self.latent_mean.copy_(mean.view_as(self.latent_mean))
        self.latent_std.copy_(std.clamp_min(1e-4).view_as(self.latent_std))
