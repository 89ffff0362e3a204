"""The response model: what a protocol does to a phantom patient. Truth; nothing the planner uses may import it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from models.formulary import ITEM_ORDER, Formulary
from models.phantom.patient import Lesion, Patient
from models.phantom.version import parameters
from models.protocol import Protocol
from models.toxicity import toxicity


@dataclass(frozen=True)
class LesionOutcome:
    """One lesion after treatment.

    Attributes:
        viable_fraction: Share of the tissue that lived before treatment and survived, in [0, 1].
        growth: Volume of the living tissue at the follow-up over that of the survivors, at least 1.
        oil_fraction: Share of the dead tissue that holds oil, in [0, 1].
        volume_ratio: Volume after over volume before, above 0.
        living_share: Living tissue at the follow-up over the lesion's volume before, at least 0.
        core_share: What is left of the necrotic core of before, over the lesion's volume before.
    """

    viable_fraction: float
    growth: float
    oil_fraction: float
    volume_ratio: float
    living_share: float
    core_share: float


@dataclass(frozen=True)
class TrueResponse:
    """What a protocol really does: per lesion, in ml, and as the log hazard of death.

    Attributes:
        lesions: In the order of the patient's lesions.
        viable_ml: Living tumour at the follow-up in ml.
        open_shunt: What is left of the arterio-portal shunt, in [0, 1].
        toxicity: Fixed toxicity term (log hazard), without the patient's sensitivity.
        log_hazard: Of death.
    """

    lesions: tuple[LesionOutcome, ...]
    viable_ml: float
    open_shunt: float
    toxicity: float
    log_hazard: float


@lru_cache(maxsize=1)
def _formulary() -> Formulary:
    return Formulary.load("all")


def agent_weight(row: dict[str, Any], features: dict[str, float]) -> float:
    """exp(sum of weight x feature): how much better or worse an agent works in a patient than in the middle one."""
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
        effect = agent_weight(row["weights"], features) * hidden[name] * _dose_factor(protocol, name)
        loaded = "loaded_retention" in row and set(protocol.drugs) & set(p["loadable"])
        retention += (row["loaded_retention"] if loaded else row["retention"]) * effect
        ischaemia += row["ischaemia"] * effect
        open_shunt *= 1.0 - row["closure"]
    kept = 1.0 - p["shunt_loss"] * open_shunt
    potency = [
        p["drugs"][d]["base"] * agent_weight(p["drugs"][d], features) * hidden[d] * _dose_factor(protocol, d)
        for d in protocol.drugs
    ]
    q = p["saturation"]
    drug_kill = p["gain"] * float(np.sum(np.power(potency, q))) ** (1.0 / q) if potency else 0.0
    kill = (drug_kill * retention + p["ischaemia"] * ischaemia) * kept
    oil = _oil(patient, protocol, open_shunt)
    lesions = tuple(_lesion_outcome(patient, lesion, kill, oil) for lesion in patient.lesions)
    viable_ml = sum(out.living_share * lesion.volume_ml for out, lesion in zip(lesions, patient.lesions, strict=True))
    tox = toxicity(protocol, patient.record, patient.tumour_ml, patient.liver_ml).log_hazard
    return TrueResponse(lesions, viable_ml, open_shunt, tox, log_hazard(patient, viable_ml, tox))


def _oil(patient: Patient, protocol: Protocol, open_shunt: float) -> float:
    """Share of the dead tissue that holds oil; 0 without Lipiodol."""
    if "Lipiodol" not in protocol.embolics:
        return 0.0
    row = parameters()["response"]["oil"]
    share = (
        row["base"]
        + row["vascularity"] * patient.features["vascularity"]
        + row["particle"] * any(e in parameters()["response"]["particles"] for e in protocol.embolics)
        + row["shunt"] * open_shunt
        + np.random.default_rng([patient.seed, 7]).normal(0.0, row["sd"])
    )
    return float(np.clip(share * _dose_factor(protocol, "Lipiodol"), *row["limits"]))


Number = TypeVar("Number", float, npt.NDArray[np.float64])


def survivors_of(patient: Patient, lesion: Lesion, kill: Number) -> tuple[Number, Number]:
    """Share of a lesion's living tissue that survives a log kill, and how the survivors have grown by the follow-up."""
    p, features = parameters()["response"], patient.features
    reached = lesion.response * float(np.exp(p["size"] * lesion.size))
    survivors = np.maximum((np.exp(-kill * reached) - p["clearance"]) / (1.0 - p["clearance"]), 0.0)
    grow = p["growth"]
    pace = grow["base"] + grow["texture"] * features["texture"] + grow["satellite"] * lesion.satellite
    growth = 1.0 + pace * np.maximum(survivors - grow["threshold"], 0.0) / (1.0 - grow["threshold"])
    return survivors, growth


def _lesion_outcome(patient: Patient, lesion: Lesion, kill: float, oil: float) -> LesionOutcome:
    shrink, features = parameters()["response"]["shrinkage"], patient.features
    survivors, growth = map(float, survivors_of(patient, lesion, kill))
    gone = shrink["base"] + shrink["texture"] * features["texture"] + shrink["capsule"] * features["capsule"]
    gone = float(np.clip(gone + patient.shrinkage, *shrink["limits"]))
    core = patient.core_fraction
    living = (1.0 - core) * survivors * growth
    killed = (1.0 - core) * (1.0 - survivors)
    old = core * (1.0 - shrink["old_core"] * gone * (1.0 - survivors))
    return LesionOutcome(survivors, growth, oil, living + killed * (1.0 - gone) + old, living, old)


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
    """The protocol really given: a clinician with habits who looks at severity first (confounding).

    A large tumour draws the triple regimen, a small one beads; the frail and the old get a drug less; a marked shunt is
    closed only when it is noticed. Nothing else of the image is used, and nothing of the truth.
    """
    c = parameters()["clinician"]
    rng = np.random.default_rng([patient.seed, 11])
    burden = float(np.log(patient.tumour_ml / c["median_tumour_ml"]))
    odds = np.array([h["weight"] * np.exp(np.clip(h["burden"] * burden, -1.5, 1.5)) for h in c["habits"]])
    habit = c["habits"][int(rng.choice(len(odds), p=odds / odds.sum()))]
    drugs, embolics = list(habit["drugs"]), list(habit["embolics"])
    frail = (patient.record.child_pugh_score or 5) >= 7 and rng.random() < c["drop_when_frail"]
    old = (patient.record.age_years or 0.0) >= c["old_from_years"] and rng.random() < c["drop_when_old"]
    if (frail or old) and len(drugs) > 1:
        drugs.pop()
    if patient.traits["shunt"] >= c["shunt_from"] and "Lipiodol" in embolics and rng.random() < c["sees_shunt"]:
        embolics = ["Lipiodol", "NBCA"]
    return Protocol(drugs=tuple(drugs), embolics=tuple(embolics))
