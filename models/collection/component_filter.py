"""The component filter of the MeWM paper: small parts of liver and tumour are noise of a segmentation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_ORGAN = (1, 2, 3)  # tumour and portal vein lie inside the liver


def filter_components(labels: NDArray[np.uint8], min_voxels: int) -> tuple[NDArray[np.uint8], int]:
    """Take away small parts of liver and tumour, 26-connected, as the MeWM paper does (appendix A.1).

    A small part of the tumour that touches the liver becomes liver, since it lies in it; any other becomes background.

    Args:
        labels: (X, Y, Z) values of `models.volume.LABEL_NAMES`.
        min_voxels: parts with fewer voxels go.

    Returns:
        The labels, and how many voxels lost their label or became liver.
    """
    result = labels.copy()
    specks = _small_parts(labels == 2, min_voxels)
    if specks.any():
        near_liver = ndimage.binary_dilation(labels == 1, structure=np.ones((3, 3, 3)))
        parts, _ = ndimage.label(specks, structure=np.ones((3, 3, 3)))
        touching = np.unique(parts[specks & near_liver])
        result[specks] = 0
        result[specks & np.isin(parts, touching)] = 1
    organ = _small_parts(np.isin(result, _ORGAN), min_voxels)
    result[organ] = 0
    return result, int(np.count_nonzero(result != labels))


def _small_parts(mask: NDArray[np.bool_], min_voxels: int) -> NDArray[np.bool_]:
    parts, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    small = np.bincount(parts.ravel()) < min_voxels
    small[0] = False
    result: NDArray[np.bool_] = small[parts]
    return result
