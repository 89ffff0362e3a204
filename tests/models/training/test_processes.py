"""Several training processes: two of them over gloo on the CPU, as `torchrun` starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from models.training.loop import FINAL
from models.training.processes import Processes
from tests.models.training.two_processes import Halves, train_halves

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left that ran `two_processes.py`."""
    folder = tmp_path_factory.mktemp("two")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "tests.models.training.two_processes", str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_have_the_gradient_of_the_whole_batch(two: list[dict[str, Any]]) -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False), nn.Linear(3, 1))
    network.add_module("unused", nn.Linear(2, 2))
    x, y = torch.randn(8, 4), torch.randn(8, 1)
    nn.functional.mse_loss(nn.Sequential(network[0], network[2])(x), y).backward()  # type: ignore[no-untyped-call]
    for told in two:
        for found, parameter in zip(told["grads"], network.parameters(), strict=True):
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            np.testing.assert_allclose(found, expected.flatten().numpy(), atol=1e-6)


def test_two_processes_agree_and_take_turns(two: list[dict[str, Any]]) -> None:
    one, other = two
    assert [(t["rank"], t["count"], t["first"]) for t in two] == [(0, 2, True), (1, 2, False)]
    assert one["mean"] == other["mean"] != [0.0, 0.0, 0.0]
    assert one["agreed"] == other["agreed"] == 0.25
    assert one["draws"][0] != other["draws"][0]
    assert one["draws"][0] == one["draws"][2] != one["draws"][1]  # a step draws what it drew before
    assert one["fingerprint"] == other["fingerprint"] == "run in 2 processes"
    assert one["seen"] == []
    assert other["seen"] == ["turn-0"]


def test_half_a_batch_in_each_of_two_processes_trains_like_the_whole_batch_in_one(folder: Path) -> None:
    alone = Halves(slice(0, 8))
    untrained = alone.network.state_dict()["0.weight"].clone()
    train_halves(alone, folder / "alone")
    one, two = (load_file(folder / name / FINAL) for name in ("alone", "halves"))
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=1e-5, rtol=1e-4)
    assert float((one["0.weight"] - untrained).abs().max()) > 0.05


def test_both_processes_end_with_the_same_network_and_only_the_first_one_writes(
    two: list[dict[str, Any]], folder: Path
) -> None:
    one, other = two
    assert one["weights"] == other["weights"]
    assert one["losses"] != other["losses"]  # each had its own batches
    assert [told["steps"] for told in two] == [4, 4]
    assert any(FINAL in name for name in one["written"])
    assert other["written"] == []
    assert (folder / "whole" / "metrics.csv").exists()


def test_a_resumed_run_of_two_processes_equals_an_unbroken_one_bit_for_bit(
    two: list[dict[str, Any]], folder: Path
) -> None:
    whole, again = load_file(folder / "whole" / FINAL), load_file(folder / "broken" / FINAL)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert [told["stopped"] for told in two] == [[2, False], [2, False]]
    rows = [
        [line.split(",") for line in (folder / name / "metrics.csv").read_text().splitlines()]
        for name in ("whole", "broken")
    ]
    # all but the seconds
    assert [[row[0], *row[2:]] for row in rows[0]] == [[row[0], *row[2:]] for row in rows[1]]


def test_a_run_is_not_continued_with_another_number_of_processes(two: list[dict[str, Any]]) -> None:
    assert all("number of processes" in told["refused"] for told in two)


def test_a_process_alone_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    me = Processes.join()
    assert (me.rank, me.count, me.first) == (0, 1, True)
    network = nn.Linear(2, 1)
    network(torch.ones(1, 2)).sum().backward()
    assert network.weight.grad is not None
    before = network.weight.grad.clone()
    me.average_gradients(network)
    me.share_buffers(network)
    me.wait()
    assert torch.equal(network.weight.grad, before)
    assert me.agreed(0.7) == 0.7
    assert me.in_turn(lambda: 5) == 5
    stream = np.random.default_rng(9)
    torch.manual_seed(4)
    state = torch.get_rng_state()
    assert me.generator(stream, 1, 2) is stream
    assert torch.equal(torch.get_rng_state(), state)
    assert me.fingerprint("run") == "run"
