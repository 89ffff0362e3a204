"""Blocks: what is measured on one patient, and the figures of a block over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from evals.model_card.dynamics import (
    add_risks,
    measure_agents,
    measure_effects,
    measure_outside,
    measure_spread,
    summarise_dynamics,
    within_patients,
)
from evals.model_card.realism import compare, summarise_realism
from evals.model_card.reconstruction import measure_autoencoder, summarise_autoencoder
from evals.model_card.scene import TRUE_SCAN, Measures, Scene
from evals.model_card.survival import measure_survival, summarise_risk, summarise_survival
from evals.model_card.tissue import measure_segmentation, measure_tumour_free, summarise_segmentation
from evals.simulators import WorldModelSimulator
from models.engine import Engine
from models.phantom.response import respond

Row = dict[str, Any]

FIRST_SEED = 950_000
"""Patients of the model card: not trained on (below 900000), and not those on which plans are judged (from 900000)."""
SURVIVAL_SEED = 960_000
TUMOUR_FREE_SEED = 980_000


class Sizes(BaseModel):
    """How much is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patients: int = Field(default=200, ge=4, description="dynamics, realism, segmentation, autoencoder, risk")
    survival_patients: int = Field(default=1000, ge=8)
    tumour_free: int = Field(default=200, ge=4)
    protocols: int = Field(default=6, ge=4, description="random protocols of each patient")
    replicas: int = Field(default=2, ge=2, description="simulations of each, with other noise")
    steps: int | None = Field(default=None, ge=1, description="sampling steps; None is the preset's")

    @classmethod
    def quick(cls) -> Sizes:
        """Minutes instead of hours: for a look, and for tests. Its intervals are wide."""
        return cls(patients=8, survival_patients=24, tumour_free=8)


def measure_patient(seed: int, engine: Engine, sizes: Sizes) -> Row:
    """Everything that is measured on the patients of the card but survival."""
    scene = Scene.of(seed, engine)
    simulator = WorldModelSimulator(engine, steps=sizes.steps)
    effects = measure_effects(scene, simulator, sizes.protocols, sizes.replicas)
    read = add_risks(scene, effects)
    true, simulated = effects.true[0], effects.simulated[0]
    again = [scene.truth(respond(scene.patient, protocol), TRUE_SCAN + 1) for protocol in effects.protocols]
    for row, scan in zip(effects.rows, again, strict=True):
        row["again"] = scene.measures(scan)._asdict()
    return {
        "seed": seed,
        "tumour_ml": scene.tumour_ml,
        "lesions": scene.prepared.lesions.count,
        "protocols": effects.rows,
        "agents": measure_agents(scene, simulator),
        "true_spread": measure_spread(scene, effects.protocols),
        "outside_hu": measure_outside(scene, simulator, effects.protocols[0]),
        "realism": compare(scene, simulated.hu, true.hu),
        "realism_reference": compare(scene, again[0].hu, true.hu),
        "segmentation": measure_segmentation(scene, true, read[0], simulated),
        "autoencoder": measure_autoencoder(scene, true),
    }


def measure_survivor(seed: int, engine: Engine, sizes: Sizes) -> Row:
    """One patient of the survival block."""
    return measure_survival(
        seed, engine, lambda own: WorldModelSimulator(own, steps=sizes.steps), sizes.replicas
    )  # fmt: skip


def measure_healthy(seed: int, engine: Engine, sizes: Sizes) -> Row:  # noqa: ARG001 (every block has the same signature)
    """One liver without tumour."""
    return measure_tumour_free(seed, engine)


BLOCKS: dict[str, Callable[[int, Engine, Sizes], Row]] = {
    "patients": measure_patient,
    "survival": measure_survivor,
    "tumour_free": measure_healthy,
}


def seeds_of(block: str, sizes: Sizes) -> range:
    """The patients of a block."""
    first, count = {
        "patients": (FIRST_SEED, sizes.patients),
        "survival": (SURVIVAL_SEED, sizes.survival_patients),
        "tumour_free": (TUMOUR_FREE_SEED, sizes.tumour_free),
    }[block]
    return range(first, first + count)


def summarise(rows: Mapping[str, Sequence[Row]], engine: Engine) -> dict[str, Any]:
    """All figures of the card, by group."""
    patients = rows["patients"]
    return {
        "autoencoder": summarise_autoencoder(
            [row["autoencoder"] for row in patients], engine.model.preset.autoencoder.codes
        ),
        "dynamics": summarise_dynamics(patients),
        "realism": {
            "world_model": summarise_realism([row["realism"] for row in patients]),
            "another_true_scan": {
                **summarise_realism([row["realism_reference"] for row in patients]),
                # breathing moves the tissue too
                **{
                    name: within_patients(
                        *(
                            [[one[side][name] for one in row["protocols"]] for row in patients]
                            for side in ("true", "again")
                        )
                    )
                    for name in Measures._fields
                },
            },
        },
        "segmentation": summarise_segmentation([row["segmentation"] for row in patients], rows["tumour_free"]),
        "risk": summarise_risk([row["protocols"] for row in patients]),
        "survival": summarise_survival(rows["survival"], engine.model.baseline),
        "cohort": {
            "tumour_ml_median": float(np.median([row["tumour_ml"] for row in patients])),
            "one_lesion_share": float(np.mean([row["lesions"] == 1 for row in patients])),
        },
    }
