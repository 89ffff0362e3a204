"""Registration: a follow-up scan laid over the scan before treatment, first rigid, then deformable.

What the treatment changes must not lead: the tumour is left out of the metric and the HU are cut below most of the
oil. Method and limits are in `registration.yaml`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.errors import VolumeError
from models.itk_image import LPS, itk_image, sitk, warp
from models.patch import resample_to_grid
from models.registration_check import Report, judge
from models.registration_pair import Pair
from models.registration_settings import Stage, settings
from models.volume import Affine, Volume

_BORDER = 2  # voxels of the working grid


@dataclass(frozen=True, eq=False)
class Registration:
    """The transform takes a point before treatment to the same tissue in the follow-up, LPS mm."""

    transform: sitk.Transform
    report: Report

    def apply(self, moving: Volume, fixed: Volume) -> Volume:
        """The follow-up scan on the grid before treatment; air where it shows nothing."""
        return warp(self.transform, moving, fixed.shape, fixed.affine)


def register(
    fixed: Volume,
    moving: Volume,
    fixed_labels: NDArray[np.uint8] | None = None,
    moving_labels: NDArray[np.uint8] | None = None,
) -> Registration:
    """Lay a follow-up scan over the scan before treatment. One thread and a fixed seed: equal input, equal transform.

    Args:
        fixed: CT before treatment, HU.
        moving: follow-up CT, HU.
        fixed_labels: (X, Y, Z) labels of `fixed`; without a liver in them the body leads.
        moving_labels: (X, Y, Z) labels of `moving`, where there are any; then the livers lead.

    Raises:
        VolumeError: the scans share no region that could be compared.
        MaskError: labels of another shape than their scan.
    """
    pair = Pair.of(fixed, moving, fixed_labels, moving_labels)
    translation = _first_shift(pair)
    rigid = _rigid(pair, translation)
    bent = _deformable(pair, rigid)
    both = sitk.CompositeTransform([rigid, bent])
    return Registration(both, judge(pair, fixed, moving, fixed_labels, moving_labels, rigid, bent, both))


def _first_shift(pair: Pair) -> NDArray[np.float64]:
    """Shift (RAS mm) from the fixed scan to the moving one: tables and fields of view differ by centimetres."""
    method = settings().method
    if pair.moving_organ is not None:
        return _centre(pair.moving_organ, pair.moving.affine) - _centre(pair.organ, pair.fixed.affine)
    low = method.window_hu[0]
    fixed, origin = _on_axes(pair.fixed.data, pair.fixed.affine, method.coarse_mm, low)
    region, _ = _on_axes(pair.region.astype(np.float32), pair.fixed.affine, method.coarse_mm, 0.0)
    moving, moving_origin = _on_axes(pair.moving.data, pair.moving.affine, method.coarse_mm, low)
    search = sitk.MaskedFFTNormalizedCorrelationImageFilter()
    search.SetRequiredFractionOfOverlappingPixels(method.coarse_overlap)
    plain = [sitk.GetImageFromArray(a.astype(np.float32)) for a in (moving, fixed, np.ones_like(moving), region > 0.5)]
    scores = sitk.GetArrayFromImage(search.Execute(*plain))
    if not float(scores.max()) > 0:
        raise VolumeError("The two scans share no region that looks alike; are they of the same patient and body part?")
    best = np.array(np.unravel_index(int(scores.argmax()), scores.shape))
    return np.asarray(moving_origin - origin + (best - (np.array(fixed.shape) - 1)) * method.coarse_mm)


def _centre(mask: NDArray[np.bool_], affine: Affine) -> NDArray[np.float64]:
    return np.asarray(affine[:3, :3] @ np.array(ndimage.center_of_mass(mask)) + affine[:3, 3])


def _on_axes(
    data: NDArray[Any], affine: Affine, step_mm: float, outside: float
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The image on a grid along the body's axes, and the position of its first voxel."""
    ends = np.array(np.meshgrid(*[(0, n - 1) for n in data.shape], indexing="ij")).reshape(3, -1)
    world = affine[:3, :3] @ ends + affine[:3, 3:]
    low, high = world.min(axis=1), world.max(axis=1)
    grid = np.diag([step_mm] * 3 + [1.0])
    grid[:3, 3] = low
    shape = tuple(int(n) for n in np.floor((high - low) / step_mm) + 1)
    return resample_to_grid(data, affine, grid, shape, outside), low


def _method(pair: Pair, stage: Stage) -> sitk.ImageRegistrationMethod:
    method = settings().method
    search = sitk.ImageRegistrationMethod()
    # Sums over threads would differ from run to run; the metric takes the global number, not that of the search.
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    search.SetNumberOfThreads(1)
    search.SetMetricAsMattesMutualInformation(method.histogram_bins)
    search.SetMetricFixedMask(itk_image(pair.region.astype(np.uint8), pair.fixed.affine))
    search.SetMetricSamplingStrategy(search.RANDOM)
    search.SetMetricSamplingPercentage(method.sampled_share, seed=method.seed)
    search.SetInterpolator(sitk.sitkLinear)
    search.SetShrinkFactorsPerLevel(list(stage.shrink))
    search.SetSmoothingSigmasPerLevel(list(stage.smooth_mm))
    search.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    return search


def _execute(search: sitk.ImageRegistrationMethod, pair: Pair) -> None:
    try:
        search.Execute(itk_image(pair.fixed.data, pair.fixed.affine), itk_image(pair.moving.data, pair.moving.affine))
    except RuntimeError as error:
        raise VolumeError(
            "The two scans can't be registered: too little of the liver region lies inside the follow-up scan; "
            "check that both are of the same patient and body part."
        ) from error


def _rigid(pair: Pair, shift: NDArray[np.float64]) -> sitk.Euler3DTransform:
    stage = settings().method.rigid
    transform = sitk.Euler3DTransform()
    transform.SetCenter((LPS[:3, :3] @ _centre(pair.organ, pair.fixed.affine)).tolist())
    transform.SetTranslation((LPS[:3, :3] @ shift).tolist())
    search = _method(pair, stage)
    search.SetOptimizerAsPowell(
        numberOfIterations=stage.iterations, stepLength=stage.step_mm, stepTolerance=stage.step_tolerance,
        valueTolerance=stage.value_tolerance,
    )  # fmt: skip
    search.SetOptimizerScalesFromPhysicalShift()
    search.SetInitialTransform(transform, inPlace=True)
    _execute(search, pair)
    return transform


def _deformable(pair: Pair, rigid: sitk.Transform) -> sitk.BSplineTransform:
    stage = settings().method.deformable
    # ITK moves nothing on the border of the spline's domain, so that it has to reach beyond the scan.
    shape, affine = np.array(pair.fixed.shape) + 2 * _BORDER, pair.fixed.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, float(_BORDER))
    mesh = [max(2, round(float(side) / stage.grid_mm)) for side in shape * np.array(pair.fixed.spacing_mm)]
    domain = itk_image(np.zeros(shape, dtype=np.uint8), affine)
    transform = sitk.BSplineTransformInitializer(domain, mesh, 3)
    search = _method(pair, stage)
    search.SetOptimizerAsLBFGSB(
        gradientConvergenceTolerance=1e-5, numberOfIterations=stage.iterations, maximumNumberOfCorrections=5
    )
    search.SetMovingInitialTransform(rigid)
    search.SetInitialTransform(transform, inPlace=True)
    _execute(search, pair)
    return transform
