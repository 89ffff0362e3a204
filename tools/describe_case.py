"""describe_case: what is measured on the CT before treatment and its labels, and what the record states."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from models.patch import lesion_components, spacing_of
from models.response import criteria, longest_axial_diameter
from models.scores import Score, prognostic_scores
from models.volume import Volume
from tools.workspace import Workspace

_SMOOTHING_MM = 1.5  # so that image noise is not taken for necrosis
_LIVER, _AORTA = 1, 4


class CaseDescription(BaseModel):
    """Measured features of a case and its clinical record. What can't be measured is None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case_id: str
    origin: Literal["synthetic", "real"]
    origin_note: str
    content_hash: str
    image: str = Field(description="name of the image that is planned on")
    phase: str
    phases: tuple[str, ...] = Field(description="contrast phases of the images before treatment")
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    lesion_count: int
    lesion_ml: tuple[float, ...] = Field(description="volume of each lesion, largest first")
    specks: int = Field(description="components below 0.05 ml, left out")
    largest_diameter_mm: float = Field(description="longest axial diameter of any lesion")
    tumour_ml: float
    liver_ml: float | None = Field(description="whole liver, tumours included")
    aorta_hu: float | None
    liver_hu: float | None = Field(description="mean of the liver outside tumour and vessels")
    tumour_hu: float
    contrast_hu: float | None = Field(description="tumour mean minus liver mean")
    heterogeneity_hu: float = Field(description="standard deviation of HU inside the tumour")
    hypodense_fraction: float = Field(description="necrosis-like share of the tumour (smoothed CT below 45 HU)")
    record: dict[str, Any] = Field(description="stated fields of the clinical record, unit in the name")
    scores: tuple[Score, ...] = Field(
        description="prognostic scores of record, largest diameter and tumour number (stated, else lesion_count)"
    )


def describe_case(
    case_id: Annotated[str, Field(description="Id of a known case")],
    *,
    workspace: Workspace,
) -> CaseDescription:
    """Describe a case: lesions, volumes, enhancement and necrosis before treatment, the record, prognostic scores.

    Raises:
        ToolError: unknown case.
        CaseError: the case has no labels.
        MaskError: no tumour is labelled.
    """
    case = workspace.case(case_id)
    image = case.default_image()
    volume, labels = workspace.image(case_id)
    lesions = lesion_components(labels, volume.affine)
    tumour = lesions.index > 0
    spacing = spacing_of(volume.affine).tolist()
    boxes = [box for box in ndimage.find_objects(lesions.index) if box is not None]
    diameters = [
        longest_axial_diameter(lesions.index[box] == number, spacing) for number, box in enumerate(boxes, start=1)
    ]
    inside = volume.data[tumour].astype(np.float64)
    liver, aorta = _mean(volume, labels == _LIVER), _mean(volume, labels == _AORTA)
    return CaseDescription(
        case_id=case_id,
        origin=case.origin,
        origin_note=case.origin_note,
        content_hash=case.content_hash,
        image=image.name,
        phase=image.phase,
        phases=tuple(dict.fromkeys(entry.phase for entry in case.images if entry.role == "pre")),
        shape=volume.shape,
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        lesion_count=lesions.count,
        lesion_ml=lesions.volumes_ml,
        specks=lesions.specks,
        largest_diameter_mm=max(diameters),
        tumour_ml=sum(lesions.volumes_ml),
        liver_ml=workspace.liver_ml(case_id),
        aorta_hu=aorta,
        liver_hu=liver,
        tumour_hu=float(inside.mean()),
        contrast_hu=None if liver is None else float(inside.mean()) - liver,
        heterogeneity_hu=float(inside.std()),
        hypodense_fraction=_hypodense(volume, tumour),
        record=case.record.known(),
        scores=prognostic_scores(case.record, max(diameters) / 10.0, case.record.tumour_number or lesions.count),
    )


def _mean(volume: Volume, mask: NDArray[np.bool_]) -> float | None:
    return float(volume.data[mask].mean(dtype=np.float64)) if mask.any() else None


def _hypodense(volume: Volume, tumour: NDArray[np.bool_]) -> float:
    box = ndimage.find_objects(tumour.astype(np.int8))[0]
    smooth = ndimage.gaussian_filter(volume.data[box].astype(np.float32), _SMOOTHING_MM / spacing_of(volume.affine))
    return float((smooth[tumour[box]] < criteria().necrosis_hu).mean())
