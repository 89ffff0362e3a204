"""`python -m evals.planning`: regret of the plan on unseen phantom patients, beside its baselines.

Each patient is written as a case, planned as a user would plan it, and judged by the phantom's true risk of every
protocol
that the rules allow. Regret is the true log hazard of the choice above that of the best allowed protocol, as a share
of worst
minus best: 0 is best, 1 is worst. Finished patients are kept in the output folder, so an interrupted evaluation goes
on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from agent.events import Planned
from agent.nodes import Services
from agent.plan import Plan
from agent.run import Run, start_run
from agent.services import make_services
from agent.settings import PlannerSettings
from agent.state import CaseFacts
from evals.regret import RiskTable, allowed_protocols, true_risks
from evals.statistics import bootstrap_mean
from models.phantom.cohort import all_protocols, write_phantom_case
from models.phantom.patient import draw_patient
from models.phantom.response import respond
from models.phantom.version import parameters, phantom_hash
from models.protocol import Protocol
from models.weights import DEFAULT_WEIGHTS, read_manifest
from tools.workspace import Workspace

FIRST_SEED = 900_000
"""Evaluation patients start here; training stays below (`models.phantom.pool`)."""

CONSTANT_SEED = 800_000
CONSTANT_PATIENTS = 150
"""The constant baseline is chosen on these other patients."""


@dataclass(frozen=True)
class Judged:
    """One patient: what was chosen and the true regret of every contender."""

    patient: str
    chosen: str
    true_best: str
    simulations: int
    seconds: float
    planner: float
    random: float
    constant: float
    policy_first: float
    reachable: float


def plan_patient(seed: int, settings: PlannerSettings) -> tuple[Plan, RiskTable]:
    """Plans one phantom patient in a temporary folder.

    Args:
        seed: Of the patient.
        settings: Of the search.

    Returns:
        The plan, and the true risks of the protocols that the rules allow (none where the rules exclude the patient).
    """
    patient = draw_patient(seed)
    with tempfile.TemporaryDirectory() as folder:
        case = Path(folder) / "case"
        write_phantom_case(patient, case)
        run = start_run(case, Path(folder) / "run", settings)
        plan = next(event.plan for event in run.execute(_without_report) if isinstance(event, Planned))
        workspace = Workspace({patient.patient_id: case}, Path(folder) / "artifacts")
        allowed = allowed_protocols(
            patient.patient_id, workspace, settings.actions, settings.drug_horizon, settings.embolic_horizon
        )
    return plan, true_risks(patient, allowed)


def _without_report(run: Run, facts: CaseFacts, stop: threading.Event) -> Services:
    return replace(make_services(run, facts, stop), publish=lambda _: {})


def judge(plan: Plan, risks: RiskTable, ranked: Sequence[Protocol]) -> Judged:
    """Compares a plan with the truth. A patient for whom the planner finds nothing has regret 1.

    `policy_first` is the embedded policy without a world model: its first drug and first embolic that the rules allow
    together. `constant` is the first of `ranked` that the rules allow for this patient. `reachable` is the best
    protocol that the proposed action space holds: regret that no search could avoid.
    """
    proposed = [note for note in plan.proposals if note.kept]
    names = {note.item for note in proposed}
    inside = [r for p, r in zip(risks.protocols, risks.regrets, strict=True) if set(p.items) <= names]
    regrets = dict(zip(risks.protocols, risks.regrets, strict=True))
    drugs, embolics = ([note.item for note in proposed if note.kind == kind] for kind in ("drug", "embolic"))
    pairs = (Protocol(drugs=(drug,), embolics=(embolic,)) for drug in drugs for embolic in embolics)
    first = next((regrets[pair] for pair in pairs if pair in regrets), 1.0)
    return Judged(
        patient=plan.case_id,
        chosen="none" if plan.chosen is None else plan.chosen.assessed.key,
        true_best=risks.best.key,
        simulations=plan.simulations,
        seconds=plan.execution.seconds,
        planner=1.0 if plan.chosen is None else risks.regret(plan.chosen.assessed.protocol),
        random=float(risks.regrets.mean()),
        constant=float(next(regrets[protocol] for protocol in ranked if protocol in regrets)),
        policy_first=float(first),
        reachable=float(min(inside, default=1.0)),
    )


def rank_constants(settings: PlannerSettings) -> list[Protocol]:
    """All protocols of the action set by mean regret on other phantom patients, best first.

    The baseline gives every patient the first of them that the rules allow: one fixed list, made without a look at the
    evaluated patients.
    """
    protocols = list(all_protocols(settings.actions, settings.drug_horizon, settings.embolic_horizon))
    patients = [draw_patient(CONSTANT_SEED + index) for index in range(CONSTANT_PATIENTS)]
    risk = np.array([[respond(patient, protocol).log_hazard for protocol in protocols] for patient in patients])
    low, high = risk.min(1, keepdims=True), risk.max(1, keepdims=True)
    order = ((risk - low) / (high - low)).mean(0).argsort(kind="stable")
    return [protocols[index] for index in order]


def evaluate(n: int, out: Path, settings: PlannerSettings, console: Console) -> dict[str, Any]:
    """Plans `n` unseen patients and summarises them.

    Args:
        n: Patients that the rules do not exclude, at least 2.
        out: Folder of results; one file per patient, `planning.json` at the end.
        settings: Of the search.
        console: For progress.

    Returns:
        The content of `planning.json`.
    """
    out.mkdir(parents=True, exist_ok=True)
    conditions = {
        "weights": read_manifest(DEFAULT_WEIGHTS).weights_hash,
        "settings": settings.model_dump(mode="json"),
        "phantom_version": parameters()["version"],
        "phantom": phantom_hash(),
    }
    ranked = rank_constants(settings)
    judged: list[dict[str, Any]] = []
    excluded: list[str] = []
    seed = FIRST_SEED
    with Progress(console=console) as progress:
        task = progress.add_task("patients planned", total=n)
        while len(judged) < n:
            content = _judged_patient(seed, settings, ranked, conditions, out / f"patient-{seed}.json")
            if content["judged"] is None:
                excluded.append(f"phantom-{seed}")
            else:
                judged.append(content["judged"])
                progress.advance(task)
            seed += 1
    result = summarise(judged, excluded, conditions, ranked[0])
    (out / "planning.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def _judged_patient(
    seed: int, settings: PlannerSettings, ranked: Sequence[Protocol], conditions: dict[str, Any], file: Path
) -> dict[str, Any]:
    """The result of one patient: from its file where that was made under the same conditions, else planned now."""
    if file.exists():
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if kept["conditions"] == conditions:
            return kept
    plan, risks = plan_patient(seed, settings)
    judged = asdict(judge(plan, risks, ranked)) if risks.protocols else None
    content = {"conditions": conditions, "judged": judged}
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(file)
    return content


def summarise(
    judged: Sequence[dict[str, Any]], excluded: Sequence[str], conditions: dict[str, Any], constant: Protocol
) -> dict[str, Any]:
    """Means with intervals over patients, and the planner's paired differences from the baselines.

    Args:
        judged: `Judged` as a dict, one per patient, at least 2.
        excluded: Patients for whom the rules allow no protocol at all.
        conditions: Weights, settings and phantom version.
        constant: The constant baseline's first choice.
    """
    names = ("planner", "policy_first", "constant", "random", "reachable")
    values = {name: np.array([float(row[name]) for row in judged]) for name in names}
    paired = {
        f"planner minus {name}": bootstrap_mean(values["planner"] - values[name])._asdict()
        for name in ("policy_first", "constant", "random")
    }
    return {
        "n": len(judged),
        "excluded_by_rules": list(excluded),
        "data": f"synthetic phantom version {conditions['phantom_version']}, seeds from {FIRST_SEED}",
        **conditions,
        "constant": constant.key,
        "regret": {name: bootstrap_mean(v)._asdict() for name, v in values.items()},
        "paired": paired,
        "seconds": bootstrap_mean([row["seconds"] for row in judged])._asdict(),
        "simulations": bootstrap_mean([row["simulations"] for row in judged])._asdict(),
        "patients": list(judged),
    }


def show(result: dict[str, Any], console: Console) -> None:
    """Prints the table."""
    title = (
        f"Regret on {result['n']} unseen synthetic patients (0 best allowed protocol, 1 worst; 95 % bootstrap interval)"
    )
    table = Table(title=title)
    for column in ("who", "mean regret", "interval"):
        table.add_column(column)
    names = {
        "planner": "MeWM planner",
        "policy_first": "embedded policy alone (no simulation)",
        "constant": f"best constant ({result['constant']}; where blocked, the next best)",
        "random": "random allowed protocol",
        "reachable": "best within the proposed action space (bound)",
    }
    for name, text in names.items():
        row = result["regret"][name]
        table.add_row(text, f"{row['mean']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}")
    for name, row in result["paired"].items():
        table.add_row(name, f"{row['mean']:+.3f}", f"{row['low']:+.3f} to {row['high']:+.3f}", end_section=False)
    console.print(table)
    console.print(f"{result['seconds']['mean']:.0f} s and {result['simulations']['mean']:.0f} simulations per plan.")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--n", type=int, default=40, help="patients")
    parser.add_argument("--out", type=Path, default=Path("runs") / "evals-planning", help="folder of results")
    parser.add_argument("--fresh", action="store_true", help="start again instead of going on")
    arguments = parser.parse_args()
    if arguments.n < 2:
        parser.error(f"--n must be at least 2, got {arguments.n}")
    if arguments.fresh:
        shutil.rmtree(arguments.out, ignore_errors=True)
    console = Console()
    show(evaluate(arguments.n, arguments.out, PlannerSettings(), console), console)


if __name__ == "__main__":
    main()
