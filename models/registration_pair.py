"""The pair that is registered: both scans on the working grid as the metric sees them, and where it looks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.errors import MaskError, VolumeError
from models.registration_settings import settings
from models.volume import Affine, Volume, resample

LIVER_LABELS = (1, 2, 3)  # tumour and portal vein lie inside the organ
TUMOUR_LABEL = 2


@dataclass(frozen=True, eq=False)
class Pair:
    """What the metric works on.

    Attributes:
        fixed: scan before treatment, windowed HU, working grid.
        moving: follow-up, likewise.
        organ: (X, Y, Z) liver before treatment, or the body where no liver is marked.
        region: organ and its surroundings without the tumour, on the grid of `fixed`.
        moving_organ: liver of the follow-up on the grid of `moving`, or None.
    """

    fixed: Volume
    moving: Volume
    organ: NDArray[np.bool_]
    region: NDArray[np.bool_]
    moving_organ: NDArray[np.bool_] | None

    @classmethod
    def of(
        cls, fixed: Volume, moving: Volume, fixed_labels: NDArray[np.uint8] | None,
        moving_labels: NDArray[np.uint8] | None,
    ) -> Pair:  # fmt: skip
        """Resample, window and mark the two scans.

        Args:
            fixed: CT before treatment.
            moving: follow-up CT.
            fixed_labels: labels of `fixed`, or None.
            moving_labels: labels of `moving`, or None; with both livers marked, their outlines lead.

        Raises:
            MaskError: labels of another shape than their scan.
            VolumeError: the scan before treatment shows no body.
        """
        for scan, labels in ((fixed, fixed_labels), (moving, moving_labels)):
            if labels is not None and labels.shape != scan.shape:
                raise MaskError(f"Labels of shape {labels.shape} fit no scan of shape {scan.shape}; give its own ones.")
        method = settings().method
        small, small_moving = resample(fixed, method.working_mm), resample(moving, method.working_mm)
        on_grid = None if fixed_labels is None else _labels_on(fixed_labels, fixed.affine, small)
        marked = on_grid is not None and has_liver(on_grid)
        organ = np.isin(on_grid, LIVER_LABELS) if on_grid is not None and marked else _body(small)
        region = grown(organ, small.spacing_mm, method.region_margin_mm) if marked else organ
        if on_grid is not None:
            region = region & (on_grid != TUMOUR_LABEL)
        if not organ.any():
            raise VolumeError("The scan before treatment shows no body, so there is nothing to register.")
        moving_organ = None
        if marked and moving_labels is not None and has_liver(moving_labels):
            moving_organ = np.isin(_labels_on(moving_labels, moving.affine, small_moving), LIVER_LABELS)
        low, high = method.window_hu
        scans = []
        for scan, inside in ((small, organ), (small_moving, moving_organ)):
            seen = np.clip(scan.data, low, high)
            if moving_organ is not None and inside is not None:
                seen = np.where(inside, seen, np.float32(low))  # the outlines of the two livers lead
            scans.append(Volume(np.ascontiguousarray(seen, dtype=np.float32), scan.affine))
        return cls(scans[0], scans[1], organ, region, moving_organ)


def has_liver(labels: NDArray[np.uint8]) -> bool:
    """Whether the liver is marked; a tumour alone does not show where the liver ends."""
    return bool((labels == LIVER_LABELS[0]).any())


def _labels_on(labels: NDArray[np.uint8], affine: Affine, grid: Volume) -> NDArray[np.uint8]:
    matrix = np.linalg.inv(affine) @ grid.affine
    out: NDArray[np.uint8] = ndimage.affine_transform(
        labels, matrix[:3, :3], matrix[:3, 3], output_shape=grid.shape, order=0, mode="nearest"
    )
    return out


def grown(mask: NDArray[np.bool_], spacing: tuple[float, ...], margin_mm: float) -> NDArray[np.bool_]:
    """The mask and everything within `margin_mm` of it."""
    if not mask.any():
        return mask
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=spacing) <= margin_mm)


def _body(scan: Volume) -> NDArray[np.bool_]:
    """The largest connected part above the HU of air: the patient without the table's far parts."""
    parts, count = ndimage.label(scan.data > settings().method.body_hu)
    if count == 0:
        return np.zeros(scan.shape, dtype=bool)
    return np.asarray(parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:])))
