"""Contrast phase of an abdominal CT, told from its HU alone: header text is not trusted."""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from models.case import Phase
from models.volume import Volume

_LIVER, _AORTA = 1, 4


class _Labelled(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    arterial_aorta_hu: float
    arterial_over_liver_hu: float
    noncontrast_aorta_hu: float
    portal_aorta_hu: tuple[float, float]
    portal_liver_hu: float


class _Measured(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    grid_mm: float
    bright_hu: tuple[float, float]
    core_radius_mm: float
    min_length_mm: float
    area_mm2: tuple[float, float]
    max_spread_hu: float
    max_off_middle_mm: float


class _Liver(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    portal_liver_hu: float


class _Limits(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    labelled: _Labelled
    measured: _Measured
    liver_only: _Liver


@cache
def _limits() -> _Limits:
    text = resources.files("models").joinpath("contrast_phase.yaml").read_text(encoding="utf-8")
    return _Limits.model_validate(yaml.safe_load(text))


def phase_from_labels(volume: Volume, labels: NDArray[np.uint8]) -> Phase:
    """The phase by the mean HU of the labelled aorta and liver.

    Args:
        volume: CT in HU.
        labels: (X, Y, Z) on the same grid, 1 liver and 4 aorta.

    Returns:
        ``unknown`` where a label is missing or the values fit no phase. ``delayed`` is never concluded: its HU overlap
        those of the portal phase. Limits: `contrast_phase.yaml`.
    """
    liver, aorta = labels == _LIVER, labels == _AORTA
    if not liver.any() or not aorta.any():
        return "unknown"
    bound = _limits().labelled
    liver_hu, aorta_hu = float(volume.data[liver].mean()), float(volume.data[aorta].mean())
    if aorta_hu >= bound.arterial_aorta_hu and aorta_hu - liver_hu >= bound.arterial_over_liver_hu:
        return "arterial"
    if aorta_hu < bound.noncontrast_aorta_hu:
        return "noncontrast"
    low, high = bound.portal_aorta_hu
    if low <= aorta_hu < high and liver_hu >= bound.portal_liver_hu:
        return "portal"
    return "unknown"


def phase_from_image(volume: Volume) -> Phase:
    """``arterial`` where a bright, even tube runs along the middle of the body (the aorta), else ``unknown``.

    Without labels the other phases can't be told apart safely, so they are not guessed. Limits: `contrast_phase.yaml`.
    """
    return "unknown" if arterial_aorta_hu(volume) is None else "arterial"


def phase_from_liver(volume: Volume, liver: NDArray[np.bool_]) -> Phase:
    """The phase where the liver is known and the aorta is not: ``arterial``, ``portal`` or ``unknown``.

    Args:
        volume: CT in HU.
        liver: (X, Y, Z) on the same grid, the liver without tumour and vessels.
    """
    if arterial_aorta_hu(volume) is not None:
        return "arterial"
    bright = liver.any() and float(volume.data[liver].mean()) >= _limits().liver_only.portal_liver_hu
    return "portal" if bright else "unknown"


def arterial_aorta_hu(volume: Volume) -> float | None:
    """Mean HU of the aorta in the arterial phase, found as a bright tube in the image; None where there is none."""
    bound = _limits().measured
    step = [max(1, round(bound.grid_mm / side)) for side in volume.spacing_mm]
    data = volume.data[:: step[0], :: step[1], :: step[2]].astype(np.float32)
    sides = [side * n for side, n in zip(volume.spacing_mm, step, strict=True)]
    low, high = bound.bright_hu
    smooth = ndimage.uniform_filter(data, [max(1, round(bound.grid_mm * 1.5 / side)) for side in sides])
    bright = (smooth >= low) & (smooth <= high)
    # Thin bright structures (cortical bone, small vessels) vanish where a ball has to fit in.
    core = ndimage.distance_transform_edt(bright, sampling=sides) >= bound.core_radius_mm
    parts, n = ndimage.label(core, structure=np.ones((3, 3, 3)))
    middle = _middle_of_body(data)
    for number, box in enumerate(ndimage.find_objects(parts, max_label=n), start=1):
        part = parts[box] == number
        if part.shape[2] * sides[2] < bound.min_length_mm:
            continue
        # The core is the tube without its outer shell; widen each section by the ball that was fitted in.
        section = float(np.median(part.sum(axis=(0, 1)))) * sides[0] * sides[1]
        area = np.pi * (np.sqrt(section / np.pi) + bound.core_radius_mm) ** 2
        off_middle = abs(float(np.nonzero(part)[0].mean()) + box[0].start - middle) * sides[0]
        if (
            bound.area_mm2[0] <= area <= bound.area_mm2[1]
            and float(data[box][part].std()) <= bound.max_spread_hu
            and off_middle <= bound.max_off_middle_mm
        ):
            return float(data[box][part].mean())
    return None


def _middle_of_body(data: NDArray[np.float32]) -> float:
    """Index along x halfway through what is not air."""
    columns = np.nonzero((data > -300).mean(axis=(1, 2)) > 0.05)[0]
    return float(columns[0] + columns[-1]) / 2 if len(columns) else data.shape[0] / 2
