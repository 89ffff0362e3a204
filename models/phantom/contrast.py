"""HU by tissue in one scan: the body, the injection and the moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.phantom.patient import Patient
from models.phantom.version import appearance


@dataclass(frozen=True)
class Contrast:
    """HU of the tissues of one session and phase, without noise.

    Attributes:
        phase: ``"arterial"`` or ``"portal"``.
        hu: By tissue; `liver` is the parenchyma, `moire` the banding of the spleen.
        tumour_hu: Mean of living tumour.
        necrosis_hu: Mean of dead tumour.
        oil_density: Multiplies the HU of oil above its lowest.
    """

    phase: str
    hu: dict[str, float]
    tumour_hu: float
    necrosis_hu: float
    oil_density: float


def draw_contrast(patient: Patient, phase: str, session: int) -> Contrast:
    """HU of a patient's tissues in one session (0 before treatment, else one per follow-up) and phase."""
    table = appearance()
    body, session_rng = np.random.default_rng([patient.seed, 5]), np.random.default_rng([patient.seed, 37, session])
    c = table["contrast"]
    strength = float(np.exp(body.normal(0.0, c["strength_log_sd"])))
    base = float(body.normal(*c["liver_base"]))
    if body.random() < c["fatty"]["share"]:
        base += float(body.uniform(*c["fatty"]["hu"]))
    late = float(body.uniform(*c["lateness"]["patient"])) + float(session_rng.normal(0.0, c["lateness"]["session_sd"]))
    late = float(np.clip(late, 0.0, 1.0))
    necrosis = float(body.uniform(*table["tumour"]["necrosis"]))
    density = float(body.uniform(*table["oil"]["density"]))
    personal, jitter = body.normal(0.0, 7.0, 2), session_rng.normal(0.0, c["jitter_sd"], len(c[phase]))
    hu: dict[str, float] = {}
    for (name, (early, change)), noise in zip(c[phase].items(), jitter, strict=True):
        value = early + change * late
        if name == "liver_rise":
            hu["liver"] = base + value * strength + 0.4 * float(noise)
        elif name == "moire":
            hu[name] = value
        else:
            # 40 HU are there without contrast
            hu[name] = 40.0 + (value - 40.0) * strength + float(noise)
    t = table["tumour"][phase]
    gain = 1.0 - t["fall"] * abs(late - t["peak"]) / max(t["peak"], 1.0 - t["peak"])
    step = t["low"] + t["vascularity"] * patient.traits["vascularity"]
    shift = float(personal[0 if phase == "arterial" else 1]) * t["sd"] / 7.0
    return Contrast(phase, hu, hu["liver"] + gain * strength * step + shift, necrosis, density)
