"""Denoiser: action-conditioned 3D U-Net on latents, trained and sampled as `models.networks.diffusion` says.

The pre-treatment latent, the tumour mask and the action are concatenated to the noisy latent (as in the paper); the
action and the voxel size also shift every residual block beside the time, at no cost. Beside the action stand the
shares into which the tumour will be divided (see `models.networks.response_head`): measured in training, predicted in
sampling.
"""

from __future__ import annotations

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from models.networks.action import ActionEncoder
from models.networks.diffusion import diffusion_of
from models.networks.preset import DenoiserPreset
from models.networks.response_head import SHARES, ResponseHead

TIME_SCALE = 1000.0  # MONAI's sinusoidal embedding expects steps of this range


class Denoiser(nn.Module):
    """What leads from noise to the post-treatment latent: the flow's velocity, or the noise."""

    def __init__(self, preset: DenoiserPreset, latent_channels: int) -> None:
        """Args: preset: sizes. latent_channels: of the autoencoder."""
        super().__init__()
        self.preset = preset
        self.latent_channels = latent_channels
        self.action_encoder = ActionEncoder(preset)
        self.response = ResponseHead(latent_channels, reading=preset.reading)
        self.diffusion = diffusion_of(preset)
        self.unet = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=2 * latent_channels + 1 + preset.action_dim + len(SHARES),
            out_channels=latent_channels,
            channels=preset.channels,
            num_res_blocks=preset.res_blocks,
            attention_levels=preset.attention,
            num_head_channels=preset.head_channels,
            norm_num_groups=preset.norm_groups,
            num_class_embeds=1,
        )
        time_dim = 4 * preset.channels[0]
        # MONAI adds a "class" embedding to that of the time; ours is the action and the voxel size instead of a class.
        self.unet.class_embedding = nn.Sequential(
            nn.Linear(preset.action_dim + 1 + len(SHARES), time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim)
        )

    def forward(
        self, z_t: Tensor, t: Tensor, z_pre: Tensor, mask: Tensor, action: Tensor, text: Tensor, log2_spacing: Tensor,
        shares: Tensor, keep: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Predict the diffusion's target.

        Args:
            z_t: noisy latent (N, C, s, s, s).
            t: (N,) in [0, 1]; 0 is noise, 1 is the post-treatment latent.
            z_pre: pre-treatment latent (N, C, s, s, s).
            mask: original tumour (N, 1, s, s, s), share of each cell in [0, 1].
            action: (N, 18, 3) from `models.networks.action.action_vector`.
            text: (N, text_dim) from `models.networks.action.text_vector`.
            log2_spacing: (N,) log2(voxel edge in mm / 1.5).
            shares: (N, 4) of the original tumour in the order of `response_head.SHARES`.
            keep: (N,) bool, False hides action and shares (guidance training and sampling); None keeps all.

        Returns:
            Velocity or noise (N, C, s, s, s), float32.
        """
        if self.preset.condition != "action":  # the ablations: what the network does not know can't leak through
            action, shares = torch.zeros_like(action), torch.zeros_like(shares)
        if self.preset.condition == "none":
            text = torch.zeros_like(text)
        tau = self.action_encoder(action, text, keep)
        spread = tau[:, :, None, None, None].expand(-1, -1, *z_t.shape[2:])
        if keep is not None:
            shares = shares * keep[:, None].to(shares.dtype)
        painted = shares[:, :, None, None, None].to(z_t.dtype) * mask
        x = torch.cat([z_t, z_pre, mask, spread.to(z_t.dtype), painted], dim=1)
        condition = torch.cat([tau, log2_spacing[:, None].to(tau.dtype), shares.to(tau.dtype)], dim=1)
        predicted: Tensor = self.unet(x, t * TIME_SCALE, class_labels=condition)
        return predicted.float()

    def predict_shares(
        self, z_pre: Tensor, mask: Tensor, action: Tensor, log2_spacing: Tensor, profile: Tensor
    ) -> Tensor:
        """Shares of the original tumour after the action, (N, 4) in the order of `SHARES`, summing to 1."""
        with torch.autocast(z_pre.device.type, enabled=False):
            features = self.response.features(z_pre.float(), mask.float(), log2_spacing.float(), profile.float())
            return torch.softmax(self.response(features, action.float()), dim=1)


@torch.no_grad()
def sample(
    denoiser: Denoiser, noise: Tensor, z_pre: Tensor, mask: Tensor, action: Tensor, text: Tensor,
    log2_spacing: Tensor, profile: Tensor, *, steps: int | None = None, guidance: float | None = None,
    shares: Tensor | None = None, start: float = 0.0,
) -> Tensor:  # fmt: skip
    """Draw post-treatment latents.

    Args:
        denoiser: the network.
        noise: (N, C, s, s, s) standard normal, made by the caller, so that protocols can share it (common random
            numbers); with a start above 0 a latent noised up to that time.
        z_pre: as in `Denoiser.forward`.
        mask: as in `Denoiser.forward`.
        action: as in `Denoiser.forward`.
        text: as in `Denoiser.forward`.
        log2_spacing: as in `Denoiser.forward`.
        profile: (N, PROFILE_SIZE) from `tumour_profile`.
        steps: steps; None takes the preset's.
        guidance: classifier-free guidance weight w: v = v_without + w * (v_with - v_without). 1 is plain; above 1
            strengthens the action's effect at the price of a second network call, in every step or, where the preset
            has a `guidance_at`, in one. None takes the preset's.
        shares: (N, 4) to draw instead of the predicted ones.
        start: time in [0, 1) at which `noise` stands.

    Returns:
        Normalised post-treatment latent (N, C, s, s, s), float32.
    """
    count = denoiser.preset.steps if steps is None else steps
    weight = denoiser.preset.guidance if guidance is None else guidance
    if count < 1:
        raise ValueError(f"steps must be at least 1, not {count}")
    hidden = torch.zeros(noise.shape[0], dtype=torch.bool, device=noise.device)
    if shares is None:
        shares = denoiser.predict_shares(z_pre, mask, action, log2_spacing, profile)
    once_at = denoiser.preset.guidance_at
    push: Tensor | None = None

    def predict(z: Tensor, t: Tensor) -> Tensor:
        nonlocal push
        predicted: Tensor = denoiser(z, t, z_pre, mask, action, text, log2_spacing, shares)
        if weight == 1.0 or (once_at is not None and t[0] < once_at):
            return predicted
        if push is None or once_at is None:
            push = predicted - denoiser(z, t, z_pre, mask, action, text, log2_spacing, shares, keep=hidden)
        return predicted + (weight - 1.0) * push

    return denoiser.diffusion.integrate(predict, noise, count, start)
