"""Segmentation, measured: overlap, surfaces, volumes and diameters, and tumours where there are none."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics import compute_average_surface_distance, compute_dice

from evals.model_card.figures import Figure, mean_figure, share_figure
from evals.model_card.scene import FollowUp, Scene, TrueFollowUp
from models.engine import Engine
from models.networks.localiser import Region
from models.networks.segmenter import Tissue
from models.patch import TUMOUR_LABEL, spacing_of
from models.phantom.cohort import CASE_SHAPE, case_affine
from models.phantom.patient import draw_patient
from models.phantom.render import render
from models.response import VIABLE
from models.volume import Volume
from tools.measure_response import lesion_states
from tools.workspace import LIVER_LABELS

Mask = npt.NDArray[np.bool_]
VIEWS = ("pre", "post", "simulated_post")


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

    Args:
        scene: The patient.
        found: (L, S, S, S) classes from the network, all of the cube.
        true: The same from the phantom.
    """
    spacing = [scene.prepared.patches[0].spacing_mm] * 3
    mine, truth = found[0], true[0]
    out = _outlines(mine >= Tissue.LIVER, truth >= Tissue.LIVER, mine >= VIABLE, truth >= VIABLE, spacing)
    for offset, name in enumerate(("viable", "necrotic", "oil")):
        out[f"{name}_dice"] = overlap(mine == VIABLE + offset, truth == VIABLE + offset)
    return out


def score_regions(scene: Scene) -> dict[str, float | None]:
    """Scores of the scan before treatment, the whole of it and no mask given."""
    found = scene.engine.segment_volume(scene.volume)
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
    prepared = scene.prepared
    views = {
        "pre": score_regions(scene),
        "post": score_classes(scene, scene.classes(read.hu), true.all_tissue),
        "simulated_post": score_classes(scene, scene.classes(simulated.hu), true.all_tissue),
    }
    states = {name: lesion_states(prepared, scan.tissue) for name, scan in (("true", true), ("found", read))}
    sizes = {
        "viable_ml": [sum(state.viable_ml for state in states[side]) for side in ("found", "true")],
        "viable_mm": [sum(state.viable_mm for state in states[side]) for side in ("found", "true")],
        "longest_mm": [max(state.longest_mm for state in states[side]) for side in ("found", "true")],
    }
    return {"views": views, "sizes": sizes}


def measure_tumour_free(seed: int, engine: Engine) -> dict[str, Any]:
    """A patient whose tumours were never drawn: what is called tumour all the same in the whole CT, in ml.

    The sliding window with the paper's post-processing, without any mask.
    """
    affine = case_affine()
    scan = render(draw_patient(seed), affine, CASE_SHAPE, with_tumour=False)
    volume = Volume(np.rint(scan.hu).astype(np.int16), affine)
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
    sizes: dict[str, Figure] = {}
    for name in ("viable_ml", "viable_mm", "longest_mm"):
        pairs = np.array([row["sizes"][name] for row in rows])
        sizes[f"{name}_error"] = mean_figure((pairs[:, 0] - pairs[:, 1]).tolist())
        sizes[f"{name}_absolute_error"] = mean_figure(np.abs(pairs[:, 0] - pairs[:, 1]).tolist())
    out["sizes_on_post"] = sizes
    out["false_tumour_rate"] = share_figure([row["false_ml"] > 0 for row in tumour_free])
    out["whole_liver_dice"] = mean_figure([row["liver_dice"] for row in tumour_free])
    return out
