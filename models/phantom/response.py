"""The response model: what a protocol does to a phantom patient. Truth; nothing the planner uses may import it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from models.formulary import ITEM_ORDER, Formulary
from models.phantom.patient import Patient, parameters
from models.protocol import Protocol
from models.toxicity import toxicity

_PARTICLES = ("Drug-eluting beads", "Gelatin sponge", "KMG", "PVA")


@dataclass(frozen=True)
class LesionOutcome:
    """One lesion after treatment.

    Attributes:
        viable_fraction: Share of the tissue that lived before treatment and still lives, in [0.02, 1].
        oil_fraction: Share of the dead tissue that holds oil, in [0, 1].
        volume_ratio: Volume after over volume before, above 0.
    """

    viable_fraction: float
    oil_fraction: float
    volume_ratio: float


@dataclass(frozen=True)
class TrueResponse:
    """What a protocol really does: per lesion, in ml, and as the log hazard of death."""

    lesions: tuple[LesionOutcome, ...]
    viable_ml: float
    toxicity: float
    log_hazard: float


@lru_cache(maxsize=1)
def _formulary() -> Formulary:
    return Formulary.load("all")


def _weight(row: dict[str, Any], features: dict[str, float]) -> float:
    return float(np.exp(sum(float(row[f]) * value for f, value in features.items() if f in row)))


def _dose_factor(protocol: Protocol, name: str) -> float:
    dose, item = protocol.dose(name), _formulary().item(name)
    if dose is None or item.dose is None or dose.unit != item.dose.unit:
        return 1.0
    return float((dose.amount / item.dose.reference) ** parameters()["response"]["dose_exponent"])


def respond(patient: Patient, protocol: Protocol) -> TrueResponse:
    """The true response of a patient to a protocol.

    Args:
        patient: The patient.
        protocol: Any protocol over the full formulary; the empty one lets the tumour grow.

    Returns:
        Response per lesion, total viable volume in ml, toxicity as log hazard, and the log hazard of death relative
        to the cohort's reference.
    """
    p = parameters()["response"]
    features = patient.features
    hidden = dict(zip(ITEM_ORDER, patient.hidden, strict=True))
    retention, ischaemia, open_shunt = 1.0, 0.0, patient.traits["shunt"]
    for name in protocol.embolics:
        row = p["embolics"][name]
        effect = _weight(row["weights"], features) * hidden[name] * _dose_factor(protocol, name)
        loaded = "loaded_retention" in row and set(protocol.drugs) & set(p["loadable"])
        retention += (row["loaded_retention"] if loaded else row["retention"]) * effect
        ischaemia += row["ischaemia"] * effect
        open_shunt *= 1.0 - row["closure"]
    kept = 1.0 - p["shunt_loss"] * open_shunt
    potency = [
        p["drugs"][d]["base"] * _weight(p["drugs"][d], features) * hidden[d] * _dose_factor(protocol, d)
        for d in protocol.drugs
    ]
    q = p["saturation"]
    drug_kill = p["gain"] * float(np.sum(np.power(potency, q))) ** (1.0 / q) if potency else 0.0
    kill = drug_kill * retention * kept + 0.62 * ischaemia * kept
    oil = 0.0
    if "Lipiodol" in protocol.embolics:
        o = p["oil"]
        noise = np.random.default_rng([patient.seed, 7]).normal(0.0, o["sd"])
        particle = any(e in _PARTICLES for e in protocol.embolics)
        dose = _dose_factor(protocol, "Lipiodol")
        oil = float(
            np.clip(
                (
                    o["base"]
                    + o["vascularity"] * features["vascularity"]
                    + o["particle"] * particle
                    + o["shunt"] * open_shunt
                    + noise
                )
                * dose,
                0.06,
                0.92,
            )
        )
    lesions = []
    for lesion in patient.lesions:
        viable = max(float(np.exp(-kill * lesion.response)), p["floor"])
        ratio = 1.0 - p["shrinkage"] * (1.0 - viable) + p["growth"] * max(viable - 0.6, 0.0)
        lesions.append(LesionOutcome(viable, oil, ratio))
    alive = 1.0 - patient.core_fraction
    viable_ml = alive * sum(
        out.viable_fraction * lesion.volume_ml for out, lesion in zip(lesions, patient.lesions, strict=True)
    )
    tox = toxicity(protocol, patient.record, patient.tumour_ml, 1500.0 * patient.liver_scale**3).log_hazard
    return TrueResponse(tuple(lesions), viable_ml, tox, log_hazard(patient, viable_ml, tox))


def log_hazard(patient: Patient, viable_ml: float, toxicity_log_hazard: float) -> float:
    """Log hazard of death, from the tumour that is left, the toxicity and the record (`parameters.yaml`)."""
    s, record = parameters()["survival"], patient.record
    value = s["viable"] * (np.log(viable_ml + 5.0) - s["viable_reference"])
    value += s["toxicity"] * patient.toxicity_sensitivity * toxicity_log_hazard
    value += s["child_pugh"] * ((record.child_pugh_score or 5) - 5)
    value += s["afp"] * (np.log10(record.afp_ng_ml or 10.0) - 1.0)
    value += s["invasion"][record.portal_vein_invasion or "none"] + s["ecog"] * (record.ecog or 0)
    return float(value)


def draw_survival(log_hazards: Sequence[float], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws times in months and event flags from a Weibull hazard with uniform administrative censoring."""
    s = parameters()["survival"]
    uniform = rng.uniform(1e-9, 1.0, len(log_hazards))
    time = s["scale_months"] * (-np.log(uniform) / np.exp(np.asarray(log_hazards))) ** (1.0 / s["shape"])
    first, last = s["censoring_months"]
    censor = rng.uniform(first, last, len(log_hazards))
    return np.minimum(time, censor), time <= censor


def clinician_protocol(patient: Patient) -> Protocol:
    """The protocol really given: a clinician with habits who does less for a frail patient (confounding)."""
    c = parameters()["clinician"]
    rng = np.random.default_rng([patient.seed, 11])
    weights = np.array([h["weight"] for h in c["habits"]])
    habit = c["habits"][int(rng.choice(len(weights), p=weights / weights.sum()))]
    drugs = list(habit["drugs"])
    frail = (patient.record.child_pugh_score or 5) >= 7
    if frail and len(drugs) > 1 and rng.random() < c["drop_when_frail"]:
        drugs.pop()
    return Protocol(drugs=tuple(drugs), embolics=tuple(habit["embolics"]))
