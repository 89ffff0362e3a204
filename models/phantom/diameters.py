"""RECIST and mRECIST diameters of a phantom patient, measured on its lesions' own grids without rendering a scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.phantom.field import Grid
from models.phantom.lesion import NECROTIC, REACH, VIABLE, lesion_tissue
from models.phantom.patient import Patient
from models.phantom.response import TrueResponse
from models.response import LesionState, compare, measure_lesion

_SAMPLES = 48


@dataclass(frozen=True)
class Diameters:
    """Sums over the target lesions in mm, before and after."""

    recist_before: float
    recist_after: float
    mrecist_before: float
    mrecist_after: float

    @property
    def recist_change(self) -> float:
        """In percent."""
        return 100.0 * (self.recist_after / self.recist_before - 1.0)

    @property
    def mrecist_change(self) -> float:
        """In percent."""
        return 100.0 * (self.mrecist_after / self.mrecist_before - 1.0)


def _states(patient: Patient, response: TrueResponse | None) -> list[LesionState]:
    states = []
    for index, lesion in enumerate(patient.lesions):
        outcome = response.lesions[index] if response else None
        reach = REACH * max(outcome.volume_ratio if outcome else 1.0, 1.0) ** (1 / 3) * max(lesion.radii_mm)
        axes = [np.linspace(c - reach, c + reach, _SAMPLES) for c in lesion.centre_mm]
        found = lesion_tissue(patient, lesion, outcome, Grid(*axes))
        tissue = np.where(found.dead, NECROTIC, np.where(found.inside, VIABLE, 0)).astype(np.uint8)
        states.append(measure_lesion(index + 1, tissue, [2.0 * reach / (_SAMPLES - 1)] * 3))
    return states


def true_diameters(patient: Patient, response: TrueResponse) -> Diameters:
    """What a perfect reader would measure before treatment and at the follow-up.

    Args:
        patient: The patient.
        response: To the protocol that was given.
    """
    found = compare(_states(patient, None), _states(patient, response))
    return Diameters(found.recist_before_mm, found.recist_mm, found.mrecist.before, found.mrecist.after)
