from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.schedulers import DDPMScheduler, RFlowScheduler
from torch import Tensor

from models.networks.diffusion import Flow, NoisePrediction

CLEAN = torch.randn(3, 2, 4, 4, 4, generator=torch.Generator().manual_seed(1)).clamp(-3, 3)
NOISE = torch.randn(3, 2, 4, 4, 4, generator=torch.Generator().manual_seed(2))


def test_flow_blends_like_monai_with_the_time_turned_round() -> None:
    reference = RFlowScheduler(num_train_timesteps=1000)
    for t in (0.0, 0.25, 0.9):
        steps = torch.full((3,), (1.0 - t) * 1000)
        expected = reference.add_noise(CLEAN, NOISE, steps)
        torch.testing.assert_close(Flow().blend(CLEAN, NOISE, torch.full((3,), t)), expected, rtol=1e-4, atol=1e-5)


def test_flow_samples_like_monai() -> None:
    """One network, ours as a velocity at t, MONAI's at the turned time: the same result."""

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        return torch.sin(z) * (1 + t)[:, None, None, None, None] + 0.3

    ours = Flow().integrate(velocity, NOISE, steps=5)
    reference = RFlowScheduler(num_train_timesteps=1000, use_discrete_timesteps=False)
    reference.set_timesteps(num_inference_steps=5)
    z, times = NOISE, reference.timesteps.tolist()
    for now, then in zip(times, [*times[1:], 0.0], strict=True):
        told = torch.full((3,), 1.0 - now / 1000)
        z, _ = reference.step(velocity(z, told), now, z, then)
    torch.testing.assert_close(ours, z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_flow_goes_on_from_where_a_latent_was_noised_to(steps: int) -> None:
    seen: list[float] = []

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t[0]))
        return CLEAN - NOISE

    noised = Flow().blend(CLEAN, NOISE, torch.full((3,), 0.4))
    torch.testing.assert_close(Flow().integrate(velocity, noised, steps, start=0.4), CLEAN, rtol=1e-4, atol=1e-5)
    assert seen == pytest.approx([0.4 + 0.6 * step / steps for step in range(steps)])


@pytest.mark.parametrize("path", [Flow(), NoisePrediction(50, "ddim")])
def test_the_estimate_inverts_the_blend(path: Flow | NoisePrediction) -> None:
    t = torch.tensor([0.3, 0.6, 0.98])
    z_t = path.blend(CLEAN, NOISE, t)
    torch.testing.assert_close(path.estimate(z_t, path.target(CLEAN, NOISE), t), CLEAN, rtol=1e-3, atol=1e-3)


def test_noise_is_added_as_ddpm_says() -> None:
    """Against the closed form with MONAI's own cosine schedule."""
    kept = DDPMScheduler(num_train_timesteps=200, schedule="cosine").alphas_cumprod
    path = NoisePrediction(200, "ddpm")
    for index in (0, 57, 199):
        expected = kept[index].sqrt() * CLEAN + (1 - kept[index]).sqrt() * NOISE
        torch.testing.assert_close(path.blend(CLEAN, NOISE, torch.full((3,), 1.0 - index / 200)), expected)
    assert 0.9 < float(kept[5]) < 1.0
    assert float(kept[199]) < 0.01


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 5), ("ddim", 25), ("ddpm", 25)])
def test_a_network_that_knows_the_clean_latent_leads_to_it(sampler: str, steps: int) -> None:
    path = NoisePrediction(25, sampler)

    def network(z: Tensor, t: Tensor) -> Tensor:
        kept = path.schedule.alphas_cumprod[path._index(t)][:, None, None, None, None]
        return (z - kept.sqrt() * CLEAN) / (1 - kept).sqrt()

    torch.testing.assert_close(path.integrate(network, NOISE, steps), CLEAN, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 1), ("ddim", 3), ("ddim", 500), ("ddpm", 7)])
@pytest.mark.parametrize("start", [0.1, 0.35, 0.8])
def test_a_noise_prediction_goes_on_from_where_a_latent_was_noised_to(sampler: str, steps: int, start: float) -> None:
    """The network is told how much noise there is, in every step: with the true noise all latents lie on the path."""
    path = NoisePrediction(200, sampler)
    seen: list[float] = []

    def network(z: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t[0]))
        if sampler == "ddim":  # ddpm adds noise of its own
            torch.testing.assert_close(z, path.blend(CLEAN, NOISE, t), rtol=1e-3, atol=1e-3)
        return NOISE

    noised = path.blend(CLEAN, NOISE, torch.full((3,), start))
    found = path.integrate(network, noised, steps, start)
    levels = round((1 - start) * 200)
    assert seen[0] == pytest.approx(start)
    assert len(seen) == (min(steps, levels + 1) if sampler == "ddim" else levels + 1)
    widths = np.diff([*seen, 1.0 + 1 / 200])
    if sampler == "ddim":
        torch.testing.assert_close(found, CLEAN, rtol=1e-3, atol=1e-3)
        assert widths.max() - widths.min() < 1.01 / 200  # even


def test_ddim_through_the_whole_schedule_is_monais() -> None:
    """With fewer steps MONAI's strides and levels part."""
    path = NoisePrediction(40, "ddim")
    reference = NoisePrediction(40, "ddim").schedule

    def network(z: Tensor, t: Tensor) -> Tensor:
        return 0.9 * z * (1 - 0.5 * t)[:, None, None, None, None]

    reference.set_timesteps(40)
    z = NOISE
    for index in reference.timesteps.tolist():
        z, _ = reference.step(network(z, torch.full((3,), 1.0 - index / 40)), index, z)
    torch.testing.assert_close(path.integrate(network, NOISE, 40), z, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [5, 7, 200])
def test_ddim_tells_the_network_how_much_noise_there_is(steps: int) -> None:
    """What stands beside the clean latent at the level that is told is the same noise in every step."""
    path = NoisePrediction(200, "ddim")
    found: list[Tensor] = []

    def network(z: Tensor, t: Tensor) -> Tensor:
        kept = path.schedule.alphas_cumprod[path._index(t)][:, None, None, None, None]
        found.append((z - kept.sqrt() * CLEAN) / (1 - kept).sqrt())
        return found[-1]

    torch.testing.assert_close(path.integrate(network, NOISE, steps), CLEAN, rtol=1e-3, atol=1e-3)
    assert len(found) == steps
    for noise in found:
        torch.testing.assert_close(noise, found[0], rtol=1e-2, atol=1e-2)


def test_a_ddpm_result_does_not_depend_on_the_place_in_the_batch() -> None:
    path = NoisePrediction(6, "ddpm")

    def network(z: Tensor, t: Tensor) -> Tensor:
        return 0.3 * z * (1 - t)[:, None, None, None, None]

    forward, backward = (path.integrate(network, noise, 6) for noise in (NOISE, NOISE.flip(0)))
    assert torch.equal(forward.flip(0), backward)
    # the same first noise is the same noise all along: protocols are compared under common random numbers
    same = path.integrate(network, NOISE[:1].expand(2, -1, -1, -1, -1), 6)
    assert torch.equal(same[0], same[1])
