"""The upper abdomen around the liver: implicit shapes that can be rendered on any axis-aligned grid (world mm, RAS)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.phantom.field import FloatArray, Grid, smooth_field
from models.phantom.patient import LEFT_LOBE, RIGHT_LOBE, Patient

# HU by tissue and contrast phase; arterial values of aorta and parenchyma after the real case described in the data
# card.
HU = {
    "arterial": {"aorta": 350.0, "portal": 115.0, "vein": 70.0, "spleen": 125.0, "kidney": 170.0, "liver": 76.0},
    "portal": {"aorta": 165.0, "portal": 185.0, "vein": 165.0, "spleen": 125.0, "kidney": 180.0, "liver": 112.0},
}


@dataclass(frozen=True)
class Anatomy:
    """HU without tumours and noise, and where liver, portal vein and aorta are."""

    hu: FloatArray
    liver: npt.NDArray[np.bool_]
    portal_vein: npt.NDArray[np.bool_]
    aorta: npt.NDArray[np.bool_]


def _soft(inside: FloatArray, width: float) -> FloatArray:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(inside / width, -30, 30))), np.float32)


def _tube(grid: Grid, start: npt.ArrayLike, end: npt.ArrayLike, radius: float) -> npt.NDArray[np.bool_]:
    a, b = np.asarray(start, float), np.asarray(end, float)
    axis = b - a
    x, y, z = grid.x[:, None, None] - a[0], grid.y[None, :, None] - a[1], grid.z[None, None, :] - a[2]
    t = np.clip((x * axis[0] + y * axis[1] + z * axis[2]) / float(axis @ axis), 0.0, 1.0)
    distance = (x - t * axis[0]) ** 2 + (y - t * axis[1]) ** 2 + (z - t * axis[2]) ** 2
    return np.asarray(distance < radius**2)


def liver_depth(patient: Patient, grid: Grid) -> FloatArray:
    """Signed depth in the liver: positive inside, about 1 at the lobes' centres."""
    scale = patient.liver_scale
    right = 1.0 - grid.distance(RIGHT_LOBE[0] * scale, RIGHT_LOBE[1] * scale)
    left = 1.0 - grid.distance(LEFT_LOBE[0] * scale, LEFT_LOBE[1] * scale)
    depth = 0.08 * np.logaddexp(right / 0.08, left / 0.08) + 0.055 * smooth_field(grid, patient.seed + 1, 30.0)
    if patient.record.cirrhosis:
        depth = depth + 0.022 * smooth_field(grid, patient.seed + 2, 8.0)
    return np.asarray(depth, np.float32)


def render_anatomy(patient: Patient, grid: Grid, phase: str) -> Anatomy:
    """The abdomen of a patient in one contrast phase, without tumours and noise.

    Args:
        patient: The patient.
        grid: Voxel centres in world mm.
        phase: ``"arterial"`` or ``"portal"``.

    Returns:
        HU and organ masks on the grid.
    """
    table = HU[phase]
    rng = np.random.default_rng([patient.seed, 5])
    shift = {name: float(rng.normal(0.0, 8.0)) for name in ("liver", "spleen", "portal", "vein")}
    aorta_hu = table["aorta"] * float(np.exp(rng.normal(0.0, 0.13)))
    trunk = 1.0 - grid.distance((0.0, -5.0, 0.0), (168.0, 116.0, 1e6))
    hu = np.full(grid.shape, -1000.0, np.float32)
    inside = trunk > 0
    hu[inside] = -102.0  # subcutaneous fat
    wall = trunk > 0.10
    hu[wall] = 55.0
    angle = np.arctan2((grid.y + 5.0)[None, :], grid.x[:, None])[:, :, None]
    ribs = (trunk > 0.115) & (trunk < 0.165) & (np.sin(grid.z[None, None, :] / 4.6 + 3.0 * np.abs(angle)) > 0.35)
    hu[ribs] = 330.0
    cavity = trunk > 0.185
    bowel = smooth_field(grid, patient.seed + 3, 14.0)
    hu[cavity] = np.where(bowel > 0.5, 28.0, -98.0)[cavity]
    dome = 66.0 - 0.0028 * ((grid.x[:, None] - 40.0) ** 2 + (grid.y[None, :] - 5.0) ** 2)
    lung = cavity & (grid.z[None, None, :] > dome[:, :, None])
    hu[lung] = -860.0
    for centre, radii, value in (
        ((-98.0, -38.0, 12.0), (27.0, 42.0, 46.0), table["spleen"] + shift["spleen"]),
        ((60.0, -56.0, -84.0), (25.0, 25.0, 46.0), table["kidney"]),
        ((-60.0, -56.0, -74.0), (25.0, 25.0, 46.0), table["kidney"]),
    ):
        hu[grid.distance(centre, radii) < 1.0] = value
    stomach = grid.distance((-62.0, 42.0, 8.0), (38.0, 30.0, 44.0)) < 1.0
    gas = grid.y[None, :, None] > 56.0
    hu = np.where(stomach, np.where(gas, np.float32(-800.0), np.float32(18.0)), hu)
    hu[grid.distance((0.0, -70.0, 0.0), (20.0, 18.0, 1e6)) < 1.0] = 210.0
    hu[grid.distance((0.0, -95.0, 0.0), (9.0, 14.0, 1e6)) < 1.0] = 260.0

    depth = liver_depth(patient, grid)
    liver = (depth > 0.0) & (trunk > 0.13)
    parenchyma = table["liver"] + shift["liver"] + 3.0 * smooth_field(grid, patient.seed + 4, 9.0)
    if patient.record.cirrhosis:
        parenchyma = parenchyma + 5.0 * smooth_field(grid, patient.seed + 5, 4.0)
    one, two = smooth_field(grid, patient.seed + 6, 26.0), smooth_field(grid, patient.seed + 7, 26.0)
    three, four = smooth_field(grid, patient.seed + 8, 30.0), smooth_field(grid, patient.seed + 9, 30.0)
    calibre = 0.10 + 0.10 * np.clip(depth, 0, 1)
    portal_tree = _soft(calibre - np.hypot(one, two), 0.03)
    hepatic_tree = _soft(calibre - np.hypot(three, four), 0.03)
    portal_hu = table["portal"] + shift["portal"] + (70.0 * patient.traits["shunt"] if phase == "arterial" else 0.0)
    parenchyma += portal_tree * (portal_hu - parenchyma)
    parenchyma += hepatic_tree * (table["vein"] + shift["vein"] - parenchyma)
    hu = np.where(liver, parenchyma, hu).astype(np.float32)

    aorta = grid.distance((-14.0, -38.0, 0.0), (10.5, 10.5, 1e6)) < 1.0
    hu[aorta] = aorta_hu
    hu[grid.distance((17.0, -36.0, 0.0), (11.0, 9.0, 1e6)) < 1.0] = table["vein"] + 20.0
    portal_vein = _tube(grid, (2.0, -22.0, -46.0), (34.0, -2.0, -8.0), 6.5)
    hu[portal_vein] = portal_hu
    return Anatomy(hu, liver & ~portal_vein & ~aorta, portal_vein, aorta)
