"""TensorBoard beside the CSV file, where the package `tensorboard` is installed; nothing else depends on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FOLDER = "tensorboard"


class Board:
    """Writes scalars and pictures of one run; silent where TensorBoard is not installed."""

    def __init__(self, run: Path | None, last_step: int = 0) -> None:
        """Open the board.

        Args:
            run: folder of the run; the events go into its sub-folder `tensorboard`. None writes nothing.
            last_step: of the checkpoint that is gone on from; what an earlier call wrote after it is taken back.
        """
        self._writer: Any = None
        if run is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            return
        self._writer = SummaryWriter(str(run / FOLDER), purge_step=last_step + 1)

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write figures of a step."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{split}/{name}", value, step)

    def picture(self, step: int, picture: npt.NDArray[np.uint8]) -> None:
        """Write a grey picture (H, W)."""
        if self._writer is not None:
            self._writer.add_image("samples", picture[None], step)

    def close(self) -> None:
        """Flush what is pending."""
        if self._writer is not None:
            self._writer.close()
