"""The two ways between noise and a post-treatment latent: a rectified flow (default) and the paper's noise prediction.

Both see time as t in [0, 1], 0 noise and 1 the latent, so that network, losses and engine don't know which one it is.

- `Flow`: z_t = (1 - t) noise + t z, the network gives the velocity z - noise, sampling takes Euler steps. It is MONAI's
  `RFlowScheduler` with the time turned round.
- `NoisePrediction`, the paper's: z_t = sqrt(a_t) z + sqrt(1 - a_t) noise over 200 steps of a cosine
  schedule, the network gives the noise; sampling by DDPM or DDIM, all three by MONAI's schedulers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol as Interface

import numpy as np
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from models.networks.preset import DenoiserPreset

SCHEDULE = "cosine"
LATENT_LIMIT = 6.0  # standard deviations; a first step divides by nearly nothing
UNIFORM_SHARE = 0.25  # of the flow's times: its first step starts at t = 0, which a logit-normal draw rarely gives
Network = Callable[[Tensor, Tensor], Tensor]  # (z_t, t) -> prediction


class Diffusion(Interface):
    """What training and sampling need of a path."""

    def times(self, rng: np.random.Generator, count: int) -> Tensor:
        """Times for a training batch, (count,) in [0, 1]."""
        ...

    def blend(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t of latents (N, ...) at times (N,)."""
        ...

    def target(self, clean: Tensor, noise: Tensor) -> Tensor:
        """What the network should predict."""
        ...

    def estimate(self, z_t: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """The clean latent that a prediction implies: differentiable, one step."""
        ...

    def integrate(self, network: Network, noise: Tensor, steps: int, start: float = 0.0) -> Tensor:
        """From noise to a latent; a start above 0 goes on from a latent that is only partly noised."""
        ...


def _along(t: Tensor, like: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * (like.dim() - 1))


class Flow:
    """Rectified flow (Liu et al. 2023), times logit-normal (Esser et al. 2024) with a uniform share."""

    def times(self, rng: np.random.Generator, count: int) -> Tensor:
        """See `Diffusion`."""
        logit = 1.0 / (1.0 + np.exp(-rng.standard_normal(count)))
        times = np.where(rng.random(count) < UNIFORM_SHARE, rng.random(count), logit)
        return torch.from_numpy(times.astype(np.float32))

    def blend(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """See `Diffusion`."""
        along = _along(t, clean)
        return (1.0 - along) * noise + along * clean

    def target(self, clean: Tensor, noise: Tensor) -> Tensor:
        """See `Diffusion`."""
        return clean - noise

    def estimate(self, z_t: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """See `Diffusion`."""
        return z_t + (1.0 - _along(t, z_t)) * predicted

    def integrate(self, network: Network, noise: Tensor, steps: int, start: float = 0.0) -> Tensor:
        """See `Diffusion`: Euler steps."""
        z = noise.float()
        width = (1.0 - start) / steps
        for step in range(steps):
            t = torch.full((z.shape[0],), start + step * width, device=z.device)
            z = z + network(z, t) * width
        return z


class NoisePrediction:
    """The paper's path: the network gives the noise. Time t is 1 - step / steps of the schedule."""

    def __init__(self, timesteps: int, sampler: str) -> None:
        """Args: timesteps: of the schedule. sampler: "ddpm" or "ddim"."""
        self.timesteps = timesteps
        self.sampler = sampler
        kind = DDPMScheduler if sampler == "ddpm" else DDIMScheduler
        self.schedule: DDPMScheduler | DDIMScheduler = kind(
            num_train_timesteps=timesteps, schedule=SCHEDULE, clip_sample=True, clip_sample_min=-LATENT_LIMIT,
            clip_sample_max=LATENT_LIMIT,
        )  # fmt: skip

    def _index(self, t: Tensor) -> Tensor:
        return ((1.0 - t) * self.timesteps).round().long().clamp(0, self.timesteps - 1)

    def times(self, rng: np.random.Generator, count: int) -> Tensor:
        """See `Diffusion`."""
        index = rng.integers(self.timesteps, size=count)
        return torch.from_numpy((1.0 - index / self.timesteps).astype(np.float32))

    def blend(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """See `Diffusion`."""
        z_t: Tensor = self.schedule.add_noise(original_samples=clean, noise=noise, timesteps=self._index(t))
        return z_t

    def target(self, clean: Tensor, noise: Tensor) -> Tensor:  # noqa: ARG002
        """See `Diffusion`."""
        return noise

    def estimate(self, z_t: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """See `Diffusion`."""
        kept = _along(self.schedule.alphas_cumprod.to(z_t.device)[self._index(t)], z_t)
        clean = (z_t - (1.0 - kept).sqrt() * predicted) / kept.sqrt()
        return clean.clamp(-LATENT_LIMIT, LATENT_LIMIT)

    def integrate(self, network: Network, noise: Tensor, steps: int, start: float = 0.0) -> Tensor:
        """See `Diffusion`. DDPM walks through the whole schedule, as in the paper; DDIM takes even steps."""
        first = int(self._index(torch.tensor(start)))  # where `blend` noises a latent to
        if self.sampler == "ddpm":
            return self._walk(network, noise.float(), first)
        return self._stride(network, noise.float(), steps, first)

    def _walk(self, network: Network, z: Tensor, first: int) -> Tensor:
        """DDPM from a level of the schedule on.

        Its noise between the steps is drawn for every sample from its own first noise: a result depends neither on
        its place in the batch nor on its neighbours, and protocols that share the noise share all of it.
        """
        self.schedule.set_timesteps(self.timesteps)
        draws = [
            torch.Generator(z.device).manual_seed(int(one.flatten()[:1].view(torch.int32)) & 0x7FFFFFFF) for one in z
        ]
        for index in range(first, -1, -1):
            t = 1.0 - index / self.timesteps
            predicted = network(z, torch.full((z.shape[0],), t, device=z.device))
            z = torch.cat([
                self.schedule.step(predicted[i : i + 1], index, z[i : i + 1], generator=draw)[0]
                for i, draw in enumerate(draws)
            ])  # fmt: skip
        return z

    def _stride(self, network: Network, z: Tensor, steps: int, first: int) -> Tensor:
        """DDIM without noise (Song et al. 2021, equation 12) from a level of the schedule on, in even steps.

        MONAI's scheduler asks the network at evenly spread levels, but moves by other strides than these.
        """
        count = min(steps, first + 1)
        clean = predicted = z
        for step in range(count):
            t = torch.full((z.shape[0],), 1.0 - (first - step * (first + 1) // count) / self.timesteps, device=z.device)
            z_t = self.blend(clean, predicted, t) if step else z
            predicted = network(z_t, t)
            clean = self.estimate(z_t, predicted, t)
        return clean


def diffusion_of(preset: DenoiserPreset) -> Flow | NoisePrediction:
    """The path of a preset."""
    return Flow() if preset.objective == "flow" else NoisePrediction(preset.timesteps, preset.sampler)
