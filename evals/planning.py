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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from agent.events import Planned
from agent.plan import Plan
from agent.run import start_run
from agent.services import make_services
from agent.settings import PlannerSettings
from evals.oracle import RiskTable, allowed_protocols, true_risks
from evals.statistics import Interval, bootstrap_mean
from models.phantom.cohort import write_phantom_case
from models.phantom.patient import draw_patient, parameters
from models.phantom.response import respond
from models.protocol import Protocol
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
        plan = next(event.plan for event in run.execute(make_services) if isinstance(event, Planned))
        workspace = Workspace({patient.patient_id: case}, Path(folder) / "artifacts")
        allowed = allowed_protocols(
            patient.patient_id, workspace, settings.actions, settings.drug_horizon, settings.embolic_horizon
        )
    return plan, true_risks(patient, allowed)


def judge(plan: Plan, risks: RiskTable) -> Judged:
    """Compares a plan with the truth.

    `policy_first` is the embedded policy without a world model: its first drug and first embolic that the rules allow
    together. `reachable` is the best protocol that the proposed action space holds: regret that no search could avoid.
    """
    assert plan.chosen is not None
    proposed = [note for note in plan.proposals if note.kept]
    names = {note.item for note in proposed}
    inside = [r for p, r in zip(risks.protocols, risks.regrets, strict=True) if set(p.items) <= names]
    regrets = dict(zip(risks.protocols, risks.regrets, strict=True))
    first = next(
        regrets[pair]
        for drug in proposed
        if drug.kind == "drug"
        for embolic in proposed
        if embolic.kind == "embolic" and (pair := Protocol(drugs=(drug.item,), embolics=(embolic.item,))) in regrets
    )
    return Judged(
        patient=plan.case_id,
        chosen=plan.chosen.assessed.key,
        true_best=risks.best.key,
        simulations=plan.simulations,
        seconds=plan.execution.seconds,
        planner=risks.regret(plan.chosen.assessed.protocol),
        random=float(risks.regrets.mean()),
        policy_first=float(first),
        reachable=float(min(inside)),
    )


def best_constant(shared: Sequence[Protocol]) -> Protocol:
    """The protocol of lowest mean regret on other patients, among those allowed for every evaluated patient."""
    patients = [draw_patient(CONSTANT_SEED + index) for index in range(CONSTANT_PATIENTS)]
    risk = np.array([[respond(patient, protocol).log_hazard for protocol in shared] for patient in patients])
    low, high = risk.min(1, keepdims=True), risk.max(1, keepdims=True)
    return shared[int(((risk - low) / (high - low)).mean(0).argmin())]


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
    judged: list[dict[str, Any]] = []
    excluded: list[str] = []
    seed = FIRST_SEED
    with Progress(console=console) as progress:
        task = progress.add_task("patients planned", total=n)
        while len(judged) < n:
            file = out / f"patient-{seed}.json"
            if not file.exists():
                plan, risks = plan_patient(seed, settings)
                content: dict[str, Any] = {"excluded": plan.blocked, "weights": plan.origin.weights_hash}
                if not plan.blocked:
                    content |= {"judged": judge(plan, risks).__dict__, "allowed": [p.key for p in risks.protocols]}
                    content |= {"regrets": risks.regrets.tolist()}
                partial = file.with_suffix(".part")
                partial.write_text(json.dumps(content), encoding="utf-8")
                partial.replace(file)
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["excluded"]:
                excluded.append(f"phantom-{seed}")
            else:
                judged.append(content)
                progress.advance(task)
            seed += 1
    return _summarise(judged, excluded, settings, out)


def _summarise(
    judged: list[dict[str, Any]], excluded: list[str], settings: PlannerSettings, out: Path
) -> dict[str, Any]:
    shared = reduce(set.intersection, (set(content["allowed"]) for content in judged))
    order = [key for key in judged[0]["allowed"] if key in shared]
    constant = best_constant([_bare(key) for key in order])
    values: dict[str, list[float]] = {
        name: [float(content["judged"][name]) for content in judged]
        for name in ("planner", "policy_first", "random", "reachable")
    }
    values["constant"] = [content["regrets"][content["allowed"].index(constant.key)] for content in judged]
    table: dict[str, Interval] = {name: bootstrap_mean(v) for name, v in values.items()}
    paired = {
        f"planner minus {name}": bootstrap_mean(np.array(values["planner"]) - np.array(values[name]))
        for name in ("random", "constant", "policy_first")
    }
    result = {
        "n": len(judged),
        "excluded_by_rules": excluded,
        "data": f"synthetic phantom version {parameters()['version']}, seeds from {FIRST_SEED}",
        "weights": judged[0]["weights"],
        "settings": settings.model_dump(mode="json"),
        "constant": constant.key,
        "regret": {name: interval._asdict() for name, interval in table.items()},
        "paired": {name: interval._asdict() for name, interval in paired.items()},
        "seconds": bootstrap_mean([content["judged"]["seconds"] for content in judged])._asdict(),
        "simulations": bootstrap_mean([content["judged"]["simulations"] for content in judged])._asdict(),
        "patients": [content["judged"] for content in judged],
    }
    (out / "planning.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def _bare(key: str) -> Protocol:
    drugs, embolics = key.split(" | ")
    return Protocol(drugs=tuple(drugs.split(" + ")), embolics=tuple(embolics.split(" + ")))


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
        "constant": f"best constant: {result['constant']}",
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
