"""The clinical record as numbers for the survival network: each field a scaled value and a flag that it is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from models.clinical_record import ClinicalRecord


def _linear(centre: float, scale: float) -> Callable[[object], float]:
    def scaled(value: object) -> float:
        return (float(str(value)) - centre) / scale

    return scaled


def _log(centre: float, scale: float) -> Callable[[object], float]:
    def scaled(value: object) -> float:
        return (math.log10(max(float(str(value)), 1e-3)) - centre) / scale

    return scaled


def _level(*names: str) -> Callable[[object], float]:
    def scaled(value: object) -> float:
        return names.index(str(value)) / (len(names) - 1)

    return scaled


def _flag(value: object) -> float:
    return 1.0 if value else 0.0


# Fields that vary in the training cohort: a field that never does would reach the network with untrained weights.
# Centre and scale are round numbers near the middle and the spread of each field in liver-cancer cohorts; they only
# bring the inputs to order one and carry no medical claim.
_FIELDS: tuple[tuple[str, Callable[[object], float]], ...] = (
    ("age_years", _linear(65.0, 12.0)),
    ("afp_ng_ml", _log(1.5, 1.3)),
    ("bilirubin_mg_dl", _log(0.0, 0.3)),
    ("albumin_g_dl", _linear(3.6, 0.6)),
    ("inr", _linear(1.15, 0.2)),
    ("creatinine_mg_dl", _log(0.0, 0.2)),
    ("platelets_10e9_l", _log(2.1, 0.25)),
    ("ecog", _linear(0.5, 1.0)),
    ("ascites", _level("none", "mild", "moderate_severe")),
    ("child_pugh_class", _level("A", "B", "C")),
    ("child_pugh_score", _linear(6.0, 2.0)),
    ("bclc", _level("0", "A", "B", "C", "D")),
    ("cirrhosis", _flag),
    ("portal_vein_invasion", _level("none", "branch", "main")),
    ("shunt", _level("none", "arterioportal", "hepatic_vein")),
    ("tumour_number", _linear(2.0, 2.0)),
)
_LIMIT = 4.0  # an outlier must not run away with the risk

RECORD_SIZE = 2 * len(_FIELDS)


def record_vector(record: ClinicalRecord) -> npt.NDArray[np.float32]:
    """Encode what is known about a patient.

    Args:
        record: absent fields are absent: their value is 0 and their flag is 0.

    Returns:
        (RECORD_SIZE,) float32: scaled values within +-4, then the flags (1 known, 0 absent).
    """
    out = np.zeros(RECORD_SIZE, dtype=np.float32)
    for index, (name, scaled) in enumerate(_FIELDS):
        value = getattr(record, name)
        if value is not None:
            out[index] = float(np.clip(scaled(value), -_LIMIT, _LIMIT))
            out[len(_FIELDS) + index] = 1.0
    return out
