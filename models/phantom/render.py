"""Renders a phantom patient's CT, before treatment or after any protocol, on any axis-aligned grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from models.phantom.anatomy import render_anatomy
from models.phantom.field import FloatArray, Grid, smooth_field
from models.phantom.patient import Lesion, Patient
from models.phantom.response import LesionOutcome, TrueResponse

# Tissue classes of the segmentation network.
LIVER, VIABLE, NECROTIC, OIL = 1, 2, 3, 4
_LESION_SAMPLES = 36


@dataclass(frozen=True)
class Scan:
    """One rendered CT.

    Attributes:
        hu: Float32 HU with noise, at least -1024.
        tissue: uint8 tissue classes: 0 other, 1 liver, 2 viable tumour, 3 necrotic tumour, 4 Lipiodol.
        tumour: Original extent of all lesions (before treatment), on this grid.
        organs: uint8 labels as on disk: 1 liver, 2 tumour, 3 portal vein, 4 aorta.
    """

    hu: FloatArray
    tissue: npt.NDArray[np.uint8]
    tumour: npt.NDArray[np.bool_]
    organs: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _LesionFields:
    depth: FloatArray  # 1 at the centre, 0 on the border
    death: FloatArray  # cells with the highest values die first
    oil: FloatArray
    fine: FloatArray


def _bounding_grid(lesion: Lesion, grow: float = 1.45) -> Grid:
    axes = [
        np.linspace(c - grow * r, c + grow * r, _LESION_SAMPLES)
        for c, r in zip(lesion.centre_mm, lesion.radii_mm, strict=True)
    ]
    return Grid(*axes)


def _fields(patient: Patient, lesion: Lesion, grid: Grid, ratio: float) -> _LesionFields:
    radius = float(np.cbrt(np.prod(lesion.radii_mm)))
    reach = 2.2 * max(lesion.radii_mm)
    scale = float(np.clip(0.5 * radius, 4.0, 16.0))

    def field(offset: int, step: float) -> FloatArray:
        return smooth_field(grid, lesion.seed + offset, max(step, reach / 24.0), lesion.centre_mm, reach)

    irregular = 0.04 + 0.10 * patient.traits["infiltration"]
    distance = grid.distance(lesion.centre_mm, np.array(lesion.radii_mm) * ratio ** (1.0 / 3.0))
    depth = 1.0 - distance / (1.0 + irregular * np.clip(field(0, scale), -2.5, 2.5))
    # capsules keep survivors at the rim, infiltration scatters them
    scatter = 0.22 + 0.35 * patient.traits["infiltration"]
    death = np.clip(depth, 0, 1) + scatter * field(1, max(0.55 * scale, 4.0))
    oil = field(2, max(0.45 * scale, 4.0)) + 0.35 * field(3, 3.0)
    return _LesionFields(depth.astype(np.float32), death.astype(np.float32), oil.astype(np.float32), field(4, 4.0))


def _threshold(values: npt.NDArray[np.float32], share: float) -> float:
    """The value above which `share` of `values` lies."""
    if values.size == 0 or share <= 0.0:
        return float("inf")
    return float("-inf") if share >= 1.0 else float(np.quantile(values, 1.0 - share))


def _paint_lesion(
    patient: Patient,
    lesion: Lesion,
    outcome: LesionOutcome | None,
    grid: Grid,
    phase: str,
    hu: FloatArray,
    tissue: npt.NDArray[np.uint8],
) -> npt.NDArray[np.bool_]:
    ratio = outcome.volume_ratio if outcome else 1.0
    viable = (1.0 - patient.core_fraction) * (outcome.viable_fraction if outcome else 1.0)
    # shares are of the lesion before treatment; the rendered lesion has `ratio` of that volume
    dead_share = 1.0 - min(viable / ratio, 1.0)
    local = _fields(patient, lesion, _bounding_grid(lesion), ratio)
    inside_local = local.depth > 0
    dead_limit = _threshold(local.death[inside_local], dead_share)
    dead_local = inside_local & (local.death > dead_limit)
    oil_limit = _threshold(local.oil[dead_local], outcome.oil_fraction if outcome else 0.0)

    rng = np.random.default_rng([lesion.seed, 13])
    contrast = {
        "arterial": -18.0 + 98.0 * patient.traits["vascularity"],
        "portal": -42.0 + 30.0 * patient.traits["vascularity"],
    }[phase] + float(rng.normal(0.0, 11.0))
    f = _fields(patient, lesion, grid, ratio)
    inside = f.depth > 0
    radius = float(np.cbrt(np.prod(lesion.radii_mm)))
    softness = 0.7 + 2.2 * patient.traits["infiltration"]
    edge = 1.0 / (1.0 + np.exp(-np.clip(f.depth * radius / softness, -20, 20)))
    base = {"arterial": 76.0, "portal": 112.0}[phase] + contrast
    coarse = 0.6 * f.fine + 0.4 * f.oil
    tumour = base + (4.0 + 20.0 * patient.traits["texture"]) * coarse
    dead = inside & (f.death > dead_limit)
    necrotic = 29.0 + 5.0 * f.fine
    tumour = np.where(dead, necrotic, tumour)
    wet = dead & (f.oil > oil_limit)
    if wet.any():
        rise = np.clip((f.oil - oil_limit) / 0.9, 0.0, 1.0)
        tumour = np.where(wet, 330.0 + 620.0 * rise + 40.0 * f.fine, tumour)
    rim = np.exp(-(((f.depth * radius) / 1.6) ** 2))
    tumour = tumour + rim * patient.traits["capsule"] * (32.0 if phase == "portal" else -26.0)
    if phase == "arterial" and outcome is None:
        halo = np.exp(-np.clip(-f.depth * radius, 0.0, None) / 11.0) * (f.depth <= 0) * (tissue == LIVER)
        hu += halo * 48.0 * patient.traits["shunt"] * (f.fine + 0.9 > 0)
    hu += edge * (tumour - hu)
    tissue[inside] = VIABLE
    tissue[dead] = NECROTIC
    tissue[wet] = OIL
    return np.asarray(inside)


def render(
    patient: Patient,
    affine: npt.NDArray[np.float64],
    shape: tuple[int, int, int],
    *,
    phase: str = "arterial",
    response: TrueResponse | None = None,
    scan_seed: int = 0,
    noise_hu: float | None = None,
    blur_vox: tuple[float, float, float] | None = None,
) -> Scan:
    """One CT of a patient.

    Args:
        patient: The patient.
        affine: 4 x 4 voxel to world (RAS, axis aligned).
        shape: Voxels per axis.
        phase: ``"arterial"`` or ``"portal"``.
        response: None before treatment; else the response to the protocol that was given.
        scan_seed: Identity of the scan: its noise, its kernel, and after treatment its breathing shift.
        noise_hu: Standard deviation of the noise in HU; drawn from 7 to 15 when None.
        blur_vox: Reconstruction kernel as Gaussian sigma per axis in voxels; drawn when None.

    Returns:
        The scan with its truth.
    """
    rng = np.random.default_rng([patient.seed, 17, scan_seed, 0 if phase == "arterial" else 1])
    grid = Grid.from_affine(affine, shape)
    noise_hu = float(rng.uniform(7.0, 15.0)) if noise_hu is None else noise_hu
    blur_vox = tuple(rng.uniform(0.3, 0.7, 3)) if blur_vox is None else blur_vox
    if response is not None:
        grid = grid.shifted(np.clip(rng.normal(0.0, 0.8, 3), -2.0, 2.0))
    anatomy = render_anatomy(patient, grid, phase)
    hu, tissue = anatomy.hu, anatomy.liver.astype(np.uint8)
    tumour = np.zeros(shape, bool)
    for index, lesion in enumerate(patient.lesions):
        outcome = response.lesions[index] if response is not None else None
        inside = _paint_lesion(patient, lesion, outcome, grid, phase, hu, tissue)
        tumour |= inside if outcome is None else _fields(patient, lesion, grid, 1.0).depth > 0
    organs = anatomy.liver.astype(np.uint8)
    organs[anatomy.portal_vein] = 3
    organs[anatomy.aorta] = 4
    organs[tumour] = 2
    hu = gaussian_filter(hu, blur_vox)
    white = rng.standard_normal(shape, dtype=np.float32)
    grain = gaussian_filter(white, 0.55)
    hu = hu + grain * np.float32(noise_hu / max(float(grain.std()), 1e-6))
    return Scan(np.maximum(hu, -1024.0).astype(np.float32), tissue, tumour, organs)
