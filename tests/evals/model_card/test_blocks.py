"""One patient of every block on a tiny untrained model: the truth is the phantom's, and every figure can be made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from evals.model_card import dynamics, evaluate, survival
from evals.model_card.blocks import BLOCKS, Sizes, measure_healthy, measure_patient, measure_survivor, seeds_of
from evals.model_card.dynamics import measure_outside, wanted_protocols
from evals.model_card.evaluate import evaluate_models
from evals.model_card.render_card import render_card
from evals.model_card.scene import Scene
from evals.model_card.tissue import tumour_free_scan
from evals.simulators import WorldModelSimulator
from models.engine import Engine
from models.errors import InputError
from models.formulary import ITEM_ORDER
from models.phantom.cohort import case_affine
from models.phantom.response import respond
from models.response import NECROTIC, OIL, VIABLE
from models.volume import Volume
from models.weights import PARTS, init_world_model, save_world_model
from tests.models.test_engine import tiny_preset

SIZES = Sizes(patients=4, survival_patients=8, tumour_free=4, protocols=4, replicas=2, steps=1)
SEED = 950_000


@pytest.fixture(scope="module")
def scene(engine: Engine) -> Scene:
    return Scene.of(SEED, engine)


@pytest.fixture(scope="module")
def row(engine: Engine) -> dict[str, Any]:
    return measure_patient(SEED, engine, SIZES)


@pytest.fixture(scope="module")
def survivor(engine: Engine) -> dict[str, Any]:
    return measure_survivor(960_000, engine, SIZES)


def test_measures_of_the_truth_are_those_of_the_response_model(scene: Scene) -> None:
    """Volumes counted on rendered labels against the response model's own numbers."""
    assert scene.tumour_ml == pytest.approx(scene.patient.tumour_ml, rel=0.15)
    for protocol in wanted_protocols(SEED, 3):
        response = respond(scene.patient, protocol)
        found = scene.measures(scene.truth(response))
        assert found.viable == pytest.approx(response.viable_ml / scene.patient.tumour_ml, abs=0.12)
        assert 0.0 <= found.necrotic <= 1.0
        if "Lipiodol" not in protocol.items:
            assert found.oil < 0.03


def test_measures_by_counting_voxels(scene: Scene) -> None:
    """One patch of one spacing: shares of voxels inside the original tumour."""
    found = scene.truth(respond(scene.patient, wanted_protocols(SEED, 1)[0]))
    tumour = (scene.prepared.numbers > 0) & (scene.prepared.own > 0)
    assert len(scene.prepared.patches) == 1
    measured = scene.measures(found)
    assert measured.necrotic == pytest.approx((found.tissue[tumour] == NECROTIC).mean())
    assert measured.oil == pytest.approx((found.hu[tumour] > 200).mean())
    viable = ((found.tissue == VIABLE) & (scene.prepared.own > 0)).sum()
    assert measured.viable == pytest.approx(viable / tumour.sum())
    assert not found.tissue[scene.prepared.near == 0].any()
    assert set(np.unique(found.all_tissue)) <= {0, 1, VIABLE, NECROTIC, OIL}


def test_nothing_changes_beyond_the_mask_and_a_leak_is_found(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = wanted_protocols(SEED, 1)[0]
    assert measure_outside(scene, WorldModelSimulator(scene.engine, steps=1), protocol) == 0
    monkeypatch.setattr(dynamics, "paste", lambda volume, *_, **__: Volume(volume.data + np.int16(7), volume.affine))
    assert measure_outside(scene, WorldModelSimulator(scene.engine, steps=1), protocol) == 7


def test_a_row_holds_all_that_the_card_needs(row: dict[str, Any]) -> None:
    text = json.dumps(row)
    assert "NaN" not in text
    assert [entry["agent"] for entry in row["agents"]] == list(ITEM_ORDER)
    assert len(row["protocols"]) == 4
    for protocol in row["protocols"]:
        assert len(protocol["simulated"]) == len(protocol["risk_on_simulated"]) == 2
        assert set(protocol["true"]) == {"oil", "necrotic", "viable"}
        assert protocol["again"] == pytest.approx(protocol["true"], abs=0.05)  # a second scan of the same state
        assert protocol["again"] != protocol["true"]
    assert row["outside_hu"] == 0
    assert row["realism_reference"]["mae_hu"] < row["realism"]["mae_hu"]
    assert all(value > 0 for value in row["true_spread"]["viable"])
    assert sum(row["autoencoder"]["codes"].values()) == 8**3
    true = [entry["true"]["viable"] for entry in row["agents"]]
    assert np.mean(true) < 0  # agents kill


def test_the_same_patient_gives_the_same_row(row: dict[str, Any], engine: Engine, survivor: dict[str, Any]) -> None:
    again = measure_survivor(960_000, engine, SIZES)
    assert again == survivor
    assert survivor["months"] > 0
    assert survivor["true"] != survivor["simulated"]


def test_a_liver_without_tumour_has_none_in_truth(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = tumour_free_scan(980_000)
    assert not scan.tumour.any()
    assert scan.tissue.max() == 1
    assert set(np.unique(scan.organs)) == {0, 1, 3, 4}  # no tumour
    liver = np.isin(scan.organs, (1, 3))

    def seven_voxels_wrong(volume: Volume) -> Any:
        np.testing.assert_array_equal(volume.data, np.rint(scan.hu))
        found = liver.astype(np.uint8)
        found[tuple(np.argwhere(liver)[:7].T)] = 2
        return found

    monkeypatch.setattr(engine, "segment_volume", seven_voxels_wrong)
    found = measure_healthy(980_000, engine, SIZES)
    assert found["false_ml"] == pytest.approx(7 * abs(np.linalg.det(case_affine()[:3, :3])) / 1000)
    assert found["liver_dice"] == 1.0


def varied(row: dict[str, Any], index: int) -> dict[str, Any]:
    """A row with some noise, so that statistics over patients exist."""
    rng = np.random.default_rng(index)

    def shake(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: value if key == "codes" else shake(value) for key, value in node.items()}
        if isinstance(node, list):
            return [shake(value) for value in node]
        return node + 0.01 * rng.normal() if isinstance(node, float) else node

    return shake(row)


@pytest.fixture
def card(
    row: dict[str, Any], survivor: dict[str, Any], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    calls: list[tuple[str, int]] = []

    def fake(block: str) -> Any:
        def measure(seed: int, engine: Engine, sizes: Sizes) -> dict[str, Any]:
            calls.append((block, seed))
            if block == "tumour_free":
                return {"seed": seed, "false_ml": 0.0, "liver_dice": 0.9}
            if block == "survival":
                made = varied(survivor, seed)
                return {**made, "months": 5.0 + seed % 7, "died": seed % 3 > 0}
            return varied(row, seed)

        return measure

    monkeypatch.setattr(survival, "SLOPE_DRAWS", 10)
    for block in BLOCKS:
        monkeypatch.setitem(BLOCKS, block, fake(block))
    made = evaluate_models(SIZES, tmp_path, tmp_path / "work", weights=bundle, device="cpu", command="mewm test")
    first = len(calls)
    again = evaluate_models(SIZES, None, tmp_path / "work", weights=bundle, device="cpu", command="mewm test")
    assert len(calls) == first == 4 + 8 + 4  # the second evaluation measured nobody again
    assert {key: again[key] for key in again if key != "date"} == {key: made[key] for key in made if key != "date"}
    assert json.loads((tmp_path / "model_card.json").read_text()) == json.loads(json.dumps(made))
    assert (tmp_path / "MODEL_CARD.md").read_text() == render_card(made)
    return made


def test_the_card_names_weights_data_targets_and_figures(card: dict[str, Any]) -> None:
    text = render_card(json.loads(json.dumps(card)))
    for words in (
        card["weights_hash"], card["data"]["phantom_hash"], "950000 to 950003", "Lipiodol fraction", "c-index",
        "`mewm test`", "Mitomycin", "Lipiodol (oil)", "not measured", "Kaplan-Meier",
    ):  # fmt: skip
        assert words in text, words
    rows = card["targets"]["rows"]
    verdicts = {one["id"]: one["verdict"] for one in rows}
    assert verdicts["regret"] == "not measured"
    assert verdicts["outside"] == "met"
    assert verdicts["false_tumours"] == "met"
    assert "missed" in verdicts.values()  # an untrained model misses
    for one in rows:
        assert one["text"] in text
        if one["verdict"] == "missed":
            assert one["id"] in text.split("## How they were made")[0]
    assert "None" not in text
    assert "nan" not in text


def test_figures_of_the_card_by_hand(card: dict[str, Any], tmp_path: Path) -> None:
    """Means, pooled slopes, ratios and ranks again, from the patients' files and with other libraries."""
    files = sorted((tmp_path / "work").glob("*/patients/*.json"))
    rows = [json.loads(path.read_text()) for path in files]
    assert len(rows) == 4
    mean_error = np.mean([row["autoencoder"]["tumour"] for row in rows])
    assert card["autoencoder"]["mae_hu_tumour"]["value"] == pytest.approx(mean_error)
    dice = np.mean([row["segmentation"]["views"]["post"]["tumour_dice"] for row in rows])
    assert card["segmentation"]["post"]["tumour_dice"]["value"] == pytest.approx(dice)
    agents = card["dynamics"]["agents"]
    for name in ("PVA", "Cisplatin"):
        found = [one for row in rows for one in row["agents"] if one["agent"] == name]
        true, simulated = np.transpose([[one[side]["viable"] for side in ("true", "simulated")] for one in found])
        assert agents[name]["true_effect"]["value"] == pytest.approx(np.mean(true))
        (by_least_squares,), *_ = np.linalg.lstsq(true[:, None], simulated, rcond=None)
        assert agents[name]["slope"]["value"] == pytest.approx(by_least_squares)
    protocols = [row["protocols"] for row in rows]
    true = np.array([[one["true"]["viable"] for one in patient] for patient in protocols])
    simulated = np.array(
        [[np.mean([r["viable"] for r in one["simulated"]]) for one in patient] for patient in protocols]
    )
    viable = card["dynamics"]["viable"]
    spread = [np.sqrt(values.var(axis=1).sum()) for values in (true, simulated)]
    assert viable["amplitude_ratio"]["value"] == pytest.approx(spread[1] / spread[0])
    ranks = [spearmanr(x, y).statistic for x, y in zip(true, simulated, strict=True)]
    assert viable["within_patient_rank"]["value"] == pytest.approx(np.mean(ranks))
    true = np.array([[one["true_risk"] for one in patient] for patient in protocols])
    simulated = np.array([[np.mean(one["risk_on_simulated"]) for one in patient] for patient in protocols])
    ranks = [spearmanr(x, y).statistic for x, y in zip(true, simulated, strict=True)]
    assert card["risk"]["on_simulated_scans"]["value"] == pytest.approx(np.mean(ranks))


def test_results_of_other_weights_or_another_phantom_are_refused(bundle: Path, tmp_path: Path) -> None:
    for wrong in ({"weights": "0123456789ab"}, {"phantom": "another"}):
        with pytest.raises(InputError, match="The planning result was measured with"):
            evaluate_models(SIZES, None, tmp_path, weights=bundle, device="cpu", extra={"planning": wrong})
    assert not list(tmp_path.iterdir())  # before anything is measured


def test_other_weights_are_measured_anew(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = init_world_model(tiny_preset(), seed=6)
    networks = {name: made.part(name) for name in PARTS}
    save_world_model(networks, made.preset, tmp_path / "b", origin="untrained", provenance={"command": "a test"})
    asked: list[tuple[str, int]] = []

    def measure(seed: int, engine: Engine, sizes: Sizes) -> dict[str, Any]:
        asked.append((engine.weights_hash, seed))
        return {"seed": seed}

    for block in BLOCKS:
        monkeypatch.setitem(BLOCKS, block, measure)
    monkeypatch.setattr(evaluate, "summarise", lambda rows, engine: {})
    monkeypatch.setattr(evaluate, "judge", lambda card: [])
    for weights in (bundle, tmp_path / "b", bundle):
        evaluate_models(SIZES, None, tmp_path / "work", weights=weights, device="cpu")
    assert len(asked) == len(set(asked)) == 2 * (4 + 8 + 4)
    assert len(list((tmp_path / "work").iterdir())) == 2


def test_nobody_is_in_two_blocks_or_trained_on() -> None:
    seeds = [seed for block in BLOCKS for seed in seeds_of(block, Sizes())]
    assert len(seeds) == len(set(seeds))
    assert min(seeds) >= 900_000  # training stays below
