"""Volumes as ITK images, and the one way to lay an image onto another grid through a transform.

The program counts in RAS, ITK in LPS; both are handled here, so that a transform means the same to any ITK program.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from models.patch import OUTSIDE_HU
from models.volume import Affine, Volume

try:
    import SimpleITK as sitk
except ImportError as _missing:
    raise InputError(
        "Registration needs SimpleITK, which comes with the extra `collection`: pip install 'mewm[collection]'."
    ) from _missing

__all__ = ["LPS", "array_of", "grid_of", "itk_image", "sitk", "warp"]

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""RAS to LPS and back."""


def grid_of(affine: Affine) -> tuple[list[float], list[float], list[float]]:
    """Origin, spacing and direction (LPS) of a grid with a RAS affine, as ITK takes them."""
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return lps[:3, 3].tolist(), spacing.tolist(), (lps[:3, :3] / spacing).ravel().tolist()


def itk_image(data: NDArray[Any], affine: Affine) -> sitk.Image:
    """An ITK image of an (X, Y, Z) array with a RAS affine."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
    origin, spacing, direction = grid_of(affine)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    return image


def array_of(image: sitk.Image) -> NDArray[Any]:
    """(X, Y, Z[, components]) of an ITK image."""
    values = sitk.GetArrayFromImage(image)
    return np.ascontiguousarray(np.swapaxes(values, 0, 2))


def warp(
    transform: sitk.Transform, moving: Volume, shape: tuple[int, ...], affine: Affine, order: Literal[0, 1] = 1
) -> Volume:
    """An image of the follow-up on a grid before treatment, in one interpolation; air where it shows nothing.

    Args:
        transform: points before treatment to points of the follow-up, LPS mm.
        moving: the follow-up.
        shape: of the grid.
        affine: (4, 4) of the grid, RAS.
        order: 1 linear, 0 nearest.

    Returns:
        A volume of the type of `moving`, whole numbers rounded.
    """
    resampler = sitk.ResampleImageFilter()
    origin, spacing, direction = grid_of(affine)
    resampler.SetSize([int(n) for n in shape])
    resampler.SetOutputOrigin(origin)
    resampler.SetOutputSpacing(spacing)
    resampler.SetOutputDirection(direction)
    resampler.SetInterpolator(sitk.sitkLinear if order else sitk.sitkNearestNeighbor)
    resampler.SetDefaultPixelValue(OUTSIDE_HU)
    resampler.SetTransform(transform)
    values = array_of(resampler.Execute(itk_image(moving.data.astype(np.float32), moving.affine)))
    whole = moving.data.dtype == np.int16
    data = np.rint(values).astype(np.int16) if whole else values.astype(np.float32)
    return Volume(np.ascontiguousarray(data), np.array(affine, dtype=np.float64))
