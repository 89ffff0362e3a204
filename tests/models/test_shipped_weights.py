"""What the shipped weights must do, on phantom patients that they were not trained on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from evals.world_model import evaluate_models, measure_patient, render_card
from models.phantom.cohort import write_phantom_case
from models.phantom.patient import draw_patient
from models.weights import DEFAULT_WEIGHTS, PARTS, read_manifest
from tools.measure_response import Response, measure_response
from tools.segment import segment
from tools.simulate_tumor import simulate_tumor
from tools.workspace import Workspace

SEEDS = (960_001, 960_002, 960_003, 960_004)


def test_the_files_are_small_hashed_and_described_by_the_card() -> None:
    manifest = read_manifest(DEFAULT_WEIGHTS)
    card = json.loads((DEFAULT_WEIGHTS / "model_card.json").read_text(encoding="utf-8"))
    total = 0
    for name in PARTS:
        content = (DEFAULT_WEIGHTS / f"{name}.safetensors").read_bytes()
        total += len(content)
        assert len(content) < 16 * 2**20
        assert hashlib.sha256(content).hexdigest() == manifest.files[f"{name}.safetensors"].sha256
        assert card["weights"]["files"][f"{name}.safetensors"]["sha256"] == manifest.files[f"{name}.safetensors"].sha256
    assert total < 40 * 2**20
    assert (DEFAULT_WEIGHTS / "MODEL_CARD.md").read_text(encoding="utf-8") == render_card(card)


def responses(seed: int, protocols: list[str], folder: Path) -> dict[str, Response]:
    patient = draw_patient(seed)
    case = write_phantom_case(patient, folder / str(seed))
    workspace = Workspace({case.case_id: case.path}, folder / "artifacts")
    outcomes = simulate_tumor(case.case_id, protocols, [0, 1], workspace=workspace).outcomes
    found = segment([o.outcome_id for o in outcomes], workspace=workspace).segmentations
    measured = measure_response(case.case_id, [s.segmentation_id for s in found], workspace=workspace).responses
    return {row.protocol: row for row in measured if row.seed == 0}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Response]]:
    folder = tmp_path_factory.mktemp("weights")
    protocols = [
        "Mitomycin; Epirubicin; Oxaliplatin; Gelatin sponge",
        "Mitomycin; Epirubicin; Oxaliplatin; Gelatin sponge; Lipiodol",
        "Cisplatin",
    ]
    return [responses(seed, protocols, folder) for seed in SEEDS]


def test_lipiodol_brightens_the_tumour_and_nothing_else_does(measured: list[dict[str, Response]]) -> None:
    for rows in measured:
        dry, oily = (next(r for k, r in rows.items() if k.endswith(e)) for e in ("| Gelatin sponge", "+ Lipiodol"))
        assert oily.oil_fraction > 0.05
        assert dry.oil_fraction < 0.5 * oily.oil_fraction


def test_three_drugs_with_a_particle_leave_less_living_tumour_than_one_drug_alone(
    measured: list[dict[str, Response]],
) -> None:
    for rows in measured:
        weak = next(r for k, r in rows.items() if k == "Cisplatin | -")
        strong = next(r for k, r in rows.items() if k.endswith("+ Lipiodol"))
        assert strong.viable_ml < weak.viable_ml


def test_figures_on_a_few_unseen_patients_hold() -> None:
    """A quick version of the model card's figures; the full one is `mewm evaluate-models`."""
    card = evaluate_models(6, 5, None, replicas=1)
    oil, viable = (card["dynamics"][name] for name in ("oil_fraction", "viable_share_of_tumour"))
    assert oil["within_patient_rank"]["mean"] > 0.6
    assert oil["correlation"] > oil["shuffled_action_correlation"] + 0.4
    assert viable["within_patient_rank"]["mean"] > 0.3
    assert card["segmentation_dice_true_post"]["tumour"]["mean"] > 0.75


def test_risk_orders_patients_better_than_chance() -> None:
    """Predicted against true hazard over unseen patients, on simulated scans: concordant pairs counted by hand."""
    pairs = [measure_patient(seed, 3, (0,), DEFAULT_WEIGHTS).risk[0] for seed in range(961_000, 961_008)]
    concordant = [
        (a[0] - b[0]) * (a[1] - b[1]) > 0 for i, a in enumerate(pairs) for b in pairs[i + 1 :] if abs(a[1] - b[1]) > 0.1
    ]
    assert sum(concordant) / len(concordant) > 0.65
