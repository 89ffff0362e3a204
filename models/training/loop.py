"""The training loop that all four networks share: budget, schedule, EMA, metrics, pictures, checkpoints, resume."""

from __future__ import annotations

import copy
import csv
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn

from models.errors import RunError
from models.networks.precision import autocast
from models.networks.preset import TrainingPreset
from models.training.checkpoint import FILE as CHECKPOINT
from models.training.checkpoint import load_checkpoint, save_checkpoint

FINAL = "final.safetensors"
METRICS = "metrics.csv"


class Task(Interface):
    """What differs between the networks."""

    @property
    def network(self) -> nn.Module:
        """The network that is trained, in place."""
        ...

    def loss(self, rng: np.random.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        """One batch drawn with `rng`: loss with gradient, and its parts. `progress` runs from 0 to 1."""
        ...

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Metrics of the averaged network on patients that are not trained on; uses its own random state."""
        ...

    def picture(self, network: nn.Module) -> npt.NDArray[np.uint8]:
        """A grey picture (H, W) that shows what the network does."""
        ...


@dataclass(frozen=True)
class Budget:
    """When to stop: after `steps` if given (then the run is reproducible bit for bit), else after `minutes`."""

    minutes: float
    steps: int | None = None

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is done, 0 to 1."""
        share = step / self.steps if self.steps is not None else seconds / (60.0 * self.minutes)
        return min(share, 1.0)


@dataclass(frozen=True)
class Cadence:
    """How often things are written. Seconds, except `validate_every`, a share of the run."""

    checkpoint_seconds: float = 120.0
    metrics_steps: int = 10
    validate_every: float = 0.1


@dataclass(frozen=True)
class RunResult:
    """Where a training run stands."""

    network: nn.Module
    step: int
    seconds: float
    metrics: Mapping[str, float]
    finished: bool


def learning_rate(base: float, step: int, warmup: int, progress: float) -> float:
    """Linear warm-up over `warmup` steps, then cosine to 2 % of `base` over the run."""
    floor = 0.02
    cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return base * cosine * min(1.0, (step + 1) / max(1, warmup))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """EMA of parameters that really moves from the first step; buffers are copied."""
    rate = 1.0 - min(decay, (1.0 + step) / (10.0 + step))
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), rate)
    for mine, theirs in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(theirs)


def _keep_rows(path: Path, last_step: int) -> None:
    """Drop rows after the checkpoint, so that a resumed run's table has every step once."""
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    kept = [row for row in rows if row[0] == "step" or int(row[0]) <= last_step]
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(kept)
    temporary.replace(path)


def _append(path: Path, step: int, seconds: float, split: str, values: Mapping[str, float]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["step", "seconds", "split", "metric", "value"])
        writer.writerows([step, f"{seconds:.1f}", split, name, f"{value:.6g}"] for name, value in values.items())


def run_training(
    task: Task, preset: TrainingPreset, out: Path, *, seed: int, budget: Budget, fingerprint: str, resume: bool,
    cadence: Cadence | None = None, mixed_precision: bool | None = None, stop_after: int | None = None,
    finish: Callable[[nn.Module], None] | None = None,
) -> RunResult:  # fmt: skip
    """Train `task.network` in `out` until the budget is spent.

    Args:
        task: network, loss and validation.
        preset: batch-independent settings: learning rate, weight decay, EMA, warm-up.
        out: folder of this network's run: checkpoint, metrics.csv, samples/*.png, at the end final.safetensors (the
            averaged weights).
        seed: of the batches.
        budget: when to stop.
        fingerprint: of data, preset and seed; a resumed run must have the same.
        resume: continue the run in `out`; a run that is already finished returns at once.
        cadence: how often things are written.
        mixed_precision: None asks the device.
        finish: called with the averaged network before the last validation and `final.safetensors`.
        stop_after: leave (with a checkpoint) when this step is reached, as if interrupted.

    Raises:
        RunError: `out` already holds a run and `resume` is off, the run there is another one, or the loss is not
            finite.
    """
    pace = cadence or Cadence()
    try:
        (out / "samples").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"The training folder {out} can't be written: {error.strerror}.") from error
    if (out / CHECKPOINT).exists() and not resume:
        raise RunError(f"{out} already holds a training run; pass --resume to continue it or choose another --out.")
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = task.network
    average = copy.deepcopy(network).requires_grad_(False).eval()
    optimiser = torch.optim.AdamW(network.parameters(), lr=preset.learning_rate, weight_decay=preset.weight_decay)
    step, spent, next_validation = 0, 0.0, pace.validate_every
    metrics: dict[str, float] = {}
    if resume and (out / CHECKPOINT).exists():
        state = load_checkpoint(out, network, average, optimiser, rng)
        if state["fingerprint"] != fingerprint:
            raise RunError(f"The run in {out} was started with other data, preset or seed; choose another --out.")
        step, spent, next_validation = state["step"], state["seconds"], state["next_validation"]
        metrics = state["metrics"]
        _keep_rows(out / METRICS, step)
    else:
        (out / METRICS).unlink(missing_ok=True)

    def save() -> None:
        counters = {
            "step": step, "seconds": spent, "next_validation": next_validation, "fingerprint": fingerprint,
            "metrics": metrics,
        }  # fmt: skip
        save_checkpoint(out, network, average, optimiser, rng, counters)

    def check() -> None:
        metrics.clear()
        metrics.update(_with_own_random_state(lambda: task.validate(average), mixed_precision))
        _append(out / METRICS, step, spent, "val", metrics)
        picture = _with_own_random_state(lambda: task.picture(average), mixed_precision)
        Image.fromarray(picture).save(out / "samples" / f"step_{step:06d}.png")

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, refresh_per_second=2) as bar:
        line = bar.add_task(out.name, total=1.0)
        bar.update(line, completed=budget.progress(step, spent))
        saved_at = time.monotonic()
        network.train()
        while budget.progress(step, spent) < 1.0:
            began = time.monotonic()
            progress = budget.progress(step, spent)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(preset.learning_rate, step, preset.warmup_steps, progress)
            with _precision(mixed_precision):
                loss, parts = task.loss(rng, progress)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            value = float(loss.detach())
            if not (math.isfinite(value) and math.isfinite(float(norm))):
                raise RunError(f"The loss in {out} is not finite at step {step}; lower the learning rate and resume.")
            optimiser.step()
            update_average(average, network, preset.ema, step)
            step += 1
            spent += time.monotonic() - began
            if step % pace.metrics_steps == 0:
                _append(out / METRICS, step, spent, "train", {"loss": value, **parts})
                told = " ".join(f"{name} {number:.3g}" for name, number in {"loss": value, **parts}.items())
                bar.update(line, completed=budget.progress(step, spent), description=f"{out.name} step {step}  {told}")
            if budget.progress(step, spent) >= next_validation:
                next_validation += pace.validate_every
                check()
                network.train()
            if stop_after is not None and step >= stop_after:
                save()
                return RunResult(average, step, spent, metrics, finished=False)
            if time.monotonic() - saved_at > pace.checkpoint_seconds:
                save()
                saved_at = time.monotonic()
        if not (out / FINAL).exists():
            if finish is not None:
                _with_own_random_state(lambda: finish(average), mixed_precision)
            check()
            save()
            weights = {name: tensor.contiguous().clone() for name, tensor in average.state_dict().items()}
            temporary = out / f".{FINAL}.{os.getpid()}.tmp"
            save_file(weights, temporary, metadata={"step": str(step), "fingerprint": fingerprint})
            temporary.replace(out / FINAL)
    return RunResult(average, step, spent, metrics, finished=True)


def _precision(mixed_precision: bool | None) -> AbstractContextManager[object]:
    return autocast("cpu", mixed_precision)


def _with_own_random_state(call: Callable[[], Any], mixed_precision: bool | None) -> Any:
    """Run an evaluation without gradient and without moving the run's random stream."""
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _precision(mixed_precision):
        torch.manual_seed(0)
        return call()
