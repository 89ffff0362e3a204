"""Response: how large a tumour and its viable part are, and what a change between two states is called.

Everything is measured in the tumour's neighbourhood on one grid, before and after alike: longest axial diameters
(RECIST: whole, mRECIST: viable), largest axial viable area (EASL) and volumes. Axial planes are the first two array
axes, which holds for every grid in RAS orientation. Thresholds and their sources are in `response.yaml`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

Array = NDArray[np.generic]
Category = Literal["CR", "PR", "SD", "PD", "NE"]

VIABLE, NECROTIC, OIL = 2, 3, 4
_ANGLES = np.deg2rad(np.arange(0.0, 180.0, 2.0))  # the widest of 90 directions is at most 0.02 % short


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Threshold(_Part):
    """Change in percent at which a response or a progression is called."""

    response_percent: float
    progression_percent: float
    source: str


class Targets(_Part):
    """Which lesions are measured."""

    most: int
    shortest_mm: float
    source: str


class Criteria(_Part):
    """The contents of `response.yaml`."""

    version: int
    mrecist: Threshold
    easl: Threshold
    targets: Targets
    neighbourhood_mm: float
    speck_ml: float
    oil_hu: float
    oil_confounded_fraction: float
    necrosis_hu: float


@lru_cache(maxsize=1)
def criteria() -> Criteria:
    """The thresholds of `response.yaml`."""
    return Criteria.model_validate(
        yaml.safe_load(files("models").joinpath("response.yaml").read_text(encoding="utf-8"))
    )


@dataclass(frozen=True)
class LesionState:
    """One lesion at one time: lengths in mm, areas in mm2, volumes in ml."""

    lesion: int
    longest_mm: float
    viable_mm: float
    viable_mm2: float
    viable_ml: float
    necrotic_ml: float
    oil_ml: float


@dataclass(frozen=True)
class Change:
    """A measure before and after. `percent` is None, and `category` "NE", where nothing was measurable before."""

    before: float
    after: float
    percent: float | None
    category: Category


@dataclass(frozen=True)
class Response:
    """A comparison of two states over the target lesions (numbers of lesions in `targets`)."""

    mrecist: Change
    easl: Change
    recist_before_mm: float
    recist_mm: float
    targets: tuple[int, ...]


def longest_axial_diameter(mask: Array, spacing_mm: Sequence[float]) -> float:
    """Longest in-plane diameter of a mask over all axial slices, in mm; 0 for an empty mask.

    It is the largest width of a slice's convex hull (which equals its longest chord) measured between voxel centres,
    plus one voxel, so a single voxel is one voxel long.

    Args:
        mask: (X, Y, Z), non-zero inside.
        spacing_mm: voxel size along the three axes.
    """
    inside = np.asarray(mask) != 0
    rows = np.flatnonzero(inside.any(axis=(1, 2)))
    slices = np.flatnonzero(inside.any(axis=(0, 1)))
    if rows.size == 0:
        return 0.0
    inside = inside[rows[0] : rows[-1] + 1][:, :, slices]
    hit = inside.any(axis=1)
    first = np.argmax(inside, axis=1) * spacing_mm[1]
    last = (inside.shape[1] - 1 - np.argmax(inside[:, ::-1], axis=1)) * spacing_mm[1]
    x = np.arange(inside.shape[0])[:, None] * spacing_mm[0]
    cosine, sine = np.cos(_ANGLES)[:, None, None], np.sin(_ANGLES)[:, None, None]
    # sine >= 0, so the far side of each row lies at its last voxel and the near side at its first.
    far = np.where(hit, x * cosine + last * sine, -np.inf).max(axis=1)
    near = np.where(hit, x * cosine + first * sine, np.inf).min(axis=1)
    voxel = np.hypot(spacing_mm[0] * np.cos(_ANGLES), spacing_mm[1] * np.sin(_ANGLES))[:, None]
    return float((far - near + voxel).max())


def largest_axial_area(mask: Array, spacing_mm: Sequence[float]) -> float:
    """Area of the mask in the axial slice where it is largest, in mm2."""
    return float((np.asarray(mask) != 0).sum(axis=(0, 1)).max(initial=0)) * spacing_mm[0] * spacing_mm[1]


def nearest_lesion(index: Array, spacing_mm: Sequence[float], reach_mm: float) -> NDArray[np.int32]:
    """For every voxel within `reach_mm` of a lesion the number of the nearest one, 0 elsewhere.

    Args:
        index: (X, Y, Z), 0 outside, lesion number inside.
        spacing_mm: voxel size along the three axes.
        reach_mm: how far a lesion's neighbourhood reaches.
    """
    numbers = np.asarray(index).astype(np.int32)
    if not numbers.any():
        return numbers
    distance, where = ndimage.distance_transform_edt(numbers == 0, sampling=list(spacing_mm), return_indices=True)
    result: NDArray[np.int32] = np.where(distance <= reach_mm, numbers[tuple(where)], 0).astype(np.int32)
    return result


def measure_lesion(
    lesion: int, tissue: NDArray[np.uint8], spacing_mm: Sequence[float], outline: Array | None = None
) -> LesionState:
    """Measures one lesion.

    The viable diameter is the longest one inside a single connected viable part (a chord of that part's hull), since
    mRECIST leaves out major intervening necrosis. Parts below `speck_ml` are noise for diameters and areas; volumes
    count every voxel.

    Args:
        lesion: its number.
        tissue: (X, Y, Z) tissue classes (2 viable, 3 necrotic, 4 oil) of this lesion's neighbourhood, 0 elsewhere.
        spacing_mm: voxel size along the three axes.
        outline: (X, Y, Z) the whole lesion where it is known (before treatment); else all tumour tissue is the whole.
    """
    voxel = float(np.prod(np.asarray(spacing_mm, dtype=np.float64))) / 1000.0
    viable, parts = _without_specks(tissue == VIABLE, voxel)
    if outline is None:
        whole, pieces = _without_specks(tissue >= VIABLE, voxel)
        longest = longest_axial_diameter(whole > 0, spacing_mm) if pieces else 0.0
    else:
        longest = longest_axial_diameter(outline, spacing_mm)
    counts = np.bincount(tissue.ravel().astype(np.int64), minlength=OIL + 1)
    return LesionState(
        lesion=lesion,
        longest_mm=longest,
        viable_mm=_longest_part(viable, parts, spacing_mm),
        viable_mm2=largest_axial_area(viable > 0, spacing_mm),
        viable_ml=float(counts[VIABLE]) * voxel,
        necrotic_ml=float(counts[NECROTIC]) * voxel,
        oil_ml=float(counts[OIL]) * voxel,
    )


def target_lesions(before: Sequence[LesionState]) -> tuple[int, ...]:
    """The lesions that are summed: the longest measurable ones, at most two; the longest where none is measurable."""
    order = sorted(before, key=lambda state: (-state.longest_mm, state.lesion))
    rule = criteria().targets
    measurable = [state.lesion for state in order if state.longest_mm >= rule.shortest_mm]
    return tuple(sorted(measurable[: rule.most] or [state.lesion for state in order[:1]]))


def compare(before: Sequence[LesionState], after: Sequence[LesionState]) -> Response:
    """Response by mRECIST and EASL between two states of the same lesions.

    Complete response needs that no lesion, target or not, has viable tissue left.

    Raises:
        ValueError: the two states list different lesions.
    """
    if [s.lesion for s in before] != [s.lesion for s in after]:
        raise ValueError("the states before and after list different lesions")
    targets = target_lesions(before)
    left = any(state.viable_mm > 0 for state in after)

    def total(states: Sequence[LesionState], name: str) -> float:
        return float(sum(getattr(state, name) for state in states if state.lesion in targets))

    rules = criteria()
    mrecist = _change(total(before, "viable_mm"), total(after, "viable_mm"), left, rules.mrecist, inclusive=True)
    easl = _change(total(before, "viable_mm2"), total(after, "viable_mm2"), left, rules.easl, inclusive=False)
    return Response(mrecist, easl, total(before, "longest_mm"), total(after, "longest_mm"), targets)


def _change(before: float, after: float, left: bool, rule: Threshold, *, inclusive: bool) -> Change:
    if before <= 0:
        return Change(before, after, None, "NE")
    percent = 100.0 * (after - before) / before
    category: Category = "SD"
    if not left:
        category = "CR"
    elif percent <= rule.response_percent:
        category = "PR"
    elif percent > rule.progression_percent or (inclusive and percent == rule.progression_percent):
        category = "PD"
    return Change(before, after, percent, category)


def _without_specks(mask: NDArray[np.bool_], voxel_ml: float) -> tuple[NDArray[np.int32], list[int]]:
    """The 26-connected parts of a mask that are not specks: their numbers on the grid, and the list of them."""
    numbered, count = ndimage.label(mask, structure=np.ones((3, 3, 3), dtype=bool))
    keep = np.bincount(numbered.ravel(), minlength=count + 1) * voxel_ml >= criteria().speck_ml
    keep[0] = False
    kept: NDArray[np.int32] = np.where(keep[numbered], numbered, 0).astype(np.int32)
    return kept, np.flatnonzero(keep).tolist()


def _longest_part(numbered: NDArray[np.int32], parts: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Longest axial diameter of any one part. Parts whose box is shorter than what was found already are skipped."""
    boxes = ndimage.find_objects(numbered)

    def reach(part: int) -> float:
        x, y, _ = boxes[part - 1]
        return float(np.hypot((x.stop - x.start) * spacing_mm[0], (y.stop - y.start) * spacing_mm[1]))

    longest = 0.0
    for part in sorted(parts, key=reach, reverse=True):
        if reach(part) <= longest:
            break
        longest = max(longest, longest_axial_diameter(numbered[boxes[part - 1]] == part, spacing_mm))
    return longest
