"""Dynamics: do simulated protocols differ as the true ones do? Per protocol, per agent, over seeds, beyond the mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt

from evals.model_card.figures import (
    Array,
    Figure,
    amplitude,
    correlation,
    deviations,
    mean_figure,
    pooled_figure,
    products,
    rank_correlation,
    resampled_figure,
    slope,
)
from evals.model_card.scene import FollowUp, Measures, Scene, TrueFollowUp
from evals.simulators import Simulator
from models.formulary import ITEM_ORDER, Formulary
from models.patch import FEATHER_MM, paste, spacing_of
from models.phantom.patient import Patient, draw_patient
from models.phantom.pool import random_protocol
from models.phantom.response import respond
from models.phantom.version import parameters
from models.protocol import Protocol

RESOLUTION = 0.01
"""Of shares of the tumour, for ranks of rounded ones: in true scans of protocols without Lipiodol noise and vessels
above 200 HU make up to 1.7 % of a synthetic patient's tumour, another share in every scan."""
HIDDEN_DRAWS = 12
"""How often what neither image nor record shows is drawn anew, for the true spread."""
STRANGERS = 1_200_000
"""Patients who lend what nobody sees; never measured themselves."""

Row = dict[str, Any]


def wanted_protocols(seed: int, count: int) -> list[Protocol]:
    """Random protocols of a patient, all different, as the training distribution draws them."""
    rng = np.random.default_rng([seed, 41])
    return list(dict.fromkeys(random_protocol(rng) for _ in range(count)))


def agent_pairs(seed: int) -> tuple[Protocol, list[tuple[str, Protocol, bool]]]:
    """A base protocol of two drugs and one embolic, and for every agent the protocol that differs by it alone.

    Returns:
        The base, and per agent (name, other protocol, whether the other one has the agent and the base not).
    """
    rng = np.random.default_rng([seed, 43])
    formulary = Formulary.load("all")
    drugs = tuple(map(str, rng.choice([item.name for item in formulary.drugs], 2, replace=False)))
    embolic = str(rng.choice([item.name for item in formulary.embolics]))
    base = Protocol(drugs=drugs, embolics=(embolic,))
    pairs: list[tuple[str, Protocol, bool]] = []
    for name in ITEM_ORDER:
        if name in base.items:
            without = Protocol(
                drugs=tuple(d for d in base.drugs if d != name), embolics=tuple(e for e in base.embolics if e != name)
            )
            pairs.append((name, without, False))
        else:
            pairs.append((name, base.with_item(formulary.item(name).kind, name), True))
    return base, pairs


class Effects(NamedTuple):
    """Random protocols of one patient, simulated and true.

    Attributes:
        protocols: The P protocols.
        true: Their true follow-ups.
        simulated: P times R simulated ones, the replicas of a protocol together.
        rows: One per protocol, for the patient's file.
    """

    protocols: list[Protocol]
    true: list[TrueFollowUp]
    simulated: list[FollowUp]
    rows: list[Row]


def measure_effects(scene: Scene, simulator: Simulator, count: int, replicas: int) -> Effects:
    """Simulates random protocols and sets what they do to the tumour beside the truth."""
    wanted = wanted_protocols(scene.patient.seed, count)
    jobs = [(protocol, seed) for protocol in wanted for seed in range(replicas)]
    simulated = scene.simulated(simulator, jobs)
    true = [scene.truth(respond(scene.patient, protocol)) for protocol in wanted]
    rows: list[Row] = [
        {
            "protocol": protocol.key,
            "true": scene.measures(true[index])._asdict(),
            "simulated": [
                scene.measures(one)._asdict() for one in simulated[index * replicas : (index + 1) * replicas]
            ],
        }
        for index, protocol in enumerate(wanted)
    ]
    return Effects(wanted, true, simulated, rows)


def add_risks(scene: Scene, effects: Effects) -> list[FollowUp]:
    """Adds to each row the true risk, and the networks' on the simulated scans and on the true ones.

    Returns:
        The true scans as the networks read them, as if the simulation were perfect.
    """
    replicas = len(effects.simulated) // len(effects.protocols)
    jobs = [protocol for protocol in effects.protocols for _ in range(replicas)]
    simulated = scene.risks(effects.simulated, jobs)
    read = scene.follow_ups([one.hu for one in effects.true])
    on_true = scene.risks(read, effects.protocols)
    for index, (row, protocol) in enumerate(zip(effects.rows, effects.protocols, strict=True)):
        row["true_risk"] = respond(scene.patient, protocol).log_hazard
        row["risk_on_simulated"] = simulated[index * replicas : (index + 1) * replicas]
        row["risk_on_true"] = on_true[index]
    return read


def measure_agents(scene: Scene, simulator: Simulator) -> list[Row]:
    """The true and the simulated effect of every agent: the protocol with it less the same one without it."""
    base, pairs = agent_pairs(scene.patient.seed)
    protocols = [base, *(other for _, other, _ in pairs)]
    found = scene.simulated(simulator, [(protocol, 0) for protocol in protocols])
    simulated = [np.array(scene.measures(one)) for one in found]
    true = [np.array(scene.measures(scene.truth(respond(scene.patient, protocol)))) for protocol in protocols]
    rows: list[Row] = []
    for index, (name, _, added) in enumerate(pairs, start=1):
        sign = 1.0 if added else -1.0
        effect = {
            side: Measures(*(sign * (values[index] - values[0])).tolist())._asdict()
            for side, values in (("true", true), ("simulated", simulated))
        }
        rows.append({"agent": name, **effect})
    return rows


def measure_spread(scene: Scene, protocols: Sequence[Protocol]) -> Row:
    """Variance of the true outcome over what neither image nor record shows: of the viable share and the log hazard."""
    alike = [redraw_hidden(scene.patient, index) for index in range(HIDDEN_DRAWS)]
    viable, hazard = [], []
    for protocol in protocols:
        drawn = [respond(one, protocol) for one in alike]
        viable.append(float(np.var([one.viable_ml / scene.patient.tumour_ml for one in drawn], ddof=1)))
        hazard.append(float(np.var([one.log_hazard for one in drawn], ddof=1)))
    return {"viable": viable, "risk": hazard}


def redraw_hidden(patient: Patient, index: int) -> Patient:
    """The same patient to the eye: each hidden property as a stranger's, drawn from the same distribution.

    The noise of the oil deposit hangs on the patient's identity and stays as it is.
    """
    stranger = draw_patient(STRANGERS + 100 * (patient.seed % 1000) + index)
    rng = np.random.default_rng([patient.seed, 47, index])
    table = parameters()
    spread, weaker = float(table["response"]["lesion_sd"]), float(table["cohort"]["satellite"]["response"])
    lesions = tuple(
        replace(lesion, response=(weaker if lesion.satellite else 1.0) * float(np.exp(rng.normal(0.0, spread))))
        for lesion in patient.lesions
    )
    return replace(
        patient,
        lesions=lesions,
        hidden=stranger.hidden,
        toxicity_sensitivity=stranger.toxicity_sensitivity,
        shrinkage=stranger.shrinkage,
    )


def measure_outside(scene: Scene, simulator: Simulator, protocol: Protocol) -> int:
    """Largest difference in HU, in the full CT, beyond the feathered mask: must be 0 after pasting back."""
    ((_, difference),) = simulator.differences(scene.prepared, [(protocol, 0)])
    lesions, window = scene.prepared.lesions, scene.engine.model.preset.hu_window
    after = paste(
        scene.volume, lesions.index > 0, scene.prepared.patches, list(difference), lesions=lesions, window=window
    )
    spacing = spacing_of(scene.volume.affine)
    outside = distance_transform_edt(lesions.index == 0, sampling=spacing) >= FEATHER_MM
    change = np.abs(after.data.astype(np.int32) - scene.volume.data.astype(np.int32))
    return int(change[outside].max(initial=0))


def summarise_dynamics(rows: Sequence[Row]) -> dict[str, Any]:
    """Figures over patients: per measure, per agent, spread, outside."""
    out: dict[str, Any] = {}
    for name in Measures._fields:
        true = [[protocol["true"][name] for protocol in row["protocols"]] for row in rows]
        simulated = [[_mean(protocol["simulated"], name) for protocol in row["protocols"]] for row in rows]
        out[name] = within_patients(true, simulated)
    out["agents"] = summarise_agents([row["agents"] for row in rows if row.get("agents")])
    out["spread"] = summarise_spread(rows)
    outside = [row["outside_hu"] for row in rows if row.get("outside_hu") is not None]
    if outside:
        out["outside_mask_hu"] = {"value": float(max(outside)), "low": None, "high": None, "n": len(outside)}
    return out


def _mean(replicas: Sequence[dict[str, float]], name: str) -> float:
    return float(np.mean([one[name] for one in replicas]))


def within_patients(true: Sequence[Sequence[float]], simulated: Sequence[Sequence[float]]) -> dict[str, Figure]:
    """How the differences between protocols of one patient come out.

    Args:
        true: Patients x protocols.
        simulated: The same, mean over replicas.
    """
    pairs = [deviations(x, y) for x, y in zip(true, simulated, strict=True)]
    sums = np.array([products(x, y) for x, y in pairs])
    ranks = [rank_correlation(x, y) for x, y in zip(true, simulated, strict=True)]
    coarse = [rank_correlation(_rounded(x), _rounded(y)) for x, y in zip(true, simulated, strict=True)]
    shuffled = np.array([control(x, y) for x, y in zip(true, simulated, strict=True)])
    flat_true, flat_simulated = ([np.asarray(row) for row in side] for side in (true, simulated))

    def over_all(index: Any) -> float:
        x = np.concatenate([flat_true[i] for i in index])
        y = np.concatenate([flat_simulated[i] for i in index])
        return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) > 0 and np.ptp(y) > 0 else float("nan")

    return {
        "correlation": resampled_figure(len(true), over_all),
        "within_patient_correlation": pooled_figure(sums, correlation),
        "within_patient_rank": mean_figure(ranks),
        "within_patient_rank_rounded": mean_figure(coarse),
        "slope": pooled_figure(sums, slope),
        "amplitude_ratio": pooled_figure(sums, amplitude),
        "shuffled_control": pooled_figure(shuffled, correlation),
        "true_mean": mean_figure([float(np.mean(x)) for x in true]),
        "simulated_mean": mean_figure([float(np.mean(y)) for y in simulated]),
    }  # fmt: skip


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value / RESOLUTION) * RESOLUTION for value in values]


def control(true: Sequence[float], simulated: Sequence[float]) -> Array:
    """Products of true effects with simulated effects of *other* protocols of the same patient.

    The first half of the protocols is set against the second half, each less its own mean, and the other way round.
    The protocols are drawn independently, so that a simulation that has learned its action gives 0 here, and so does
    one that has not: what differs from 0 is an artefact of the measure or leaks from the patient.
    """
    half = len(true) // 2
    first, second = slice(0, half), slice(half, 2 * half)
    total = np.zeros(3)
    for one, other in ((first, second), (second, first)):
        x, y = deviations(true[one], simulated[other])
        total += products(x, y)
    return total


def summarise_agents(rows: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """Effect recovery per agent: regression of simulated on true effect through the origin, and both means.

    Lipiodol has a second line for the oil that it leaves; every agent has one for the viable share.
    """
    out: dict[str, Any] = {}
    for name in ITEM_ORDER:
        found = [entry for row in rows for entry in row if entry["agent"] == name]
        if not found:
            continue
        measures = ["viable", "oil"] if name == "Lipiodol" else ["viable"]
        for measure in measures:
            x, y = (np.array([entry[side][measure] for entry in found]) for side in ("true", "simulated"))
            sums = np.stack([x * y, x * x, y * y], axis=1)
            spread = np.stack([x * y, x * x, y * y, x, y, np.ones_like(x)], axis=1)
            out[name if measure == "viable" else f"{name} (oil)"] = {
                "true_effect": mean_figure(x.tolist()),
                "simulated_effect": mean_figure(y.tolist()),
                "slope": pooled_figure(sums, slope),
                "patient_slope": pooled_figure(spread, _centred_slope),
            }
    return out


def _centred_slope(sums: Array) -> Array:
    """Sums (..., [xy, xx, yy, x, y, 1]) -> slope with an intercept: what is kept of differences between patients."""
    xy, xx, _, x, y, n = np.moveaxis(sums, -1, 0)
    return np.asarray((xy - x * y / n) / (xx - x * x / n))


def summarise_spread(rows: Sequence[Row]) -> dict[str, Any]:
    """Standard deviation of simulations over seeds, and that of the truth over what can't be seen."""
    out: dict[str, Any] = {}
    for name in ("viable", "risk"):
        over_seeds, true = [], []
        for row in rows:
            seen = [
                _values(protocol, name) for protocol in row["protocols"] if len(_values(protocol, name)) > 1
            ]  # fmt: skip
            if seen and row.get("true_spread"):
                over_seeds.append(float(np.mean([np.var(values, ddof=1) for values in seen])))
                true.append(float(np.mean(row["true_spread"][name])))
        sums = np.stack([np.array(over_seeds), np.array(true), np.ones(len(true))], axis=1)
        out[name] = {
            "over_seeds": pooled_figure(sums, lambda s: np.sqrt(s[..., 0] / s[..., 2])),
            "true": pooled_figure(sums, lambda s: np.sqrt(s[..., 1] / s[..., 2])),
            "ratio": pooled_figure(sums, lambda s: np.sqrt(s[..., 0] / s[..., 1])),
        }
    return out


def _values(protocol: Row, name: str) -> list[float]:
    if name == "risk":
        return list(protocol["risk_on_simulated"])
    return [one[name] for one in protocol["simulated"]]
