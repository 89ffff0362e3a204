"""What the localiser is trained on: tumours of mixed density."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.networks.localiser import Region
from models.training.localiser import ORGANS_HU, SHIFT_HU, TUMOUR_HU, uneven

WINDOW = (-175.0, 600.0)


def hu(unit: torch.Tensor) -> np.ndarray:
    return (unit.numpy() + 1.0) * 0.5 * (WINDOW[1] - WINDOW[0]) + WINDOW[0]


@pytest.fixture
def regions() -> torch.Tensor:
    out = torch.full((32, 32, 32), int(Region.LIVER))
    out[:4] = Region.OTHER
    out[12:24, 12:24, 12:24] = Region.TUMOUR
    return out


def test_tumours_become_uneven_and_organs_hardly(regions: torch.Tensor) -> None:
    scan = torch.full(regions.shape, -0.4)
    tumour = regions.numpy() == Region.TUMOUR
    before, draws = hu(scan), [np.random.default_rng(seed) for seed in range(40)]
    changes = [hu(uneven(scan, regions, WINDOW, rng)) - before for rng in draws]
    spread = np.array([[c[tumour].std(), c[~tumour].std(), c[tumour].mean()] for c in changes])
    assert spread[:, 1].max() < ORGANS_HU
    assert np.median(spread[:, 0] / spread[:, 1]) > 3
    assert spread[:, 0].max() > 0.8 * TUMOUR_HU
    assert spread[:, 2].min() < -0.5 * SHIFT_HU
    assert spread[:, 2].max() > 0.5 * SHIFT_HU
    bright = [np.quantile(c[tumour], 0.999) - np.median(c[tumour]) for c in changes]
    assert max(bright) > 100  # vessels in some
    assert min(bright) < 20


def test_an_uneven_scan_keeps_the_window_and_follows_its_generator(regions: torch.Tensor) -> None:
    scan = torch.full(regions.shape, 0.99)
    one, same, other = (uneven(scan, regions, WINDOW, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.max() == 1.0
    assert one.min() >= -1.0
