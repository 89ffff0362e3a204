"""Milliseconds per simulation, by part: the engine's batches against one-by-one inference of the same networks.

One by one is how the paper's public script runs: whole patches are decoded and segmented where the engine takes a box
around the tumour, and what no protocol changes (the pre-branch) is computed for every simulation.

The clock is read in hooks on the networks while the engine's own public calls run, so that nothing is timed that a plan
would not do. What is left of the total is work outside the networks: noise, action vectors, compositing, copies.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from models.engine import Device, Engine, Job, Precision, Prepared
from models.phantom.cohort import CASE_SHAPE, DEMO_SEED, case_affine
from models.phantom.patient import Patient, draw_patient
from models.phantom.pool import random_protocol
from models.phantom.render import render
from models.volume import Volume
from models.weights import WorldModel

PARTS = ("pre-branch", "condition", "denoise", "decode", "read again", "composite", "segment", "survival")
"""In the order of work. The pre-branch is what no protocol changes: the engine runs it once per plan. "read again" is
the segmenter's part of correcting a drawn scan (`models.redraw`); the arithmetic of it counts as "condition"."""


@dataclass
class EngineTiming:
    """One way of running the same networks.

    Attributes:
        name: Row of the table.
        batch: Size of every network call.
        precision: Of the networks.
        device: Where they ran.
        simulations: How many were timed.
        ms: Milliseconds per simulation by part (`PARTS`); the pre-branch per case.
        pre_branch_each_time: The pre-branch belongs to every simulation, as without a cache.
    """

    name: str
    batch: int
    precision: str
    device: str
    simulations: int
    pre_branch_each_time: bool
    ms: dict[str, float] = field(default_factory=dict)

    @property
    def total_ms(self) -> float:
        """Per simulation, the pre-branch counted where it is run each time."""
        return sum(value for part, value in self.ms.items() if part != "pre-branch" or self.pre_branch_each_time)


class _Clock:
    """Seconds inside modules, by label; nested modules count once, for the outermost."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._depth = 0
        self._began = 0.0

    def now(self) -> float:
        """Seconds, after the device has finished what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def listening(self, parts: dict[str, nn.Module]) -> Iterator[None]:
        """Times the forward passes of the modules."""
        handles = []
        for label, module in parts.items():
            handles.append(module.register_forward_pre_hook(self._enter))
            handles.append(module.register_forward_hook(self._leaver(label)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, inputs: Any) -> None:  # noqa: ARG002 (a hook's signature)
        if self._depth == 0:
            self._began = self.now()
        self._depth += 1

    def _leaver(self, label: str) -> Callable[[nn.Module, Any, Any], None]:
        def leave(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001 (a hook's signature)
            self._depth -= 1
            if self._depth == 0:
                self.seconds[label] += self.now() - self._began

        return leave


def network_parts(model: WorldModel) -> dict[str, nn.Module]:
    """The modules whose time is counted, by label."""
    return {
        "encoder": model.autoencoder.encoder,
        "denoise": model.denoiser,
        "decode": model.autoencoder.decoder,
        "segment": model.segmenter,
        "survival": model.survival,
        "survival encoder": model.survival.encoder,
    }


def whole_patches(engine: Engine, prepared: Prepared) -> Prepared:
    """The same case with whole patches in place of the boxes around the tumour."""
    x, y, z = (slice(0, edge) for edge in prepared.pre.shape[1:])
    return replace(prepared, boxes=((x, y, z),) * len(prepared.patches), decoded=engine.reconstruct(prepared.pre))


def time_engine(
    engine: Engine, name: str, prepare: Callable[[Engine, str], Prepared], jobs: list[Job], *,
    as_the_script: bool, steps: int | None = None,
) -> EngineTiming:  # fmt: skip
    """Time one engine on one case.

    Args:
        engine: Its batch size and precision are what is compared.
        name: Row of the table.
        prepare: Prepares the case under a key that the engine does not know yet.
        jobs: Protocols and seeds.
        as_the_script: Whole patches, and the networks of the pre-branch count for every simulation.
        steps: Sampling steps; None takes the preset's.
    """
    warm = prepare(engine, "warm")
    if as_the_script:
        warm = whole_patches(engine, warm)
    first = engine.simulate(warm, jobs[:1], steps)
    engine.log_risk(warm, first, engine.segment_near(warm, first))

    clock = _Clock(engine.device)
    with clock.listening(network_parts(engine.model)):
        prepared = prepare(engine, "timed")
        # the public script encodes the scan before treatment; the engine decodes and segments it too, once per plan
        before = ("encoder", "survival encoder") if as_the_script else tuple(clock.seconds)
        pre_seconds = sum(clock.seconds[part] for part in before)
        if as_the_script:
            prepared = whole_patches(engine, prepared)
        clock.seconds.clear()
        laps: dict[str, float] = {}
        began = clock.now()
        differences = [change for _, change in sorted(engine.simulate_differences(prepared, jobs, steps), key=_place)]
        laps["simulate"] = clock.now() - began
        reading = clock.seconds["segment"]
        began = clock.now()
        outcomes = [engine.composite(prepared, change) for change in differences]
        laps["composite"] = clock.now() - began
        began = clock.now()
        tissue = engine.segment_near(prepared, outcomes)
        laps["segment"] = clock.now() - began
        began = clock.now()
        engine.log_risk(prepared, outcomes, tissue)
        laps["survival"] = clock.now() - began
    scale = 1000.0 / len(jobs)
    ms = {
        "pre-branch": 1000.0 * pre_seconds,
        "condition": scale * (laps["simulate"] - clock.seconds["denoise"] - clock.seconds["decode"] - reading),
        "denoise": scale * clock.seconds["denoise"],
        "decode": scale * clock.seconds["decode"],
        "read again": scale * reading,
        "composite": scale * laps["composite"],
        "segment": scale * laps["segment"],
        "survival": scale * laps["survival"],
    }
    return EngineTiming(name, engine.batch, engine.precision, engine.device, len(jobs), as_the_script, ms)


def _place(pair: tuple[int, Any]) -> int:
    return pair[0]


def bench_case(patient: Patient) -> tuple[Volume, np.ndarray]:
    """CT and labels of a patient as a written case holds them."""
    scan = render(patient, case_affine(), CASE_SHAPE)
    return Volume(np.rint(scan.hu).astype(np.int16), case_affine()), scan.organs


def bench_engine(
    simulations: int, one_by_one: int, devices: list[Device], console: Console, steps: int | None = None,
    model: WorldModel | None = None,
) -> dict[str, object]:  # fmt: skip
    """Times every engine on the demo patient and prints the table.

    Args:
        simulations: Protocols, one seed each, in batches.
        one_by_one: The same, fewer, one at a time.
        devices: Of ``cpu`` and ``cuda``.
        console: For the table.
        steps: Sampling steps; None takes the preset's.
        model: Networks that are loaded already, on the first device; None loads the shipped weights.
    """
    patient = draw_patient(DEMO_SEED)
    volume, labels = bench_case(patient)
    rng = np.random.default_rng(0)
    jobs: list[Job] = [(random_protocol(rng), index % 5) for index in range(simulations)]

    def prepare(engine: Engine, key: str) -> Prepared:
        return engine.prepare(volume, labels, patient.record, f"bench-{key}-{engine.batch}-{engine.precision}")

    timings = []
    for device in devices:
        ours = Engine(device, model=model)
        timings.append(time_engine(ours, f"the engine, {device}", prepare, jobs, as_the_script=False, steps=steps))
        alone: list[tuple[str, Precision]] = [("fp32", "fp32")]
        if ours.precision != "fp32":
            alone.append(("our precision", "bf16"))
        for label, precision in alone:
            single = Engine(device, model=model or ours.model, precision=precision, batch=1)
            timings.append(
                time_engine(
                    single, f"one by one, {label}, {device}", prepare, jobs[:one_by_one],
                    as_the_script=True, steps=steps,
                )
            )  # fmt: skip
    _show(timings, console)
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(0) if "cuda" in devices else None,
        "timings": [{**asdict(timing), "total_ms": timing.total_ms} for timing in timings],
    }


def _show(timings: list[EngineTiming], console: Console) -> None:
    table = Table(title="Milliseconds per simulation, by part (pre-branch: per case)")
    for column in ("engine", "batch", "precision", *PARTS, "total", "against the engine"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    ours: dict[str, float] = {}
    for timing in timings:
        ours.setdefault(timing.device, timing.total_ms)
        cells = [f"{timing.ms[part]:.0f}" if timing.ms[part] >= 10 else f"{timing.ms[part]:.1f}" for part in PARTS]
        table.add_row(
            timing.name, str(timing.batch), timing.precision, *cells, f"{timing.total_ms:.0f}",
            f"{timing.total_ms / ours[timing.device]:.1f} x",
        )  # fmt: skip
    console.print(table)
    threads = torch.get_num_threads()
    console.print(f"{os.cpu_count()} CPU cores, {threads} threads, torch {torch.__version__}. The pre-branch counts")
    console.print("for every simulation one by one, and once per case in the engine (not in its total).")
