"""The planning table: variants replace one thing each, regrets are counted by hand, a stopped table goes on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from agent.settings import PlannerSettings
from evals import planning_baselines, planning_table
from evals.model_card.scene import Scene
from evals.planning_table import (
    FULL,
    LINES,
    Asked,
    main,
    missing_parts,
    planned_seeds,
    ratio_figure,
    read_without,
    summarise,
)
from evals.planning_table_page import planning_markdown, show
from evals.planning_variants import (
    AmountOnly,
    AnotherPatientsImage,
    AsDrawn,
    PreTreatmentImage,
    TrueHazard,
    TrueImage,
)
from models.engine import Engine
from models.errors import InputError
from models.networks.preset import Preset
from models.phantom.patient import draw_patient
from models.phantom.response import log_hazard, respond
from models.protocol import Protocol
from models.response import NECROTIC, VIABLE
from models.weights import MANIFEST, PARTS, init_world_model, save_world_model
from tests.models.test_engine import tiny_preset
from tools.segment import tissue_ml

SEED = 950_003
JOBS = [
    (Protocol(drugs=("Cisplatin",), embolics=("Lipiodol",)), 0),
    (Protocol(drugs=("Mitomycin", "Epirubicin"), embolics=("PVA",)), 1),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, folder = init_world_model(tiny_preset(), seed=5), tmp_path_factory.mktemp("bundle")
    networks = {name: model.part(name) for name in PARTS}
    save_world_model(networks, model.preset, folder, origin="untrained", provenance={"command": "a test"})
    return folder


@pytest.fixture(scope="module")
def scene(bundle: Path) -> Scene:
    return Scene.of(SEED, Engine("cpu", bundle, precision="fp32", batch=4))


def scans(engine: Engine, scene: Scene) -> list[np.ndarray]:
    return engine.simulate(scene.prepared, JOBS, 1)


def test_a_variant_is_corrected_where_its_row_says_so(scene: Scene) -> None:
    preset = scene.engine.model.preset
    redrawn = preset.model_copy(update={"denoiser": preset.denoiser.model_copy(update={"redraws": 1})})
    engine = Engine("cpu", model=replace(scene.engine.model, preset=redrawn), precision="fp32", batch=4)
    drawn, before = scans(AsDrawn(engine, scene.patient), scene), np.rint(scene.prepared.pre)
    for kind, changed in ((Engine, True), (TrueHazard, True), (AmountOnly, True), (PreTreatmentImage, False)):
        told = engine if kind is Engine else kind(engine, scene.patient)
        for scan, raw in zip(scans(told, scene), drawn, strict=True):
            start = raw if kind in (Engine, TrueHazard) else before
            assert (scan != start).any() == changed
            np.testing.assert_array_equal(scan[scene.prepared.numbers == 0], start[scene.prepared.numbers == 0])


def test_the_image_before_treatment_stays_as_it_is(scene: Scene) -> None:
    variant = PreTreatmentImage(scene.engine, scene.patient)
    for scan in scans(variant, scene):
        np.testing.assert_array_equal(scan, np.rint(scene.prepared.pre))


def test_the_true_image_is_the_phantoms_inside_the_mask_and_the_scan_before_outside(scene: Scene) -> None:
    variant = TrueImage(scene.engine, scene.patient)
    found = scans(variant, scene)
    low, high = scene.engine.model.preset.hu_window
    inside = scene.prepared.weight == 1
    for scan, (protocol, seed) in zip(found, JOBS, strict=True):
        true = scene.truth(respond(scene.patient, protocol), scan_seed=seed + 1)
        np.testing.assert_allclose(scan[inside], np.clip(true.hu[inside], low, high), atol=1.0)
        outside = scene.prepared.weight == 0
        np.testing.assert_array_equal(scan[outside], np.rint(scene.prepared.pre)[outside])


def test_another_patients_change_does_not_depend_on_this_one(scene: Scene) -> None:
    other = draw_patient(planning_table.OTHER_PATIENTS)
    variant = AnotherPatientsImage(scene.engine, scene.patient, other)
    changes = [change for _, change in variant.simulate_differences(scene.prepared, JOBS, 1)]
    own = [
        change for _, change in sorted(scene.engine.simulate_differences(scene.prepared, JOBS, 1), key=lambda p: p[0])
    ]
    assert changes[0].shape == own[0].shape
    assert not np.array_equal(changes[0], own[0])
    for change in changes:
        assert not change[~scene.prepared.support].any()


def test_another_patients_change_lies_on_this_ones_largest_lesion_in_mm(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other has a lesion in a patch of coarser voxels and two more in a second patch, which nobody needs."""
    other = draw_patient(planning_table.OTHER_PATIENTS + 10)
    variant = AnotherPatientsImage(scene.engine, scene.patient, other)
    asked: list[Any] = []

    def ball(_: Engine, prepared: Any, jobs: Any, steps: Any = None) -> Any:
        asked.append(prepared)
        (patch,) = prepared.patches
        tumour = np.argwhere(prepared.numbers[0] == 1)
        away = np.linalg.norm((np.indices((patch.size,) * 3).T - tumour.mean(0)) * patch.spacing_mm, axis=-1).T
        yield 0, np.where(away < 20, 500, 0).astype(np.int16)[None]

    monkeypatch.setattr(Engine, "simulate_differences", ball)
    everywhere = replace(scene.prepared, weight=np.ones_like(scene.prepared.weight))
    ((_, change),) = variant.simulate_differences(everywhere, JOBS[:1])
    (theirs,), (mine,) = asked[0].patches, scene.prepared.patches
    assert theirs.spacing_mm > 1.5 * mine.spacing_mm
    assert asked[0].lesions.count == 1
    laid = np.argwhere(change[0] > 250)
    lesion = np.argwhere(scene.prepared.numbers[0] == 1)
    assert np.linalg.norm(laid.mean(0) - lesion.mean(0)) * mine.spacing_mm < 2.0
    assert len(laid) * mine.spacing_mm**3 == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.15)


def test_the_true_hazard_is_that_of_the_volume_in_the_simulation(scene: Scene) -> None:
    tissue = np.where(scene.prepared.near > 0, NECROTIC, 0).astype(np.uint8)
    tissue[..., ::2] = np.where(scene.prepared.near[..., ::2] > 0, VIABLE, 0)
    variant = TrueHazard(scene.engine, scene.patient)
    (found,) = variant.log_risk(scene.prepared, [np.rint(scene.prepared.pre).astype(np.int16)], [tissue])
    assert found == pytest.approx(log_hazard(scene.patient, tissue_ml(scene.prepared, tissue)[VIABLE], 0.0))


def test_no_variant_is_ever_taken_for_another(scene: Scene) -> None:
    kinds = (AsDrawn, PreTreatmentImage, AmountOnly, TrueImage, TrueHazard)
    engines = [scene.engine, *(kind(scene.engine, scene.patient) for kind in kinds)]
    engines.append(AnotherPatientsImage(scene.engine, scene.patient, draw_patient(SEED + 1)))
    assert len({engine.weights_hash for engine in engines}) == len(engines) == 7


def rows(regrets: list[float], *, full: bool = False) -> list[dict[str, Any]]:
    judged = {
        "policy_first": 0.5, "constant": 0.4, "reachable": 0.1, "seconds": 30.0, "simulations": 100
    }  # fmt: skip
    return [
        {"patient": str(i), "judged": {**judged, "random": 0.5} if full else {}, "of_range": value, "random": 0.5}
        for i, value in enumerate(regrets)
    ]


def test_regrets_are_paired_by_patient_and_excluded_ones_count_nowhere(bundle: Path) -> None:
    values = np.linspace(0.0, 0.6, 10)
    found = {FULL: rows(values.tolist(), full=True), "pre_image": rows((values + 0.1).tolist())}
    found[FULL][3] = {"patient": "3", "judged": None}
    result = summarise(found, {"no_contrastive": "no weights"}, Asked(PlannerSettings(), bundle))
    kept = np.delete(values, 3)
    assert result["n"] == 9
    full, worse = result["rows"]
    assert full["of_range"]["value"] == pytest.approx(kept.mean())
    assert full["of_random"]["value"] == pytest.approx(kept.mean() / 0.5)
    assert full["minus_full"] is None
    assert worse["minus_full"]["value"] == pytest.approx(0.1)
    assert worse["minus_full"]["high"] - worse["minus_full"]["low"] < 1e-6  # the same patients in both rows
    assert result["regret_over_constant"]["value"] == pytest.approx(kept.mean() / 0.4)
    assert result["baselines_minus_full"]["constant"]["value"] == pytest.approx(0.4 - kept.mean())
    assert "without combo-contrastive learning" in result["not_run"]
    found |= {"no_contrastive": rows((values + 0.3).tolist()), "retrained": rows((values + 0.1).tolist())}
    parts = summarise(found, {}, Asked(PlannerSettings(), bundle))
    against = {row["name"]: row["minus_control"] for row in parts["rows"]}
    assert against.pop("no_contrastive")["value"] == pytest.approx(0.2)  # 0.3 against the shipped weights
    assert set(against.values()) == {None}
    assert "Minus the control:\nwithout combo-contrastive learning 0.200 [0.200, 0.200]." in parts["markdown"]
    assert "Minus the control" not in result["markdown"]
    found["true_hazard"] = rows([*values[:5].tolist(), *(values[5:8] - 0.2).tolist(), *(values[8:] + 0.1).tolist()])
    compared = summarise(found, {}, Asked(PlannerSettings(), bundle))
    knowing = compared["markdown"]
    assert compared["rows"][-1]["patients"] == {"as_good": 4, "better": 3, "worse": 2}  # of nine: one is excluded
    assert "| 4, 3, 2 |" in knowing
    assert "toxicity is the fixed term without the patient's own sensitivity" in knowing
    text = StringIO()
    show(result, Console(file=text, width=200))
    assert "full planner" in text.getvalue()
    page = planning_markdown(json.loads(json.dumps(result)))
    assert page == result["markdown"]
    for words in ("49.13 (-3.9)", "62.90 (-1.2)", "9 unseen synthetic patients", "Not measured", f"{kept.mean():.3f}"):
        assert words in page


def test_a_ratio_of_means_by_hand() -> None:
    found = ratio_figure(np.array([1.0, 3.0]), np.array([2.0, 6.0]))
    assert found["value"] == pytest.approx(0.5)
    assert (found["low"], found["high"]) == (pytest.approx(0.5), pytest.approx(0.5))


def test_rows_without_weights_say_what_is_missing(bundle: Path, tmp_path: Path) -> None:
    missing = missing_parts(Asked(PlannerSettings(), bundle))
    assert set(missing) == {"no_contrastive", "no_attenuation", "paper_losses", "retrained", "image_regressor"}
    for wrong in ("contrastive", f"colour={bundle}", "contrastive="):
        with pytest.raises(InputError, match="NAME=FOLDER"):
            read_without([wrong])
    with pytest.raises(SystemExit, match="2"):
        main(["--n", "1"])
    assert len({line.name for line in LINES}) == len(LINES) == 14


def bundle_with(bundle: Path, folder: Path, *changes: str) -> Path:
    """The same weights, said to be trained with `--set` changes."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["preset"] = json.loads(Preset.load("small", changes).model_dump_json())
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_weights_without_a_part_must_have_been_trained_so(bundle: Path, tmp_path: Path) -> None:
    options = "training.denoiser.options"
    contrastive = bundle_with(bundle, tmp_path / "a", f"{options}.contrast_weight=0")
    losses = bundle_with(bundle, tmp_path / "b", f"{options}.effect_weight=0", "denoiser.objective=noise")
    half = bundle_with(bundle, tmp_path / "c", f"{options}.effect_weight=0")
    given = read_without([f"contrastive={contrastive}", f"paper_losses={losses}", f"nothing={bundle}"])
    assert given == {"contrastive": contrastive, "paper_losses": losses, "nothing": bundle}
    for text, why in (
        (f"contrastive={bundle}", "their contrast_weight is 0.02"),
        (f"attenuation={contrastive}", "their attenuation_share is 0.1"),
        (f"paper_losses={bundle}", "their effect_weight is 0.5"),
        (f"paper_losses={half}", "their objective is flow"),
        (f"nothing={contrastive}", "no control.* they have no contrast_weight"),
    ):
        with pytest.raises(InputError, match=why):
            read_without([text])


def test_planned_patients_are_those_that_the_rules_allow() -> None:
    found = planned_seeds(6)
    assert len(found) == 6
    assert found == sorted(found)
    assert found[0] >= planning_table.FIRST_SEED
    assert planned_seeds(3) == found[:3]


def test_a_small_table_is_planned_kept_and_goes_on(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two patients, two rows, an untrained model: the whole way through the planner's graph."""
    monkeypatch.setattr(planning_baselines, "CONSTANT_PATIENTS", 4)
    planning_table._constants.cache_clear()
    settings = PlannerSettings(
        drugs=2, embolics=2, beams=1, replicas=1, drug_horizon=1, embolic_horizon=1, finalists=2, finalist_replicas=2,
        steps=1,
    )  # fmt: skip
    asked = Asked(settings, bundle, device="cpu")
    console = Console(file=StringIO())
    result = planning_table.planning_table(2, tmp_path, asked, console, only=["true_hazard"])
    assert [row["name"] for row in result["rows"]] == [FULL, "true_hazard"]
    for row in result["rows"]:
        assert 0.0 <= row["of_range"]["value"] <= 1.0
        assert row["of_random"]["value"] == pytest.approx(
            row["of_range"]["value"] / result["baselines"]["random"]["value"]
        )
    for name in ("reachable", "random"):
        assert 0.0 <= result["baselines"][name]["value"] < 1.0
    assert result["baselines_minus_full"]["reachable"]["value"] <= 0.0  # a bound: nothing searched there does better
    kept = [json.loads(path.read_text()) for path in tmp_path.glob("*/conditions.json")]
    assert {(one["device"], one["precision"]) for one in kept} == {("cpu", Engine("cpu", bundle).precision)}
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/9*.json")}
    assert len(stamps) == 4
    again = planning_table.planning_table(2, tmp_path, asked, console, only=["true_hazard"])
    assert again == result
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/9*.json")} == stamps
