"""Small grey pictures of what a network does, written during training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor


def grey(plane: Tensor) -> npt.NDArray[np.uint8]:
    """A plane of values in [-1, 1] (the HU window) as 8-bit grey."""
    values = plane.detach().float().cpu().numpy()
    return np.asarray(np.rint((np.clip(values, -1, 1) + 1) * 127.5), dtype=np.uint8)


def mosaic(rows: Sequence[Sequence[Tensor]]) -> npt.NDArray[np.uint8]:
    """Middle axial planes of cubes (S, S, S), one picture row per row, one cell per cube."""
    lines = []
    for row in rows:
        planes = [grey(cube[:, :, cube.shape[2] // 2]).T[::-1] for cube in row]
        lines.append(np.concatenate(planes, axis=1))
    return np.concatenate(lines, axis=0)
