"""One tumour on a grid: what lives, what is dead, where oil lies, and how it looks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from models.phantom.contrast import Contrast
from models.phantom.field import FloatArray, Grid, smooth_field
from models.phantom.patient import Lesion, Patient
from models.phantom.response import LesionOutcome
from models.phantom.version import appearance

LIVER, VIABLE, NECROTIC, OIL = 1, 2, 3, 4
_SAMPLES = 40
REACH = 1.55  # an irregular border stays within so many radii


@dataclass(frozen=True)
class _Fields:
    depth: FloatArray  # 1 at the centre, 0 on the border
    core: FloatArray  # where the necrotic core of before is: its highest values
    death: FloatArray  # cells with the highest values die first
    oil: FloatArray
    coarse: FloatArray
    fine: FloatArray


@dataclass(frozen=True)
class LesionTissue:
    """What a lesion is made of on a grid.

    Attributes:
        inside: Extent after treatment (before: the lesion).
        dead: Necrotic, with or without oil.
        wet: Dead tissue that holds oil.
        rise: How far the oil is above its threshold, 0..1, where `wet`.
        fields: What it was computed from.
    """

    inside: npt.NDArray[np.bool_]
    dead: npt.NDArray[np.bool_]
    wet: npt.NDArray[np.bool_]
    rise: FloatArray
    fields: _Fields


def _direction(lesion: Lesion, key: int) -> npt.NDArray[np.float64]:
    """A random direction that belongs to the lesion, of length 1."""
    direction = np.random.default_rng([lesion.seed, key]).normal(size=3)
    return np.asarray(direction / np.linalg.norm(direction))


def _radius(lesion: Lesion) -> float:
    return float(np.cbrt(np.prod(lesion.radii_mm)))


def lesion_depth(patient: Patient, lesion: Lesion, grid: Grid, ratio: float = 1.0) -> FloatArray:
    """Depth below the lesion's irregular border: 1 at the centre, 0 on it.

    Args:
        patient: For the infiltration.
        lesion: The lesion.
        grid: Points in world mm.
        ratio: Volume over the volume before treatment.
    """
    keep = _keep(lesion, patient.traits["infiltration"])
    scaled = np.array(lesion.radii_mm) * ratio ** (1.0 / 3.0)
    return np.asarray(
        1.0
        - np.float32(keep)
        * grid.distance(lesion.centre_mm, scaled)
        / _swell(lesion, patient.traits["infiltration"], grid),
        np.float32,
    )


def _swell(lesion: Lesion, infiltration: float, grid: Grid) -> FloatArray:
    """How far the border lies out at a point, over the ellipsoid's: about 1, smoother without infiltration."""
    border, radius = appearance()["tumour"]["border"], _radius(lesion)
    lumps = smooth_field(grid, lesion.seed, float(np.clip(0.5 * radius, 4.0, 20.0)))
    ragged = smooth_field(grid, lesion.seed + 5, float(np.clip(0.25 * radius, 3.5, 9.0)))
    swell = np.float32(border["smooth"] + border["infiltration"] * infiltration) * np.clip(lumps, -2.3, 2.3)
    return np.asarray(
        1.0 + swell + np.float32(border["ragged"] * infiltration) * np.clip(ragged, -2.3, 2.3), np.float32
    )


@lru_cache(maxsize=64)
def _keep(lesion: Lesion, infiltration: float) -> float:
    """The factor by which the irregular lesion is drawn in, so that its volume is the ellipsoid's."""
    reach = REACH * np.array(lesion.radii_mm)
    grid = Grid(*(np.linspace(c - r, c + r, _SAMPLES) for c, r in zip(lesion.centre_mm, reach, strict=True)))
    out = _swell(lesion, infiltration, grid) / np.maximum(grid.distance(lesion.centre_mm, lesion.radii_mm), 1e-3)
    share = np.pi / 6.0 / REACH**3 * (1.0 - 1.0 / _SAMPLES) ** 3  # of the box; its outer points stand for half a cell
    return float(np.quantile(out, 1.0 - share))


def _fields(patient: Patient, lesion: Lesion, grid: Grid, ratio: float) -> _Fields:
    radius, infiltration = _radius(lesion), patient.traits["infiltration"]
    scatter = appearance()["tumour"]["scatter"]
    depth = lesion_depth(patient, lesion, grid, ratio)
    coarse = smooth_field(grid, lesion.seed + 2, float(np.clip(0.3 * radius, 5.0, 12.0)))
    fine = smooth_field(grid, lesion.seed + 4, float(np.clip(0.12 * radius, 3.5, 6.5)))
    islands = smooth_field(grid, lesion.seed + 1, float(np.clip(0.34 * radius, 4.0, 15.0)))
    irregular = np.float32(scatter["low"] + scatter["infiltration"] * infiltration) * islands
    core = np.clip(depth, 0, 1) + np.float32(0.25) * islands
    # survivors sit around a pole away from the feeding artery, under the capsule where there is one
    out = scatter["pole"][0] + scatter["pole"][1] * patient.traits["capsule"]
    pole = np.array(lesion.centre_mm) + out * _direction(lesion, 17) * np.array(lesion.radii_mm)
    death = np.float32(0.8) * grid.distance(pole, lesion.radii_mm) + irregular
    oil = 0.8 * coarse + 0.6 * smooth_field(grid, lesion.seed + 3, 3.4)
    return _Fields(depth, core, death, oil, coarse, fine)


def _threshold(values: FloatArray, share: float) -> float:
    """The value above which `share` of `values` lies."""
    if values.size == 0 or share <= 0.0:
        return float("inf")
    return float("-inf") if share >= 1.0 else float(np.quantile(values, 1.0 - share))


def lesion_tissue(patient: Patient, lesion: Lesion, outcome: LesionOutcome | None, grid: Grid) -> LesionTissue:
    """What lives, is dead or holds oil; shares are the outcome's, whatever part of the lesion the grid shows.

    Args:
        patient: The patient.
        lesion: One of the patient's.
        outcome: None before treatment.
        grid: Points in world mm.
    """
    ratio = outcome.volume_ratio if outcome else 1.0
    living = outcome.living_share if outcome else 1.0 - patient.core_fraction
    core_share = min((outcome.core_share if outcome else patient.core_fraction) / ratio, 1.0)
    dead_share = max(1.0 - living / ratio - core_share, 0.0) / max(1.0 - core_share, 1e-6)
    reach = REACH * max(ratio, 1.0) ** (1 / 3) * np.array(lesion.radii_mm)
    whole = Grid(*(np.linspace(c - r, c + r, _SAMPLES) for c, r in zip(lesion.centre_mm, reach, strict=True)))
    sample = _fields(patient, lesion, whole, ratio)
    inside = sample.depth > 0
    core_limit = _threshold(sample.core[inside], core_share)
    outside_core = inside & (sample.core <= core_limit)
    dead_limit = _threshold(sample.death[outside_core], dead_share)
    dead = inside & ((sample.core > core_limit) | (sample.death > dead_limit))
    oil_limit = _threshold(sample.oil[dead], outcome.oil_fraction if outcome else 0.0)
    fields = _fields(patient, lesion, grid, ratio)
    shown = fields.depth > 0
    dead = shown & ((fields.core > core_limit) | (fields.death > dead_limit))
    wet = dead & (fields.oil > oil_limit)
    rise = np.clip((fields.oil - np.float32(oil_limit)) / 1.5, 0.0, 1.0) if wet.any() else np.zeros(grid.shape)
    return LesionTissue(shown, dead, wet, np.asarray(rise, np.float32), fields)


def paint_lesion(
    patient: Patient,
    lesion: Lesion,
    outcome: LesionOutcome | None,
    grid: Grid,
    contrast: Contrast,
    open_shunt: float,
    hu: FloatArray,
    tissue: npt.NDArray[np.uint8],
) -> None:
    """Draws a lesion into HU and tissue classes, in place, within its own surroundings only.

    Args:
        patient: The patient.
        lesion: One of the patient's.
        outcome: None before treatment.
        grid: Of the two arrays.
        contrast: HU of this scan.
        open_shunt: What is open of the arterio-portal shunt, in [0, 1].
        hu: (X, Y, Z) HU, changed.
        tissue: (X, Y, Z) tissue classes, changed.
    """
    look, radius = appearance()["tumour"], _radius(lesion)
    early = contrast.phase == "arterial"
    shunted = early and open_shunt > 0.05
    grown = max(outcome.volume_ratio, 1.0) ** (1 / 3) if outcome else 1.0
    reach = REACH * grown * np.array(lesion.radii_mm) + (look["halo"]["wedge_mm"] + 4.0 if shunted else 8.0)
    box = grid.box(np.array(lesion.centre_mm) - reach, np.array(lesion.centre_mm) + reach)
    part = grid.cut(box)
    if 0 in part.shape:
        return
    here = lesion_tissue(patient, lesion, outcome, part)
    f, traits = here.fields, patient.traits
    capsule = look["capsule"]
    below_mm = f.depth * radius  # roughly
    unevenness = look["texture"][0] + look["texture"][1] * traits["texture"]
    living = contrast.tumour_hu + np.float32(0.72 * unevenness) * (f.fine + f.coarse)
    if early:
        feeders = np.exp(-(f.fine**2 + (f.oil - 0.8 * f.coarse) ** 2 / 0.36) / 0.04)
        living += np.float32(look["feeder_hu"] * traits["vascularity"]) * feeders
    drawn = np.where(here.dead, contrast.necrosis_hu + 5.0 * f.fine, living)
    if here.wet.any():
        oil = appearance()["oil"]
        bright = oil["low"] + contrast.oil_density * oil["rise"] * here.rise**1.5 + 40.0 * f.fine
        drawn = np.where(here.wet, bright, drawn)
    width = float(np.clip(capsule["width_share"] * radius, *capsule["width_mm"]))
    rim = np.exp(-(((below_mm - 0.4 * width) / width) ** 2))
    drawn = drawn + rim * np.float32(capsule[contrast.phase] * traits["capsule"]) * ~here.wet
    around = tissue[box]
    if shunted:
        halo, direction = look["halo"], _direction(lesion, 13)
        away = np.maximum(-below_mm, 0.0)
        axes = [axis - c for axis, c in zip((part.x, part.y, part.z), lesion.centre_mm, strict=True)]
        along = axes[0][:, None, None] * direction[0] + axes[1][None, :, None] * direction[1]
        along = along + axes[2][None, None, :] * direction[2]
        norm = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None, :] ** 2)
        wedge = (along > 0.75 * norm) & (away < halo["wedge_mm"])
        share = np.maximum(np.exp(-away / halo["reach_mm"]), 0.85 * wedge) * (f.coarse > -1.2)
        hu[box] += (share * (halo["hu"] * open_shunt) * (around == LIVER) * (f.depth <= 0)).astype(np.float32)
    soft = look["border"]["soft_mm"]
    softness = soft[0] + soft[1] * traits["infiltration"]
    edge = 1.0 / (1.0 + np.exp(-np.clip(below_mm / softness, -20, 20)))
    hu[box] += (edge * (drawn - hu[box])).astype(np.float32)
    around[here.inside] = VIABLE
    around[here.dead] = NECROTIC
    around[here.wet] = OIL
