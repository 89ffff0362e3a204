"""What the localiser is trained on: other contrast, masses that bulge, organs against the liver, scans that stop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from models.networks.localiser import Region
from models.training.localiser import (
    ORGANS_HU,
    SHIFT_HU,
    SHORTEST,
    TUMOUR_HU,
    augmented,
    cut_short,
    other_contrast,
    with_mass,
    with_neighbour,
)

WINDOW = (-175.0, 600.0)
Change = Callable[[Tensor, Tensor, tuple[float, float], np.random.Generator], tuple[Tensor, Tensor]]


def hu(unit: Tensor) -> np.ndarray:
    return (unit.numpy() + 1.0) * 0.5 * (WINDOW[1] - WINDOW[0]) + WINDOW[0]


def unit(value: float) -> float:
    return (value - WINDOW[0]) * 2.0 / (WINDOW[1] - WINDOW[0]) - 1.0


@pytest.fixture
def regions() -> Tensor:
    """A box of liver with a box of tumour in it."""
    out = torch.full((32, 32, 32), int(Region.LIVER))
    out[:4] = Region.OTHER
    out[12:24, 12:24, 12:24] = Region.TUMOUR
    return out


@pytest.fixture
def abdomen() -> tuple[Tensor, Tensor]:
    """A body of 30 HU around a ball of liver of 100 HU, in air."""
    grid = np.indices((48, 48, 48))
    away = np.sqrt(((grid - 24) ** 2).sum(0))
    scan = torch.full((48, 48, 48), -1.0)
    scan[4:44, 4:44] = unit(30.0)
    scan[torch.from_numpy(away < 12)] = unit(100.0)
    return scan, torch.from_numpy(np.where(away < 12, Region.LIVER, Region.OTHER).astype(np.int64))


def test_tumours_become_uneven_and_organs_hardly(regions: Tensor) -> None:
    scan = torch.full(regions.shape, unit(60.0))
    tumour, liver = regions.numpy() == Region.TUMOUR, np.zeros(regions.shape, bool)
    liver[6:10] = True  # away from the borders, which are soft
    draws = [np.random.default_rng(seed) for seed in range(40)]
    changes = [hu(other_contrast(scan, regions, WINDOW, rng)) - 60.0 for rng in draws]
    spread = np.array([[c[tumour].std(), c[liver].std(), c[tumour].mean(), c[liver].mean()] for c in changes])
    assert np.median(spread[:, 1]) < 0.75 * ORGANS_HU
    assert np.median(spread[:, 0] / spread[:, 1]) > 3
    assert spread[:, 0].max() > 0.8 * TUMOUR_HU
    for column in (2, 3):
        assert spread[:, column].min() < -0.5 * SHIFT_HU
        assert spread[:, column].max() > 0.5 * SHIFT_HU
    bright = [np.quantile(c[tumour], 0.999) - np.median(c[tumour]) for c in changes]
    assert max(bright) > 100  # vessels in some
    assert min(bright) < 20


def test_bright_organs_become_brighter_or_less_and_others_keep_their_place(regions: Tensor) -> None:
    scan = torch.full(regions.shape, unit(60.0))
    scan[:2] = unit(300.0)
    found = [hu(other_contrast(scan, regions, WINDOW, np.random.default_rng(seed)))[0].mean() for seed in range(40)]
    assert min(found) < 280
    assert max(found) > 420


def test_another_contrast_keeps_the_window_and_follows_its_generator(regions: Tensor) -> None:
    scan = torch.full(regions.shape, 0.99)
    scan[16:] = unit(60.0)
    one, same, *others = (
        other_contrast(scan, regions, WINDOW, np.random.default_rng(seed)) for seed in (1, 1, *range(2, 10))
    )
    assert torch.equal(one, same)
    assert not any(torch.equal(one, other) for other in others)
    assert max(float(other.max()) for other in others) == 1.0
    assert min(float(other.min()) for other in others) >= -1.0


def test_a_mass_grows_from_the_liver_and_bulges_out_of_it(abdomen: tuple[Tensor, Tensor]) -> None:
    scan, regions = abdomen
    before = regions.numpy()
    bulges, centres = [], []
    for seed in range(30):
        drawn, after = with_mass(scan, regions, WINDOW, np.random.default_rng(seed))
        mass = after.numpy() == Region.TUMOUR
        assert mass.any()
        # what was there is pushed aside: with what grew, the organ has become larger
        assert (after >= Region.LIVER).sum() >= (before >= Region.LIVER).sum()
        assert not mass[scan.numpy() == -1.0].any() or (hu(drawn)[mass] > WINDOW[0]).all()
        bulges.append((mass & (before == Region.OTHER)).sum() / mass.sum())
        centres.append(np.argwhere(mass).mean(0)[0])
        unlike = np.abs(hu(drawn) - hu(scan)) > 1e-3
        assert unlike[mass].mean() > 0.9
    assert max(bulges) > 0.2
    assert min(bulges) < 0.05
    assert np.ptp(centres) > 12  # of the 24 columns of the liver


def test_a_neighbour_is_not_liver_and_makes_no_tumour(abdomen: tuple[Tensor, Tensor]) -> None:
    scan, regions = abdomen
    densities = []
    for seed in range(30):
        drawn, after = with_neighbour(scan, regions, WINDOW, np.random.default_rng(seed))
        assert not (after == Region.TUMOUR).any()
        changed = np.abs(hu(drawn) - hu(scan)) > 30
        grown = changed & (after.numpy() == Region.OTHER) & (regions.numpy() == Region.LIVER)
        if grown.any():
            densities.append(float(np.median(hu(drawn)[grown])))
    assert len(densities) > 10  # it takes the liver's place in many
    assert np.ptp(densities) > 200


@pytest.mark.parametrize("change", [with_mass, with_neighbour])
def test_nothing_grows_without_a_liver_and_the_same_generator_grows_the_same(
    change: Change, abdomen: tuple[Tensor, Tensor]
) -> None:
    scan, regions = abdomen
    nothing = torch.zeros_like(regions)
    same_scan, same_regions = change(scan, nothing, WINDOW, np.random.default_rng(0))
    assert torch.equal(same_scan, scan)
    assert torch.equal(same_regions, nothing)
    (one, first), (two, second) = (change(scan, regions, WINDOW, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(first, second)


def test_a_short_scan_repeats_its_last_slices() -> None:
    scan = torch.arange(32.0).expand(4, 4, 32)
    for seed in range(20):
        cut, regions = cut_short(scan, scan.long(), np.random.default_rng(seed))
        column = cut[0, 0].numpy()
        first, last = column[0], column[-1]
        assert last - first + 1 >= SHORTEST * 32
        np.testing.assert_array_equal(column, np.clip(np.arange(32), first, last))
        np.testing.assert_array_equal(regions, cut)


def test_every_change_is_made_to_some_scans_and_none_to_others(abdomen: tuple[Tensor, Tensor]) -> None:
    scan, regions = abdomen
    scan = scan + 1e-3 * torch.arange(48.0)  # no slice is like another
    found = [augmented(scan, regions, WINDOW, np.random.default_rng(seed)) for seed in range(60)]
    untouched = [torch.equal(drawn, scan) for drawn, _ in found]
    with_tumour = [bool((after == Region.TUMOUR).any()) for _, after in found]
    short = [
        bool((drawn[..., 0] == drawn[..., 3]).all() or (drawn[..., -1] == drawn[..., -4]).all()) for drawn, _ in found
    ]
    for happened, share in ((untouched, 0.135), (with_tumour, 0.4), (short, 0.37)):
        assert 0.5 * share < np.mean(happened) < 1.6 * share
