"""Whether a registration may be used: likeness, overlap, oil inside the tumour, folding, size of the deformation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from models.itk_image import LPS, array_of, grid_of, sitk, warp
from models.registration_pair import LIVER_LABELS, TUMOUR_LABEL, Pair, grown, has_liver
from models.registration_settings import settings
from models.volume import Affine, Volume


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fit(_Figures):
    """How well the two scans lie over each other at one stage, on the grid before treatment."""

    similarity: float = Field(description="correlation of the windowed HU in and around the liver, without the tumour")
    oil_in_tumour_ml: float | None = Field(description="above the oil HU inside the tumour before treatment")
    oil_in_liver_ml: float | None = Field(description="above the oil HU inside liver, tumour and portal vein")
    oil_near_tumour_share: float | None = Field(description="of the oil in the liver; the tumour with its margin")
    liver_dice: float | None = Field(description="None where one of the scans has no liver marked")


class Report(_Figures):
    """What the registration did and whether it may be used."""

    usable: bool
    problems: tuple[str, ...] = Field(description="why not, one sentence each")
    as_scanned: Fit
    rigid: Fit
    deformed: Fit
    seen_share: float = Field(description="share of the liver (of the body where none is marked) that the scan shows")
    shift_mm: tuple[float, float, float] = Field(description="rigid shift of the liver's centre, LPS")
    rotation_degrees: float
    deformation_p95_mm: float = Field(description="over the liver, without the rigid part")
    deformation_max_mm: float
    folding_share: float = Field(description="share of the liver with a Jacobian determinant at or below 0")
    jacobian_range: tuple[float, float] = Field(description="lowest and highest over the liver")


def jacobian(displacement: NDArray[np.float64], affine: Affine) -> NDArray[np.float64]:
    """Determinant of the Jacobian of x -> x + displacement(x).

    Args:
        displacement: (X, Y, Z, 3) mm in the world frame of `affine`.
        affine: (4, 4) voxel to world of the grid.

    Returns:
        (X, Y, Z); 1 leaves a volume as it is, 0 and below folds.
    """
    by_index = np.stack([np.gradient(displacement, axis=axis) for axis in range(3)], axis=-1)
    by_world = by_index @ np.linalg.inv(affine[:3, :3])
    return np.asarray(np.linalg.det(by_world + np.eye(3)))


def judge(
    pair: Pair, fixed: Volume, moving: Volume, fixed_labels: NDArray[np.uint8] | None,
    moving_labels: NDArray[np.uint8] | None, rigid: sitk.Euler3DTransform, bent: sitk.Transform, both: sitk.Transform,
) -> Report:  # fmt: skip
    """The figures of a registration and what they say against its use.

    Args:
        pair: what the metric worked on.
        fixed: CT before treatment at its own resolution; `moving`, `fixed_labels` and `moving_labels` likewise.
        moving: follow-up CT.
        fixed_labels: labels of `fixed`, or None.
        moving_labels: labels of `moving`, or None.
        rigid: the rigid part.
        bent: the deformation, from the scan before treatment to what `rigid` takes to the follow-up.
        both: `bent`, then `rigid`.
    """
    size = [int(n) for n in pair.fixed.shape]
    field = sitk.TransformToDisplacementField(bent, sitk.sitkVectorFloat64, size, *grid_of(pair.fixed.affine))
    displacement = array_of(field)
    determinant = jacobian(displacement, LPS @ pair.fixed.affine)[pair.organ]
    length = np.linalg.norm(displacement, axis=-1)[pair.organ]
    matrix = np.array(rigid.GetMatrix()).reshape(3, 3)
    x, y, z = rigid.GetTranslation()
    seen = warp(both, Volume(np.ones_like(pair.moving.data), pair.moving.affine), pair.fixed.shape, pair.fixed.affine)
    fits = [
        _fit(pair, fixed, moving, fixed_labels, moving_labels, transform)
        for transform in (sitk.Transform(3, sitk.sitkIdentity), rigid, both)
    ]
    figures: dict[str, Any] = {
        "as_scanned": fits[0], "rigid": fits[1], "deformed": fits[2],
        "seen_share": round(float((seen.data[pair.organ] > 0).mean()), 4),
        "shift_mm": (round(x, 2), round(y, 2), round(z, 2)),
        "rotation_degrees": round(math.degrees(math.acos(min(1.0, max(-1.0, (np.trace(matrix) - 1) / 2)))), 2),
        "deformation_p95_mm": round(float(np.quantile(length, 0.95)), 2),
        "deformation_max_mm": round(float(length.max()), 2),
        "folding_share": round(float((determinant <= 0).mean()), 6),
        "jacobian_range": (round(float(determinant.min()), 3), round(float(determinant.max()), 3)),
    }  # fmt: skip
    found = Report(usable=True, problems=(), **figures)
    told = problems(found)
    return found.model_copy(update={"usable": not told, "problems": told})


def _fit(
    pair: Pair, fixed: Volume, moving: Volume, fixed_labels: NDArray[np.uint8] | None,
    moving_labels: NDArray[np.uint8] | None, transform: sitk.Transform,
) -> Fit:  # fmt: skip
    """The figures of one stage; oil and overlap at the resolution of the scan before treatment."""
    low = settings().method.window_hu[0]
    warped = warp(transform, pair.moving, pair.fixed.shape, pair.fixed.affine).data[pair.region]
    before = pair.fixed.data[pair.region]
    after = np.maximum(warped, low)
    flat = np.ptp(before) == 0 or np.ptp(after) == 0
    figures: dict[str, float | None] = {
        "similarity": 0.0 if flat else round(float(np.corrcoef(before, after)[0, 1]), 4),
        "oil_in_tumour_ml": None, "oil_in_liver_ml": None, "oil_near_tumour_share": None, "liver_dice": None,
    }  # fmt: skip
    organ = np.zeros(fixed.shape, dtype=bool) if fixed_labels is None else np.isin(fixed_labels, LIVER_LABELS)
    if fixed_labels is None or not organ.any():
        return Fit.model_validate(figures)
    accept, marked = settings().accept, has_liver(fixed_labels)
    # Room for the margin around the tumour, and for the follow-up's liver where it reaches further.
    box = _box(organ, fixed.spacing_mm, settings().method.region_margin_mm)
    affine = fixed.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array([part.start for part in box])
    organ, tumour = organ[box], fixed_labels[box] == TUMOUR_LABEL
    oil = warp(transform, moving, organ.shape, affine).data > accept.oil_hu
    in_liver = oil & organ
    if marked:
        figures["oil_in_liver_ml"] = round(float(in_liver.sum()) * fixed.voxel_ml, 2)
    if tumour.any():
        figures["oil_in_tumour_ml"] = round(float((oil & tumour).sum()) * fixed.voxel_ml, 2)
        if marked and in_liver.any():
            near = grown(tumour, fixed.spacing_mm, accept.oil_margin_mm)
            figures["oil_near_tumour_share"] = round(float((in_liver & near).sum() / in_liver.sum()), 4)
    if marked and moving_labels is not None and has_liver(moving_labels):
        other = Volume(np.isin(moving_labels, LIVER_LABELS).astype(np.int16), moving.affine)
        overlap = warp(transform, other, fixed.shape, fixed.affine, order=0).data > 0
        whole = np.isin(fixed_labels, LIVER_LABELS)
        figures["liver_dice"] = round(float(2 * (overlap & whole).sum() / max(1, overlap.sum() + whole.sum())), 4)
    return Fit.model_validate(figures)


def _box(mask: NDArray[np.bool_], spacing: tuple[float, ...], margin_mm: float) -> tuple[slice, ...]:
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    grow = [math.ceil(margin_mm / side) for side in spacing]
    return tuple(
        slice(max(0, s.start - g), min(n, s.stop + g)) for s, g, n in zip(found, grow, mask.shape, strict=True)
    )


def problems(report: Report) -> tuple[str, ...]:
    """Why a result may not be used, one sentence each (limits: `registration.yaml`)."""
    accept, fit, told = settings().accept, report.deformed, []
    if fit.liver_dice is not None and fit.liver_dice < accept.min_liver_dice:
        told.append(f"The livers overlap with a Dice of {fit.liver_dice:.2f}, below {accept.min_liver_dice:.2f}.")
    if fit.similarity < accept.min_similarity:
        told.append(f"The scans correlate with {fit.similarity:.2f} near the liver, below {accept.min_similarity:.2f}.")
    if report.seen_share < accept.min_seen_share:
        told.append(f"The follow-up shows {report.seen_share:.0%} of the liver, below {accept.min_seen_share:.0%}.")
    oil, share = fit.oil_in_liver_ml, fit.oil_near_tumour_share
    if oil is not None and share is not None and oil >= accept.min_oil_ml and share < accept.min_oil_in_tumour_share:
        told.append(
            f"Only {share:.0%} of the {oil:.0f} ml of oil in the liver lie in or near the tumour, "
            f"below {accept.min_oil_in_tumour_share:.0%}."
        )
    if report.folding_share > accept.max_folding_share:
        told.append(
            f"The deformation folds in {report.folding_share:.2%} of the liver, above {accept.max_folding_share:.2%}."
        )
    if report.deformation_p95_mm > accept.max_deformation_p95_mm:
        told.append(
            f"The deformation reaches {report.deformation_p95_mm:.0f} mm, above {accept.max_deformation_p95_mm:.0f} mm."
        )
    if report.rotation_degrees > accept.max_rotation_degrees:
        told.append(
            f"The scans are turned by {report.rotation_degrees:.0f} degrees, above {accept.max_rotation_degrees:.0f}."
        )
    return tuple(told)
