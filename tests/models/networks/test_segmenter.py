from __future__ import annotations

import torch

from models.networks.segmenter import Tissue
from models.weights import WorldModel


def test_logits_for_every_tissue_on_any_even_cube(model: WorldModel) -> None:
    with torch.no_grad():
        assert model.segmenter(torch.randn(2, 1, 32, 32, 32)).shape == (2, len(Tissue), 32, 32, 32)
        assert model.segmenter(torch.randn(1, 1, 16, 16, 24)).shape == (1, len(Tissue), 16, 16, 24)


def test_tissues_are_numbered_as_in_the_pool() -> None:
    assert [(tissue.name, int(tissue)) for tissue in Tissue] == [
        ("BACKGROUND", 0), ("LIVER", 1), ("VIABLE", 2), ("NECROTIC", 3), ("OIL", 4),
    ]  # fmt: skip
