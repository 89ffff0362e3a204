from __future__ import annotations

import torch

from models.networks.segmenter import Tissue, segmenter_input
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
