"""What the shipped weights must do, on phantom patients that they were not trained on; and that the card is theirs."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from evals.model_card.blocks import BLOCKS, FIRST_SEED, Sizes
from evals.model_card.evaluate import evaluate_models
from evals.model_card.render_card import render_card
from evals.model_card.targets import judge
from models.phantom.version import phantom_hash
from models.weights import DEFAULT_WEIGHTS, PARTS, read_manifest

SIZES = Sizes(patients=6, survival_patients=12, tumour_free=4, protocols=6, replicas=2)


@dataclass(frozen=True)
class Measured:
    """A quick version of the card, made from its first patients, and the rows of each block."""

    card: dict[str, Any]
    text: str
    rows: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """The whole of `mewm evaluate-models` on few patients."""
    folder = tmp_path_factory.mktemp("card")
    made = evaluate_models(SIZES, folder, folder / "work", device="cpu")
    rows = {
        block: [json.loads(path.read_text()) for path in sorted(folder.glob(f"work/*/{block}/*.json"))]
        for block in BLOCKS
    }
    return Measured(made, (folder / "MODEL_CARD.md").read_text(encoding="utf-8"), rows)


@pytest.fixture(scope="module")
def rows(quick: Measured) -> list[dict[str, Any]]:
    return quick.rows["patients"]


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DEFAULT_WEIGHTS / "model_card.json").read_text(encoding="utf-8"))
    return content


def leaves(content: Any, path: str = "") -> set[str]:
    """The path of everything in nested dictionaries that is none itself."""
    if not isinstance(content, dict):
        return {path}
    return {leaf for key, value in content.items() for leaf in leaves(value, f"{path}.{key}")}


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


def test_a_quick_card_has_every_figure_of_the_shipped_one(card: dict[str, Any], quick: Measured) -> None:
    """Each section of the card is made on the shipped weights; what longer commands add says that it is missing."""
    extra = {"planning", "table", "simulators", "real_patient"}
    assert leaves(quick.card) == leaves({name: part for name, part in card.items() if name not in extra})
    verdicts = {row["id"]: row["verdict"] for row in quick.card["targets"]["rows"]}
    assert verdicts.pop("regret") == "not measured"
    assert "not measured" not in verdicts.values()
    for command in ("evals.simulator_table`", "evals.planning_table`", "mewm eval table`", "--real-data`"):
        assert re.search(r"not measured \(`.*" + re.escape(command), quick.text, re.IGNORECASE)
    assert quick.text == render_card(quick.card)
    for block, rows in quick.rows.items():
        assert len(rows) == {"patients": 6, "survival": 12, "tumour_free": 4}[block]


def test_the_card_is_reproduced(card: dict[str, Any], quick: Measured) -> None:
    """Its first patients, measured again: the truth to the digit, the networks as near as another CPU computes."""
    kept, found = card["first_rows"]["patients"], quick.rows["patients"][0]
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
    for block in ("survival", "tumour_free"):
        kept, again = card["first_rows"][block], quick.rows[block][0]
        assert kept["seed"] == again["seed"]
        figures = {name: value for name, value in kept.items() if isinstance(value, float)}
        assert {name: again[name] for name in figures} == pytest.approx(figures, abs=0.05)


def test_protocols_are_told_apart_within_a_patient(quick: Measured) -> None:
    found = quick.card["dynamics"]
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


def test_risk_orders_patients_better_than_chance(quick: Measured) -> None:
    """Predicted against true hazard over unseen patients, on simulated scans: concordant pairs counted by hand."""
    pairs = [(one["simulated"], one["oracle"]) for one in quick.rows["survival"]]
    concordant = [
        (a[0] - b[0]) * (a[1] - b[1]) > 0 for i, a in enumerate(pairs) for b in pairs[i + 1 :] if abs(a[1] - b[1]) > 0.1
    ]
    assert sum(concordant) / len(concordant) > 0.6
