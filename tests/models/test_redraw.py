from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.networks.segmenter import Tissue
from models.redraw import CLEARER_HU, LEAST_CONTRAST_HU, redraw, tissue_with

LIVER_HU, ALIVE_HU, DEAD_HU = 90.0, 60.0, 25.0
EDGE, RADIUS = 24, 9.0


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


def by_density(scan: Tensor, limit: float = 42.5) -> Tensor:
    """Logits of a reader who calls tumour alive above a density."""
    mask, _ = ball()
    logits = torch.full((scan.shape[0], len(Tissue), *scan.shape[1:]), -100.0)
    inside = mask[: scan.shape[0]]
    logits[:, Tissue.VIABLE] = torch.where(inside, (scan - limit) / 5.0, -100.0)
    logits[:, Tissue.NECROTIC] = torch.where(inside, (limit - scan) / 5.0, -100.0)
    logits[:, Tissue.LIVER] = torch.where(inside, -100.0, 1.0)
    return logits


def living(scan: Tensor, mask: Tensor) -> list[float]:
    found = by_density(scan).argmax(dim=1) == Tissue.VIABLE
    return [float(one[inside].float().mean()) for one, inside in zip(found, mask, strict=True)]


@pytest.mark.parametrize("radius", [0.0, 6.0, 9.5])
def test_a_reader_finds_as_much_alive_as_was_predicted(radius: float) -> None:
    scan, before, mask = painted(radius)
    wanted = torch.tensor([0.25, 0.8])
    for rounds in (2, 3):
        after = redraw(scan, before, mask, wanted, by_density, rounds)
        assert living(after, mask) == pytest.approx(wanted.tolist(), abs=0.02)
        assert torch.equal(after[~mask], scan[~mask])


def test_what_is_read_as_meant_stays_and_the_rest_gets_the_density_of_its_tissue() -> None:
    scan, before, mask = painted(6.0)
    was_alive = (by_density(scan).argmax(dim=1) == Tissue.VIABLE) & mask
    fewer = redraw(scan, before, mask, torch.tensor([0.55, 0.55]), by_density, 1)
    killed = fewer < scan
    assert 0.1 < float(killed[mask].float().mean()) < 0.7
    assert not (killed & ~was_alive).any()
    dead = scan[mask & ~was_alive].median() - CLEARER_HU
    assert float((fewer[killed] - dead).mean()) == pytest.approx(0.0, abs=3.0)
    assert float(fewer[killed].std()) > 1.0  # the texture that was drawn
    more = redraw(scan, before, mask, torch.tensor([0.85, 0.85]), by_density, 1)
    revived = more > scan
    assert 0.1 < float(revived[mask].float().mean()) < 0.5
    assert not (revived & was_alive).any()
    assert (more[revived] >= before[revived]).all()
    alive = scan[was_alive].median()
    assert float(more[revived].mean()) == pytest.approx(float(alive) + CLEARER_HU, abs=2.0)


def test_where_nothing_is_dead_yet_dead_tissue_is_darker_than_living() -> None:
    scan, before, mask = painted(0.0)
    after = redraw(scan, before, mask, torch.tensor([0.7, 0.7]), by_density, 1)
    changed = after != scan
    assert float(changed[mask].float().mean()) == pytest.approx(0.6, abs=0.01)  # twice what it falls short of
    expected = float(before[mask].median()) - LEAST_CONTRAST_HU - CLEARER_HU
    assert float(after[changed].mean()) == pytest.approx(expected, abs=2.0)


def test_a_reader_who_keeps_some_of_its_readings_is_asked_for_more() -> None:
    """It looks at the mean around a voxel, so that it ignores a part of what is corrected at a border."""
    scan, before, mask = painted(5.0)

    def keeps(hu: Tensor) -> Tensor:
        around = torch.nn.functional.avg_pool3d(hu[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
        return by_density(around)

    def off(rounds: int) -> float:
        after = redraw(scan, before, mask, torch.tensor([0.5, 0.5]), keeps, rounds)
        found = keeps(after).argmax(dim=1) == Tissue.VIABLE
        return abs(float(found[mask].float().mean()) - 0.5)

    raw = abs(float((keeps(scan).argmax(dim=1) == Tissue.VIABLE)[mask].float().mean()) - 0.5)
    assert off(2) < 0.5 * raw
    assert off(3) < 0.5 * raw


def test_a_patch_without_tumour_stays_as_it_is() -> None:
    scan, before, mask = painted(6.0)
    none = mask.clone()
    none[1] = False
    after = redraw(scan, before, none, torch.tensor([0.2, 0.2]), by_density, 2)
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
