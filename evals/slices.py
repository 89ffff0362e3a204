"""Axial slices through the tumour as PNG, for forms that people read: no text, no outline, no metadata."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from agent.report.slices import LIVER_WINDOW, TUMOUR, Window
from models.errors import MaskError
from models.volume import Volume

FIELD_MM = 160.0
"""Edge of the square that is shown: the tumour with the organ around it, the same for every slice of a form."""
PIXELS = 384
AIR_HU = -1024.0


def tumour_centre(labels: NDArray[np.uint8], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the tumour is widest.

    Args:
        labels: (X, Y, Z) with 2 for tumour.
        affine: (4, 4) voxel to world in mm.

    Returns:
        (3,) world coordinates in mm of the tumour's centroid in the axial slice in which its area is largest.

    Raises:
        MaskError: the labels hold no tumour.
    """
    area = (labels == TUMOUR).sum(axis=(0, 1))
    if not area.any():
        raise MaskError("The labels hold no tumour (value 2), so there is no slice to show: import the case again.")
    level = int(area.argmax())
    x, y = np.argwhere(labels[:, :, level] == TUMOUR).mean(axis=0)
    return np.asarray((affine @ [x, y, level, 1.0])[:3])


def tumour_levels(labels: NDArray[np.uint8], affine: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Three points to look at, from the feet upwards: a quarter up the tumour, where it is widest, three quarters up.

    Args:
        labels: (X, Y, Z) with 2 for tumour.
        affine: (4, 4) voxel to world in mm.

    Returns:
        (3,) world coordinates in mm each, above the widest place's centre; fewer where the tumour is flat.

    Raises:
        MaskError: the labels hold no tumour.
    """
    centre = tumour_centre(labels, affine)
    voxel = np.linalg.inv(affine) @ np.append(centre, 1.0)
    there = np.flatnonzero((labels == TUMOUR).any(axis=(0, 1)))
    levels = {round(float(level)) for level in (voxel[2], *np.quantile(there, (0.25, 0.75)))}
    return tuple(np.asarray((affine @ [voxel[0], voxel[1], level, 1.0])[:3]) for level in sorted(levels))


def axial_png(
    volume: Volume,
    centre: NDArray[np.float64],
    window: Window = LIVER_WINDOW,
    field_mm: float = FIELD_MM,
    pixels: int = PIXELS,
) -> bytes:
    """One axial slice around a point, patient's right on the left, anterior on top.

    The slice nearest to the point is taken as it is; in the plane it is interpolated linearly, so that scans of any
    voxel size look alike in everything but their content. Outside the scan it is air.

    Args:
        volume: CT in HU, RAS+.
        centre: (3,) world coordinates in mm.
        window: Grey scale.
        field_mm: Edge of the square in mm.
        pixels: Edge of the picture.

    Returns:
        An 8-bit grey PNG without metadata.
    """
    voxel = np.linalg.inv(volume.affine) @ np.append(centre, 1.0)
    level = int(np.clip(np.rint(voxel[2]), 0, volume.shape[2] - 1))
    across, along, _ = volume.spacing_mm
    # pixel centres from +field/2 to -field/2: to the patient's left, and to the back
    offsets = field_mm * (0.5 - (np.arange(pixels) + 0.5) / pixels)
    rows, columns = np.meshgrid(voxel[1] + offsets / along, voxel[0] + offsets / across, indexing="ij")
    plane = volume.data[:, :, level].astype(np.float32)
    hu = ndimage.map_coordinates(plane, [columns, rows], order=1, mode="constant", cval=AIR_HU)
    grey = np.clip((hu - window.low) / (window.high - window.low), 0.0, 1.0)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(255 * grey).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()
