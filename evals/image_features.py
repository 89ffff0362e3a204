"""Engineered features of a CT before treatment: what a direct regressor may see of the image, without any network."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from models.patch import lesion_components, spacing_of
from models.response import criteria

NAMES: Final = (
    "log tumour volume",
    "number of lesions",
    "log diameter of the largest lesion",
    "contrast against liver",
    "contrast of the living part",
    "hypodense share",
    "rim against inside",
    "step at the border",
    "irregularity of the border",
    "unevenness of the living part",
    "halo in the liver around",
)
MARGIN_MM = 16.0
_LIVER, _TUMOUR = 1, 2


def tumour_box(
    labels: npt.NDArray[np.uint8], affine: npt.NDArray[np.float64], margin_mm: float = MARGIN_MM
) -> tuple[slice, slice, slice]:
    """The smallest box around the tumour with a margin, inside the volume."""
    found = ndimage.find_objects((labels == _TUMOUR).astype(np.uint8))[0]
    reach = np.ceil(margin_mm / spacing_of(affine)).astype(int)
    x, y, z = (
        slice(max(side.start - int(r), 0), min(side.stop + int(r), n))
        for side, r, n in zip(found, reach, labels.shape, strict=True)
    )
    return x, y, z


def image_features(
    hu: npt.NDArray[np.floating], labels: npt.NDArray[np.uint8], affine: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Features of the tumour on an arterial CT.

    Args:
        hu: (X, Y, Z) HU, at least the box of `tumour_box`.
        labels: (X, Y, Z) labels: 1 liver, 2 tumour, 3 portal vein, 4 aorta.
        affine: Voxel to world.

    Returns:
        (11,) in the order of `NAMES`, each of order one. A part that is not there to be measured gives 0.
    """
    spacing = spacing_of(affine)
    lesions = lesion_components(labels, affine)
    tumour = labels == _TUMOUR
    inside = ndimage.distance_transform_edt(tumour, sampling=spacing)
    outside = ndimage.distance_transform_edt(~tumour, sampling=spacing)
    values = hu.astype(np.float32)
    smooth = ndimage.gaussian_filter(values, 1.5 / spacing)
    liver = labels == _LIVER
    far = liver & (outside > 6.0)
    reference = _mean(smooth, far, _mean(smooth, liver, 0.0))
    low = smooth < criteria().necrosis_hu
    alive = tumour & ~ndimage.binary_dilation(low & tumour)
    core = tumour & (inside > 4.0)
    bright = alive & (inside > 4.0)
    contrast = _mean(smooth, alive & (inside > 3.0), reference) - reference
    ball_mm = 2.0 * (0.75 * lesions.volumes_ml[0] * 1000.0 / np.pi) ** (1.0 / 3.0)
    surface = float((tumour & (inside <= 2.5)).sum() / tumour.sum())
    step = _mean(values, alive & (inside <= 2.5), reference) - _mean(values, liver & (outside <= 2.5), reference)
    return np.array(
        [
            np.log(sum(lesions.volumes_ml)) - 3.0,
            lesions.count - 1.5,
            np.log(ball_mm) - 3.8,
            (_mean(smooth, core, reference) - reference) / 40.0,
            contrast / 40.0,
            float(low[tumour].mean()) * 2.0,
            (_mean(values, alive & (inside <= 2.5), 0.0) - _mean(values, alive & (inside > 3.0) & (inside <= 8.0), 0.0))
            / 20.0,
            step / 20.0,
            surface * ball_mm / 15.0,
            float(np.subtract(*np.quantile(smooth[bright], (0.75, 0.25)))) / 15.0 if bright.any() else 0.0,
            (_mean(smooth, liver & (outside <= 6.0), reference) - reference) / 20.0,
        ]
    )


def _mean(values: npt.NDArray[np.floating], mask: npt.NDArray[np.bool_], default: float) -> float:
    return float(values[mask].mean(dtype=np.float64)) if mask.any() else default
