"""Patches: the cubes around the tumour that the networks see, and the way back into the full CT.

A patch is a cube of `size` voxels with isotropic spacing, its axes along the patient's (right, anterior, superior).
Lesions that fit one cube at the finest spacing share it; a lesion that does not fit gets a cube of its own with
coarser voxels, so that every lesion is simulated whole and no seam can run through one. What the networks change
comes back as a difference, weighted by a feather that is exactly 0 away from the tumour: there the CT keeps every
bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.errors import MaskError
from models.volume import Volume

Array = NDArray[np.generic]
Box = tuple[slice, slice, slice]

TUMOUR_LABEL = 2
WIDE_SIZE, WIDE_SPACING_MM = 72, 4.0  # cube that holds most of an abdomen, for the localiser
OUTSIDE_HU = -1024.0
HIGHEST_HU = 3071  # 12-bit scanners store -1024..3071
SPECK_ML = 0.05  # a ball of 4.6 mm: below it a component is segmentation noise rather than a lesion
USABLE = 0.8  # share of a patch's edge that lesions may span, so that every lesion is seen with its surroundings
HU_WINDOW = (-175.0, 600.0)  # of both presets (Yang et al. 2025, appendix B.2)
FEATHER_MM = 8.0
BOX_MARGIN = 6  # voxels of surroundings that decoder and segmenter read beyond what a simulation can change
FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))


@dataclass(frozen=True, eq=False)
class Lesions:
    """The tumour label taken apart into lesions.

    Attributes:
        index: (X, Y, Z) int16, 0 outside, 1..n inside lesion n; lesion 1 is the largest.
        volumes_ml: volume of each lesion in ml, largest first.
        specks: number of components below `SPECK_ML`, which are left out (not simulated, not measured).
        specks_ml: their total volume in ml.
    """

    index: NDArray[np.int16]
    volumes_ml: tuple[float, ...]
    specks: int
    specks_ml: float

    @property
    def count(self) -> int:
        """Number of lesions."""
        return len(self.volumes_ml)


@dataclass(frozen=True, eq=False)
class Patch:
    """One cube.

    Attributes:
        index: position in the case's list of patches.
        affine: (4, 4) patch voxel to world mm, axes along RAS.
        size: voxels along each edge.
        spacing_mm: isotropic voxel size.
        lesions: numbers (from 1) of the lesions that this patch simulates.
    """

    index: int
    affine: NDArray[np.float64]
    size: int
    spacing_mm: float
    lesions: tuple[int, ...]


def spacing_of(affine: Array) -> NDArray[np.float64]:
    """Voxel size in mm along the three array axes, (3,)."""
    sizes: NDArray[np.float64] = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    return sizes


def voxel_ml(affine: Array) -> float:
    """Volume of one voxel in ml."""
    return float(abs(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3]))) / 1000.0


def lesion_components(labels: Array, affine: Array) -> Lesions:
    """Takes label 2 (tumour) apart into 26-connected lesions, largest first.

    Components below `SPECK_ML` are left out and counted, unless all are that small.

    Args:
        labels: (X, Y, Z) label array (1 liver, 2 tumour, 3 portal vein, 4 aorta).
        affine: (4, 4) voxel to world.

    Raises:
        MaskError: label 2 does not occur.
    """
    tumour = np.asarray(labels) == TUMOUR_LABEL
    box = _bounding_box(tumour)
    if box is None:
        raise MaskError("The labels mark no tumour: label 2 does not occur; mark the tumour voxels with 2.")
    parts, count = ndimage.label(tumour[box], structure=np.ones((3, 3, 3), dtype=bool))
    volumes = np.bincount(parts.ravel(), minlength=count + 1)[1:] * voxel_ml(affine)
    order = np.argsort(-volumes, kind="stable")
    kept = [i for i in order if volumes[i] >= SPECK_ML] or list(order)
    renumber = np.zeros(count + 1, dtype=np.int16)
    for number, component in enumerate(kept, start=1):
        renumber[component + 1] = number
    index = np.zeros(tumour.shape, dtype=np.int16)
    index[box] = renumber[parts]
    volumes_ml = tuple(float(volumes[i]) for i in kept)
    return Lesions(index, volumes_ml, count - len(kept), max(0.0, float(volumes.sum()) - sum(volumes_ml)))


def plan_patches(
    labels: Array,
    affine: Array,
    size: int = 64,
    finest_mm: float = 1.5,
    coarsest_mm: float = 4.5,
    *,
    lesions: Lesions | None = None,
) -> list[Patch]:
    """Cubes that cover every lesion, each lesion in exactly one cube.

    Groups are grown from the largest lesion that is still free by the nearest one that still fits, so the result
    depends on the labels alone. A lesion that spans more than `USABLE` of the finest cube (76.8 mm of 96 mm) is alone
    in a cube whose voxels are just coarse enough, in steps of 0.1 mm.

    Args:
        labels: (X, Y, Z) label array.
        affine: (4, 4) voxel to world; may be oblique.
        size: voxels along a cube's edge.
        finest_mm: spacing for what fits.
        coarsest_mm: the coarsest spacing that the networks were trained for.
        lesions: the lesions of `labels`, where they are known already.

    Raises:
        MaskError: no tumour, or a lesion larger than the coarsest cube.
    """
    lesions = lesions or lesion_components(labels, affine)
    boxes = [_world_box(part, affine) for part in ndimage.find_objects(lesions.index) if part is not None]
    extents = [float(np.max(high - low)) for low, high in boxes]
    limit = USABLE * size * finest_mm
    free = list(range(lesions.count))
    patches: list[Patch] = []
    while free:
        first = free.pop(0)
        group, (low, high) = [first], boxes[first]
        if extents[first] > limit:
            spacing = math.ceil(extents[first] / (USABLE * size) * 10 - 1e-6) / 10
            if extents[first] > size * coarsest_mm:
                raise MaskError(
                    f"A lesion spans {extents[first]:.0f} mm, more than the {size * coarsest_mm:.0f} mm that the model "
                    "can see; check the labels (is the liver marked as tumour?)."
                )
            spacing = min(spacing, coarsest_mm)
        else:
            spacing = finest_mm
            while fitting := [
                (float(np.linalg.norm(_centre(boxes[i]) - (low + high) / 2)), i, *_union((low, high), boxes[i]))
                for i in free
                if float(np.max(np.subtract(*reversed(_union((low, high), boxes[i]))))) <= limit
            ]:
                _, nearest, low, high = min(fitting, key=lambda entry: entry[:2])
                free.remove(nearest)
                group.append(nearest)
        patch_affine = np.diag([spacing, spacing, spacing, 1.0])
        patch_affine[:3, 3] = (low + high) / 2 - spacing * (size - 1) / 2
        patches.append(Patch(len(patches), patch_affine, size, float(spacing), tuple(sorted(i + 1 for i in group))))
    return patches


def crop(volume: Volume, patch: Patch) -> NDArray[np.float32]:
    """The CT inside a patch: (size, size, size) float32 HU, trilinear; outside the volume its border goes on.

    A scan often ends inside the body: its last slice repeated looks like anatomy to the networks, unlike a slab of air.
    Where the patch is coarser than the CT, a Gaussian goes before, its width that of Cardoso et al. 2015 ("Scale
    factor point spread function matching"): sigma = sqrt(coarse^2 - fine^2) / 2.355.
    """
    return resample_to_grid(volume.data, volume.affine, patch.affine, (patch.size,) * 3, None)


def crop_mask(mask: Array, affine: Array, patch: Patch) -> NDArray[np.float32]:
    """The share of each patch voxel that is inside a binary mask: (size, size, size) float32 in [0, 1]."""
    share = resample_to_grid(np.asarray(mask) != 0, affine, patch.affine, (patch.size,) * 3, 0.0)
    return np.clip(share, 0.0, 1.0)


def crop_lesions(lesions: Lesions, affine: Array, patch: Patch) -> NDArray[np.int16]:
    """Lesion numbers on the patch grid: (size, size, size), 0 outside every lesion.

    A patch voxel belongs to a lesion when at least half of it does. A lesion of this patch that is too thin for that
    keeps the voxels where its share is at least half of its highest, so that none is lost.
    """
    share = crop_mask(lesions.index, affine, patch)
    inside = share >= 0.5
    if not inside.any() and not share.any():
        return np.zeros(share.shape, dtype=np.int16)
    matrix = np.linalg.inv(np.asarray(affine, dtype=np.float64)) @ patch.affine
    numbers = ndimage.affine_transform(
        lesions.index, matrix[:3, :3], matrix[:3, 3], output_shape=share.shape, order=0, mode="constant", cval=0
    )
    if numbers.any():
        # Voxels whose centre is just outside but whose larger part is inside take the number of the nearest lesion.
        _, where = ndimage.distance_transform_edt(numbers == 0, return_indices=True)
        numbers = numbers[tuple(where)]
    result = np.where(inside, numbers, 0).astype(np.int16)
    for lesion in set(patch.lesions) - set(np.unique(result).tolist()):
        own = crop_mask(lesions.index == lesion, affine, patch)
        result[own >= max(0.5 * float(own.max()), 1e-6)] = lesion
    return result


def feather(tumour_mask: Array, affine: Array, width_mm: float = FEATHER_MM) -> NDArray[np.float32]:
    """A weight that is 1 inside the tumour and falls as a raised cosine of the distance to exactly 0 at `width_mm`.

    Args:
        tumour_mask: (X, Y, Z), non-zero inside the tumour.
        affine: (4, 4) voxel to world; distances are in mm, so anisotropic voxels are respected.
        width_mm: where it reaches 0.

    Returns:
        (X, Y, Z) float32 in [0, 1]; all 0 for an empty mask.
    """
    inside = np.asarray(tumour_mask) != 0
    weight = np.zeros(inside.shape, dtype=np.float32)
    box = _bounding_box(inside)
    if box is not None:
        near = _grow(box, inside.shape, width_mm / spacing_of(affine))
        distance = ndimage.distance_transform_edt(~inside[near], sampling=spacing_of(affine))
        weight[near] = np.where(distance < width_mm, 0.5 * (1.0 + np.cos(np.pi * distance / width_mm)), 0.0)
        weight[inside] = 1.0
    return weight


def boxes_around(inside: Array, margin: int, least: int, step: int, cell: int) -> tuple[Box, ...]:
    """A box around what is set in each of some cubes. All boxes have one shape, so that they can share a batch.

    Args:
        inside: (L, S, S, S); a cube in which nothing is set counts whole.
        margin: voxels kept beyond what is set, where the cube goes on.
        least: shortest edge.
        step: edges are multiples of it, as S is.
        cell: boxes start at multiples of it; a divisor of `step`.
    """
    size = inside.shape[1]
    found = [_bounding_box(one) or (slice(0, size),) * 3 for one in inside]
    low = np.array([[max(s.start - margin, 0) // cell * cell for s in box] for box in found])
    extent = np.array([[min(s.stop + margin, size) for s in box] for box in found]) - low
    edge = np.minimum(-(-np.maximum(extent.max(axis=0), least) // step) * step, size)
    start = np.clip(low - (edge - extent) // 2 // cell * cell, 0, size - edge)
    boxes = [[slice(int(a), int(a + e)) for a, e in zip(corner, edge, strict=True)] for corner in start]
    return tuple((x, y, z) for x, y, z in boxes)


def apply_change(
    before: NDArray[np.float32], change: NDArray[np.float32], weight: NDArray[np.float32], window: tuple[float, float]
) -> NDArray[np.float32]:
    """What the model changed, added to a scan: before + weight * change; all arrays of one shape.

    The networks see HU clipped to a window, so a change is one of the clipped scan. Where it points back into the
    window it starts at the window's border: oil of 2000 HU that the model removes is gone, not 570 HU darker.

    Args:
        before: HU before treatment.
        change: HU, decoded after minus decoded before.
        weight: feather in [0, 1].
        window: lowest and highest HU that the networks see.
    """
    low, high = window
    start = np.where(change < 0, np.minimum(before, high), np.where(change > 0, np.maximum(before, low), before))
    return np.asarray(before + weight * (start + change - before), dtype=np.float32)


def paste(
    volume: Volume,
    tumour_mask: Array,
    patches: Sequence[Patch],
    differences: Sequence[Array],
    *,
    lesions: Lesions | None = None,
    window: tuple[float, float] = HU_WINDOW,
) -> Volume:
    """Adds what the model changed to the full CT: pre + feather * upsampled difference.

    Each patch changes the neighbourhood of its own lesions only. Where the feathers of two patches meet, their
    differences are blended by their weights, so there is no seam. Beyond the feather the result equals the input bit
    for bit.

    Args:
        volume: the pre-treatment CT.
        tumour_mask: (X, Y, Z), non-zero inside the tumour.
        patches: the patches that `plan_patches` made for this mask.
        differences: for each patch (size, size, size) HU to add (decoded after minus decoded before).
        lesions: the lesions of `tumour_mask`, where they are known already.
        window: HU range that the networks see, see `apply_change`.

    Returns:
        A volume of the same shape, affine and dtype; int16 is rounded to the nearest HU.

    Raises:
        MaskError: the mask is empty.
    """
    if len(patches) != len(differences):
        raise ValueError(f"{len(patches)} patches but {len(differences)} differences")
    lesions = lesions or lesion_components((np.asarray(tumour_mask) != 0) * np.uint8(TUMOUR_LABEL), volume.affine)
    spacing = spacing_of(volume.affine)
    whole = _bounding_box(lesions.index)
    assert whole is not None  # `lesion_components` raises on an empty mask
    region = _grow(whole, lesions.index.shape, FEATHER_MM / spacing)
    index = lesions.index[region]
    summed = np.zeros(index.shape, dtype=np.float32)
    weights = np.zeros(index.shape, dtype=np.float32)
    top = np.zeros(index.shape, dtype=np.float32)
    for patch, difference in zip(patches, differences, strict=True):
        own = np.isin(index, patch.lesions)
        box = _bounding_box(own)
        if box is None:
            continue
        near = _grow(box, index.shape, FEATHER_MM / spacing)
        weight = feather(own[near], volume.affine)
        origin = [part.start + whole_part.start for part, whole_part in zip(near, region, strict=True)]
        target = np.array(volume.affine, dtype=np.float64)
        target[:3, 3] += target[:3, :3] @ np.array(origin, dtype=np.float64)
        change = resample_to_grid(difference, patch.affine, target, weight.shape)
        summed[near] += weight * change
        weights[near] += weight
        top[near] = np.maximum(top[near], weight)
    touched = weights > 0
    data = np.array(volume.data)
    view = data[region]
    change = summed[touched] / weights[touched]
    after = apply_change(view[touched].astype(np.float32), change, top[touched], window)
    after = np.clip(after, OUTSIDE_HU, HIGHEST_HU)
    view[touched] = np.rint(after).astype(data.dtype) if np.issubdtype(data.dtype, np.integer) else after
    return Volume(data=data, affine=volume.affine)


def describe_patches(patches: Sequence[Patch], lesions: Lesions, finest_mm: float = 1.5) -> str:
    """One sentence for the report: how many patches at which spacing, and what was left out.

    Args:
        patches: from `plan_patches`.
        lesions: the lesions that they cover.
        finest_mm: the spacing that `plan_patches` used for what fits.
    """
    parts: list[str] = []
    for spacing in sorted({patch.spacing_mm for patch in patches}):
        members = [patch for patch in patches if patch.spacing_mm == spacing]
        count = sum(len(patch.lesions) for patch in members)
        text = (
            f"{_plural(count, 'lesion')} in {_plural(len(members), 'patch', 'patches')} "
            f"of {spacing * members[0].size:.0f} mm at {spacing:.1f} mm voxels"
        )
        if spacing > finest_mm:
            reach = USABLE * members[0].size * finest_mm
            text += f" (coarser than {finest_mm:.1f} mm because the lesion spans more than {reach:.0f} mm)"
        parts.append(text)
    if lesions.specks:
        specks = _plural(lesions.specks, "speck")
        parts.append(f"{specks} below {SPECK_ML} ml left out ({lesions.specks_ml:.2f} ml in all)")
    return "; ".join(parts)


def _plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def resample_to_grid(
    data: Array, affine: Array, target_affine: Array, target_shape: tuple[int, ...], outside: float | None = 0.0
) -> NDArray[np.float32]:
    """Trilinear values of `data` on another grid, smoothed first along axes where that grid is coarser.

    Args:
        data: (X, Y, Z) values on the grid of `affine`.
        affine: (4, 4) voxel to world of `data`.
        target_affine: (4, 4) of the other grid; may be turned against the first.
        target_shape: its voxels along the three axes.
        outside: value more than half a voxel outside `data`; None repeats the border.

    Returns:
        `target_shape` float32. The smoothing is that of Cardoso et al. 2015, see `crop`.
    """
    matrix = np.linalg.inv(np.asarray(affine, dtype=np.float64)) @ np.asarray(target_affine, dtype=np.float64)
    step, offset = matrix[:3, :3], matrix[:3, 3]
    corners = np.array(np.meshgrid(*[[0, n - 1] for n in target_shape], indexing="ij")).reshape(3, -1)
    reached = step @ corners + offset[:, None]
    fine = spacing_of(affine)
    # How far one target step reaches along each source axis, in mm: the spacing itself for parallel axes.
    coarse = np.linalg.norm(step, axis=1) * fine
    sigma = np.sqrt(np.maximum(coarse**2 - fine**2, 0.0)) / FWHM_PER_SIGMA / fine
    margin = np.ceil(3 * sigma) + 2
    low = np.clip(np.floor(reached.min(axis=1) - margin), 0, np.array(data.shape)).astype(int)
    high = np.clip(np.ceil(reached.max(axis=1) + margin) + 1, 0, np.array(data.shape)).astype(int)
    if np.any(high <= low):
        return np.full(target_shape, OUTSIDE_HU if outside is None else outside, dtype=np.float32)
    source = np.asarray(data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], dtype=np.float32)
    if np.any(sigma > 0):
        source = ndimage.gaussian_filter(source, sigma, mode="nearest", truncate=3.0)
    parallel = np.allclose(step, np.diag(np.diag(step)), atol=1e-9)
    result: NDArray[np.float32] = ndimage.affine_transform(
        source, np.diag(step) if parallel else step, offset - low, output_shape=target_shape, order=1, mode="nearest"
    )
    if outside is None:
        return result
    beyond = np.zeros(target_shape, dtype=bool)
    grid = np.ogrid[tuple(slice(0, n) for n in target_shape)]
    for axis in range(3):
        # Zero coefficients are skipped so that a parallel grid costs three lines instead of three cubes.
        terms = [step[axis, k] * grid[k] for k in range(3) if abs(step[axis, k]) > 1e-12]
        position = offset[axis] + sum(terms[1:], start=terms[0]) if terms else np.float64(offset[axis])
        beyond |= (position < -0.5 - 1e-6) | (position > data.shape[axis] - 0.5 + 1e-6)
    result[beyond] = outside
    return result


def _bounding_box(mask: Array) -> tuple[slice, ...] | None:
    inside = np.asarray(mask) != 0
    slices = []
    for axis in range(3):
        hit = np.flatnonzero(inside.any(axis=tuple(k for k in range(3) if k != axis)))
        if hit.size == 0:
            return None
        slices.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(slices)


def _grow(box: tuple[slice, ...], shape: tuple[int, ...], voxels: Array) -> tuple[slice, ...]:
    margin = np.ceil(np.asarray(voxels, dtype=np.float64)).astype(int) + 1
    return tuple(slice(max(0, s.start - m), min(n, s.stop + m)) for s, m, n in zip(box, margin, shape, strict=True))


def _world_box(part: tuple[slice, ...], affine: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest world coordinate of a box of voxels, its outer faces included."""
    ends = [[s.start - 0.5, s.stop - 0.5] for s in part]
    corners = np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, -1)
    world = np.asarray(affine)[:3, :3] @ corners + np.asarray(affine)[:3, 3:]
    return world.min(axis=1), world.max(axis=1)


def _union(
    a: tuple[NDArray[np.float64], NDArray[np.float64]], b: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.minimum(a[0], b[0]), np.maximum(a[1], b[1])


def _centre(box: tuple[NDArray[np.float64], NDArray[np.float64]]) -> NDArray[np.float64]:
    return (box[0] + box[1]) / 2
