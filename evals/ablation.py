"""Ablation: the planner with a part of it switched off, to see what the part is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.engine import Device, Engine
from models.response import VIABLE

ASSISTANT = "assistant"
"""The assistant model of the paper's Table 3: the segmentation that tells the survival model where the tumour is."""


class WithoutAssistant(Engine):
    """The engine without its segmentation model: what is left of the tumour is not looked for.

    The whole original tumour counts as viable under every protocol, so that the survival model still sees the simulated
    image and the place of the tumour, but not what the treatment left of it. Volumes and diameters are then the same
    for every protocol.
    """

    def __init__(self, device: Device = "auto", weights: Path | None = None) -> None:
        """Loads the weights; see `Engine`."""
        super().__init__(device, weights)

    @property
    def weights_hash(self) -> str:
        """Marked, so that stored results of the full engine are never taken for its own."""
        return f"{super().weights_hash}-no-assistant"

    def segment(
        self,
        patches: NDArray[np.generic],
        before: NDArray[np.generic],  # noqa: ARG002 (as of `Engine.segment`)
        mask: NDArray[np.bool_],
    ) -> NDArray[np.uint8]:
        """The tumour before treatment as viable tissue, (N, S, S, S)."""
        return np.where(np.asarray(mask, dtype=bool), VIABLE, 0).astype(np.uint8).reshape(np.shape(patches))
