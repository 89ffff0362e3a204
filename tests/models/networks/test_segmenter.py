from __future__ import annotations

import torch

from models.networks.segmenter import Tissue, segmenter_input, without_comb
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


def test_tissues_are_numbered_as_in_the_pool() -> None:
    assert [(tissue.name, int(tissue)) for tissue in Tissue] == [
        ("BACKGROUND", 0), ("LIVER", 1), ("VIABLE", 2), ("NECROTIC", 3), ("OIL", 4),
    ]  # fmt: skip


def test_what_alternates_from_voxel_to_voxel_goes_and_what_is_even_stays() -> None:
    x, y, z = torch.meshgrid([torch.arange(8.0)] * 3, indexing="ij")
    even = 2.0 * x - 3.0 * y + 0.5 * z
    for comb in ((-1.0) ** x, (-1.0) ** y, (-1.0) ** z, (-1.0) ** (x + y + z)):
        logits = torch.stack([even + 4.0 * comb, even - comb])[None]
        inside = without_comb(logits)[0, :, 1:-1, 1:-1, 1:-1]
        torch.testing.assert_close(inside, even[1:-1, 1:-1, 1:-1].expand(2, -1, -1, -1))
    constant = torch.full((1, 5, 6, 4, 2), 3.0)
    torch.testing.assert_close(without_comb(constant), constant)


def test_logits_are_without_a_comb_but_not_while_the_network_learns(model: WorldModel) -> None:
    x = torch.randn(1, 3, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    segmenter = model.segmenter
    try:
        with torch.no_grad():
            learning = segmenter.train()(x)
            torch.testing.assert_close(segmenter.eval()(x), without_comb(learning))
            assert not torch.equal(learning, without_comb(learning))
    finally:
        segmenter.eval()
