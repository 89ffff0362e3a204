"""What each of the processes does that `test_processes.py` starts; it leaves what it found in a folder."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.errors import RunError
from models.networks.preset import Preset
from models.training.autoencoder import AutoencoderTask, train_autoencoder
from models.training.loop import Cadence, RunOptions, RunResult, run_training
from models.training.processes import Processes
from tests.models.training.conftest import make_pool, shrink

QUIET = Cadence(checkpoint_seconds=1e9, metrics_steps=1, validate_every=0.5)


class Halves:
    """Fits a line to some rows of eight; all processes together have the eight."""

    def __init__(self, mine: slice) -> None:
        torch.manual_seed(5)
        self.network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.rows = torch.randn(8, 3)
        self.mine = mine

    def loss(self, rng: np.random.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        x = self.rows[self.mine]
        return (self.network(x)[:, 0] - x.sum(1)).square().mean(), {}

    def validate(self, network: nn.Module) -> dict[str, float]:
        return {"score": 0.0}

    def picture(self, network: nn.Module) -> npt.NDArray[np.uint8]:
        return np.zeros((4, 4), np.uint8)


def train_halves(task: Halves, out: Path) -> RunResult:
    """Twelve steps."""
    settings = Preset.load("small").training.segmenter
    settings = settings.model_copy(update={"learning_rate": 0.05, "weight_decay": 0.0, "ema": 0.5, "warmup_steps": 1})
    return run_training(
        task, settings, out, RunOptions(seed=3, steps=12, cadence=QUIET, mixed_precision=False), fingerprint="halves"
    )


def _basics(me: Processes, folder: Path) -> dict[str, Any]:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False), nn.Linear(3, 1))
    network.add_module("unused", nn.Linear(2, 2))
    network.register_buffer("flags", torch.tensor([me.first]))
    x, y = torch.randn(8, 4), torch.randn(8, 1)
    mine = slice(4 * me.rank, 4 * me.rank + 4)
    nn.functional.mse_loss(nn.Sequential(network[0], network[2])(x[mine]), y[mine]).backward()  # type: ignore[no-untyped-call]
    me.average_gradients(network)
    network.train()
    network[1](torch.randn(8, 3) * (me.rank + 1))
    me.share_buffers(network)
    assert bool(network.get_buffer("flags")[0])

    def note() -> list[str]:
        seen = sorted(path.name for path in folder.glob("turn-*"))
        (folder / f"turn-{me.rank}").touch()
        return seen

    def draw(step: int) -> int:
        return int(me.generator(np.random.default_rng(0), 5, step).integers(1 << 30))

    return {
        "rank": me.rank, "count": me.count, "first": me.first, "agreed": me.agreed(0.25 + me.rank),
        "grads": [p.grad.flatten().tolist() for p in network.parameters() if p.grad is not None],
        "mean": network.get_buffer("1.running_mean").tolist(), "draws": [draw(7), draw(8), draw(7)],
        "fingerprint": me.fingerprint("run"), "seen": me.in_turn(note),
    }  # fmt: skip


class _Watched:
    """Files below a folder that this process opens for writing or renames."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = str(folder), set[str]()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and bool(int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if (writes or event == "os.rename") and str(arguments[0]).startswith(self.folder):
            self.seen.add(str(arguments[0]))


def _networks(folder: Path) -> dict[str, Any]:
    """The real autoencoder: unbroken, then broken off and resumed, then resumed as if it had been one process."""
    pool, preset = make_pool(), shrink(Preset.load("small"))
    watched = _Watched(folder / "whole")
    losses: list[float] = []
    plain = AutoencoderTask.loss

    def noted(self: AutoencoderTask, rng: np.random.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        loss, parts = plain(self, rng, progress)
        losses.append(float(loss.detach()))
        weights.append(self.network)
        return loss, parts

    weights: list[nn.Module] = []
    AutoencoderTask.loss = noted  # type: ignore[method-assign]
    options = RunOptions(seed=5, steps=4, cadence=QUIET, mixed_precision=False)
    result = train_autoencoder(pool, preset, folder / "whole", options)
    mine = b"".join(v.detach().contiguous().numpy().tobytes() for v in weights[-1].state_dict().values())
    found = {
        "steps": result.step, "losses": list(losses), "weights": hashlib.sha256(mine).hexdigest(),
        "written": sorted(watched.seen),
    }  # fmt: skip
    broken = train_autoencoder(pool, preset, folder / "broken", replace(options, stop_after=2))
    found["stopped"] = [broken.step, broken.finished]
    train_autoencoder(pool, preset, folder / "broken", replace(options, resume=True))
    started = Processes.join
    Processes.join = classmethod(lambda cls: cls())  # type: ignore[assignment, method-assign]
    try:
        train_autoencoder(pool, preset, folder / "broken", replace(options, resume=True))
    except RunError as error:
        found["refused"] = str(error)
    Processes.join = started  # type: ignore[method-assign]
    return found


def _main(folder: Path) -> None:
    me = Processes.join()
    told = _basics(me, folder)
    train_halves(Halves(slice(4 * me.rank, 4 * me.rank + 4)), folder / "halves")
    told |= _networks(folder)
    (folder / f"told-{me.rank}.json").write_text(json.dumps(told))
    me.wait()


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
