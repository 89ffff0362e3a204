"""`python -m evals.bench`: speed of the engine (`engine`), of one plan (`plan`), and of the search (`search`).

`search` sets this search beside the same search done as the paper's public script does it.

The public script's loop (`loop_like_the_public_script`): B beams that start equal; at every horizon each beam tries
every agent that the conflict rules allow with T replicas, one simulation at a time in fp32; nothing is reused between
beams, whole patches are decoded and segmented, and the scan before treatment is encoded for every simulation; networks
stay loaded.
Ours is the `beam` strategy as `mewm plan` runs it. Both use the same weights, T, B, horizons and action set, and the
same sampling steps, but for our last comparison, which takes the preset's steps for finalists and is part of our time.
The second loop is the same one at our precision, which separates the gain of reuse and batching from that of bf16.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from agent.events import Planned
from agent.plan import read_plan
from agent.run import start_run
from agent.services import make_services
from agent.settings import LANGUAGE_MODEL_PROPOSES, PlannerSettings
from evals.bench_engine import bench_engine, whole_patches
from models.engine import Device, Engine, Precision, Prepared
from models.engine_thread import in_engine_thread
from models.errors import RunError
from models.networks.precision import autocast
from models.phantom.cohort import write_demo_case
from models.protocol import Kind, Protocol
from models.toxicity import toxicity
from models.training.pool import hu_to_unit
from tools.check_rules import check_rules
from tools.workspace import Workspace

SEARCH_NODES = ("expand", "simulate", "segment", "score", "prune")


@dataclass(frozen=True)
class Timing:
    """One search."""

    name: str
    simulations: int
    seconds: float
    chosen: str

    @property
    def per_simulation_ms(self) -> float:
        """Milliseconds per simulation."""
        return 1000.0 * self.seconds / self.simulations


def our_search(case: Path, folder: Path, settings: PlannerSettings) -> tuple[Timing, list[str], list[str]]:
    """The planner on a fresh run folder.

    Returns:
        Its timing (search nodes with the last comparison, without the report), and the drugs and embolics that were
        searched.
    """
    run = start_run(case, folder, settings)
    plan = next(event.plan for event in run.execute(make_services) if isinstance(event, Planned))
    assert plan.chosen is not None
    seconds = sum(plan.execution.seconds_by_node.get(node, 0.0) for node in (*SEARCH_NODES, "finalise"))
    drugs, embolics = ([n.item for n in plan.proposals if n.kept and n.kind == kind] for kind in ("drug", "embolic"))
    return (
        Timing("this search (batched, no repeats)", plan.simulations, seconds, plan.chosen.assessed.key),
        drugs,
        embolics,
    )


@in_engine_thread
def encode_before(engine: Engine, prepared: Prepared) -> None:
    """What the public script computes of the scan before treatment for every simulation; the engine keeps it."""
    scan = hu_to_unit(prepared.pre, engine.model.preset.hu_window)[:, None].to(engine.device)
    tumour = torch.from_numpy((prepared.numbers > 0).astype(np.float32))[:, None].to(engine.device)
    with torch.inference_mode(), autocast(engine.device, engine.precision == "bf16"):
        engine.model.autoencoder.encode(scan)
    with torch.inference_mode():
        engine.model.survival.encode_pre(torch.cat([scan, tumour], dim=1))


def loop_like_the_public_script(
    case: Path,
    folder: Path,
    settings: PlannerSettings,
    drugs: list[str],
    embolics: list[str],
    precision: Precision,
    console: Console,
) -> Timing:
    """The paper's search as its public script runs it (see the module's docstring).

    Args:
        case: Case folder.
        folder: Empty folder for a workspace; nothing is read back from it.
        settings: T, B, horizons, steps.
        drugs: The drugs that our search tried.
        embolics: The embolics that our search tried.
        precision: Of the networks.
        console: For progress.
    """
    engine = Engine(settings.device, precision=precision, batch=1)
    workspace = Workspace({"bench": case}, folder, engine=engine)
    record = workspace.case("bench").record
    prepared = whole_patches(engine, workspace.prepared("bench"))
    liver_ml = workspace.liver_ml("bench")

    def risk(protocol: Protocol, seed: int) -> float:
        encode_before(engine, prepared)
        outcome = engine.simulate(prepared, [(protocol, seed)], settings.steps)
        tissue = engine.segment_near(prepared, outcome)
        harm = toxicity(protocol, record, prepared.tumour_ml, liver_ml).log_hazard
        return engine.log_risk(prepared, outcome, tissue)[0] + harm

    beams: list[tuple[float, Protocol]] = [(float("inf"), Protocol())] * settings.beams
    horizons: list[tuple[Kind, list[str]]] = [("drug", drugs) for _ in range(settings.drug_horizon)]
    horizons += [("embolic", embolics) for _ in range(settings.embolic_horizon)]
    simulations, started = 0, time.perf_counter()
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"public loop, {precision}", total=len(horizons) * settings.beams)
        for depth, (kind, actions) in enumerate(horizons):
            for index, (score, plan) in enumerate(beams):
                grown = [plan.with_item(kind, name) for name in actions if name not in plan.items]
                stage = check_rules("bench", [p.key for p in grown], stage="partial", workspace=workspace).verdicts
                tried = []
                for protocol, verdict in zip(grown, stage, strict=True):
                    if verdict.allowed:
                        # every beam draws its own noise
                        seeds = range(
                            (depth * settings.beams + index) * settings.replicas,
                            (depth * settings.beams + index + 1) * settings.replicas,
                        )
                        tried.append((float(np.mean([risk(protocol, seed) for seed in seeds])), protocol))
                        simulations += settings.replicas
                best = min(tried, key=lambda pair: pair[0], default=(score, plan))
                if best[0] < score:  # the script appends only what improves on the beam's best so far
                    beams[index] = best
                progress.advance(bar)
            order = sorted(range(len(beams)), key=lambda i: beams[i][0])
            beams[order[-1]] = beams[order[0]]
    seconds = time.perf_counter() - started
    name = "the public script's loop, fp32, one by one" if precision == "fp32" else "the same loop at our precision"
    return Timing(name, simulations, seconds, min(beams, key=lambda pair: pair[0])[1].key)


def bench_search(settings: PlannerSettings, console: Console) -> dict[str, object]:
    """Runs all three in one process on the demo case and prints the ratios."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = write_demo_case(folder / "demo").path
        ours, drugs, embolics = our_search(case, folder / "run", settings)
        precisions: list[Precision] = ["fp32"]
        if Engine(settings.device).precision != "fp32":
            precisions.append("bf16")
        loops = [
            loop_like_the_public_script(case, folder / f"loop-{p}", settings, drugs, embolics, p, console)
            for p in precisions
        ]
    setting = (
        f"T = {settings.replicas}, B = {settings.beams}, horizons {settings.drug_horizon} + {settings.embolic_horizon}"
    )
    table = Table(title=f"Search at {setting}, {len(drugs)} drugs, {len(embolics)} embolics")
    for column in ("search", "simulations", "seconds", "ms per simulation", "ratio to ours"):
        table.add_column(column)
    for timing in (ours, *loops):
        cells = (f"{timing.seconds:.1f}", f"{timing.per_simulation_ms:.0f}", f"{timing.seconds / ours.seconds:.1f}")
        table.add_row(timing.name, str(timing.simulations), *cells)
    console.print(table)
    threads = torch.get_num_threads()
    console.print(f"{os.cpu_count()} CPU cores, torch {torch.__version__}, {threads} threads, device {settings.device}")
    return {
        "settings": settings.model_dump(mode="json"),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "searches": [{**t.__dict__, "ratio": t.seconds / ours.seconds} for t in (ours, *loops)],
    }


def bench_plan(settings: PlannerSettings, console: Console) -> dict[str, object]:
    """Times `mewm plan demo` in a process of its own: seconds, most memory, simulations."""
    with tempfile.TemporaryDirectory() as name:
        case = write_demo_case(Path(name) / "demo").path
        chosen = {
            "--drugs": settings.drugs, "--embolics": settings.embolics, "--beams": settings.beams,
            "--replicas": settings.replicas,
        }  # fmt: skip
        options = [text for option, value in chosen.items() for text in (option, str(value))]
        began = time.perf_counter()
        command = [sys.executable, "-m", "agent", "plan", str(case), "--run", str(Path(name) / "run"), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        if done.returncode != 0:
            raise RunError(f"The plan failed: {done.stderr.strip()[-400:]}")
        plan = read_plan(Path(name) / "run" / "plan.json")
    # of the largest child; in kilobytes on Linux
    memory_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
    horizons = f"{settings.drug_horizon} + {settings.embolic_horizon}"
    console.print(
        f"One plan (D = {settings.drugs}, E = {settings.embolics}, B = {settings.beams}, T = {settings.replicas}, "
        f"horizons {horizons}): {seconds:.1f} s with start and report, {plan.execution.seconds:.1f} s of planning, "
        f"{plan.simulations} simulations, at most {memory_gb:.2f} GB."
    )
    return {
        "settings": settings.model_dump(mode="json"),
        "cores": os.cpu_count(),
        "seconds": seconds,
        "planning_seconds": plan.execution.seconds,
        "seconds_by_node": plan.execution.seconds_by_node,
        "simulations": plan.simulations,
        "memory_gb": memory_gb,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("what", choices=["engine", "plan", "search"])
    parser.add_argument("--drugs", type=int, default=LANGUAGE_MODEL_PROPOSES[0], help="D")
    parser.add_argument("--embolics", type=int, default=LANGUAGE_MODEL_PROPOSES[1], help="E")
    parser.add_argument("--beams", type=int, default=5, help="B")
    parser.add_argument("--replicas", type=int, default=5, help="T")
    parser.add_argument("--simulations", type=int, default=32, help="engine: how many in batches")
    parser.add_argument("--one-by-one", type=int, default=6, help="engine: how many one at a time")
    parser.add_argument("--steps", type=int, help="engine: sampling steps; by default the preset's")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 130)  # a pipe would be cut to 80 columns
    settings = PlannerSettings(
        drugs=arguments.drugs, embolics=arguments.embolics, beams=arguments.beams, replicas=arguments.replicas
    )
    if arguments.what == "engine":
        devices: list[Device] = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        result = bench_engine(arguments.simulations, arguments.one_by_one, devices, console, arguments.steps)
    elif arguments.what == "plan":
        result = bench_plan(settings, console)
    else:
        result = bench_search(settings, console)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
