from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from models.networks.attenuation import LEVELS, attenuate, attenuated_mask, level_of_share


def ball(radius: float, edge: int = 32) -> torch.Tensor:
    axis = torch.arange(edge) - (edge - 1) / 2
    return ((axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2) <= radius**2).float()


@pytest.mark.parametrize("radius", [3.0, 6.0, 11.0])
def test_the_mask_loses_more_with_every_level(radius: float) -> None:
    mask = ball(radius)
    kept = [float(attenuated_mask(mask, level).sum()) for level in LEVELS]
    assert all(a > b for a, b in itertools.pairwise(kept))
    assert kept[0] > 0.6 * float(mask.sum())
    assert kept[3] < 0.25 * float(mask.sum())
    for level in LEVELS:
        faded = attenuated_mask(mask, level)
        assert not faded[mask == 0].any()
        assert float(faded.max()) <= 1.0 + 1e-6


def test_the_tumour_fades_towards_the_liver_and_nothing_else_changes() -> None:
    mask = ball(7.0)
    scan = torch.full(mask.shape, -0.2) + 0.6 * mask
    contrast = [float((attenuate(scan, mask, level) - (-0.2))[mask > 0].mean()) for level in LEVELS]
    assert 0.6 > contrast[0] > contrast[1] > contrast[2] > contrast[3] > 0.0
    for level in LEVELS:
        assert torch.equal(attenuate(scan, mask, level)[mask == 0], scan[mask == 0])


def test_without_a_tumour_nothing_changes() -> None:
    scan = torch.randn(8, 8, 8)
    assert torch.equal(attenuate(scan, torch.zeros(8, 8, 8), 4), scan)
    with pytest.raises(ValueError, match="1 to 4"):
        attenuated_mask(torch.zeros(8, 8, 8), 5)


def test_every_voxel_fades_more_with_every_level_whatever_the_shape() -> None:
    field = torch.randn(1, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    lumpy = (F.interpolate(field, scale_factor=3, mode="trilinear")[0, 0] > 0.3).float()
    for mask in (ball(2.0), ball(9.0), lumpy):
        scan = torch.full(mask.shape, -0.2) + 0.6 * mask
        left = [attenuate(scan, mask, level)[mask > 0] for level in LEVELS]
        assert all(bool((a > b).all()) for a, b in itertools.pairwise(left))


def test_levels_of_shares() -> None:
    assert [level_of_share(share) for share in (0.0, 0.3, 0.6, 0.95)] == [1, 2, 3, 4]
