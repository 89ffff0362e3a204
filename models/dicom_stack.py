"""Stacking the slices of a DICOM CT series to a volume in HU.

The geometry comes from the position and direction that each slice states. What forms no even, straight stack is refused
with the reason, or, where the caller allows it, resampled along the body if the gaps are small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from models.dicom import DAMAGE, POSITION_MM, DicomSeries, Slice, untrusted_headers
from models.errors import VolumeError
from models.volume import Affine, Volume, checked_ct, limits, to_ras

_DIRECTION = 1e-3  # cosines that differ by less are equal
_EVEN_SHARE = 0.05  # slice distances may differ by this share of their median ...
_EVEN_MM = 0.15  # ... or by this much: positions are often written with one decimal
_MAX_TILT_DEGREES = 0.3
_MAX_SLOPE, _MAX_INTERCEPT = 1e4, 1e5  # far beyond any scanner's; 16-bit pixels under them fit 32 bits


@dataclass(frozen=True)
class Stacking:
    """How the slices of a series form a volume.

    Attributes:
        affine: (4, 4) voxel (column, row, slice) to RAS mm.
        places: (slices of the volume,) where each lies among the slices of the series, counted from 0 in fractions;
            None where the series is even and they are the same.
    """

    affine: Affine
    places: NDArray[np.float64] | None

    def stack(self, planes: Sequence[NDArray[Any]], *, whole: bool) -> tuple[NDArray[Any], Affine]:
        """Planes of the series as a volume, RAS+.

        Args:
            planes: (rows, columns) each, from the first slice to the last.
            whole: take the nearest plane (labels) instead of a weighted mean of two (HU).
        """
        if self.places is None:
            chosen = list(planes)
        elif whole:
            # Halfway, floor(x + 0.5) always takes the upper slice; rint would take the even one.
            chosen = [planes[int(place + 0.5)] for place in self.places]
        else:
            chosen = [_between(planes, place) for place in self.places]
        # A plane is (row, column); the volume's first axis runs along a row.
        return to_ras(np.stack(chosen, axis=-1).transpose(1, 0, 2), self.affine)


def _between(planes: Sequence[NDArray[Any]], place: float) -> NDArray[Any]:
    below = min(int(place), len(planes) - 2)
    share = place - below
    mixed = planes[below] * (1 - share) + planes[below + 1] * share
    return np.rint(mixed).astype(planes[below].dtype) if planes[below].dtype.kind in "iu" else mixed


def read_series(series: DicomSeries, max_gap_mm: float | None = None) -> Volume:
    """Stack one series to a volume in HU, RAS+.

    HU are value times RescaleSlope plus RescaleIntercept, slice by slice; padding becomes air (-1024 HU).

    Args:
        series: from `models.dicom.find_series`.
        max_gap_mm: see `stacking`.

    Raises:
        VolumeError: a slice that lacks its geometry, places that repeat, uneven or missing slices, gantry tilt, slices
            of different size or direction, a missing or impossible rescale, pixels that can't be decoded, or values
            that are no CT in HU (`checked_ct`).
    """
    how = stacking(series, max_gap_mm)
    with untrusted_headers():
        planes = [_read_pixels(one) for one in series.slices]
    data, affine = how.stack(planes, whole=False)
    return checked_ct(data, affine, f"The CT series with {len(series.slices)} slices")


def stacking(series: DicomSeries, max_gap_mm: float | None = None) -> Stacking:
    """How the slices of a series form an even, straight stack.

    Args:
        series: from `models.dicom.find_series`.
        max_gap_mm: a series with uneven slices is resampled along the body to its usual slice distance where no gap is
            wider than this; None refuses every uneven series.

    Raises:
        VolumeError: they form none; as `read_series`.
    """
    if series.problem is not None:
        raise VolumeError(series.problem)
    slices = series.slices
    first = slices[0]
    name = f"The CT series with {len(slices)} slices"
    for one in slices[1:]:
        if (one.rows, one.columns) != (first.rows, first.columns) or not np.allclose(
            one.pixel_mm, first.pixel_mm, rtol=1e-3
        ):
            raise VolumeError(f"{name} mixes slices of different size or pixel spacing; export one reconstruction.")
        if not np.allclose(one.direction, first.direction, atol=_DIRECTION):
            raise VolumeError(f"{name} mixes slices of different direction; export one reconstruction.")
    heights = np.array([s.height for s in slices])
    gaps = np.diff(heights)
    if (gaps < POSITION_MM).any():
        n = int((gaps < POSITION_MM).sum())
        raise VolumeError(
            f"{name} has {n} slices at a place where there is one already, and neither acquisition number nor time "
            "tells them apart; export the phases as separate series."
        )
    usual = float(np.median(gaps))
    off = np.abs(gaps - usual)
    worst = int(off.argmax())
    uneven = off[worst] > max(_EVEN_SHARE * usual, _EVEN_MM)
    if uneven and (max_gap_mm is None or gaps.max() > max_gap_mm):
        more = "" if max_gap_mm is None else f" and up to {max_gap_mm:g} mm could be bridged"
        raise VolumeError(
            f"{name} is unevenly spaced: {usual:.4g} mm as a rule, but {gaps[worst]:.4g} mm between slices {worst + 1} "
            f"and {worst + 2} of the stack{more}; a slice is missing or the series is mixed, export it again."
        )
    row, column = np.array(first.direction[:3]), np.array(first.direction[3:])
    normal = np.cross(row, column)
    path = np.array(slices[-1].position) - np.array(first.position)
    sideways = path - np.dot(path, normal) * normal
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(sideways), abs(np.dot(path, normal)))))
    if tilt > _MAX_TILT_DEGREES:
        raise VolumeError(
            f"{name} was taken with the gantry tilted by {tilt:.1f} degrees, so its slices form no straight grid; "
            "give a series that was reformatted to straight slices."
        )
    n = round(float(heights[-1] - heights[0]) / usual) + 1 if uneven else len(slices)
    affine = np.eye(4)
    affine[:3, 0] = row * first.pixel_mm[1]
    affine[:3, 1] = column * first.pixel_mm[0]
    affine[:3, 2] = normal * (heights[-1] - heights[0]) / (n - 1)
    affine[:3, 3] = first.position
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM counts x to the left and y to the back
    if not uneven:
        return Stacking(affine, None)
    return Stacking(affine, np.interp(np.linspace(heights[0], heights[-1], n), heights, np.arange(len(slices))))


def _read_pixels(one: Slice) -> NDArray[Any]:
    """(rows, columns) HU of one slice."""
    try:
        dataset = pydicom.dcmread(one.path)
        pixels = np.asarray(dataset.pixel_array)
    except OSError as error:
        raise VolumeError(f"The CT slice {one.path} can't be read: {error.strerror or error}.") from error
    except DAMAGE as error:
        raise VolumeError(
            f"The pixels of the CT slice {one.path} can't be decoded ({_syntax(one.path)}); "
            "export the series uncompressed."
        ) from error
    slope, intercept, padding = _read_rescale(dataset, one.path)
    if pixels.shape != (one.rows, one.columns):
        raise VolumeError(f"The CT slice {one.path} holds {pixels.shape} pixels, not one plane; give single slices.")
    if slope.is_integer() and intercept.is_integer():
        hu: NDArray[Any] = pixels.astype(np.int32) * int(slope) + int(intercept)
    else:
        hu = (pixels * slope + intercept).astype(np.float32)
    if padding is not None:
        hu[pixels == padding] = limits().air_hu
    return hu


def _read_rescale(dataset: pydicom.Dataset, path: Path) -> tuple[float, float, int | None]:
    """Slope and intercept to HU of a slice, and its padding value where it states one."""
    try:  # a value is decoded when it is asked for
        stated = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
        kind = str(dataset.get("RescaleType", "") or "HU").strip().upper()
        padding = dataset.get("PixelPaddingValue")
        slope, intercept = (None if value is None else float(value) for value in stated)
    except DAMAGE as error:
        raise VolumeError(f"The CT slice {path} has a damaged rescale to HU; give the original CT series.") from error
    if slope is None or intercept is None:
        raise VolumeError(f"The CT slice {path} has no rescale to HU; give the original CT series.")
    if kind not in ("HU", "US"):
        raise VolumeError(f"The CT slice {path} is not in HU; give the original CT series.")
    if not (abs(slope) <= _MAX_SLOPE and abs(intercept) <= _MAX_INTERCEPT):  # also where one is not a number
        raise VolumeError(
            f"The CT slice {path} has an impossible rescale to HU (slope {slope:g}, intercept {intercept:g}); "
            "give the original CT series."
        )
    return slope, intercept, padding if isinstance(padding, int) else None


def _syntax(path: Path) -> str:
    """Name of the transfer syntax of a file whose pixels could not be decoded."""
    try:
        return str(pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID.name)
    except (OSError, *DAMAGE):
        return "damaged header"
