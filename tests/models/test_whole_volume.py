from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.networks.localiser import Region
from models.volume import Volume
from models.whole_volume import clean_up, segment_whole

WINDOW = (-175.0, 600.0)


def by_hu(x: Tensor) -> Tensor:
    """Logits of a network that reads the HU exactly: liver around 100, living tumour around 170, dead around 30."""
    hu = (x[:, 0] + 1) * 387.5 - 175
    regions = torch.full_like(hu, float(Region.OTHER))
    regions[(hu > 80) & (hu < 130)] = Region.LIVER
    regions[(hu >= 130) | ((hu > 10) & (hu < 45))] = Region.TUMOUR
    return torch.nn.functional.one_hot(regions.long(), 3).movedim(-1, 1).float() * 20


def ball(grid: list[np.ndarray], centre: tuple[float, float, float], radius: float) -> np.ndarray:
    return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2


@pytest.mark.parametrize("flip", [1.0, -1.0])
def test_liver_and_tumour_are_found_on_the_scans_own_grid(flip: float) -> None:
    spacing = np.array([1.1, 1.3, 3.0])
    shape = (110, 100, 44)
    grid = np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij")
    hu = np.full(shape, -900, np.int16)
    body = ball(grid, (60, 62, 64), 58)
    hu[body] = -50
    liver, tumour = ball(grid, (60, 60, 64), 38), ball(grid, (55, 62, 60), 14)
    hu[liver], hu[tumour] = 100, 170
    hu[ball(grid, (55, 62, 60), 6)] = 30
    hu[ball(grid, (60, 113, 64), 4)] = 170  # as bright, far from the liver
    affine = np.diag([flip * 1.1, 1.3, 3.0, 1.0])
    affine[:3, 3] = (30, -200, 17)
    found = segment_whole(by_hu, Volume(hu, affine), size=32, spacing_mm=2.0, window=WINDOW)
    assert found.shape == shape
    for label, truth in ((1, liver & ~tumour), (2, tumour)):
        mine = found == label
        assert 2 * (mine & truth).sum() / (mine.sum() + truth.sum()) > 0.9
    assert not found[ball(grid, (60, 113, 64), 4)].any()


def test_windows_come_in_the_batches_that_are_asked_for() -> None:
    hu = np.full((50, 40, 40), 100, np.int16)
    seen: list[int] = []

    def counted(x: Tensor) -> Tensor:
        seen.append(len(x))
        return by_hu(x)

    found = [segment_whole(counted, Volume(hu, np.diag([2.0, 2, 2, 1])), 32, 2.0, WINDOW, n) for n in (8, 3)]
    assert seen == [8, 4, 3, 3, 3, 3]  # 3 x 2 x 2 windows that overlap by half
    np.testing.assert_array_equal(found[0], found[1])


def test_a_body_goes_on_where_a_short_scan_stops() -> None:
    hu = np.full((40, 40, 10), -900, np.int16)
    hu[5:35, 5:35] = 100
    hu[..., 0], hu[..., -1] = hu[..., 0] - 20, hu[..., -1] + 20
    seen: list[Tensor] = []

    def kept(x: Tensor) -> Tensor:
        seen.append(x)
        return by_hu(x)

    found = segment_whole(kept, Volume(hu, np.diag([2.0, 2, 2, 1])), 32, 2.0, WINDOW)
    column = (seen[0][0, 0, 16, 16] + 1) * 387.5 - 175
    np.testing.assert_allclose(column, np.repeat([80.0, 100.0, 120.0], [12, 8, 12]), atol=1e-3)
    assert found.shape == hu.shape
    assert (found[20, 20, 1:] == Region.LIVER).all()


def certain(regions: np.ndarray) -> np.ndarray:
    """Probabilities of regions that nobody doubts, (3, X, Y, Z)."""
    return np.eye(3, dtype=np.float32)[regions].transpose(3, 0, 1, 2)


def test_small_lumps_and_smaller_organs_are_dropped() -> None:
    regions = np.zeros((40, 40, 40), np.uint8)
    regions[5:30, 5:30, 5:30] = Region.LIVER
    regions[35:38, 35:38, 35:38] = Region.LIVER
    regions[10, 10, 10:13] = Region.TUMOUR
    regions[15:23, 15:23, 15:23] = Region.TUMOUR
    cleaned = clean_up(certain(regions), 1.5)
    assert (cleaned == 2).sum() == 8**3
    assert cleaned[10, 10, 11] == 1
    assert not cleaned[35:38, 35:38, 35:38].any()
    assert not clean_up(certain(np.zeros((8, 8, 8), np.uint8)), 1.5).any()


def test_a_tumour_reaches_as_far_as_it_may_be_one_and_somewhere_is_beyond_doubt() -> None:
    liver = np.zeros((40, 40, 40), np.uint8)
    liver[5:35, 5:35, 5:35] = Region.LIVER
    odds = certain(liver)
    for place, most in ((8, 0.995), (24, 0.95)):
        for size, value in ((8, 0.3), (4, most)):
            cube = (slice(place, place + size),) * 3
            odds[:, *cube] = np.array([0.0, 1 - value, value], np.float32).reshape(3, 1, 1, 1)
    odds[:, 16:20, 8:16, 8:16] = np.array([0.0, 0.9, 0.1], np.float32).reshape(3, 1, 1, 1)  # beside the first
    found = clean_up(odds, 1.5) == Region.TUMOUR
    assert found[8:16, 8:16, 8:16].all()  # its doubtful part too
    assert found.sum() == 8**3  # neither what is too improbable nor what is nowhere certain
