from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from models.networks.segmenter import Tissue
from models.redraw import CLEARER_HU, LEAST_CONTRAST_HU, redraw, tissue_with
from models.response import criteria

LIVER_HU, ALIVE_HU, DEAD_HU = 90.0, 60.0, 25.0
EDGE, RADIUS = 24, 9.0
OILED = torch.tensor([True, True])


def ball() -> tuple[Tensor, Tensor]:
    """A ball of tumour in a cube: its mask (2, X, Y, Z) and the distance to its centre."""
    away = (torch.stack(torch.meshgrid([torch.arange(EDGE) - 11.5] * 3, indexing="ij")) ** 2).sum(dim=0).sqrt()
    return (away <= RADIUS).expand(2, -1, -1, -1), away


def painted(radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scans with dead tissue up to a radius in a living rim, the same before treatment all alive, and the mask."""
    mask, away = ball()
    noise = 3.0 * torch.randn(2, EDGE, EDGE, EDGE, generator=torch.Generator().manual_seed(1))
    before = torch.where(mask, ALIVE_HU, LIVER_HU) + noise
    return torch.where(away <= radius, before - ALIVE_HU + DEAD_HU, before), before, mask


def by_density(scan: Tensor, limit: float | Tensor = 42.5) -> Tensor:
    """Logits of a reader who calls tumour alive above a density, or above one for each voxel (X, Y, Z)."""
    mask, _ = ball()
    logits = torch.full((scan.shape[0], len(Tissue), *scan.shape[1:]), -100.0)
    inside = mask[: scan.shape[0]]
    logits[:, Tissue.VIABLE] = torch.where(inside, (scan - limit) / 5.0, -100.0)
    logits[:, Tissue.NECROTIC] = torch.where(inside, (limit - scan) / 5.0, -100.0)
    logits[:, Tissue.LIVER] = torch.where(inside, -100.0, 1.0)
    return logits


def reader(scan: Tensor) -> Tensor:
    """Logits of a reader who looks at the mean around a voxel, and whose limit differs from place to place."""
    uneven = np.random.default_rng(3).standard_normal((EDGE,) * 3)
    smooth = ndimage.gaussian_filter(uneven, 2)
    limit = 42.5 + 15.0 * torch.from_numpy(smooth / smooth.std()).float()
    return by_density(around(scan), limit)


def around(scan: Tensor, edge: int = 3) -> Tensor:
    """Mean over a cube of so many voxels, of which those of the tumour count."""
    mask = ball()[0][: scan.shape[0]].float()

    def mean(values: Tensor) -> Tensor:
        return functional.avg_pool3d(values[:, None], edge, 1, edge // 2)[:, 0]

    return torch.where(mask > 0, mean(scan * mask) / mean(mask).clamp(min=1e-6), scan)


@pytest.mark.parametrize("radius", [4.0, 6.0, 7.5])
def test_a_reader_finds_about_as_much_alive_as_was_predicted(radius: float) -> None:
    scan, before, mask = painted(radius)
    raw = share_alive(reader(scan), mask)
    wanted, found = np.linspace(0.1, 0.9, 9), []
    for share in wanted:
        after = redraw(scan, before, mask, torch.full((2,), float(share)), OILED, reader, 2)
        assert torch.equal(after[~mask], scan[~mask])
        found.append(share_alive(reader(after), mask))
    off = np.abs(np.array(found) - wanted).mean()
    assert off < 0.6 * np.abs(raw - wanted).mean()
    assert np.polyfit(wanted, found, 1)[0] == pytest.approx(1.0, abs=0.3)


def share_alive(logits: Tensor, mask: Tensor) -> float:
    return float((logits.argmax(dim=1) == Tissue.VIABLE)[mask].float().mean())


def test_the_change_is_smooth_and_leads_to_densities_that_are_there() -> None:
    scan, before, mask = painted(6.0)
    was_alive = (by_density(scan).argmax(dim=1) == Tissue.VIABLE) & mask
    alive, dead = float(scan[was_alive].median()), float(scan[mask & ~was_alive].median())
    for wanted, sign in ((0.3, -1.0), (0.95, 1.0)):
        after = redraw(scan, before, mask, torch.tensor([wanted] * 2), OILED, by_density, 1)
        change = sign * (after - scan)
        assert float(change[mask].min()) >= 0.0
        assert float((change[mask] > 5.0).float().mean()) > 0.2
        # of two voxels side by side the cubes share four fifths, and no change is larger than between the two tissues
        step = (change[:, 1:] - change[:, :-1]).abs()[mask[:, 1:] & mask[:, :-1]]
        assert float(step.max()) < 0.5 * (ALIVE_HU - DEAD_HU + CLEARER_HU)
        assert float(step.mean()) < 0.1 * (ALIVE_HU - DEAD_HU + CLEARER_HU)
        level = around(after, 5)[mask]
        assert float(level.max()) < alive + 2.0 * CLEARER_HU
        assert float(level.min()) > dead - 2.0 * CLEARER_HU


def test_where_nothing_is_dead_yet_dead_tissue_is_darker_than_living() -> None:
    scan, before, mask = painted(0.0)
    after = redraw(scan, before, mask, torch.tensor([0.5, 0.5]), OILED, by_density, 1)  # asks for none at first
    expected = float(before[mask].median()) - LEAST_CONTRAST_HU - CLEARER_HU
    assert float(after[mask].mean()) == pytest.approx(expected, abs=2.0)


def test_lipiodol_stays_and_does_not_count_as_density_of_its_surroundings() -> None:
    scan, before, mask = painted(0.0)
    clump = torch.zeros_like(mask)
    clump[:, 11:13, 11:13, 11:13] = True
    oily = torch.where(clump, 600.0, scan)
    after = redraw(oily, before, mask, torch.tensor([0.5, 0.5]), OILED, by_density, 1)
    plain = redraw(scan, before, mask, torch.tensor([0.5, 0.5]), OILED, by_density, 1)
    assert torch.equal(after[clump], oily[clump])
    rest = mask & ~clump
    assert float((after - plain)[rest].abs().max()) < 6.0
    assert float((after - oily)[rest].mean()) < -20.0


def test_without_lipiodol_nothing_becomes_as_dense_as_it() -> None:
    scan, before, mask = painted(4.0)
    drawn, vessel, unlike = torch.zeros_like(mask), torch.zeros_like(mask), ~mask
    drawn[:, 8, 10:13, 10:13] = True
    vessel[:, 15, 10:13, 10:13] = True
    scan[drawn], scan[vessel], before[vessel] = 450.0, 450.0, 300.0
    scan[unlike] = 700.0
    oiled = torch.tensor([True, False])
    after = redraw(scan, before, mask, torch.tensor([0.9, 0.9]), oiled, by_density, 2)
    assert torch.equal(after[~mask], scan[~mask])
    dense = (after > criteria().oil_hu) & mask
    assert torch.equal(dense[0], drawn[0] | vessel[0])
    assert (after[0][dense[0]] == 450.0).all()
    assert torch.equal(dense[1], vessel[1])
    assert (after[1][vessel[1]] == 300.0).all()


def test_a_patch_without_tumour_stays_as_it_is() -> None:
    scan, before, mask = painted(6.0)
    none = mask.clone()
    none[1] = False
    after = redraw(scan, before, none, torch.tensor([0.2, 0.2]), OILED, by_density, 2)
    assert not torch.equal(after[0], scan[0])
    assert torch.equal(after[1], scan[1])


def test_a_known_share_of_the_mask_is_viable_and_it_is_what_looks_most_alive() -> None:
    """Voxel by voxel, by hand: the mean over the neighbours that are in the patch, up to two voxels away."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 5, 7, 7, 7, generator=generator)
    mask = torch.rand(3, 7, 7, 7, generator=generator) > 0.4
    mask[2] = False
    shares = torch.tensor([0.3, 1.0, 0.5])
    found = tissue_with(logits, mask, shares)
    for n in range(3):
        alive, likeliest = np.zeros((7, 7, 7)), {}
        for voxel in np.ndindex(7, 7, 7):
            scores = logits[(n, slice(None), *voxel)].tolist()
            others = [(score, tissue) for tissue, score in enumerate(scores) if tissue != Tissue.VIABLE]
            alive[voxel], likeliest[voxel] = scores[Tissue.VIABLE] - max(others)[0], max(others)[1]
        ranked = [
            (alive[tuple(slice(max(0, c - 2), c + 3) for c in voxel)].mean(), tuple(voxel))
            for voxel in mask[n].nonzero().tolist()
        ]
        wanted = round(float(shares[n]) * len(ranked))
        for place, (_, voxel) in enumerate(sorted(ranked, reverse=True)):
            assert found[n][voxel] == (Tissue.VIABLE if place < wanted else likeliest[voxel])
        assert int((found[n][mask[n]] == Tissue.VIABLE).sum()) == wanted
    outside = ~mask
    assert torch.equal(found[outside], logits.argmax(dim=1)[outside])
    assert (found[outside] == Tissue.VIABLE).any()


def test_a_comb_in_the_logits_leaves_no_stripes() -> None:
    """Half of a cube looks more alive by 1; every second layer of all of it by 2, which is more than that."""
    logits = torch.zeros(1, 5, 12, 12, 12)
    logits[:, Tissue.VIABLE, :6] += 1.0
    logits[:, Tissue.VIABLE, :, :, ::2] += 2.0
    mask = torch.ones(1, 12, 12, 12, dtype=torch.bool)
    found = tissue_with(logits, mask, torch.tensor([0.5]))[0] == Tissue.VIABLE
    assert int(found.sum()) == 6 * 12 * 12
    assert found[:4].all()
    assert not found[8:].any()


def test_nothing_lives_where_nothing_is_said_to() -> None:
    logits = torch.randn(1, 5, 6, 6, 6, generator=torch.Generator().manual_seed(4))
    mask = torch.ones(1, 6, 6, 6, dtype=torch.bool)
    assert not (tissue_with(logits, mask, torch.zeros(1)) == Tissue.VIABLE).any()
