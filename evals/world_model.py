"""Measures the shipped networks on unseen phantom patients and writes their model card (`mewm evaluate-models`).

Everything runs through the tools, as in a plan: a case on disk, simulated, segmented, measured and scored. The truth
comes from the phantom's response model, never from a network.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr
from sksurv.metrics import concordance_index_censored

from evals.statistics import Interval, bootstrap_mean
from models.engine import Device
from models.networks.segmenter import Tissue
from models.phantom.cohort import CASE_SHAPE, case_affine, write_phantom_case
from models.phantom.patient import Patient, draw_patient, parameters
from models.phantom.pool import random_protocol
from models.phantom.render import render
from models.phantom.response import TrueResponse, draw_survival, respond
from models.weights import DEFAULT_WEIGHTS
from tools.measure_response import measure_response
from tools.segment import segment
from tools.simulate_tumor import simulate_tumor
from tools.survival_risk import survival_risk
from tools.workspace import Workspace

FIRST_SEED = 950_000
"""Patients of the model card: neither trained on (below 900000) nor those of `evals.planning` (from 900000)."""

OIL_HU = 200.0


@dataclass
class _Patient:
    """Simulated and true values over the protocols of one patient."""

    viable: list[tuple[float, float]] = field(default_factory=list)
    oil: list[tuple[float, float]] = field(default_factory=list)
    risk: list[tuple[float, float]] = field(default_factory=list)
    autoencoder: dict[str, float] = field(default_factory=dict)
    dice: dict[str, float] = field(default_factory=dict)
    survival: tuple[float, bool, float, float] = (0.0, False, 0.0, 0.0)  # months, death, predicted and true log hazard


def _dice(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    total = int(one.sum()) + int(other.sum())
    return 2.0 * int((one & other).sum()) / total if total else float("nan")


def _networks_alone(workspace: Workspace, patient: Patient, response: TrueResponse, out: _Patient) -> None:
    """Autoencoder and segmentation on the true scan after treatment, drawn on the engine's own patch grid."""
    engine, prepared = workspace.engine, workspace.prepared(patient.patient_id)
    patch = prepared.patches[0]
    shape = (patch.size, patch.size, patch.size)
    truth = render(patient, patch.affine, shape, response=response, scan_seed=1)
    low, high = engine.model.preset.hu_window
    hu = np.clip(truth.hu, low, high)
    decoded = engine.reconstruct(truth.hu[None])[0]
    error = np.abs(decoded - hu)
    out.autoencoder = {"overall": float(error.mean()), "tumour": float(error[truth.tumour].mean())}
    if (oil := truth.tissue == Tissue.OIL).any():
        out.autoencoder["oil"] = float(error[oil].mean())
    found = engine.segment(truth.hu[None], prepared.pre[:1], prepared.numbers[:1] > 0)[0]
    tumour = (Tissue.VIABLE, Tissue.NECROTIC, Tissue.OIL)
    out.dice = {
        "liver with tumour": _dice(found >= Tissue.LIVER, truth.tissue >= Tissue.LIVER),
        "tumour": _dice(np.isin(found, tumour), np.isin(truth.tissue, tumour)),
        "viable": _dice(found == Tissue.VIABLE, truth.tissue == Tissue.VIABLE),
        "necrotic": _dice(found == Tissue.NECROTIC, truth.tissue == Tissue.NECROTIC),
        "oil": _dice(found == Tissue.OIL, truth.tissue == Tissue.OIL),
    }


def measure_patient(
    seed: int, protocols: int, seeds: Sequence[int], weights: Path, device: Device = "auto"
) -> _Patient:
    """Simulates random protocols for one phantom patient and sets the results beside the truth.

    Args:
        seed: Of the patient.
        protocols: Number of random protocols.
        seeds: Replicas of each.
        weights: Folder of the bundle.
        device: Where the networks run.
    """
    patient = draw_patient(seed)
    rng = np.random.default_rng([seed, 41])
    wanted = list(dict.fromkeys(random_protocol(rng) for _ in range(protocols)))
    responses = [respond(patient, protocol) for protocol in wanted]
    out = _Patient()
    with tempfile.TemporaryDirectory() as folder:
        case = write_phantom_case(patient, Path(folder) / "case")
        name = case.case_id
        workspace = Workspace({name: case.path}, Path(folder) / "artifacts", weights=weights, device=device)
        simulated = simulate_tumor(name, [p.key for p in wanted], list(seeds), workspace=workspace)
        found = segment([o.outcome_id for o in simulated.outcomes], workspace=workspace).segmentations
        ids = [s.segmentation_id for s in found]
        measured = measure_response(name, ids, workspace=workspace).responses
        risks = survival_risk(name, ids, workspace=workspace).estimates
        _networks_alone(workspace, patient, responses[0], out)
    count = len(seeds)
    affine = case_affine()
    for index, response in enumerate(responses):
        rows = slice(index * count, (index + 1) * count)
        truth = render(patient, affine, CASE_SHAPE, response=response, scan_seed=index + 1)
        oil = float((truth.hu[truth.tumour] > OIL_HU).mean())
        out.viable.append(
            (
                float(np.mean([m.viable_ml for m in measured[rows]])) / patient.tumour_ml,
                response.viable_ml / patient.tumour_ml,
            )
        )
        out.oil.append((float(np.mean([m.oil_fraction or 0.0 for m in measured[rows]])), oil))
        out.risk.append((float(np.mean([r.log_risk for r in risks[rows]])), response.log_hazard))
    months, death = draw_survival([responses[0].log_hazard], rng)
    out.survival = (float(months[0]), bool(death[0]), *out.risk[0])
    return out


def _centred(pairs: Sequence[Sequence[tuple[float, float]]]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    simulated = np.concatenate([np.array([p[0] for p in row]) - np.mean([p[0] for p in row]) for row in pairs])
    true = np.concatenate([np.array([p[1] for p in row]) - np.mean([p[1] for p in row]) for row in pairs])
    return simulated, true


def _effect(pairs: Sequence[Sequence[tuple[float, float]]]) -> dict[str, Any]:
    """How well the differences between protocols are simulated within a patient."""
    ranks = []
    for row in pairs:
        simulated, true = (np.array([p[side] for p in row]) for side in (0, 1))
        if np.ptp(simulated) > 0 and np.ptp(true) > 0:
            ranks.append(float(spearmanr(simulated, true).statistic))
    simulated, true = _centred(pairs)
    rng = np.random.default_rng(0)
    shuffled = [[(row[j][0], row[i][1]) for i, j in enumerate(rng.permutation(len(row)))] for row in pairs]
    control, control_true = _centred(shuffled)
    return {
        "within_patient_rank": bootstrap_mean(ranks)._asdict(),
        "amplitude_slope": float(simulated @ true / (true @ true)),
        "correlation": float(np.corrcoef(simulated, true)[0, 1]),
        "shuffled_action_correlation": float(np.corrcoef(control, control_true)[0, 1]),
    }


def _mean(values: Sequence[float]) -> dict[str, Any]:
    kept = [v for v in values if np.isfinite(v)]
    return bootstrap_mean(kept)._asdict()


def _c_index(rows: Sequence[tuple[float, bool, float, float]], side: int, resamples: int = 1000) -> dict[str, Any]:
    time, estimate = (np.array([r[i] for r in rows]) for i in (0, side))
    event = np.array([r[1] for r in rows], dtype=bool)
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(resamples):
        index = rng.integers(0, len(rows), len(rows))
        dead, at = event[index], time[index]
        # a resample of few patients can hold no pair that can be compared: it says nothing
        if dead.any() and at[dead].min() < at.max():
            draws.append(concordance_index_censored(dead, at, estimate[index])[0])
    value = float(concordance_index_censored(event, time, estimate)[0])
    low, high = np.quantile(draws, (0.025, 0.975))
    return Interval(value, float(low), float(high), len(rows))._asdict()


def evaluate_models(
    n: int,
    protocols: int,
    out: Path | None,
    weights: Path = DEFAULT_WEIGHTS,
    progress: Callable[[int, int], None] | None = None,
    replicas: int = 2,
    device: Device = "auto",
) -> dict[str, Any]:
    """Measures a bundle and writes `model_card.json` and `MODEL_CARD.md`.

    Args:
        n: Unseen phantom patients, at least 4.
        protocols: Random protocols for each, at least 3.
        out: Folder for the card; None writes nothing.
        weights: Folder of the bundle.
        progress: Called with (patients done, n).
        replicas: Seeds per protocol.
        device: Where the networks run.

    Returns:
        The content of `model_card.json`.
    """
    rows: list[_Patient] = []
    for index in range(n):
        rows.append(measure_patient(FIRST_SEED + index, protocols, range(replicas), weights, device))
        if progress:
            progress(index + 1, n)
    manifest = json.loads((weights / "manifest.json").read_text(encoding="utf-8"))
    card = {
        "weights": manifest,
        "data": f"synthetic phantom v{parameters()['version']}, unseen seeds {FIRST_SEED} to {FIRST_SEED + n - 1}",
        "n_patients": n,
        "protocols_per_patient": protocols,
        "replicas": replicas,
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"mewm evaluate-models --n {n} --protocols {protocols}",
        "autoencoder_mae_hu": {
            k: _mean([r.autoencoder[k] for r in rows if k in r.autoencoder]) for k in ("overall", "tumour", "oil")
        },
        "dynamics": {
            "viable_share_of_tumour": _effect([r.viable for r in rows]),
            "oil_fraction": _effect([r.oil for r in rows]),
        },
        "segmentation_dice_true_post": {k: _mean([r.dice[k] for r in rows]) for k in rows[0].dice},
        "survival": {
            "c_index_simulated": _c_index([r.survival for r in rows], 2),
            "c_index_oracle": _c_index([r.survival for r in rows], 3),
            "within_patient_risk_rank": _effect([r.risk for r in rows])["within_patient_rank"],
        },
    }
    if out is not None:
        (out / "model_card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        (out / "MODEL_CARD.md").write_text(render_card(card), encoding="utf-8")
    return card


def _cell(value: dict[str, Any], digits: int = 2) -> str:
    return f"{value['mean']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}], n = {value['n']}"


def render_card(card: dict[str, Any]) -> str:
    """The model card as Markdown; the same figures as `model_card.json`, rounded."""
    files = card["weights"]["files"]
    lines = [
        "# Model card: the shipped `small` weights",
        "",
        "**Trained and measured on synthetic phantoms only.** No figure here says anything about patients.",
        "",
        "| file | bytes | sha256 |",
        "|---|---|---|",
        *(f"| {name} | {row['bytes']} | `{row['sha256'][:16]}` |" for name, row in files.items()),
        "",
        "## How they were made",
        "",
        *(f"- {name}: {value}" for name, value in card["weights"].get("provenance", {}).items()),
        "",
        "## What was measured",
        "",
        f"{card['n_patients']} patients ({card['data']}), {card['protocols_per_patient']} random protocols each, "
        f"{card['replicas']} replicas; {card['date']}, `{card['command']}`. "
        "Means with 95 % bootstrap intervals by patient.",
        "",
        "| figure | value |",
        "|---|---|",
        *(
            f"| autoencoder, mean absolute error, {k} (HU) | {_cell(v, 1)} |"
            for k, v in card["autoencoder_mae_hu"].items()
        ),
    ]
    for name, effect in card["dynamics"].items():
        label = name.replace("_", " ")
        lines += [
            f"| {label}: rank correlation over protocols within a patient | {_cell(effect['within_patient_rank'])} |",
            f"| {label}: slope of simulated on true effect (1 is full amplitude) | {effect['amplitude_slope']:.2f} |",
            f"| {label}: correlation of effects | {effect['correlation']:.2f} |",
            f"| {label}: the same with shuffled actions (control) | {effect['shuffled_action_correlation']:.2f} |",
        ]
    lines += [
        f"| Dice on the true scan after treatment, {k} | {_cell(v)} |"
        for k, v in card["segmentation_dice_true_post"].items()
    ]
    survival = card["survival"]
    lines += [
        f"| c-index of the risk on simulated scans | {_cell(survival['c_index_simulated'])} |",
        f"| c-index of the true hazard (the best possible) | {_cell(survival['c_index_oracle'])} |",
        f"| risk: rank correlation over protocols within a patient | {_cell(survival['within_patient_risk_rank'])} |",
        "",
        "## Intended use and limits",
        "",
        "For research only: planning experiments on synthetic or research CT, arterial phase, tumour masks given. Not",
        "trained on any real scan: on real CT the pictures show what the networks do, not what will happen to the",
        "patient. Repeat sessions, catheter position and growth outside the tumour's neighbourhood are not modelled.",
        "",
    ]
    return "\n".join(lines)
