"""Response head: how the original tumour will be divided after treatment, from the image before it and the action.

Four shares of the original tumour's volume that sum to 1: viable, necrotic, oil-laden, vacated (shrunk away). They are
measured on the follow-up's labels in training, predicted here, and handed to the denoiser beside the action:
pharmacology is learned from a few numbers, drawing from images. Without this the denoiser drew Lipiodol but blurred the
other agents together.

What it reads of the image is the preset's choice: the tumour's profile (`models.networks.tumour_profile`), or the
latents through two convolutions.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.formulary import ITEM_ORDER, Formulary
from models.networks.tumour_profile import PROFILE_SIZE

SHARES = ("viable", "necrotic", "oil", "vacated")


class ResponseHead(nn.Module):
    """Order-free: every agent is read together with what the image shows, then drugs and embolics are summed apart."""

    is_drug: Tensor
    profile_mean: Tensor
    profile_spread: Tensor

    def __init__(
        self, latent_channels: int, width: int = 48, concept_dim: int = 24,
        reading: Literal["latent", "profile"] = "latent",
    ) -> None:  # fmt: skip
        """Build with random weights.

        Args:
            latent_channels: of the autoencoder.
            width: of the features.
            concept_dim: of an agent's embedding.
            reading: what is read of the image.
        """
        super().__init__()
        self.reading = reading
        if reading == "latent":
            self.look = nn.Sequential(
                nn.Conv3d(latent_channels + 1, 32, 3, padding=1),
                nn.GELU(),
                nn.Conv3d(32, width, 3, padding=1),
                nn.GELU(),
            )
            self.summarise = nn.Sequential(
                nn.Linear(4 * width + 2, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, width)
            )
        else:
            self.register_buffer("profile_mean", torch.zeros(PROFILE_SIZE))
            self.register_buffer("profile_spread", torch.ones(PROFILE_SIZE))
            self.summarise = nn.Sequential(
                nn.Linear(PROFILE_SIZE, 96), nn.GELU(), nn.Dropout(0.2), nn.Linear(96, width)
            )
        self.concept = nn.Parameter(torch.randn(len(ITEM_ORDER), concept_dim) * 0.3)
        self.agent = nn.Sequential(nn.Linear(concept_dim + 2 + width, 64), nn.GELU(), nn.Linear(64, 32))
        self.combine = nn.Sequential(
            nn.Linear(64 + width, 64),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(64, 64),
            nn.GELU(),
            nn.Linear(64, len(SHARES)),
        )
        formulary = Formulary.load("all")
        drugs = [1.0 if formulary.item(name).kind == "drug" else 0.0 for name in ITEM_ORDER]
        self.register_buffer("is_drug", torch.tensor(drugs), persistent=False)

    @torch.no_grad()
    def set_profile_statistics(self, profiles: Tensor) -> None:
        """Store mean and spread of the training patients' profiles (P, PROFILE_SIZE)."""
        self.profile_mean.copy_(profiles.mean(0))
        self.profile_spread.copy_(profiles.std(0).clamp_min(1e-3))

    def features(self, z_pre: Tensor, mask: Tensor, log2_spacing: Tensor, profile: Tensor) -> Tensor:
        """What the image shows: the profile; or from the latents, in the tumour, around it, and everywhere.

        Args:
            z_pre: (N, C, s, s, s) latent before treatment.
            mask: (N, 1, s, s, s) share of tumour per cell.
            log2_spacing: (N,) log2(voxel edge in mm / 1.5).
            profile: (N, PROFILE_SIZE) from `tumour_profile`.

        Returns:
            (N, width).
        """
        if self.reading == "profile":
            told: Tensor = self.summarise(((profile - self.profile_mean) / self.profile_spread).clamp(-4.0, 4.0))
            return told
        seen = self.look(torch.cat([z_pre, mask], dim=1)).float()
        ring = (F.max_pool3d(mask, 3, stride=1, padding=1) - mask).clamp_min(0.0)

        def mean(weight: Tensor) -> Tensor:
            total: Tensor = (seen * weight).sum(dim=(2, 3, 4)) / weight.sum(dim=(2, 3, 4)).clamp_min(1e-3)
            return total

        inside = mean(mask)
        spread = (((seen - inside[:, :, None, None, None]) ** 2) * mask).sum(dim=(2, 3, 4)) / mask.sum(
            dim=(2, 3, 4)
        ).clamp_min(1e-3)
        volume = torch.log1p(mask.sum(dim=(1, 2, 3, 4)))
        scalars = torch.stack([log2_spacing, volume], dim=1)
        parts = [inside, torch.sqrt(spread + 1e-6), mean(ring), seen.mean(dim=(2, 3, 4)), scalars]
        out: Tensor = self.summarise(torch.cat(parts, dim=1))
        return out

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        """Logits of the shares.

        Args:
            features: (N, width) from `features`.
            action: (N, 18, 3) from `models.networks.action.action_vector`.

        Returns:
            (N, 4) logits; a softmax gives the shares in the order of `SHARES`.
        """
        present = action[:, :, :1]
        count = action.shape[0]
        items = self.concept.shape[0]
        agents = torch.cat(
            [self.concept.expand(count, -1, -1), action[:, :, 1:], features[:, None].expand(-1, items, -1)], dim=2
        )
        effect = self.agent(agents) * present
        drugs = (effect * self.is_drug[None, :, None]).sum(dim=1)
        embolics = (effect * (1.0 - self.is_drug)[None, :, None]).sum(dim=1)
        out: Tensor = self.combine(torch.cat([drugs, embolics, features], dim=1))
        return out


def with_luck(shares: Tensor, luck: Tensor) -> Tensor:
    """Shares of tumours that answer better or worse than the image lets expect.

    Args:
        shares: (N, 4) in the order of `SHARES`, summing to 1.
        luck: (N,) added to the logit of the viable share.

    Returns:
        (N, 4); the other shares keep their proportions.
    """
    viable = shares[:, :1].clamp(1e-6, 1.0 - 1e-6)
    moved = torch.sigmoid(torch.logit(viable) + luck[:, None])
    return torch.cat([moved, shares[:, 1:] * (1.0 - moved) / (1.0 - viable)], dim=1)
