"""segment: what is left of the tumour in simulated outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from models.engine import Prepared
from models.errors import ToolError
from models.patch import voxel_ml
from models.response import NECROTIC, OIL, VIABLE
from tools.artifacts import artifact_id
from tools.workspace import StoredOutcome, Workspace, pack, unpack


class Segmentation(BaseModel):
    """Tissue volumes of one outcome within 5 mm of the original tumour."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome_id: str
    segmentation_id: str
    liver_ml: float | None = Field(description="liver with tumours before treatment; None where no liver is labelled")
    viable_ml: float
    necrotic_ml: float
    oil_ml: float = Field(description="tissue laden with Lipiodol")
    cached: bool = Field(description="it was there already")


class SegmentResult(BaseModel):
    """The segmentations in the order given; an outcome that was given twice occurs once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    segmentations: tuple[Segmentation, ...]
    segmented: int = Field(description="computed by this call")
    from_cache: int
    weights_hash: str
    origin: str = Field(description="what the weights were trained on")


def segment(
    outcome_ids: Annotated[list[str], Field(description="Ids that simulate_tumor returned", min_length=1)],
    *,
    workspace: Workspace,
) -> SegmentResult:
    """Segment viable, necrotic and oil-laden tissue in simulated outcomes.

    A segmentation is stored as soon as it is there and never computed twice; a damaged one is computed again.

    Raises:
        ToolError: no outcome, or an unknown one.
        ArtifactDamagedError: an outcome is damaged; simulate it again.
        TransientToolError: the device ran out of memory.
    """
    wanted = list(dict.fromkeys(outcome_ids))
    if not wanted:
        raise ToolError("segment needs at least one outcome_id.")
    results: list[Segmentation] = []
    # Read in portions: an outcome is a few MB in memory, and a call may hold hundreds.
    for start in range(0, len(wanted), workspace.engine.batch):
        outcomes = [workspace.outcome(name) for name in wanted[start : start + workspace.engine.batch]]
        results += _segment_portion(outcomes, workspace)
        workspace.report("segment", len(results), len(wanted))
    segmented = sum(not result.cached for result in results)
    return SegmentResult(
        segmentations=tuple(results),
        segmented=segmented,
        from_cache=len(results) - segmented,
        weights_hash=workspace.engine.weights_hash,
        origin=workspace.engine.origin,
    )


def tissue_ml(prepared: Prepared, tissue: NDArray[np.uint8]) -> dict[int, float]:
    """Volume in ml of each tissue class over all lesions, each lesion counted in the one patch that simulates it."""
    totals = dict.fromkeys((VIABLE, NECROTIC, OIL), 0.0)
    for patch, own, classes in zip(prepared.patches, prepared.own, tissue, strict=True):
        counts = np.bincount(classes[own > 0], minlength=OIL + 1)
        for tissue_class in totals:
            totals[tissue_class] += float(counts[tissue_class]) * voxel_ml(patch.affine)
    return totals


def _segment_portion(outcomes: Sequence[StoredOutcome], workspace: Workspace) -> list[Segmentation]:
    names = [artifact_id("segmentation", workspace.segmentation_key(outcome.outcome_id)) for outcome in outcomes]
    tissue = [_stored(name, outcome, workspace) for name, outcome in zip(names, outcomes, strict=True)]
    missing = [position for position, found in enumerate(tissue) if found is None]
    for case_id in dict.fromkeys(outcomes[position].case_id for position in missing):
        here = [position for position in missing if outcomes[position].case_id == case_id]
        prepared = outcomes[here[0]].prepared
        classes = workspace.engine.segment_near(prepared, [outcomes[position].composite for position in here])
        for position, own in zip(here, classes, strict=True):
            key = workspace.segmentation_key(outcomes[position].outcome_id)
            workspace.artifacts.put("segmentation", key, {"tissue": pack(prepared, own)})
            tissue[position] = own
    results = []
    for position, (name, outcome, found) in enumerate(zip(names, outcomes, tissue, strict=True)):
        assert found is not None  # filled above
        volumes = tissue_ml(outcome.prepared, found)
        results.append(
            Segmentation(
                outcome_id=outcome.outcome_id,
                segmentation_id=name,
                liver_ml=workspace.liver_ml(outcome.case_id),
                viable_ml=volumes[VIABLE],
                necrotic_ml=volumes[NECROTIC],
                oil_ml=volumes[OIL],
                cached=position not in missing,
            )
        )
    return results


def _stored(name: str, outcome: StoredOutcome, workspace: Workspace) -> NDArray[np.uint8] | None:
    """The tissue classes stored under a name; None where there are none, or of another length than the case needs."""
    artifact = workspace.artifacts.find(name)
    if artifact is None or artifact.arrays["tissue"].shape != (int(outcome.prepared.support.sum()),):
        return None
    return unpack(outcome.prepared, artifact.arrays["tissue"], name).astype(np.uint8)
