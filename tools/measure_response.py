"""measure_response: mRECIST, EASL and volumes of segmented outcomes against the state before treatment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from models.engine import Prepared
from models.errors import ToolError
from models.patch import voxel_ml
from models.response import NECROTIC, VIABLE, Category, LesionState, compare, criteria, measure_lesion
from tools.segment import tissue_ml
from tools.workspace import Workspace


class LesionResponse(BaseModel):
    """One lesion before and after. Lesion 1 is the largest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lesion: int
    target: bool = Field(description="one of the at most two lesions whose diameters are summed")
    spacing_mm: float = Field(description="voxel size of the grid that it was measured on")
    longest_before_mm: float
    longest_mm: float
    viable_before_mm: float
    viable_mm: float
    viable_before_ml: float
    viable_ml: float


class Response(BaseModel):
    """Response of one outcome. Percentages are changes against the state before treatment; "NE" is not evaluable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome_id: str
    segmentation_id: str
    protocol: str
    seed: int
    tumour_before_ml: float = Field(description="by the labels, on the case grid")
    viable_before_ml: float
    viable_ml: float
    necrotic_before_fraction: float = Field(description="share of the original tumour that was necrotic before")
    necrotic_fraction: float = Field(description="share of the original tumour that is necrotic after")
    oil_fraction: float = Field(description="share of the original tumour above 200 HU after")
    longest_diameter_before_mm: float = Field(description="of the longest lesion")
    recist_before_mm: float = Field(description="sum of the whole diameters of the target lesions")
    recist_mm: float
    mrecist_before_mm: float = Field(description="sum of the viable diameters of the target lesions")
    mrecist_mm: float
    mrecist_change_percent: float | None
    mrecist_category: Category
    easl_before_mm2: float = Field(description="sum of the largest viable axial areas of the target lesions")
    easl_mm2: float
    easl_change_percent: float | None
    easl_category: Category
    oil_confounded: bool = Field(description="enough oil to hide or mimic enhancement on CT")
    lesions: tuple[LesionResponse, ...]


class MeasureResponseResult(BaseModel):
    """The responses in the order given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case_id: str
    responses: tuple[Response, ...]
    sources: tuple[str, ...]
    origin: str = Field(description="what the weights were trained on")


def measure_response(
    case_id: Annotated[str, Field(description="Id of a known case")],
    segmentation_ids: Annotated[list[str], Field(description="Ids that segment returned", min_length=1)],
    *,
    workspace: Workspace,
) -> MeasureResponseResult:
    """Measure the response of segmented outcomes: mRECIST, EASL, RECIST diameters, volumes, necrosis and oil.

    Before and after are measured in the same way, on the grid of the patches, within 5 mm of the original tumour.

    Raises:
        ToolError: unknown case or segmentation, or a segmentation of another case.
        ArtifactDamagedError: an artifact is damaged.
    """
    if not segmentation_ids:
        raise ToolError("measure_response needs at least one segmentation_id.")
    prepared = workspace.prepared(case_id)
    before = lesion_states(prepared, prepared.tissue, outlines=True)
    rules = criteria()
    viable_before = tissue_ml(prepared, prepared.tissue)[VIABLE]
    necrotic_before = _share(prepared, prepared.tissue == NECROTIC)
    responses = []
    for name in dict.fromkeys(segmentation_ids):
        stored = workspace.segmentation(name, case_id)
        after = lesion_states(prepared, stored.tissue)
        result = compare(before, after)
        oil = _share(prepared, stored.outcome.composite > rules.oil_hu)
        responses.append(
            Response(
                outcome_id=stored.outcome.outcome_id,
                segmentation_id=name,
                protocol=stored.outcome.protocol.key,
                seed=stored.outcome.seed,
                tumour_before_ml=prepared.tumour_ml,
                viable_before_ml=viable_before,
                viable_ml=tissue_ml(prepared, stored.tissue)[VIABLE],
                necrotic_before_fraction=necrotic_before,
                necrotic_fraction=_share(prepared, stored.tissue == NECROTIC),
                oil_fraction=oil,
                longest_diameter_before_mm=max(state.longest_mm for state in before),
                recist_before_mm=result.recist_before_mm,
                recist_mm=result.recist_mm,
                mrecist_before_mm=result.mrecist.before,
                mrecist_mm=result.mrecist.after,
                mrecist_change_percent=result.mrecist.percent,
                mrecist_category=result.mrecist.category,
                easl_before_mm2=result.easl.before,
                easl_mm2=result.easl.after,
                easl_change_percent=result.easl.percent,
                easl_category=result.easl.category,
                oil_confounded=oil >= rules.oil_confounded_fraction,
                lesions=_lesions(prepared, before, after, result.targets),
            )
        )
    return MeasureResponseResult(
        case_id=case_id,
        responses=tuple(responses),
        sources=(rules.mrecist.source, rules.easl.source, rules.targets.source),
        origin=workspace.engine.origin,
    )


def lesion_states(prepared: Prepared, tissue: NDArray[np.uint8], *, outlines: bool = False) -> list[LesionState]:
    """Measures every lesion in the patch that simulates it, ordered by number.

    Args:
        prepared: the case.
        tissue: (L, S, S, S) tissue classes.
        outlines: take whole diameters from the labels (before treatment) rather than from `tissue`.
    """
    states = []
    for patch, own, numbers, classes in zip(prepared.patches, prepared.own, prepared.numbers, tissue, strict=True):
        boxes = ndimage.find_objects(own)
        for lesion in patch.lesions:
            box = boxes[lesion - 1]
            inside = np.where(own[box] == lesion, classes[box], 0)
            outline = (numbers[box] == lesion) if outlines else None
            states.append(measure_lesion(lesion, inside, (patch.spacing_mm,) * 3, outline))
    return sorted(states, key=lambda state: state.lesion)


def _share(prepared: Prepared, mask: NDArray[np.bool_]) -> float:
    """Share of the original tumour's volume where `mask` (L, S, S, S) holds."""
    total = held = 0.0
    for patch, own, numbers, part in zip(prepared.patches, prepared.own, prepared.numbers, mask, strict=True):
        tumour = (own > 0) & (numbers > 0)
        total += float(tumour.sum()) * voxel_ml(patch.affine)
        held += float((tumour & part).sum()) * voxel_ml(patch.affine)
    return held / total


def _lesions(
    prepared: Prepared, before: Sequence[LesionState], after: Sequence[LesionState], targets: Sequence[int]
) -> tuple[LesionResponse, ...]:
    spacing = {lesion: patch.spacing_mm for patch in prepared.patches for lesion in patch.lesions}
    return tuple(
        LesionResponse(
            lesion=b.lesion,
            target=b.lesion in targets,
            spacing_mm=spacing[b.lesion],
            longest_before_mm=b.longest_mm,
            longest_mm=a.longest_mm,
            viable_before_mm=b.viable_mm,
            viable_mm=a.viable_mm,
            viable_before_ml=b.viable_ml,
            viable_ml=a.viable_ml,
        )
        for b, a in zip(before, after, strict=True)
    )
