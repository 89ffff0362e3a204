"""The training loop that all networks share: budget, schedule, EMA, metrics, pictures, checkpoints, resume.

It works on the device that the network lies on, in one process or in several that torchrun started, with or without an
adversary. Metrics go to a CSV file and, where it is installed, to TensorBoard.
"""

from __future__ import annotations

import copy
import csv
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, runtime_checkable
from typing import Protocol as Interface

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.errors import RunError
from models.networks.precision import autocast
from models.networks.preset import TrainingPreset
from models.training.board import Board
from models.training.checkpoint import FILE as CHECKPOINT
from models.training.checkpoint import load_checkpoint, read_state, save_checkpoint
from models.training.processes import Processes

FINAL = "final.safetensors"
BEST = "best.safetensors"
ADVERSARY_RATE = 0.5  # of the network's learning rate
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


@runtime_checkable
class Adversarial(Interface):
    """A task whose loss contains an opponent, which learns in turn."""

    adversary: nn.Module

    def adversary_loss(self, progress: float) -> Tensor | None:
        """The opponent's loss on the batch of the last `loss`; None while it does not take part."""
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
class RunOptions:
    """How a network is trained, whichever it is.

    Attributes:
        seed: of weights and batches.
        minutes: budget; None takes the preset's.
        steps: overrides `minutes` and makes the run reproducible.
        resume: continue the run in its folder; one that is already finished returns at once.
        cadence: how often things are written; None takes what suits the network.
        mixed_precision: None asks the device.
        stop_after: leave (with a checkpoint) when this step is reached, as if interrupted.
    """

    seed: int = 0
    minutes: float | None = None
    steps: int | None = None
    resume: bool = False
    cadence: Cadence | None = None
    mixed_precision: bool | None = None
    stop_after: int | None = None


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


def check_folder(out: Path, options: RunOptions, fingerprint: str) -> None:
    """Refuse a folder that this run can't go on in, before anything is made for it or written over.

    Args:
        out: folder of the network's run; made where it is missing.
        options: whether to resume.
        fingerprint: of data, preset and seed.

    Raises:
        RunError: `out` can't be written, holds a run and `resume` is off, holds another run, or lacks its checkpoint.
    """
    try:
        (out / "samples").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"The training folder {out} can't be written: {error.strerror}.") from error
    if not (out / CHECKPOINT).exists():
        if (out / FINAL).exists():
            raise RunError(f"{out} holds a trained network without its checkpoint; remove it or choose another --out.")
        return
    if not options.resume:
        raise RunError(f"{out} already holds a training run; pass --resume to continue it or choose another --out.")
    if read_state(out)["fingerprint"] != Processes.join().fingerprint(fingerprint):
        raise RunError(
            f"The run in {out} was started with other data, preset or seed, or in another number of "
            "processes; choose another --out."
        )


def run_training(
    task: Task, preset: TrainingPreset, out: Path, options: RunOptions, *, fingerprint: str,
    validate_every: float = 0.1, finish: Callable[[nn.Module], None] | None = None,
) -> RunResult:  # fmt: skip
    """Train `task.network` in `out` until the budget is spent.

    Args:
        task: network (on its device), loss and validation; it may be `Adversarial`.
        preset: batch-independent settings: minutes, learning rate, weight decay, EMA, warm-up, early stop.
        out: folder of this network's run: checkpoint, metrics.csv, tensorboard, samples/*.png, at the end
            final.safetensors (the averaged weights; with an early stop those of the best validation).
        options: seed, budget and so on.
        fingerprint: of data, preset and seed; a resumed run must have the same.
        validate_every: share of the run, where the options have no cadence.
        finish: called with the averaged network before the last validation and `final.safetensors`.

    Raises:
        RunError: the loss is not finite; and see `check_folder`.
    """
    pace = options.cadence or Cadence(validate_every=validate_every)
    budget = Budget(options.minutes or preset.minutes, options.steps)
    me = Processes.join()
    check_folder(out, options, fingerprint)
    run = _Run(task, preset, out, options, fingerprint, me)
    if options.resume and (out / CHECKPOINT).exists():
        run.restore()
    elif me.first:
        for name in (METRICS, BEST):
            (out / name).unlink(missing_ok=True)
    me.wait()
    run.board = Board(out if me.first else None, run.step)
    run.next_validation = run.next_validation or pace.validate_every
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, refresh_per_second=2, disable=not me.first) as bar:
        line = bar.add_task(out.name, total=1.0)
        bar.update(line, completed=budget.progress(run.step, run.spent))
        saved_at = time.monotonic()
        run.network.train()
        while (progress := me.agreed(budget.progress(run.step, run.spent))) < 1.0 and not run.stopped:
            values = run.advance(progress)
            if run.step % pace.metrics_steps == 0 and me.first:
                run.note("train", values)
                told = " ".join(f"{name} {number:.3g}" for name, number in values.items())
                shown = f"{out.name} step {run.step}  {told}"
                bar.update(line, completed=budget.progress(run.step, run.spent), description=shown)
            if (reached := me.agreed(budget.progress(run.step, run.spent))) >= run.next_validation:
                run.next_validation += pace.validate_every
                run.check(reached)
                run.network.train()
            if options.stop_after is not None and run.step >= options.stop_after:
                run.save()
                me.wait()
                run.board.close()
                return RunResult(run.average, run.step, run.spent, run.metrics, finished=False)
            if me.first and time.monotonic() - saved_at > pace.checkpoint_seconds:
                run.save()
                saved_at = time.monotonic()
        if not (out / FINAL).exists() and me.first:
            run.conclude(finish)
    me.wait()
    run.board.close()
    return RunResult(run.average, run.step, run.spent, run.metrics, finished=True)


class _Run:
    """State of a run: what a checkpoint holds, and the steps that change it."""

    def __init__(
        self, task: Task, preset: TrainingPreset, out: Path, options: RunOptions, fingerprint: str, me: Processes
    ) -> None:
        self.task, self.preset, self.out, self.me = task, preset, out, me
        self.fingerprint = me.fingerprint(fingerprint)
        self.mixed_precision = options.mixed_precision
        self.seed = options.seed
        torch.manual_seed(self.seed)
        self.rng = np.random.default_rng(self.seed)
        self.network = task.network
        self.device = next(self.network.parameters()).device
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.optimiser = _adam(self.network, preset.learning_rate, preset.weight_decay)
        self.opponent = task if isinstance(task, Adversarial) else None
        self.foe = _adam(self.opponent.adversary, preset.learning_rate, 0.0) if self.opponent else None
        self.board = Board(None)  # opened once it is known from which step on
        self.step, self.spent, self.next_validation = 0, 0.0, 0.0
        self.best, self.waited, self.best_step = -math.inf, 0, 0
        self.checked: int | None = None
        self.metrics: dict[str, float] = {}

    @property
    def stopped(self) -> bool:
        """Whether the watched figure has not improved for too long."""
        return bool(self.me.agreed(float(0 < self.preset.patience <= self.waited)))

    def restore(self) -> None:
        """Continue from the checkpoint."""
        state = load_checkpoint(self.out, self.network, self.average, self.optimiser, self.rng, self._adversary())
        self.step, self.spent, self.next_validation = state["step"], state["seconds"], state["next_validation"]
        self.metrics, self.waited, self.best_step = state["metrics"], state["waited"], state["best_step"]
        self.checked = state["checked"]
        self.best = -math.inf if state["best"] is None else state["best"]
        if self.me.first:
            _keep_rows(self.out / METRICS, self.step)

    def _adversary(self) -> tuple[nn.Module, torch.optim.Optimizer] | None:
        return (self.opponent.adversary, self.foe) if self.opponent is not None and self.foe is not None else None

    def save(self) -> None:
        """Write the checkpoint."""
        if not self.me.first:
            return
        counters = {
            "step": self.step, "seconds": self.spent, "next_validation": self.next_validation,
            "fingerprint": self.fingerprint, "metrics": self.metrics, "waited": self.waited, "checked": self.checked,
            "best_step": self.best_step, "best": self.best if math.isfinite(self.best) else None,
        }  # fmt: skip
        save_checkpoint(self.out, self.network, self.average, self.optimiser, self.rng, counters, self._adversary())

    def advance(self, progress: float) -> dict[str, float]:
        """One step of the optimiser; returns the loss and its parts."""
        began = time.monotonic()
        rate = learning_rate(self.preset.learning_rate, self.step, self.preset.warmup_steps, progress)
        rng = self.me.generator(self.rng, self.seed, self.step)
        with autocast(self.device, self.mixed_precision):
            loss, parts = self.task.loss(rng, progress)
        value = self._descend(self.network, self.optimiser, loss, rate)
        update_average(self.average, self.network, self.preset.ema, self.step)
        if self.opponent is not None and self.foe is not None:
            with autocast(self.device, self.mixed_precision):
                against = self.opponent.adversary_loss(progress)
            if against is not None:
                parts["adversary"] = self._descend(self.opponent.adversary, self.foe, against, ADVERSARY_RATE * rate)
        self.me.share_buffers(self.network)
        self.step += 1
        self.spent += time.monotonic() - began
        return {"loss": value, **parts}

    def _descend(self, network: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor, rate: float) -> float:
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.me.average_gradients(network)
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise RunError(
                f"The loss in {self.out} is not finite at step {self.step}; train with a lower learning rate in "
                "another --out."
            )
        optimiser.step()
        return value

    def note(self, split: str, values: Mapping[str, float]) -> None:
        """Write figures to the table and to TensorBoard."""
        _append(self.out / METRICS, self.step, self.spent, split, values)
        self.board.scalars(self.step, split, values)

    def check(self, progress: float) -> None:
        """Validate the averaged network, write figures and a picture, remember the best."""
        if not self.me.first:
            return
        self.checked = self.step
        self.metrics.clear()
        self.metrics.update(self._calmly(lambda: self.task.validate(self.average)))
        self.note("val", self.metrics)
        picture = self._calmly(lambda: self.task.picture(self.average))
        Image.fromarray(picture).save(self.out / "samples" / f"step_{self.step:06d}.png")
        self.board.picture(self.step, picture)
        if not self.preset.patience or progress < self.preset.watch_from:
            return
        name = self.preset.watch.removeprefix("-")
        if name not in self.metrics:
            known = ", ".join(sorted(self.metrics))
            raise RunError(
                f"The early stop watches '{name}', which is no metric of {self.out.name}; choose of {known}."
            )
        score = -self.metrics[name] if self.preset.watch.startswith("-") else self.metrics[name]
        if score > self.best:
            self.best, self.waited, self.best_step = score, 0, self.step
            self._write(BEST, self.step)
        else:
            self.waited += 1

    def conclude(self, finish: Callable[[nn.Module], None] | None) -> None:
        """The weights, with an early stop those of the best validation, and their figures if they are not known yet."""
        kept = self.step
        if self.preset.patience and (self.out / BEST).exists():
            self.average.load_state_dict(load_file(self.out / BEST))
            kept = self.best_step
        if finish is not None:
            self._calmly(lambda: finish(self.average))
        if finish is not None or self.checked != kept:
            self.check(1.0)
        self.save()
        self._write(FINAL, kept)

    def _write(self, name: str, step: int) -> None:
        weights = {key: tensor.cpu().contiguous().clone() for key, tensor in self.average.state_dict().items()}
        temporary = self.out / f".{name}.{os.getpid()}.tmp"
        save_file(weights, temporary, metadata={"step": str(step), "fingerprint": self.fingerprint})
        temporary.replace(self.out / name)

    def _calmly(self, call: Callable[[], Any]) -> Any:
        """Run an evaluation without gradient and without moving the run's random stream."""
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), torch.no_grad(), autocast(self.device, self.mixed_precision):
            torch.manual_seed(0)
            return call()


def _adam(network: nn.Module, rate: float, decay: float) -> torch.optim.Optimizer:
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(learned, lr=rate, weight_decay=decay)
