"""How hard the phantom is to plan for: what no constant protocol, and no reader of the record alone, can do on it.

Everything follows from the response model, without rendering a scan. The risks of all protocols of a patient are
computed at once, in the same terms as `models.phantom.response.respond`; a test holds the two against each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from evals.regret import allowed_by_rules, patient_blocked
from evals.statistics import bootstrap_mean
from models.formulary import ITEM_ORDER, Formulary
from models.phantom.cohort import all_protocols
from models.phantom.patient import Patient, draw_patient
from models.phantom.response import agent_weight, clinician_protocol, log_hazard, respond, survivors_of
from models.phantom.version import parameters
from models.protocol import Protocol
from models.toxicity import toxicity
from tools.rule_facts import Facts

Array = npt.NDArray[np.float64]

FIRST_SEED = 700_000
LIBRARY_SEED = 650_000
LIBRARY = 400
NEIGHBOURS = 30
MOST_BEST, LEAST_CONSTANT, LEAST_RECORD_ONLY = 0.15, 0.15, 0.08
"""What the cohort must meet: shares of patients, and of the range between best and worst protocol."""


@dataclass(frozen=True, eq=False)
class Space:
    """Protocols over the full formulary, at usual doses, and which agents each holds."""

    protocols: tuple[Protocol, ...]

    @cached_property
    def drugs(self) -> Array:
        """(P, agents) 1 where a drug is given, in `ITEM_ORDER`."""
        return np.array([[name in p.drugs for name in ITEM_ORDER] for p in self.protocols], float)

    @cached_property
    def embolics(self) -> Array:
        """(P, agents) 1 where an embolic agent is given."""
        return np.array([[name in p.embolics for name in ITEM_ORDER] for p in self.protocols], float)


def policy_space() -> Space:
    """1 to 3 drugs and 1 to 2 embolics of the policy's action set that no rule forbids for every patient."""
    return Space(allowed_by_rules(Facts(), list(all_protocols("policy", 3, 2))))


def risks(patient: Patient, space: Space) -> Array:
    """True log hazard of every protocol at usual doses, (P,)."""
    p, features = parameters()["response"], patient.features
    hidden = np.array(patient.hidden)
    formulary = Formulary.load("all")
    kind = {name: formulary.item(name).kind for name in ITEM_ORDER}
    potency = np.array(
        [
            p["drugs"][n]["base"] * agent_weight(p["drugs"][n], features) if kind[n] == "drug" else 0.0
            for n in ITEM_ORDER
        ]
    )
    effect = np.array(
        [agent_weight(p["embolics"][n]["weights"], features) if kind[n] == "embolic" else 0.0 for n in ITEM_ORDER]
    )
    column = {name: np.array([p["embolics"].get(n, {}).get(name, 0.0) for n in ITEM_ORDER]) for name in (
        "retention", "ischaemia", "closure")}  # fmt: skip
    effect = effect * hidden
    retention = 1.0 + space.embolics @ (column["retention"] * effect)
    for name, row in p["embolics"].items():
        if "loaded_retention" in row:
            at = ITEM_ORDER.index(name)
            loadable = space.drugs[:, [ITEM_ORDER.index(n) for n in p["loadable"]]].any(axis=1)
            more = (row["loaded_retention"] - row["retention"]) * effect[at]
            retention = retention + space.embolics[:, at] * loadable * more
    ischaemia = space.embolics @ (column["ischaemia"] * effect)
    open_shunt = patient.traits["shunt"] * np.prod(1.0 - space.embolics * column["closure"], axis=1)
    q = p["saturation"]
    drug_kill = p["gain"] * (space.drugs @ (potency * hidden) ** q) ** (1.0 / q)
    kill = (drug_kill * retention + p["ischaemia"] * ischaemia) * (1.0 - p["shunt_loss"] * open_shunt)
    viable = np.zeros(len(kill))
    for lesion in patient.lesions:
        survivors, growth = survivors_of(patient, lesion, kill)
        viable += (1.0 - patient.core_fraction) * survivors * growth * lesion.volume_ml
    harm = np.array([_harm(patient, name, kind[name]) for name in ITEM_ORDER])
    tox = (space.drugs + space.embolics) @ harm
    reference = log_hazard(patient, 0.0, 0.0)
    s = parameters()["survival"]
    slope = s["viable"] * (np.log(viable + 5.0) - np.log(5.0))
    return np.asarray(reference + slope + s["toxicity"] * patient.toxicity_sensitivity * tox)


def _harm(patient: Patient, name: str, kind: str) -> float:
    alone = Protocol(drugs=(name,)) if kind == "drug" else Protocol(embolics=(name,))
    return toxicity(alone, patient.record, patient.tumour_ml, patient.liver_ml).log_hazard


def as_seen(patient: Patient) -> Patient:
    """The patient as image and record show it: nothing of what is hidden differs from the middle."""
    lesions = tuple(replace(lesion, response=0.6 if lesion.satellite else 1.0) for lesion in patient.lesions)
    return replace(patient, hidden=(1.0,) * len(ITEM_ORDER), toxicity_sensitivity=1.0, shrinkage=0.0, lesions=lesions)


def record_only(patient: Patient, library: Sequence[Patient], space: Space) -> Array:
    """Mean log hazard of every protocol over other patients' tumours under this patient's record.

    The tumours are those of the most similar records: the same stated shunt, one or several tumours alike, and the
    nearest share of the liver. It is what a perfect planner knows who reads the record and never looks at the image.
    """
    record = patient.record

    def distance(other: Patient) -> float:
        said = other.record
        apart = abs(
            np.log((said.tumour_liver_fraction_percent or 0) + 0.2)
            - np.log((record.tumour_liver_fraction_percent or 0) + 0.2)
        )
        return float(
            apart
            + 9.0 * (said.shunt != record.shunt)
            + 3.0 * ((said.tumour_number == 1) != (record.tumour_number == 1))
        )

    near = sorted(library, key=distance)[:NEIGHBOURS]
    return np.asarray(np.mean([risks(replace(as_seen(other), record=record), space) for other in near], axis=0))


def measure_hardness(n: int, tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The hardness figures of the data card.

    Args:
        n: Patients, at least 20; those whom a rule excludes from treatment are left out and not counted.
        tick: Called after every patient.

    Returns:
        Figures with n and 95 % bootstrap intervals; regret is a share of worst minus best.
    """
    space = policy_space()
    library = [draw_patient(LIBRARY_SEED + i) for i in range(LIBRARY)]
    tables: list[Array] = []
    rows: dict[str, list[float]] = {"record_only": [], "image_and_record": [], "random": [], "clinician": []}
    seed = FIRST_SEED
    while len(tables) < n:
        patient = draw_patient(seed)
        seed += 1
        if patient_blocked(Facts(record=patient.record)):
            continue
        risk = risks(patient, space)
        span = float(np.ptp(risk))
        tables.append((risk - risk.min()) / span)
        rows["random"].append(float(tables[-1].mean()))
        rows["record_only"].append(float(tables[-1][record_only(patient, library, space).argmin()]))
        rows["image_and_record"].append(float(tables[-1][risks(as_seen(patient), space).argmin()]))
        given = respond(patient, clinician_protocol(patient)).log_hazard
        rows["clinician"].append(float((given - risk.min()) / span))
        tick()
    regret = np.stack(tables)
    best = Counter(int(i) for i in regret.argmin(axis=1))
    # chosen on one half and scored on the other, both ways: a constant that has not seen who it is scored on
    half = len(regret) // 2
    held_out = np.concatenate(
        [regret[half:, regret[:half].mean(0).argmin()], regret[:half, regret[half:].mean(0).argmin()]]
    )
    constant = int(regret.mean(axis=0).argmin())
    share = best.most_common(1)[0][1] / len(regret)
    figures: dict[str, Any] = {
        "n": len(regret),
        "seeds": [FIRST_SEED, seed - 1],
        "protocols": len(space.protocols),
        "different_best": len(best),
        "most_frequent_best": [[space.protocols[i].key, count / len(regret)] for i, count in best.most_common(10)],
        "agents_in_best": _agents([space.protocols[i] for i in regret.argmin(axis=1)]),
        "best_constant": {"protocol": space.protocols[constant].key, **bootstrap_mean(regret[:, constant])._asdict()},
        "best_constant_held_out": bootstrap_mean(held_out)._asdict(),
        **{name: bootstrap_mean(values)._asdict() for name, values in rows.items()},
    }
    figures["met"] = {
        "no protocol best for more than 15 %": share <= MOST_BEST,
        "best constant loses at least 15 %": float(regret[:, constant].mean()) >= LEAST_CONSTANT,
        "record alone loses at least 8 %": float(np.mean(rows["record_only"])) >= LEAST_RECORD_ONLY,
    }
    return figures


def _agents(best: Sequence[Protocol]) -> dict[str, float]:
    counted = Counter(name for protocol in best for name in protocol.items)
    return {name: counted[name] / len(best) for name in ITEM_ORDER if counted[name]}
