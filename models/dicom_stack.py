"""Stacking the slices of a DICOM CT series to a volume in HU.

The geometry comes from the position and direction that each slice states. What forms no even, straight stack is refused
with the reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from models.dicom import POSITION_MM, DicomSeries, Slice, untrusted_headers
from models.errors import VolumeError
from models.volume import Affine, Volume, checked_ct, limits, to_ras

_DIRECTION = 1e-3  # cosines that differ by less are equal
_EVEN_SHARE = 0.05  # slice distances may differ by this share of their median ...
_EVEN_MM = 0.15  # ... or by this much: positions are often written with one decimal
_MAX_TILT_DEGREES = 0.3


def read_series(series: DicomSeries) -> Volume:
    """Stack one series to a volume in HU, RAS+.

    HU are value times RescaleSlope plus RescaleIntercept, slice by slice; padding becomes air (-1024 HU).

    Raises:
        VolumeError: a slice that lacks its geometry, places that repeat, uneven or missing slices, gantry tilt, slices
            of different size or direction, a missing rescale, pixels that can't be decoded, or values that are no CT in
            HU (`checked_ct`).
    """
    if series.problem is not None:
        raise VolumeError(series.problem)
    affine = _stack_affine(series)
    with untrusted_headers():
        planes = [_read_pixels(one) for one in series.slices]
    # pixel_array is (row, column); the volume's first axis runs along a row.
    data = np.stack(planes, axis=-1).transpose(1, 0, 2)
    data, affine = to_ras(data, affine)
    return checked_ct(data, affine, f"The CT series with {len(series.slices)} slices")


def _stack_affine(series: DicomSeries) -> Affine:
    """Voxel (column, row, slice) to RAS mm, after checking that the slices form an even, straight stack."""
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
    if off[worst] > max(_EVEN_SHARE * usual, _EVEN_MM):
        raise VolumeError(
            f"{name} is unevenly spaced: {usual:.4g} mm as a rule, but {gaps[worst]:.4g} mm between slices "
            f"{worst + 1} and {worst + 2} of the stack; a slice is missing or the series is mixed, export it again."
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
    affine = np.eye(4)
    affine[:3, 0] = row * first.pixel_mm[1]
    affine[:3, 1] = column * first.pixel_mm[0]
    affine[:3, 2] = normal * (heights[-1] - heights[0]) / (len(slices) - 1)
    affine[:3, 3] = first.position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM counts x to the left and y to the back


def _read_pixels(one: Slice) -> NDArray[Any]:
    """(rows, columns) HU of one slice."""
    try:
        dataset = pydicom.dcmread(one.path)
        pixels = np.asarray(dataset.pixel_array)
    except OSError as error:
        raise VolumeError(f"The CT slice {one.path} can't be read: {error.strerror or error}.") from error
    except (ValueError, EOFError, KeyError, TypeError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise VolumeError(
            f"The pixels of the CT slice {one.path} can't be decoded ({_syntax(one.path)}); "
            "export the series uncompressed."
        ) from error
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None:
        raise VolumeError(f"The CT slice {one.path} has no rescale to HU; give the original CT series.")
    kind = str(dataset.get("RescaleType", "") or "HU").strip().upper()
    if kind not in ("HU", "US"):
        raise VolumeError(f"The CT slice {one.path} is not in HU; give the original CT series.")
    if pixels.shape != (one.rows, one.columns):
        raise VolumeError(f"The CT slice {one.path} holds {pixels.shape} pixels, not one plane; give single slices.")
    slope, intercept = float(slope), float(intercept)
    if slope.is_integer() and intercept.is_integer():
        hu: NDArray[Any] = pixels.astype(np.int32) * int(slope) + int(intercept)
    else:
        hu = (pixels * slope + intercept).astype(np.float32)
    padding = dataset.get("PixelPaddingValue")
    if isinstance(padding, int):
        hu[pixels == padding] = limits().air_hu
    return hu


def _syntax(path: Path) -> str:
    """Name of the transfer syntax of a file whose pixels could not be decoded."""
    try:
        return str(pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID.name)
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, NotImplementedError, InvalidDicomError):
        return "damaged header"
