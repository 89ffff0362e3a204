"""compose_outcome: a simulated outcome as a full CT on the case's grid, with its segmentation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.patch import paste, resample_to_grid, spacing_of
from models.response import NECROTIC, OIL, VIABLE, criteria, nearest_lesion
from models.volume import Volume
from tools.artifacts import artifact_id
from tools.workspace import LIVER_LABELS, Workspace

KEPT_VOLUMES = 3  # the report draws the same finalists that the export writes


def compose_outcome(outcome_id: str, *, workspace: Workspace) -> tuple[Volume, NDArray[np.uint8]]:
    """Composes one outcome. Nothing is averaged: what is shown is exactly this replica.

    Args:
        outcome_id: an id that `simulate_tumor` returned and `segment` has segmented.
        workspace: where it lies.

    Returns:
        The CT with the shape, affine and dtype of the CT before treatment, equal to it bit for bit beyond 8 mm of the
        tumour; and labels (X, Y, Z) uint8: 0 other, 1 liver, 2 viable tumour, 3 necrotic tumour, 4 oil-laden tissue.
        The liver is that of the labels before treatment; tumour classes occur within 5 mm of the original tumour
        only.

    Raises:
        ToolError: there is no such outcome, or it was not segmented.
        ArtifactDamagedError: it is damaged.
    """
    if outcome_id in workspace.composed:
        workspace.composed.move_to_end(outcome_id)
        return workspace.composed[outcome_id]
    # What `segment` stored, never computed here: every network result comes from a traced tool call.
    stored = workspace.segmentation(artifact_id("segmentation", workspace.segmentation_key(outcome_id)))
    prepared, outcome = stored.outcome.prepared, stored.outcome
    volume, before = workspace.image(outcome.case_id)
    lesions = prepared.lesions
    simulated = paste(volume, lesions.index > 0, prepared.patches, list(outcome.difference), lesions=lesions)
    labels = np.isin(before, LIVER_LABELS).astype(np.uint8)
    spacing = spacing_of(volume.affine).tolist()
    reach = criteria().neighbourhood_mm
    inside = np.argwhere(lesions.index > 0)
    margin = np.ceil(reach / np.array(spacing)).astype(int) + 1
    low = np.maximum(inside.min(axis=0) - margin, 0)
    high = np.minimum(inside.max(axis=0) + margin + 1, lesions.index.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    near = nearest_lesion(lesions.index[box], spacing, reach)
    origin = np.array(volume.affine, dtype=np.float64)
    origin[:3, 3] += origin[:3, :3] @ low
    part = labels[box]
    for patch, tissue in zip(prepared.patches, stored.tissue, strict=True):
        own = np.isin(near, patch.lesions)
        # Shares of the classes are interpolated and the largest wins: smooth edges where the patch is coarser.
        winner = np.zeros(near.shape, dtype=np.uint8)
        tumour = resample_to_grid((tissue >= VIABLE).astype(np.float32), patch.affine, origin, near.shape)
        best = np.where(tumour > 0.5, 0.0, np.inf).astype(np.float32)
        for tissue_class in (VIABLE, NECROTIC, OIL):
            share = resample_to_grid((tissue == tissue_class).astype(np.float32), patch.affine, origin, near.shape)
            wins = share > best
            winner[wins], best[wins] = tissue_class, share[wins]
        part[own & (winner > 0)] = winner[own & (winner > 0)]
    workspace.composed[outcome_id] = simulated, labels
    while len(workspace.composed) > KEPT_VOLUMES:
        workspace.composed.popitem(last=False)
    return simulated, labels
