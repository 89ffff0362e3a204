"""Segmentation, measured: overlap, surfaces, volumes and diameters, and tumours where there are none."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics import compute_average_surface_distance, compute_dice
from scipy import ndimage

from evals.model_card.figures import mean_figure, share_figure
from evals.model_card.scene import FollowUp, Scene, TrueFollowUp
from models.engine import Engine, Prepared
from models.networks.localiser import Region
from models.networks.segmenter import Tissue
from models.patch import TUMOUR_LABEL, spacing_of
from models.phantom.cohort import CASE_SHAPE, case_affine
from models.phantom.patient import draw_patient
from models.phantom.render import Scan, render
from models.response import VIABLE, longest_axial_diameter
from models.volume import Volume
from tools.measure_response import lesion_states
from tools.workspace import LIVER_LABELS

Mask = npt.NDArray[np.bool_]
SIZES = {
    "pre": ("tumour_ml", "longest_mm"),
    "post": ("viable_ml", "viable_mm", "longest_mm"),
    "simulated_post": ("viable_ml", "viable_mm", "longest_mm"),
}
VIEWS = tuple(SIZES)


def overlap(found: Mask, true: Mask) -> float | None:
    """Dice of two masks (MONAI); None where neither holds anything."""
    if not (found.any() or true.any()):
        return None
    return float(compute_dice(_batch(found), _batch(true), ignore_empty=False))


def surface_mm(found: Mask, true: Mask, spacing_mm: Sequence[float]) -> float | None:
    """Mean symmetric distance of the surfaces in mm (MONAI); None where one of the masks is empty."""
    if not (found.any() and true.any()):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of an argument that it passes itself
        distance = compute_average_surface_distance(
            _batch(found), _batch(true), include_background=True, symmetric=True, spacing=list(spacing_mm)
        )
    return float(distance)


def _batch(mask: Mask) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask))[None, None].float()


def score_classes(scene: Scene, found: npt.NDArray[np.uint8], true: npt.NDArray[np.uint8]) -> dict[str, float | None]:
    """Scores of the first patch, which holds the largest lesion.

    `tumour_near_dice` is of what a plan keeps of the tumour, the part within 5 mm of the mask before treatment, and
    `mask_before_dice` that of this mask itself, unchanged: the network is given it, and copying it takes no network.

    Args:
        scene: The patient.
        found: (L, S, S, S) classes from the network, all of the cube.
        true: The same from the phantom.
    """
    spacing = [scene.prepared.patches[0].spacing_mm] * 3
    mine, truth = found[0], true[0]
    tumour, before = truth >= VIABLE, scene.prepared.numbers[0] > 0
    out = _outlines(mine >= Tissue.LIVER, truth >= Tissue.LIVER, mine >= VIABLE, tumour, spacing)
    out["tumour_near_dice"] = overlap((mine >= VIABLE) & (scene.prepared.near[0] > 0), tumour)
    out["mask_before_dice"] = overlap(before, tumour)
    for offset, name in enumerate(("viable", "necrotic", "oil")):
        out[f"{name}_dice"] = overlap(mine == VIABLE + offset, truth == VIABLE + offset)
    return out


def score_regions(scene: Scene, found: npt.NDArray[np.uint8]) -> dict[str, float | None]:
    """Scores of the regions (X, Y, Z) that were found on the whole scan before treatment, no mask given."""
    tumour, liver = scene.labels == TUMOUR_LABEL, np.isin(scene.labels, LIVER_LABELS)
    spacing = [float(mm) for mm in spacing_of(scene.volume.affine)]
    return _outlines(found >= Region.LIVER, liver, found == Region.TUMOUR, tumour, spacing)


def _outlines(
    liver: Mask, true_liver: Mask, tumour: Mask, true_tumour: Mask, spacing_mm: Sequence[float]
) -> dict[str, float | None]:
    """Scores of the outlines of the organ, with what lies in it, and of the tumour."""
    return {
        "liver_dice": overlap(liver, true_liver),
        "liver_surface_mm": surface_mm(liver, true_liver, spacing_mm),
        "tumour_dice": overlap(tumour, true_tumour),
        "tumour_surface_mm": surface_mm(tumour, true_tumour, spacing_mm),
    }


def measure_segmentation(scene: Scene, true: TrueFollowUp, read: FollowUp, simulated: FollowUp) -> dict[str, Any]:
    """Scores before treatment (no mask given), on the true and on a simulated follow-up; errors of size.

    Args:
        scene: The patient.
        true: The true follow-up of a protocol.
        read: The same scan with the tissue that was found in it.
        simulated: A simulated one of the same protocol, with the tissue that was found in it.
    """
    found = scene.engine.segment_volume(scene.volume)
    views = {
        "pre": score_regions(scene, found),
        "post": score_classes(scene, scene.classes(read.hu), true.all_tissue),
        "simulated_post": score_classes(scene, scene.classes(simulated.hu), true.all_tissue),
    }
    measured: dict[str, list[tuple[float, ...]]] = {
        "pre": [_sizes_before(mask, scene.volume) for mask in (found == Region.TUMOUR, scene.labels == TUMOUR_LABEL)],
        "post": [_sizes_after(scene.prepared, scan) for scan in (read, true)],
        "simulated_post": [_sizes_after(scene.prepared, scan) for scan in (simulated, true)],
    }
    sizes = {
        view: {name: list(pair) for name, pair in zip(SIZES[view], zip(*pairs, strict=True), strict=True)}
        for view, pairs in measured.items()
    }
    return {"views": views, "sizes": sizes}


def _sizes_before(tumour: Mask, volume: Volume) -> tuple[float, ...]:
    """Volume of all tumours in ml, longest axial diameter of the largest one in mm."""
    parts, count = ndimage.label(tumour)
    if not count:
        return 0.0, 0.0
    largest = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    spacing = [float(mm) for mm in spacing_of(volume.affine)]
    return float(tumour.sum()) * volume.voxel_ml, longest_axial_diameter(largest, spacing)


def _sizes_after(prepared: Prepared, scan: FollowUp) -> tuple[float, ...]:
    """Viable volume in ml and sum of the viable diameters in mm of all lesions, longest diameter in mm."""
    states = lesion_states(prepared, scan.tissue)
    return (
        sum(state.viable_ml for state in states),
        sum(state.viable_mm for state in states),
        max(state.longest_mm for state in states),
    )


def tumour_free_scan(seed: int) -> Scan:
    """A patient whose tumours were never drawn, nor a thrombus: that is tumour which grew into the portal vein."""
    patient = draw_patient(seed)
    patient = replace(patient, record=patient.record.model_copy(update={"portal_vein_invasion": "none"}))
    return render(patient, case_affine(), CASE_SHAPE, with_tumour=False)


def measure_tumour_free(seed: int, engine: Engine) -> dict[str, Any]:
    """What is called tumour in the whole CT of a patient without any, in ml.

    The sliding window with the paper's post-processing, without any mask.
    """
    scan = tumour_free_scan(seed)
    volume = Volume(np.rint(scan.hu).astype(np.int16), case_affine())
    found = engine.segment_volume(volume)
    return {
        "seed": seed,
        "false_ml": float((found == Region.TUMOUR).sum()) * volume.voxel_ml,
        "liver_dice": overlap(found >= Region.LIVER, np.isin(scan.organs, LIVER_LABELS)),
    }


def summarise_segmentation(rows: Sequence[dict[str, Any]], tumour_free: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures over patients."""
    out: dict[str, Any] = {}
    for view in VIEWS:
        names = rows[0]["views"][view]
        out[view] = {name: mean_figure([row["views"][view][name] for row in rows]) for name in names}
    out["sizes"] = {view: {} for view in SIZES}
    for view, names in SIZES.items():
        for name in names:
            pairs = np.array([row["sizes"][view][name] for row in rows])
            error = pairs[:, 0] - pairs[:, 1]
            out["sizes"][view][name] = {
                "error": mean_figure(error.tolist()), "absolute_error": mean_figure(np.abs(error).tolist())
            }  # fmt: skip
    out["false_tumour_rate"] = share_figure([row["false_ml"] > 0 for row in tumour_free])
    out["whole_liver_dice"] = mean_figure([row["liver_dice"] for row in tumour_free])
    return out
