from __future__ import annotations

import pytest
import torch

from models.networks.critic import Critics
from models.training.perceptual import critic_loss, feature_matching_loss, fooling_loss, perceptual_loss


def test_blur_costs_more_than_an_offset_of_the_same_size() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(1, 1, 16, 16, 16, generator=generator)
    weight = torch.ones_like(target)
    assert float(perceptual_loss(target, target, weight)) == 0.0
    assert float(perceptual_loss(target + 0.5, target, weight)) == pytest.approx(0.0, abs=1e-4)
    blurred = torch.nn.functional.avg_pool3d(target, 3, 1, 1)
    assert float(perceptual_loss(blurred, target, weight)) > 0.3


def test_only_where_there_is_weight() -> None:
    target, weight = torch.zeros(1, 1, 16, 16, 16), torch.zeros(1, 1, 16, 16, 16)
    weight[..., :8] = 1.0
    image = target.clone()
    image[..., 13, 13, 13] = 1.0
    near = target.clone()
    near[..., 3, 3, 3] = 1.0
    assert float(perceptual_loss(image, target, weight)) < 0.2 * float(perceptual_loss(near, target, weight))


def test_hinge_losses_by_hand() -> None:
    real, fake = [torch.tensor([2.0, 0.5])], [torch.tensor([-3.0, 0.0])]
    # real: max(0, 1 - x) = 0, 0.5; decoded: max(0, 1 + x) = 0, 1
    assert float(critic_loss(real, fake)) == pytest.approx(0.5 * (0.25 + 0.5))
    assert float(fooling_loss(fake)) == pytest.approx(1.5)
    assert float(feature_matching_loss([torch.zeros(2)], [torch.tensor([1.0, -3.0])])) == pytest.approx(2.0)


def test_both_opponents_judge_and_can_learn_to_tell_noise_from_smooth() -> None:
    torch.manual_seed(0)
    critics = Critics(channels=4)
    optimiser = torch.optim.Adam(critics.parameters(), 0.02)
    depth = torch.tensor([3, 8])
    first = last = 0.0
    for step in range(40):
        real = torch.nn.functional.avg_pool3d(torch.randn(2, 1, 18, 18, 18), 3, 1)
        real, fake = real / real.std(), torch.randn(2, 1, 16, 16, 16)
        judged, features = critics(real, depth)
        assert len(judged) == 2
        assert {layer.dim() for layer in features} == {4, 5}
        loss = critic_loss(judged, critics(fake, depth)[0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        first, last = (float(loss.detach()), last) if step == 0 else (first, float(loss.detach()))
    assert last < 0.85 * first
