"""`python -m evals.simulator_table`: the world model's simulations beside six baselines, measured by the same code.

The trained ones come from `python -m evals.trained_baselines`; without them the table has the four hand-made ones and
says which are missing. Finished patients are kept, so a stopped evaluation goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from agent.cli.recorded_command import recorded_command
from evals.model_card.blocks import FIRST_SEED
from evals.model_card.collect import Measure, Row, collect, folder_of, write_json
from evals.model_card.dynamics import measure_effects, within_patients
from evals.model_card.realism import compare, summarise_realism
from evals.model_card.render_card import cell
from evals.model_card.scene import BATCH, Measures, Scene
from evals.simulators import Simulator, WorldModelSimulator, by_name, hand_made
from evals.trained_baselines import trained_minutes, trained_simulators
from models.engine import Device, Engine
from models.errors import MewmError
from models.phantom.version import phantom_hash
from models.weights import DEFAULT_WEIGHTS

GROUP, COMMAND = "simulators", "python -m evals.simulator_table"


def measure_simulator(simulator: Simulator, engine: Engine, protocols: int, replicas: int, seed: int) -> Row:
    """One patient under one simulator: effects of protocols, and likeness to the true scan of the first."""
    scene = Scene.of(seed, engine)
    effects = measure_effects(scene, simulator, protocols, replicas)
    return {"protocols": effects.rows, "realism": compare(scene, effects.simulated[0].hu, effects.true[0].hu)}


@dataclass(frozen=True)
class BuildSimulator:
    """Loads the networks in the process that measures."""

    name: str
    weights: Path
    trained: Path | None
    device: Device
    protocols: int
    replicas: int

    def __call__(self) -> Measure:
        """The measure of one patient."""
        engine = Engine(self.device, self.weights, batch=BATCH)
        found, _ = simulators(engine, self.weights, self.trained)
        return partial(measure_simulator, by_name(found)[self.name], engine, self.protocols, self.replicas)


def simulators(engine: Engine, weights: Path, trained: Path | None) -> tuple[list[Simulator], dict[str, str]]:
    """All simulators that can run, the shipped model first, and why the others can't."""
    found: list[Simulator] = [WorldModelSimulator(engine), *hand_made(engine)]
    if trained is None:
        return found, {"the three trained ones": "no --trained folder was given"}
    more, not_run = trained_simulators(trained, weights, engine)
    return [*found, *more], not_run


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Figures of one simulator."""
    dynamics = {}
    for name in Measures._fields:
        true = [[p["true"][name] for p in row["protocols"]] for row in rows]
        mine = [[_mean([one[name] for one in p["simulated"]]) for p in row["protocols"]] for row in rows]
        dynamics[name] = within_patients(true, mine)
    return {"dynamics": dynamics, "realism": summarise_realism([row["realism"] for row in rows])}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def simulator_table(
    n: int, work: Path, *, weights: Path = DEFAULT_WEIGHTS, trained: Path | None = None, device: Device = "auto",
    workers: int = 1, protocols: int = 6, replicas: int = 1, console: Console, command: str = COMMAND,
) -> dict[str, Any]:  # fmt: skip
    """Measure every simulator.

    Args:
        n: Unseen patients, the first of the model card's.
        work: Folder of the patients' files.
        weights: The shipped bundle.
        trained: Folder of `evals.trained_baselines`; None leaves the trained ones out.
        device: Where the networks run.
        workers: Processes.
        protocols: Random protocols of each patient.
        replicas: Simulations of each.
        console: For progress.
        command: For the result.

    Returns:
        The content of the result file.
    """
    engine = Engine(device, weights, batch=BATCH)
    found, not_run = simulators(engine, weights, trained)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    table = []
    with Progress(*columns, console=console) as progress:
        for simulator in found:
            own = simulator.engine.weights_hash if isinstance(simulator, WorldModelSimulator) else engine.weights_hash
            folder = folder_of(
                work, {
                    "simulator": simulator.name, "weights": own, "segmenter": engine.weights_hash,
                    "phantom": phantom_hash(), "protocols": protocols, "replicas": replicas,
                    "device": engine.device, "precision": engine.precision, "batch": engine.batch,
                },
            )  # fmt: skip
            bar = progress.add_task(simulator.label, total=n)
            build = BuildSimulator(simulator.name, weights, trained, device, protocols, replicas)
            rows = collect(
                folder, range(FIRST_SEED, FIRST_SEED + n), build, workers,
                lambda done, _, bar=bar: progress.update(bar, completed=done),  # type: ignore[misc]
            )  # fmt: skip
            table.append({"name": simulator.name, "label": simulator.label, **summarise(rows)})
    return {
        "group": GROUP, "n": n, "weights": engine.weights_hash, "phantom": phantom_hash(),
        "minutes": "no" if trained is None else trained_minutes(trained), "rows": table, "not_run": not_run,
        "command": command,
    }  # fmt: skip


def show(result: dict[str, Any], console: Console) -> None:
    """Prints the table."""
    table = Table(title=f"Simulators on {result['n']} unseen synthetic patients")
    for column in (
        "simulator",
        "SSIM",
        "Wasserstein (HU)",
        "Fréchet",
        "Lipiodol rank",
        "necrosis rank",
        "viable rank",
    ):
        table.add_column(column)
    for row in result["rows"]:
        realism, dynamics = row["realism"], row["dynamics"]
        table.add_row(
            row["label"], cell(realism["ssim"]), cell(realism["wasserstein_hu"], 1),
            cell(realism["frechet_own_encoder"]),
            *(cell(dynamics[name]["within_patient_rank"]) for name in Measures._fields),
        )  # fmt: skip
    console.print(table)
    for name, why in result["not_run"].items():
        console.print(f"Not measured: {name} ({why}).")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--n", type=int, default=60, help="patients")
    parser.add_argument("--protocols", type=int, default=6)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--trained", type=Path, help="folder of `python -m evals.trained_baselines`")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--work", type=Path, default=Path("runs") / "simulator-table", help="a stopped one goes on here"
    )
    parser.add_argument("--out", type=Path, help="result file, for `mewm evaluate-models --simulators`")
    arguments = parser.parse_args(argv)
    if arguments.n < 2 or arguments.protocols < 4:
        parser.error(f"--n must be at least 2 and --protocols 4, got {arguments.n} and {arguments.protocols}")
    console = Console()
    try:
        result = simulator_table(
            arguments.n, arguments.work, weights=arguments.weights, trained=arguments.trained, device=arguments.device,
            workers=arguments.workers, protocols=arguments.protocols, replicas=arguments.replicas, console=console,
            command=recorded_command(COMMAND),
        )  # fmt: skip
    except MewmError as error:
        parser.error(str(error))
    show(result, console)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
