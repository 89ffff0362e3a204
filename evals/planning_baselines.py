"""What a plan's regret is set beside: its own policy alone, one protocol for everybody, a random one, and the bound.

Regret is the true log hazard of the choice above that of the best allowed protocol, as a share of worst minus best: 0
is best, 1 is worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.plan import Plan
from agent.settings import PlannerSettings
from evals.phantom_hardness import Space, risks
from evals.regret import RiskTable
from models.phantom.cohort import all_protocols
from models.phantom.patient import draw_patient
from models.protocol import Protocol

CONSTANT_SEED = 800_000
CONSTANT_PATIENTS = 150
"""The constant baseline is chosen on these patients; none of them is planned."""


@dataclass(frozen=True)
class BesideThePlan:
    """Regrets of one patient's baselines.

    Attributes:
        policy_first: The embedded policy without a world model: its first drug and first embolic that the rules allow
            together; 1 where there are none.
        constant: The first protocol of one fixed list that the rules allow for this patient.
        random: Mean over all allowed protocols.
        reachable: The best protocol that the proposed action space holds: regret that no search in it could avoid.
    """

    policy_first: float
    constant: float
    random: float
    reachable: float


def beside_the_plan(plan: Plan, truth: RiskTable, ranked: Sequence[Protocol]) -> BesideThePlan:
    """The baselines' regrets for the patient of a plan.

    Args:
        plan: Of the full planner; its proposals are the policy's and the action space.
        truth: Of every protocol that the rules allow, at least one.
        ranked: From `rank_constants`.
    """
    proposed = [note for note in plan.proposals if note.kept]
    regrets = dict(zip(truth.protocols, truth.regrets.tolist(), strict=True))
    drugs, embolics = ([note.item for note in proposed if note.kind == kind] for kind in ("drug", "embolic"))
    pairs = (Protocol(drugs=(drug,), embolics=(embolic,)) for drug in drugs for embolic in embolics)
    return BesideThePlan(
        policy_first=next((regrets[pair] for pair in pairs if pair in regrets), 1.0),
        constant=next(regrets[protocol] for protocol in ranked if protocol in regrets),
        random=float(truth.regrets.mean()),
        reachable=truth.best_within(note.item for note in proposed),
    )


def rank_constants(settings: PlannerSettings) -> list[Protocol]:
    """All protocols of the action set by mean regret on other phantom patients, best first.

    The baseline gives every patient the first of them that the rules allow: one fixed list, made without a look at the
    patients that are planned.
    """
    space = Space(tuple(all_protocols(settings.actions, settings.drug_horizon, settings.embolic_horizon)))
    drawn = range(CONSTANT_SEED, CONSTANT_SEED + CONSTANT_PATIENTS)
    risk = np.array([risks(draw_patient(seed), space) for seed in drawn])
    low, high = risk.min(1, keepdims=True), risk.max(1, keepdims=True)
    order = ((risk - low) / (high - low)).mean(0).argsort(kind="stable")
    return [space.protocols[index] for index in order]
