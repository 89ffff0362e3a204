from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from models.errors import RunError
from models.networks.preset import Preset, TrainingPreset
from models.training.board import FOLDER
from models.training.checkpoint import FILE as CHECKPOINT
from models.training.loop import BEST, FINAL, METRICS, Cadence, RunOptions, RunResult, run_training

PACE = Cadence(checkpoint_seconds=1e9, metrics_steps=1, validate_every=0.1)


class Line:
    """Fits a line; the validation figure comes from a list, or from the network."""

    def __init__(self, scores: list[float] | None = None) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.3), nn.Linear(4, 1))
        self.scores = list(scores or [])
        self.validated: list[Tensor] = []

    def loss(self, rng: np.random.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        x = torch.from_numpy(rng.standard_normal((8, 2)).astype(np.float32))
        loss = (self.network(x)[:, 0] - x.sum(1)).square().mean()
        return loss, {"square": float(loss.detach())}

    def validate(self, network: nn.Module) -> dict[str, float]:
        self.validated.append(network[0].weight.detach().clone())
        return {"score": self.scores.pop(0) if self.scores else 0.0}

    def picture(self, network: nn.Module) -> Any:
        return np.zeros((4, 4), np.uint8)


class Opposed(Line):
    """With an opponent that learns to tell the line's answers from the truth."""

    def __init__(self) -> None:
        super().__init__()
        self.adversary: nn.Module = nn.Linear(1, 1)
        self.last: Tensor | None = None

    def loss(self, rng: np.random.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        loss, parts = super().loss(rng, progress)
        x = torch.from_numpy(rng.standard_normal((8, 2)).astype(np.float32))
        answer = self.network(x)
        self.last = answer.detach()
        return loss - 0.1 * self.adversary(answer).mean(), parts

    def adversary_loss(self, progress: float) -> Tensor | None:
        if progress < 0.2 or self.last is None:
            return None
        return torch.relu(1.0 + self.adversary(self.last)).mean()


def train(task: Line, out: Path, steps: int = 20, **options: Any) -> RunResult:
    preset = TrainingPreset(
        minutes=1.0, batch=8, learning_rate=0.05, weight_decay=0.0, ema=0.5, warmup_steps=1,
        **options.pop("preset", {}),
    )  # fmt: skip
    finish = options.pop("finish", None)
    chosen = RunOptions(seed=3, steps=steps, cadence=PACE, mixed_precision=False, **options)
    return run_training(task, preset, out, chosen, fingerprint="line", finish=finish)


def test_an_opponent_is_restored_with_its_optimiser(tmp_path: Path) -> None:
    whole, part, rest = Opposed(), Opposed(), Opposed()
    train(whole, tmp_path / "whole")
    train(part, tmp_path / "broken", stop_after=11)
    train(rest, tmp_path / "broken", resume=True)
    assert torch.equal(whole.adversary.weight, rest.adversary.weight)
    assert not torch.equal(part.adversary.weight, rest.adversary.weight)
    one, other = load_file(tmp_path / "whole" / FINAL), load_file(tmp_path / "broken" / FINAL)
    assert all(torch.equal(one[key], other[key]) for key in one)
    alone = Line()
    train(alone, tmp_path / "alone")
    assert not torch.equal(alone.network[0].weight, whole.network[0].weight)


STOP = {"watch": "score", "patience": 2}


def test_early_stop_keeps_the_best_weights(tmp_path: Path) -> None:
    task = Line([0.1, 0.5, 0.4, 0.3, 0.9, 0.9])
    result = train(task, tmp_path, preset=STOP)
    assert result.step == 8  # validated at steps 2, 4, 6, 8; the second was the best
    kept = load_file(tmp_path / FINAL)["0.weight"]
    assert torch.equal(kept, task.validated[1])
    assert torch.equal(kept, load_file(tmp_path / BEST)["0.weight"])


def test_early_stop_begins_where_the_preset_says(tmp_path: Path) -> None:
    """A peak from before, when the opponents of an autoencoder did not take part, is not what is kept."""
    task = Line([0.9, 0.8, 0.7, 0.6, 0.1, 0.3, 0.2, 0.2])
    result = train(task, tmp_path, preset={**STOP, "watch_from": 0.5})
    assert result.step == 16  # from step 10 on: 0.1, 0.3 (step 12), 0.2, 0.2
    assert torch.equal(load_file(tmp_path / FINAL)["0.weight"], task.validated[5])
    with safe_open(tmp_path / FINAL, framework="pt") as file:
        assert file.metadata()["step"] == "12"


@pytest.mark.parametrize("name", ["small", "paper"])
def test_the_early_stop_of_a_preset_can_stop(tmp_path: Path, name: str) -> None:
    settings = Preset.load(name).training.autoencoder
    assert settings.patience
    task = Line([1.0 - 0.05 * validation for validation in range(10)])
    result = train(
        task, tmp_path, preset={"watch": "score", "patience": settings.patience, "watch_from": settings.watch_from}
    )
    assert result.step < 20


def test_the_last_validation_is_made_once(tmp_path: Path) -> None:
    task = Line()
    train(task, tmp_path)
    with (tmp_path / METRICS).open(newline="", encoding="utf-8") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["split"] == "val"]
    assert len(set(steps)) == len(steps) >= 10
    assert steps[-1] == 20
    assert len(task.validated) == len(steps)


def test_early_stop_may_watch_a_figure_that_should_fall_and_survives_a_break(tmp_path: Path) -> None:
    falling = {"watch": "-score", "patience": 2}
    scores = [0.9, 0.5, 0.7, 0.6, 0.1]
    whole = train(Line(scores), tmp_path / "whole", preset=falling)
    train(Line(scores), tmp_path / "broken", preset=falling, stop_after=7)
    broken = train(Line(scores[3:]), tmp_path / "broken", preset=falling, resume=True)
    assert whole.step == broken.step == 8
    one, other = load_file(tmp_path / "whole" / FINAL), load_file(tmp_path / "broken" / FINAL)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_an_unknown_figure_to_watch_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="watches 'dice'"):
        train(Line(), tmp_path, preset={"watch": "dice", "patience": 1})


def test_tensorboard_shows_no_step_twice_after_a_break(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(Line(), tmp_path, stop_after=11)
    kept = (tmp_path / CHECKPOINT).read_bytes()
    train(Line(), tmp_path, resume=True)
    (tmp_path / CHECKPOINT).write_bytes(kept)  # broken off at the end, nine steps after the checkpoint
    (tmp_path / FINAL).unlink()
    train(Line(), tmp_path, resume=True)
    for place, file in enumerate(sorted((tmp_path / FOLDER).iterdir(), key=lambda path: path.stat().st_mtime_ns)):
        file.rename(file.with_name(f"events.out.tfevents.{1_700_000_000 + place}.host.1.0"))  # as if in other seconds
    events = accumulator.EventAccumulator(str(tmp_path / FOLDER))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 21))


def test_tensorboard_gets_what_the_table_gets(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(Line([0.25]), tmp_path, steps=4)
    events = accumulator.EventAccumulator(str(tmp_path / FOLDER))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert events.Scalars("val/score")[0].value == pytest.approx(0.25)
    assert events.Images("samples")
