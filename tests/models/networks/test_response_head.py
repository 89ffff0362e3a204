from __future__ import annotations

import torch

from models.formulary import ITEM_ORDER
from models.networks.action import action_vector
from models.networks.response_head import SHARES, ResponseHead, with_luck
from models.networks.tumour_profile import PROFILE_SIZE
from models.protocol import Dose, Protocol


def head() -> ResponseHead:
    torch.manual_seed(0)
    return ResponseHead(latent_channels=4).eval()


def image(count: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(count, 1, 8, 8, 8)
    mask[:, :, 2:6, 2:6, 2:6] = 1.0
    return torch.randn(count, 4, 8, 8, 8, generator=generator), mask, torch.zeros(count), torch.zeros(count, 1)


def action(*drugs: str, embolics: tuple[str, ...] = (), doses: tuple[tuple[str, Dose], ...] = ()) -> torch.Tensor:
    return torch.from_numpy(action_vector(Protocol(drugs=drugs, embolics=embolics, doses=doses)))[None]


@torch.no_grad()
def test_the_order_of_the_agents_does_not_matter() -> None:
    """The same agents in other rows, with their embeddings moved along, give the same shares."""
    network = head()
    features = network.features(*image())
    protocol = action("Cisplatin", "Mitomycin", embolics=("Lipiodol",))
    before = network(features, protocol)
    order = torch.randperm(len(ITEM_ORDER), generator=torch.Generator().manual_seed(3))
    network.concept.data = network.concept.data[order]
    network.is_drug = network.is_drug[order]
    torch.testing.assert_close(network(features, protocol[:, order]), before)


@torch.no_grad()
def test_an_absent_agent_has_no_effect_and_a_present_one_has() -> None:
    network = head()
    features = network.features(*image())
    one = network(features, action("Cisplatin"))
    row = ITEM_ORDER.index("Oxaliplatin")
    changed = head()
    changed.concept.data[row] += 5.0
    torch.testing.assert_close(changed(features, action("Cisplatin")), one)
    assert not torch.allclose(changed(features, action("Oxaliplatin")), network(features, action("Oxaliplatin")))


@torch.no_grad()
def test_image_and_dose_reach_the_answer() -> None:
    network = head()
    z_pre, mask, spacing, profile = image()
    low, high = (action("Cisplatin", doses=(("Cisplatin", Dose(amount=mg, unit="mg")),)) for mg in (15, 90))
    features = network.features(z_pre, mask, spacing, profile)
    assert not torch.allclose(network(features, low), network(features, high), atol=1e-5)
    moved = network.features(z_pre, mask.roll(2, dims=2), spacing, profile)
    assert not torch.allclose(network(moved, low), network(features, low), atol=1e-5)
    assert network(features, low).shape == (1, len(SHARES))


@torch.no_grad()
def test_with_a_profile_the_latents_are_not_read_and_the_profile_is() -> None:
    torch.manual_seed(0)
    network = ResponseHead(latent_channels=4, reading="profile").eval()
    profiles = torch.randn(6, PROFILE_SIZE, generator=torch.Generator().manual_seed(2)) * 3 + 1
    network.set_profile_statistics(profiles)
    z_pre, mask, spacing, _ = image(6)
    told = network.features(z_pre, mask, spacing, profiles)
    assert torch.equal(told, network.features(z_pre + 1, mask, spacing, profiles))
    assert not torch.allclose(told[0], told[1], atol=1e-4)
    # standardised: another unit of the profile changes nothing
    network.set_profile_statistics(profiles * 10 - 4)
    torch.testing.assert_close(network.features(z_pre, mask, spacing, profiles * 10 - 4), told, rtol=1e-3, atol=1e-4)


def test_luck_moves_the_logit_of_the_viable_share_and_leaves_the_others_their_proportions() -> None:
    shares = torch.tensor([[0.2, 0.4, 0.3, 0.1], [0.7, 0.1, 0.1, 0.1], [1.0, 0.0, 0.0, 0.0]])
    moved = with_luck(shares, torch.tensor([0.5, -1.0, -0.3]))
    odds = moved[:2, 0] / (1 - moved[:2, 0])
    expected = torch.tensor([0.25, 7 / 3]) * torch.exp(torch.tensor([0.5, -1.0]))
    torch.testing.assert_close(odds, expected)
    torch.testing.assert_close(moved.sum(dim=1), torch.ones(3))
    torch.testing.assert_close(moved[0, 1:] / moved[0, 1], torch.tensor([1.0, 0.75, 0.25]))
    torch.testing.assert_close(moved[1, 1:], moved[1, 1].expand(3))
    assert float(moved[2, 0]) > 0.99999
    torch.testing.assert_close(with_luck(shares[:2], torch.zeros(2)), shares[:2])
