from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.networks.action import encode_protocols
from models.networks.denoiser import Denoiser, sample
from models.networks.diffusion import Flow
from models.networks.precision import autocast, supports_bf16
from models.networks.preset import Preset
from models.networks.tumour_profile import PROFILE_SIZE
from models.protocol import Protocol
from models.weights import WorldModel, init_world_model

PROTOCOLS = [Protocol(drugs=("Cisplatin",)), Protocol(drugs=("Cisplatin",), embolics=("Lipiodol",))]


def _inputs(model: WorldModel, count: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (count, model.autoencoder.latent_channels, 8, 8, 8)
    action, text = encode_protocols((PROTOCOLS * count)[:count], model.text_encoder)
    return {
        "noise": torch.randn(1, *shape[1:], generator=generator).expand(shape).contiguous(),
        "z_pre": torch.randn(1, *shape[1:], generator=generator).expand(shape).contiguous(),
        "mask": torch.ones(count, 1, 8, 8, 8), "action": action, "text": text, "log2_spacing": torch.zeros(count),
        "profile": torch.zeros(count, PROFILE_SIZE),
    }  # fmt: skip


class ExactFlow:
    """The velocity of a straight path to a known end: any Euler sampler must arrive exactly."""

    def __init__(self, end: Tensor, model: WorldModel) -> None:
        self.end, self.preset, self.diffusion = end, model.preset.denoiser, Flow()

    def predict_shares(self, z_pre: Tensor, *_: Any) -> Tensor:
        return torch.full((z_pre.shape[0], 4), 0.25)

    def __call__(self, z_t: Tensor, t: Tensor, *_: Any, **__: Any) -> Tensor:
        return (self.end - z_t) / (1.0 - t)[:, None, None, None, None]


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_sampler_follows_a_known_flow_to_its_end(model: WorldModel, steps: int) -> None:
    inputs = _inputs(model)
    end = torch.randn(2, 4, 8, 8, 8)
    out = sample(ExactFlow(end, model), **inputs, steps=steps, guidance=1.0)  # type: ignore[arg-type]
    torch.testing.assert_close(out, end, rtol=1e-4, atol=1e-4)


def test_same_noise_other_protocol_other_result_and_same_protocol_same_result(model: WorldModel) -> None:
    out = sample(model.denoiser, **_inputs(model, 4), steps=2)
    assert torch.allclose(out[0], out[2], atol=1e-5)
    assert not torch.allclose(out[0], out[1], atol=1e-4)


@pytest.mark.parametrize("name", ["noise", "z_pre", "mask", "log2_spacing", "profile"])
def test_every_condition_reaches_the_network(model: WorldModel, name: str) -> None:
    inputs = _inputs(model)
    before = sample(model.denoiser, **inputs, steps=1)
    inputs[name] = inputs[name] + 0.5
    assert not torch.allclose(sample(model.denoiser, **inputs, steps=1), before, atol=1e-5)


def test_guidance_one_is_plain_zero_ignores_the_action_and_two_doubles_its_effect(
    model: WorldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.denoiser, "preset", model.denoiser.preset.model_copy(update={"guidance_at": None}))
    inputs = _inputs(model)
    zero, one, two = (sample(model.denoiser, **inputs, steps=1, guidance=w) for w in (0.0, 1.0, 2.0))
    torch.testing.assert_close(two - one, one - zero, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(zero[0], zero[1], rtol=1e-4, atol=1e-5)


class KnownGuidance(ExactFlow):
    """Velocity 1 with the action and t without it."""

    def __init__(self, model: WorldModel, at: float | None) -> None:
        super().__init__(torch.zeros(1), model)
        self.preset = self.preset.model_copy(update={"guidance_at": at})
        self.hidden: list[float] = []

    def __call__(self, z_t: Tensor, t: Tensor, *_: Any, keep: Tensor | None = None, **__: Any) -> Tensor:
        if keep is None:
            return torch.ones_like(z_t)
        assert not keep.any()
        self.hidden.append(round(float(t[0]), 3))
        return torch.full_like(z_t, float(t[0]))


@pytest.mark.parametrize(
    ("at", "asked", "way"),
    # five steps of 0.2 with weight 3: 1 + 0.2 * the sum of 2 * (1 - the time at which the guidance was computed)
    [
        (None, [0.0, 0.2, 0.4, 0.6, 0.8], 1 + 0.4 * (1.0 + 0.8 + 0.6 + 0.4 + 0.2)),
        (0.0, [0.0], 1 + 0.4 * 5 * 1.0),
        (0.2, [0.2], 1 + 0.4 * 4 * 0.8),
        (0.7, [0.8], 1 + 0.4 * 1 * 0.2),
        (0.9, [], 1.0),
    ],
)
def test_the_guidance_is_computed_in_every_step_or_once_and_kept(
    model: WorldModel, at: float | None, asked: list[float], way: float
) -> None:
    inputs = _inputs(model)
    flow = KnownGuidance(model, at)
    out = sample(flow, **inputs, steps=5, guidance=3.0)  # type: ignore[arg-type]
    assert flow.hidden == asked
    torch.testing.assert_close(out, inputs["noise"] + way, rtol=1e-4, atol=1e-4)


def test_steps_must_be_positive(model: WorldModel) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        sample(model.denoiser, **_inputs(model), steps=0)


def test_bf16_is_close_to_fp32(model: WorldModel) -> None:
    if not supports_bf16("cpu"):
        pytest.skip("this CPU has no bfloat16 arithmetic")
    inputs = _inputs(model)
    exact = sample(model.denoiser, **inputs, steps=4)
    with autocast("cpu", enabled=True):
        quick = sample(model.denoiser, **inputs, steps=4)
    assert quick.dtype == torch.float32
    assert float((quick - exact).abs().mean() / exact.abs().mean()) < 0.02


def test_a_sample_does_not_depend_on_its_neighbours(model: WorldModel) -> None:
    inputs = _inputs(model, 4)
    mixed = sample(model.denoiser, **inputs, steps=2)
    other = {name: torch.cat([value[:1], torch.roll(value[1:], 1, 0) + 0.1]) for name, value in inputs.items()}
    torch.testing.assert_close(sample(model.denoiser, **other, steps=2)[0], mixed[0], rtol=1e-4, atol=1e-5)


def test_velocity_is_float32_and_of_the_latents_shape(model: WorldModel) -> None:
    inputs = _inputs(model)
    noise, _ = inputs.pop("noise"), inputs.pop("profile")
    denoiser: Denoiser = model.denoiser
    out = denoiser(noise, torch.rand(2), **inputs, shares=torch.full((2, 4), 0.25))
    assert out.shape == noise.shape
    assert out.dtype == torch.float32


@pytest.mark.parametrize(("condition", "seen"), [("action", True), ("text", True), ("none", False)])
def test_an_ablated_network_does_not_learn_of_the_protocol(tiny: Preset, condition: str, seen: bool) -> None:
    changed = tiny.model_copy(update={"denoiser": tiny.denoiser.model_copy(update={"condition": condition})})
    model = init_world_model(changed, seed=1)
    out = sample(model.denoiser, **_inputs(model, 2), steps=2)
    assert torch.allclose(out[0], out[1], atol=1e-6) != seen


def test_given_shares_are_drawn_instead_of_the_predicted_ones(model: WorldModel) -> None:
    inputs = _inputs(model)
    one, other = (
        sample(model.denoiser, **inputs, steps=1, shares=torch.tensor([share, share])) for share in (
            [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]
        )
    )  # fmt: skip
    assert not torch.allclose(one, other, atol=1e-4)
