"""What training needs of a pool of patches: pre- and post-treatment cubes with labels, protocols and survival."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from typing import Protocol as Interface

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.clinical_record import ClinicalRecord
from models.protocol import Protocol

Array = npt.NDArray[Any]


class Pool(Interface):
    """P patients, K protocols each, cubes of edge S. Arrays may be memory-mapped."""

    pre: Array  # (P, S, S, S) int16 HU
    pre_labels: Array  # (P, S, S, S) uint8, `models.networks.segmenter.Tissue`
    tumour_mask: Array  # (P, S, S, S) uint8, tumour before treatment
    post: Array  # (P, K, S, S, S) int16 HU
    post_labels: Array  # (P, K, S, S, S) uint8
    actions: Array  # (P, K, 18, 3) float32
    protocols: list[list[Protocol]]
    spacing_mm: Array  # (P,)
    wide: Array  # (P, W, W, W) int16 HU of the abdomen, W and the voxels those of `models.patch.WIDE_SIZE`
    wide_labels: Array  # (P, W, W, W) uint8
    burden: Array  # (P, K, 4)
    records: list[ClinicalRecord]
    toxicity: Array  # (P, K) log-hazard of the fixed toxicity term
    true_log_risk: Array  # (P, K)
    time_months: Array  # (P, K)
    event: Array  # (P, K) bool
    train: Array  # patient indices
    val: Array
    test: Array
    data_hash: str


def hu_to_unit(hu: Array | Tensor, window: tuple[float, float]) -> Tensor:
    """HU clipped to the window and mapped to [-1, 1], float32."""
    low, high = window
    values = torch.from_numpy(np.array(hu, dtype=np.float32)) if isinstance(hu, np.ndarray) else hu.float()
    return (values.clamp(low, high) - low) * (2.0 / (high - low)) - 1.0


def crop_around(mask: Array, edge: int, rng: np.random.Generator) -> tuple[slice, slice, slice]:
    """A random cube that contains a random voxel of the mask, not at its rim (anywhere when the mask is empty).

    Args:
        mask: (S, S, S).
        edge: of the cube, at most S.
        rng: draws voxel and position.
    """
    size = mask.shape[0]
    if edge >= size:
        return (slice(0, size),) * 3
    inside = np.flatnonzero(mask)
    if inside.size:
        centre = np.array(np.unravel_index(inside[rng.integers(inside.size)], mask.shape))
        margin = edge // 8
        start = centre - rng.integers(margin, edge - margin, size=3)
    else:
        start = rng.integers(0, size - edge + 1, size=3)
    x, y, z = (int(v) for v in np.clip(start, 0, size - edge))
    return slice(x, x + edge), slice(y, y + edge), slice(z, z + edge)


def fits(mask: Array, edge: int) -> bool:
    """Whether what is set in a cube is not empty and lies within a smaller cube of this edge."""
    places = np.argwhere(mask)
    return bool(len(places)) and bool((np.ptp(places, axis=0) < edge).all())


def crop_holding(mask: Array, edge: int, rng: np.random.Generator) -> tuple[slice, slice, slice]:
    """A random cube that contains all that is set in the mask.

    Args:
        mask: (S, S, S) for which `fits` holds.
        edge: of the cube.
        rng: draws the position.
    """
    size = mask.shape[0]
    places = np.argwhere(mask)
    lowest = np.clip(places.max(axis=0) + 1 - edge, 0, max(size - edge, 0))
    highest = np.clip(places.min(axis=0), 0, max(size - edge, 0))
    x, y, z = (int(v) for v in rng.integers(lowest, highest + 1))
    return slice(x, x + edge), slice(y, y + edge), slice(z, z + edge)


def random_flips(rng: np.random.Generator) -> tuple[int, ...]:
    """Axes (of a (N, 1, X, Y, Z) or (X, Y, Z) array, counted from the end) to mirror."""
    return tuple(axis for axis in (-3, -2, -1) if rng.random() < 0.5)


def another_scanner(cubes: Sequence[Tensor], rng: np.random.Generator) -> list[Tensor]:
    """Cubes of one shape in [-1, 1] as another scanner would show them.

    A little contrast, offset (up to about 15 HU) and noise, the same for all of them.
    """
    scale, offset = 1.0 + 0.06 * rng.standard_normal(), 0.02 * rng.standard_normal()
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise = 0.02 * float(rng.random()) * torch.randn(cubes[0].shape, generator=generator)
    return [(cube * scale + offset + noise).clamp(-1.0, 1.0) for cube in cubes]
