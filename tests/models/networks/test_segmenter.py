from __future__ import annotations

import numpy as np
import torch

from models.networks.segmenter import Tissue, classes_with, segmenter_input
from models.weights import WorldModel


def test_logits_for_every_tissue_on_any_even_cube(model: WorldModel) -> None:
    with torch.no_grad():
        assert model.segmenter(torch.randn(2, 3, 32, 32, 32)).shape == (2, len(Tissue), 32, 32, 32)
        assert model.segmenter(torch.randn(1, 3, 16, 16, 24)).shape == (1, len(Tissue), 16, 16, 24)


def test_scan_before_and_mask_are_channels_in_this_order_with_and_without_a_batch() -> None:
    scan, before = torch.rand(2, 2, 4, 5, 6)
    mask = torch.rand(2, 4, 5, 6) > 0.5
    batch = segmenter_input(scan, before, mask)
    assert (batch.shape, batch.dtype) == ((2, 3, 4, 5, 6), torch.float32)
    for channel, expected in enumerate((scan, before, mask.float())):
        assert torch.equal(batch[:, channel], expected)
    assert torch.equal(segmenter_input(scan[1], before[1], mask[1]), batch[1])


def test_every_channel_reaches_the_logits(model: WorldModel) -> None:
    x = torch.rand(1, 3, 16, 16, 16)
    with torch.no_grad():
        whole = model.segmenter(x)
        for channel in range(3):
            changed = x.clone()
            changed[:, channel, 8:] = 0.0
            assert not torch.allclose(model.segmenter(changed), whole, atol=1e-3), channel


def test_a_known_share_of_the_mask_is_viable_and_it_is_what_looks_most_alive() -> None:
    """Voxel by voxel, by hand: the mean over the neighbours that are in the patch, up to two voxels away."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 5, 7, 7, 7, generator=generator)
    mask = torch.rand(3, 7, 7, 7, generator=generator) > 0.4
    mask[2] = False
    shares = torch.tensor([0.3, 1.0, 0.5])
    found = classes_with(logits, mask, shares)
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
    found = classes_with(logits, mask, torch.tensor([0.5]))[0] == Tissue.VIABLE
    assert int(found.sum()) == 6 * 12 * 12
    assert found[:4].all()
    assert not found[8:].any()


def test_nothing_lives_where_nothing_is_said_to() -> None:
    logits = torch.randn(1, 5, 6, 6, 6, generator=torch.Generator().manual_seed(4))
    mask = torch.ones(1, 6, 6, 6, dtype=torch.bool)
    assert not (classes_with(logits, mask, torch.zeros(1)) == Tissue.VIABLE).any()


def test_tissues_are_numbered_as_in_the_pool() -> None:
    assert [(tissue.name, int(tissue)) for tissue in Tissue] == [
        ("BACKGROUND", 0), ("LIVER", 1), ("VIABLE", 2), ("NECROTIC", 3), ("OIL", 4),
    ]  # fmt: skip
