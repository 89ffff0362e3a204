"""What the shipped weights must do, on phantom patients that they were not trained on; and that the card is theirs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest

from evals.model_card.blocks import FIRST_SEED, Sizes, measure_healthy, measure_patient, measure_survivor
from evals.model_card.dynamics import summarise_dynamics
from evals.model_card.render_card import render_card
from evals.model_card.scene import BATCH
from evals.model_card.targets import judge
from models.engine import Engine
from models.phantom.version import phantom_hash
from models.weights import DEFAULT_WEIGHTS, PARTS, read_manifest

SEEDS = (FIRST_SEED, 970_002, 970_003, 970_004, 970_005, 970_006)
SIZES = Sizes(patients=4, survival_patients=8, tumour_free=4, protocols=6, replicas=2)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("cpu", batch=BATCH)


@pytest.fixture(scope="module")
def rows(engine: Engine) -> list[dict[str, Any]]:
    """A quick version of the model card's figures; the full one is `mewm evaluate-models`."""
    return [measure_patient(seed, engine, SIZES) for seed in SEEDS]


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DEFAULT_WEIGHTS / "model_card.json").read_text(encoding="utf-8"))
    return content


def test_the_files_are_small_and_hashed() -> None:
    manifest = read_manifest(DEFAULT_WEIGHTS)
    total = 0
    for name in PARTS:
        content = (DEFAULT_WEIGHTS / f"{name}.safetensors").read_bytes()
        total += len(content)
        assert len(content) < 16 * 2**20
        assert hashlib.sha256(content).hexdigest() == manifest.files[f"{name}.safetensors"].sha256
    assert total < 40 * 2**20


def test_the_card_is_that_of_these_weights_and_this_phantom(card: dict[str, Any]) -> None:
    manifest = read_manifest(DEFAULT_WEIGHTS)
    assert card["weights_hash"] == manifest.weights_hash
    assert card["weights"]["files"] == {name: file.model_dump() for name, file in manifest.files.items()}
    assert card["data"]["phantom_hash"] == phantom_hash()
    assert (DEFAULT_WEIGHTS / "MODEL_CARD.md").read_text(encoding="utf-8") == render_card(card)


def test_the_cards_verdicts_are_those_of_its_figures(card: dict[str, Any]) -> None:
    """Met or missed follows from the figures beside it; nothing is missed silently."""
    assert card["targets"]["rows"] == json.loads(json.dumps(judge(card)))
    text = (DEFAULT_WEIGHTS / "MODEL_CARD.md").read_text(encoding="utf-8")
    for row in card["targets"]["rows"]:
        assert row["text"] in text
    missed = [row["id"] for row in card["targets"]["rows"] if row["verdict"] == "missed"]
    assert all(name in text.split("## How they were made")[0] for name in missed)


def test_the_card_is_reproduced(card: dict[str, Any], rows: list[dict[str, Any]], engine: Engine) -> None:
    """Its first patients, measured again: the truth to the digit, the networks as near as another CPU computes."""
    kept, found = card["first_rows"]["patients"], rows[0]
    assert kept["seed"] == found["seed"] == FIRST_SEED
    assert [p["protocol"] for p in kept["protocols"]] == [p["protocol"] for p in found["protocols"]]
    for side, near in (("true", 1e-6), ("simulated", 0.03)):
        mine, theirs = (
            np.array([list(one.values()) for p in row["protocols"] for one in np.atleast_1d(p[side])])
            for row in (kept, found)
        )
        np.testing.assert_allclose(mine, theirs, atol=near)
    risks = [np.array([p["risk_on_simulated"] for p in row["protocols"]]) for row in (kept, found)]
    np.testing.assert_allclose(*risks, atol=0.05)
    for view in ("pre", "post"):
        dice = [row["segmentation"]["views"][view]["tumour_dice"] for row in (kept, found)]
        assert dice[0] == pytest.approx(dice[1], abs=0.02)
    for block, measure in (("survival", measure_survivor), ("tumour_free", measure_healthy)):
        kept = card["first_rows"][block]
        figures = {name: value for name, value in kept.items() if isinstance(value, float)}
        again = measure(kept["seed"], engine, SIZES)
        assert {name: again[name] for name in figures} == pytest.approx(figures, abs=0.05)


def test_protocols_are_told_apart_within_a_patient(rows: list[dict[str, Any]]) -> None:
    found = summarise_dynamics(rows)
    assert found["oil"]["within_patient_rank"]["value"] > 0.6
    assert found["necrotic"]["within_patient_rank"]["value"] > 0.3
    assert found["viable"]["within_patient_rank"]["value"] > 0.3
    assert found["oil"]["within_patient_correlation"]["value"] > 0.6
    assert abs(found["oil"]["shuffled_control"]["value"]) < 0.5


def test_lipiodol_brightens_the_tumour_and_nothing_else_does(rows: list[dict[str, Any]]) -> None:
    oily, dry = [], []
    for protocol in (entry for row in rows for entry in row["protocols"]):
        values = [one["oil"] for one in protocol["simulated"]]
        (oily if "Lipiodol" in protocol["protocol"] else dry).append(np.mean(values))
    assert np.mean(oily) > 0.05
    assert np.mean(dry) < 0.2 * np.mean(oily)


def test_agents_kill_in_simulation_as_in_truth(rows: list[dict[str, Any]]) -> None:
    effects = np.array([[e["true"]["viable"], e["simulated"]["viable"]] for row in rows for e in row["agents"]])
    true, simulated = effects.T
    assert simulated.mean() < 0
    assert 0.4 < simulated.mean() / true.mean() < 1.8
    assert np.corrcoef(true, simulated)[0, 1] > 0.3


def test_the_tumour_is_found_and_the_rest_left_alone(rows: list[dict[str, Any]]) -> None:
    for view in ("post", "simulated_post"):
        dice = [row["segmentation"]["views"][view]["tumour_dice"] for row in rows]
        assert np.mean(dice) > 0.7, view
    assert all(row["outside_hu"] == 0 for row in rows)


def test_risk_orders_patients_better_than_chance(engine: Engine) -> None:
    """Predicted against true hazard over unseen patients, on simulated scans: concordant pairs counted by hand."""
    found = [measure_survivor(seed, engine, SIZES) for seed in range(971_000, 971_010)]
    pairs = [(one["simulated"], one["oracle"]) for one in found]
    concordant = [
        (a[0] - b[0]) * (a[1] - b[1]) > 0 for i, a in enumerate(pairs) for b in pairs[i + 1 :] if abs(a[1] - b[1]) > 0.1
    ]
    assert sum(concordant) / len(concordant) > 0.6
