from __future__ import annotations

from io import StringIO

import pytest
import torch
from rich.console import Console
from torch import nn

from evals.bench_engine import PARTS, EngineTiming, _Clock, bench_case, bench_engine, network_parts, whole_patches
from models.engine import BATCH, Engine
from models.phantom.cohort import DEMO_SEED
from models.phantom.patient import draw_patient
from models.protocol import Protocol
from models.weights import init_world_model
from tests.models.test_engine import tiny_preset


class Worker(nn.Module):
    """Takes so many seconds of a clock that is turned by hand."""

    def __init__(self, clock: HandClock, seconds: float, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.clock, self.seconds, self.inner = clock, seconds, inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock.time += self.seconds
        return x if self.inner is None else self.inner(x)


class HandClock(_Clock):
    time = 0.0

    def now(self) -> float:
        return self.time


def test_a_module_inside_another_one_is_counted_once() -> None:
    clock = HandClock("cpu")
    inner = Worker(clock, 2.0)
    outer = Worker(clock, 3.0, inner)
    with clock.listening({"outer": outer, "inner": inner}):
        outer(torch.zeros(1))
        clock.time += 10.0  # between two modules
        inner(torch.zeros(1))
    outer(torch.zeros(1))  # nobody listens any more
    assert clock.seconds == {"outer": 5.0, "inner": 2.0}


def test_the_engine_is_timed_by_part_and_against_one_by_one() -> None:
    model = init_world_model(tiny_preset(), seed=3)
    text = StringIO()
    result = bench_engine(4, 2, ["cpu"], Console(file=text, width=200), steps=1, model=model)
    timings = result["timings"]
    assert timings[0]["batch"] == BATCH
    assert {row["batch"] for row in timings[1:]} == {1}
    assert timings[1]["precision"] == "fp32"
    for row in timings:
        assert set(row["ms"]) == set(PARTS)
        assert all(
            row["ms"][part] > 0 for part in ("pre-branch", "denoise", "decode", "read again", "segment", "survival")
        )
        assert row["ms"]["condition"] >= 0
        parts = sum(value for part, value in row["ms"].items() if part != "pre-branch")
        own = parts + (row["ms"]["pre-branch"] if row["pre_branch_each_time"] else 0)
        assert row["total_ms"] == pytest.approx(own)
    assert "one by one, fp32" in text.getvalue()
    assert not any(module._forward_hooks for module in network_parts(model).values())


def test_the_pre_branch_belongs_to_every_simulation_without_a_cache() -> None:
    ms = dict.fromkeys(PARTS, 1.0) | {"pre-branch": 100.0}
    assert EngineTiming("a", 8, "fp32", "cpu", 1, False, ms).total_ms == 7.0
    assert EngineTiming("b", 1, "fp32", "cpu", 1, True, ms).total_ms == 107.0


def test_whole_patches_leave_nothing_out() -> None:
    engine = Engine("cpu", batch=1, model=init_world_model(tiny_preset(), seed=3))
    patient = draw_patient(DEMO_SEED)
    prepared = engine.prepare(*bench_case(patient), patient.record)
    whole = whole_patches(engine, prepared)
    assert whole.decoded.shape == whole.pre.shape
    ((_, change),) = engine.simulate_differences(
        whole, [(Protocol(drugs=("Cisplatin",), embolics=("Lipiodol",)), 0)], steps=1
    )
    assert (change[whole.support] != 0).any()
    assert not change[~whole.support].any()
