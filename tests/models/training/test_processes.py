from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.training.processes import Processes

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import json, sys
import torch
from torch import nn
from models.training.processes import Processes

me = Processes.join()
torch.manual_seed(3)
network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False), nn.Linear(3, 1))
network.add_module("unused", nn.Linear(2, 2))
x, y = torch.randn(8, 4), torch.randn(8, 1)
plain = nn.Sequential(network[0], network[2])
mine = slice(4 * me.rank, 4 * me.rank + 4)
nn.functional.mse_loss(plain(x[mine]), y[mine]).backward()
me.average_gradients(network)
network.train()
network[1](torch.randn(8, 3) * (me.rank + 1))
me.share_buffers(network)
folder = sys.argv[1]
def note():
    seen = sorted(str(p.name) for p in __import__("pathlib").Path(folder).glob("turn-*"))
    open(f"{folder}/turn-{me.rank}", "w").close()
    return seen
told = {
    "rank": me.rank, "count": me.count, "first": me.first,
    "grads": [p.grad.flatten().tolist() for p in network.parameters()],
    "mean": network[1].running_mean.tolist(),
    "agreed": me.agreed(0.25 + me.rank),
    "draw": int(me.generator(5).integers(1 << 30)),
    "seen": me.in_turn(note),
}
me.wait()
open(f"{folder}/told-{me.rank}.json", "w").write(json.dumps(told))
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:  # type: ignore[type-arg]
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(SCRIPT)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(folder / "script.py"), str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_have_the_gradient_of_the_whole_batch(two: list[dict]) -> None:  # type: ignore[type-arg]
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False), nn.Linear(3, 1))
    network.add_module("unused", nn.Linear(2, 2))
    x, y = torch.randn(8, 4), torch.randn(8, 1)
    nn.functional.mse_loss(nn.Sequential(network[0], network[2])(x), y).backward()
    for told in two:
        for found, parameter in zip(told["grads"], network.parameters(), strict=True):
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            np.testing.assert_allclose(found, expected.flatten().numpy(), atol=1e-6)


def test_two_processes_agree_and_take_turns(two: list[dict]) -> None:  # type: ignore[type-arg]
    one, other = two
    assert [(t["rank"], t["count"], t["first"]) for t in two] == [(0, 2, True), (1, 2, False)]
    assert one["mean"] == other["mean"] != [0.0, 0.0, 0.0]
    assert one["agreed"] == other["agreed"] == 0.25
    assert one["draw"] != other["draw"]
    assert one["seen"] == []
    assert other["seen"] == ["turn-0"]


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
    assert me.generator(9).integers(1 << 30) == np.random.default_rng(9).integers(1 << 30)
