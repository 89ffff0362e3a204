"""A real run's services on a small untrained bundle: bad input is one sentence and leaves no run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import models.weights
import tools.workspace
from agent.cli.main import app
from models.case import Case, ImageMeta, write_case
from models.weights import PARTS, init_world_model, save_world_model
from tests.agent.fake_tools import make_case
from tests.tools.conftest import tiny_preset


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "weights"
    model = init_world_model(tiny_preset(), seed=5)
    networks = {name: model.part(name) for name in PARTS}
    save_world_model(networks, model.preset, folder, origin="untrained", provenance={"command": "a test"})
    monkeypatch.setattr(models.weights, "DEFAULT_WEIGHTS", folder)
    monkeypatch.setattr(tools.workspace, "_engines", {})
    return folder


def plan(case: Path, run: Path, *options: str) -> Any:
    return CliRunner().invoke(app, ["plan", str(case), "--run", str(run), *options], terminal_width=100)


def refused(done: Any, code: int, sentence: str, run: Path) -> None:
    assert done.exit_code == code, done.output
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not run.exists()


@pytest.mark.parametrize("twice", ["first", "again"])
def test_damaged_weights(tmp_path: Path, bundle: Path, twice: str) -> None:
    case, run = make_case(tmp_path / "case"), tmp_path / "runs" / "one"
    path = bundle / "survival.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00\x01")
    for _ in range(1 if twice == "first" else 2):
        refused(plan(case, run), 3, "survival.safetensors is damaged", run.parent)


def test_missing_weights(tmp_path: Path, bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    refused(plan(make_case(tmp_path / "case"), tmp_path / "run"), 3, "There are no model weights", tmp_path / "run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there(tmp_path: Path, bundle: Path) -> None:
    done = plan(make_case(tmp_path / "case"), tmp_path / "run", "--device", "cuda")
    refused(done, 2, "torch sees no CUDA device", tmp_path / "run")


def test_more_steps_than_the_sampler_takes(tmp_path: Path, bundle: Path) -> None:
    done = plan(make_case(tmp_path / "case"), tmp_path / "run", "--steps", "2000")
    refused(done, 2, "steps=2000 can't be used", tmp_path / "run")


def test_a_mask_without_a_tumour(tmp_path: Path, bundle: Path) -> None:
    whole = Case.load(make_case(tmp_path / "case"))
    labels = np.where(whole.label_array() == 2, 1, whole.label_array()).astype(np.uint8)
    images = {ImageMeta("pre_arterial", "pre", "arterial"): whole.volume("pre_arterial")}
    write_case(tmp_path / "bare", "bare", "synthetic", "made for a test", images, labels)
    done = plan(tmp_path / "bare", tmp_path / "run")
    refused(done, 2, "tumour", tmp_path / "run")


def test_too_many_protocols_to_try_them_all(tmp_path: Path, bundle: Path) -> None:
    done = plan(make_case(tmp_path / "case"), tmp_path / "run", "--strategy", "exhaustive", "--budget", "24")
    refused(done, 2, "budget", tmp_path / "run")
