"""Renders a phantom patient's CT, before treatment or after any protocol, on any axis-aligned grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, shift

from models.phantom.anatomy import Anatomy, render_anatomy
from models.phantom.contrast import draw_contrast
from models.phantom.field import FloatArray, Grid
from models.phantom.lesion import LIVER, NECROTIC, OIL, REACH, VIABLE, lesion_depth, paint_lesion
from models.phantom.patient import Patient
from models.phantom.response import TrueResponse
from models.phantom.version import appearance

__all__ = ["LIVER", "NECROTIC", "OIL", "VIABLE", "Scan", "render"]


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
    anatomy: Anatomy | None = None,
    with_tumour: bool = True,
) -> Scan:
    """One CT of a patient.

    Args:
        patient: The patient.
        affine: 4 x 4 voxel to world (RAS, axis aligned).
        shape: Voxels per axis.
        phase: ``"arterial"`` or ``"portal"``.
        response: None before treatment; else the response to the protocol that was given.
        scan_seed: Identity of the scan: its noise, its kernel, its injection, and after treatment its breathing shift.
        noise_hu: Standard deviation of the noise in HU; drawn when None.
        blur_vox: Reconstruction kernel as Gaussian sigma per axis in voxels; drawn when None.
        anatomy: Of this patient on this grid, where it was rendered before; saves half of the time.
        with_tumour: False draws the liver without its lesions.

    Returns:
        The scan with its truth.
    """
    look = appearance()["scan"]
    rng = np.random.default_rng([patient.seed, 17, scan_seed, 0 if phase == "arterial" else 1])
    grid = Grid.from_affine(affine, shape)
    noise_hu = float(rng.uniform(*look["noise_hu"])) if noise_hu is None else noise_hu
    low, high = look["blur_vox"]
    kernel = tuple(rng.uniform(low, high, 3)) if blur_vox is None else blur_vox
    contrast = draw_contrast(patient, phase, scan_seed)
    anatomy = anatomy or render_anatomy(patient, grid)
    open_shunt = (patient.traits["shunt"] if response is None else response.open_shunt) * with_tumour
    hu, liver = anatomy.paint(contrast, open_shunt), anatomy.liver
    vessels = [anatomy.portal_vein, anatomy.aorta]
    if response is not None:
        breathing = look["breathing_mm"]
        offset = np.clip(rng.normal(0.0, breathing["sd"]), -breathing["limit"], breathing["limit"])
        voxels = -offset / np.diag(affine)[:3]
        hu = np.asarray(shift(hu, voxels, order=1, mode="nearest"), np.float32)
        liver, *vessels = (shift(mask, voxels, order=0, mode="nearest") for mask in (liver, *vessels))
        grid = grid.shifted(offset)
    tissue = liver.astype(np.uint8)
    tumour = np.zeros(shape, bool)
    for index, lesion in enumerate(patient.lesions if with_tumour else ()):
        outcome = response.lesions[index] if response is not None else None
        paint_lesion(patient, lesion, outcome, grid, contrast, open_shunt, hu, tissue)
        reach = REACH * np.array(lesion.radii_mm)
        box = grid.box(np.array(lesion.centre_mm) - reach, np.array(lesion.centre_mm) + reach)
        tumour[box] |= lesion_depth(patient, lesion, grid.cut(box)) > 0
    organs = liver.astype(np.uint8)
    organs[vessels[0]] = 3
    organs[vessels[1]] = 4
    organs[tumour] = 2
    hu = gaussian_filter(hu, kernel)
    grain = rng.standard_normal(shape, dtype=np.float32)
    sigma = np.full(3, rng.uniform(*look["grain_vox"]))
    if rng.random() < look["streaks"]:
        sigma[0] += rng.uniform(0.4, 1.2)
    smooth = gaussian_filter(grain, sigma)
    grain = grain - np.float32(0.8) * smooth if rng.random() < look["sharp"] else smooth
    hu += grain * np.float32(noise_hu / max(float(grain.std()), 1e-6))
    return Scan(np.maximum(hu, np.float32(-1024.0)), tissue, tumour, organs)
