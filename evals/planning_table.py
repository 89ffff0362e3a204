"""`python -m evals.planning_table`: what each part of the planner is worth, as regret against the phantom's truth.

    python -m evals.planning_table --n 60 --without contrastive=W1 --without attenuation=W2 --without paper_losses=W3 \\
        --trained runs/baselines --out runs/planning-table.json

Every row plans the same unseen patients with the same policy, rules and search. Regret is the true log hazard of the
choice above that of the best allowed protocol, as a share of worst minus best and of random minus best. Finished
patients of every row are kept, so a stopped evaluation goes on. Rows whose weights or networks are not given are named
as not measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agent.cli.recorded_command import recorded_command
from agent.events import Planned
from agent.nodes import Services
from agent.plan import Plan
from agent.run import Run, start_run
from agent.services import make_services
from agent.settings import LANGUAGE_MODEL_PROPOSES, PlannerSettings
from agent.state import CaseFacts, Conditions
from evals.ablation import CONTROL, WithoutAssistant, check_trained_without
from evals.datasets.phantom import PhantomCase, draw_cases
from evals.image_regressor import predict_risks
from evals.model_card.collect import Measure, Row, collect, folder_of, write_json
from evals.model_card.figures import Array, Figure, mean_figure, pooled_figure
from evals.model_card.scene import Scene
from evals.planning_baselines import beside_the_plan, rank_constants
from evals.planning_table_page import planning_markdown, show
from evals.planning_variants import (
    AmountOnly,
    AnotherPatientsImage,
    AsDrawn,
    PreTreatmentImage,
    TrueHazard,
    TrueImage,
)
from evals.regressor import DirectRegressor
from evals.regret import RiskTable, allowed_protocols, true_risks
from evals.trained_baselines import REGRESSOR, load_regressor, minutes_of
from models.engine import Device, Engine
from models.errors import InputError, MewmError
from models.networks.record_vector import record_vector
from models.phantom.cohort import write_phantom_case
from models.phantom.patient import Patient, draw_patient
from models.phantom.version import phantom_hash
from models.protocol import Protocol
from models.training.loop import FINAL
from models.training.pool import hu_to_unit
from models.weights import DEFAULT_WEIGHTS, read_manifest
from tools.registry import build_tools
from tools.rulebook import rules_hash
from tools.workspace import Workspace

GROUP, COMMAND = "planning", "python -m evals.planning_table"
FIRST_SEED = 900_000
"""Patients that are planned start here; training stays below (`models.phantom.pool`), the model card begins later."""
OTHER_PATIENTS = 850_000
"""Patients whose simulations stand in for others' (`AnotherPatientsImage`); none of them is planned."""
FULL = "full"


@dataclass(frozen=True)
class Line:
    """One row of the table.

    Attributes:
        name: As folders and JSON call it.
        label: As the table calls it.
        engine: Builds the engine of a patient from that of the weights; None for the rows that plan nothing.
        weights: Key of `--without` that names its weights; None takes the shipped ones.
        note: What the row knows that a plan never can, in words behind its label.
    """

    name: str
    label: str
    engine: Callable[[Engine, Patient], Engine] | None = None
    weights: str | None = None
    note: str = ""


def _same(base: Engine, patient: Patient) -> Engine:  # noqa: ARG001 (as the others)
    return base


def _without_assistant(base: Engine, patient: Patient) -> Engine:  # noqa: ARG001 (as the others)
    return WithoutAssistant(base)


def _other(base: Engine, patient: Patient) -> Engine:
    return AnotherPatientsImage(base, patient, draw_patient(OTHER_PATIENTS + patient.seed % 1000))


LINES = (
    Line(FULL, "full planner", _same),
    Line("no_assistant", "without the assistant model", _without_assistant),
    Line("no_contrastive", "without combo-contrastive learning", _same, "contrastive"),
    Line("no_attenuation", "without attenuation", _same, "attenuation"),
    Line("paper_losses", "with the paper's losses", _same, "paper_losses"),
    Line("retrained", "denoiser trained again, nothing left out (control)", _same, CONTROL),
    Line("as_drawn", "the simulated image as the denoiser draws it, not corrected to the predicted amount", AsDrawn),
    Line("pre_image", "simulated image replaced by the one before treatment", PreTreatmentImage),
    Line("amount_only", "nothing drawn: the image before, corrected to the predicted amount", AmountOnly),
    Line("other_image", "simulated image replaced by another patient's", _other),
    Line("true_image", "true image after treatment, learned risk", TrueImage, note="knows the truth"),
    Line(
        "true_hazard",
        "simulated image, true hazard",
        TrueHazard,
        note="knows the true hazard of the tumour; toxicity is the fixed term without the patient's own sensitivity",
    ),
    Line("image_regressor", "direct regressor on the image, no simulation, over all allowed protocols"),
    Line("feature_regressor", "direct regressor on engineered features, no simulation, over all allowed protocols"),
)
BASELINES = ("policy_first", "constant", "random", "reachable")


@dataclass(frozen=True)
class Asked:
    """What the command was asked; goes to every process."""

    settings: PlannerSettings
    weights: Path
    without: dict[str, Path] = field(default_factory=dict)
    trained: Path | None = None
    device: Device = "auto"


def plan_with(patient: Patient, settings: PlannerSettings, engine: Engine) -> tuple[Plan, RiskTable]:
    """Plans one phantom patient on a given engine, as `mewm plan` does, in a temporary folder.

    Args:
        patient: Truth included; the planner reads the written case only.
        settings: Of the search.
        engine: Of `LINES`.

    Returns:
        The plan, and the true risks of the protocols that the rules allow.
    """
    conditions = Conditions(
        weights_hash=engine.weights_hash, preset=engine.preset, precision=engine.precision, device=engine.device,
        rules_hash=rules_hash(),
    )  # fmt: skip

    def services(run: Run, facts: CaseFacts, stop: threading.Event) -> Services:
        workspace = Workspace({run.record.case_id: Path(run.record.case_path)}, run.artifacts, engine=engine)
        return replace(
            make_services(run, facts, stop), tools=build_tools(workspace), conditions=lambda: conditions,
            listen=lambda _: None, publish=lambda _: {},
        )  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        case = Path(folder) / "case"
        write_phantom_case(patient, case)
        run = start_run(case, Path(folder) / "run", settings)
        plan = next(event.plan for event in run.execute(services) if isinstance(event, Planned))
        workspace = Workspace({patient.patient_id: case}, Path(folder) / "artifacts", engine=engine)
        allowed = allowed_protocols(
            patient.patient_id, workspace, settings.actions, settings.drug_horizon, settings.embolic_horizon
        )
    return plan, true_risks(patient, allowed)


@lru_cache(maxsize=2)
def _constants(settings: PlannerSettings) -> tuple[Protocol, ...]:
    return tuple(rank_constants(settings))


def measure_planner(line: Line, base: Engine, settings: PlannerSettings, seed: int) -> Row:
    """Regret of one row on one patient; with the full planner also the baselines'."""
    assert line.engine is not None
    patient = draw_patient(seed)
    plan, risks = plan_with(patient, settings, line.engine(base, patient))
    if not risks.protocols:
        return {"patient": patient.patient_id, "judged": None, "of_range": 1.0, "random": 1.0}
    chosen = None if plan.chosen is None else plan.chosen.assessed
    judged: Row = {
        "chosen": None if chosen is None else chosen.key, "true_best": risks.best.key,
        "simulations": plan.simulations, "seconds": plan.execution.seconds,
    }  # fmt: skip
    if line.name == FULL:
        judged |= asdict(beside_the_plan(plan, risks, _constants(settings)))
    return {
        "patient": patient.patient_id,
        "judged": judged,
        "of_range": risks.judge(None if chosen is None else chosen.protocol).of_range,
        "random": float(risks.regrets.mean()),
    }


def measure_regressor(name: str, asked: Asked, seed: int) -> Row:
    """Regret of the allowed protocol to which a direct regressor gives the lowest risk."""
    case = PhantomCase(draw_patient(seed))
    if not case.allowed:  # nothing to choose from: the full planner's row leaves the patient out
        return {"patient": case.case_id, "judged": None, "of_range": 1.0, "random": 1.0}
    risks = case.truth
    allowed = list(risks.protocols)
    if name == "feature_regressor":
        predicted = _feature_regressor().risks(case, allowed)
    else:
        predicted = _image_risks(asked, seed, allowed)
    regret = risks.judge(allowed[int(np.argmin(predicted))])
    random = float(risks.regrets.mean())
    return {"patient": case.case_id, "judged": {}, "of_range": regret.of_range, "random": random}


@lru_cache(maxsize=1)
def _feature_regressor() -> DirectRegressor:
    return DirectRegressor("survival")


def _image_risks(asked: Asked, seed: int, protocols: list[Protocol]) -> Array:
    assert asked.trained is not None
    preset = read_manifest(asked.weights).preset
    network = load_regressor(asked.trained, preset)
    assert network is not None
    scene = Scene.of(seed, _engine(asked.device, asked.weights))
    prepared, engine = scene.prepared, scene.engine
    tumour = torch.from_numpy((prepared.numbers[0] > 0).astype(np.float32))
    scan = torch.stack([hu_to_unit(prepared.pre[0], engine.model.preset.hu_window), tumour])
    patient = scene.patient
    risks = predict_risks(
        network, scan, prepared.tumour_ml, prepared.lesions.count, prepared.patches[0].spacing_mm,
        record_vector(patient.record), protocols,
    )  # fmt: skip
    return np.asarray(risks + np.array([scene.harm(protocol) for protocol in protocols]), np.float64)


@lru_cache(maxsize=2)
def _engine(device: Device, weights: Path) -> Engine:
    return Engine(device, weights)


@dataclass(frozen=True)
class BuildLine:
    """Loads what a row needs in the process that plans."""

    name: str
    asked: Asked

    def __call__(self) -> Measure:
        """The measure of one patient."""
        line = next(line for line in LINES if line.name == self.name)
        if line.engine is None:
            return partial(measure_regressor, line.name, self.asked)
        weights = self.asked.weights if line.weights is None else self.asked.without[line.weights]
        return partial(measure_planner, line, _engine(self.asked.device, weights), self.asked.settings)


def missing_parts(asked: Asked) -> dict[str, str]:
    """Rows that can't run -> why."""
    out: dict[str, str] = {}
    for line in LINES:
        if line.weights is not None and line.weights not in asked.without:
            out[line.name] = f"no weights that were trained so: give them with --without {line.weights}=FOLDER"
    if asked.trained is None or load_regressor(asked.trained, read_manifest(asked.weights).preset) is None:
        out["image_regressor"] = "not trained: python -m evals.trained_baselines POOL --only image_regressor"
    return out


def planned_seeds(n: int) -> list[int]:
    """The first `n` patients of the evaluation that the rules do not exclude."""
    drawn = (case for case in draw_cases(FIRST_SEED) if isinstance(case, PhantomCase))
    return [case.patient.seed for case in islice(drawn, n)]


def planning_table(n: int, work: Path, asked: Asked, console: Console, workers: int = 1,
                   only: Sequence[str] | None = None, command: str = COMMAND) -> dict[str, Any]:  # fmt: skip
    """Plans every patient in every row and summarises.

    Args:
        n: Patients, at least 2.
        work: Folder of the patients' files.
        asked: Settings, weights, networks.
        console: For progress.
        workers: Processes.
        only: Names of rows; None is all. The full planner is always there.
        command: For the result.

    Returns:
        The content of the result file.
    """
    seeds, not_run = planned_seeds(n), missing_parts(asked)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    rows: dict[str, list[Row]] = {}
    with Progress(*columns, console=console) as progress:
        for line in LINES:
            if only is not None and line.name not in (FULL, *only):
                not_run.setdefault(line.name, "left out")
            if line.name in not_run:
                continue
            folder = folder_of(work, _conditions(line, asked))
            bar = progress.add_task(line.label, total=n)
            rows[line.name] = collect(
                folder, seeds, BuildLine(line.name, asked), workers,
                lambda done, _, bar=bar: progress.update(bar, completed=done),  # type: ignore[misc]
            )  # fmt: skip
    return summarise(rows, not_run, asked, command)


def _conditions(line: Line, asked: Asked) -> dict[str, Any]:
    weights = asked.weights if line.weights is None else asked.without[line.weights]
    engine = _engine(asked.device, weights)  # it says which device and precision "auto" is here
    out: dict[str, Any] = {
        "row": line.name, "weights": engine.weights_hash, "phantom": phantom_hash(), "rules": rules_hash(),
        "settings": asked.settings.model_dump(mode="json"), "device": engine.device, "precision": engine.precision,
    }  # fmt: skip
    if line.name == "image_regressor" and asked.trained is not None:
        content = (asked.trained / "image_regressor" / FINAL).read_bytes()
        out["regressor"] = hashlib.sha256(content).hexdigest()[:12]
    return out


def summarise(
    rows: dict[str, list[Row]], not_run: dict[str, str], asked: Asked, command: str = COMMAND
) -> dict[str, Any]:
    """Mean regrets with intervals, paired with the full planner, on the patients that the rules leave a protocol.

    Args:
        rows: Row name -> one entry per patient, in the same order; the full planner among them.
        not_run: Row name -> why it is missing.
        asked: Settings and weights.
        command: For the result.
    """
    kept = [index for index, row in enumerate(rows[FULL]) if row["judged"] is not None]
    labels = {line.name: line for line in LINES}
    full = [rows[FULL][index] for index in kept]
    planner = np.array([float(row["of_range"]) for row in full])
    control = np.array([float(rows["retrained"][index]["of_range"]) for index in kept]) if "retrained" in rows else None
    lines = []
    for name, found in rows.items():
        mine = [found[index] for index in kept]
        lacks_a_part = labels[name].weights not in (None, CONTROL)
        regret, random = (np.array([float(row[key]) for row in mine]) for key in ("of_range", "random"))
        lines.append(
            {
                "name": name, "label": labels[name].label, "note": labels[name].note,
                "of_range": _figure(regret),
                # the ratio of means: a patient for whom random is nearly best would rule a mean of ratios
                "of_random": ratio_figure(regret, random),
                "minus_full": None if name == FULL else _figure(regret - planner),
                "minus_control": _figure(regret - control) if lacks_a_part and control is not None else None,
                "patients": None if name == FULL else {
                    "as_good": int(np.sum(regret == planner)), "better": int(np.sum(regret < planner)),
                    "worse": int(np.sum(regret > planner)),
                },
            }
        )  # fmt: skip
    baselines = {name: np.array([float(row["judged"][name]) for row in full]) for name in BASELINES}
    result = {
        "group": GROUP,
        "n": len(kept),
        "weights": read_manifest(asked.weights).weights_hash,
        "phantom": phantom_hash(),
        "command": command,
        "without": {name: read_manifest(folder).weights_hash for name, folder in asked.without.items()},
        "regressor_minutes": None if asked.trained is None else minutes_of(asked.trained, REGRESSOR),
        "settings": asked.settings.model_dump(mode="json"),
        "rows": lines,
        "baselines": {name: _figure(values) for name, values in baselines.items()},
        "baselines_minus_full": {name: _figure(values - planner) for name, values in baselines.items()},
        "regret_over_constant": ratio_figure(planner, baselines["constant"]),
        "seconds": _figure(np.array([row["judged"]["seconds"] for row in full])),
        "simulations": _figure(np.array([row["judged"]["simulations"] for row in full])),
        "not_run": {labels[name].label: why for name, why in not_run.items()},
    }
    return {**result, "markdown": planning_markdown(result)}


def _figure(values: Array) -> Figure:
    return mean_figure(values.tolist())


def ratio_figure(one: Array, other: Array) -> Figure:
    """Ratio of two means over the same patients, with its bootstrap interval."""
    return pooled_figure(np.stack([one, other], axis=1), lambda sums: sums[..., 0] / sums[..., 1])


def read_without(texts: Sequence[str]) -> dict[str, Path]:
    """NAME=FOLDER pairs.

    Raises:
        WeightsError: there are no weights in a folder.
        InputError: one that is no pair, of an unknown name, or with weights that had the part.
    """
    known = {line.weights for line in LINES if line.weights is not None}
    out: dict[str, Path] = {}
    for text in texts:
        name, _, folder = text.partition("=")
        if name not in known or not folder:
            raise InputError(f"--without {text!r} is not NAME=FOLDER with a name of {', '.join(sorted(known))}.")
        check_trained_without(name, Path(folder))
        out[name] = Path(folder)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--n", type=int, default=60, help="patients")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, help="of the full planner")
    parser.add_argument("--without", action="append", default=[], metavar="NAME=FOLDER",
                        help="trained without contrastive, attenuation, nothing, or with paper_losses")  # fmt: skip
    parser.add_argument("--trained", type=Path, help="folder of `python -m evals.trained_baselines`")
    parser.add_argument("--only", action="append", choices=[line.name for line in LINES], help="rows; several times")
    parser.add_argument("--drugs", type=int, default=LANGUAGE_MODEL_PROPOSES[0], help="D")
    parser.add_argument("--embolics", type=int, default=LANGUAGE_MODEL_PROPOSES[1], help="E")
    parser.add_argument("--replicas", type=int, default=PlannerSettings().replicas, help="T")
    parser.add_argument("--beams", type=int, default=PlannerSettings().beams, help="B")
    parser.add_argument("--steps", type=int, help="sampling steps; by default the preset's")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs") / "planning-table", help="a stopped one goes on here")
    parser.add_argument("--out", type=Path, help="result file, for `mewm evaluate-models --planning`")
    arguments = parser.parse_args(argv)
    if arguments.n < 2:
        parser.error(f"--n must be at least 2, got {arguments.n}")
    console = Console()
    settings = PlannerSettings(
        drugs=arguments.drugs,
        embolics=arguments.embolics,
        replicas=arguments.replicas,
        beams=arguments.beams,
        steps=arguments.steps,
        device=arguments.device,
    )
    try:
        asked = Asked(settings, arguments.weights, read_without(arguments.without), arguments.trained, arguments.device)
        result = planning_table(
            arguments.n, arguments.work, asked, console, arguments.workers, arguments.only,
            recorded_command(COMMAND),
        )  # fmt: skip
    except MewmError as error:
        parser.error(str(error))
    show(result, console)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out, json.loads(json.dumps(result)))


if __name__ == "__main__":
    main()
