"""`mewm evaluate-models`: what it hands on, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from agent.cli.evaluate import register
from evals.model_card import evaluate
from evals.model_card.blocks import Sizes
from models.errors import InputError


def run(*arguments: str) -> Any:
    app = typer.Typer()
    register(app)
    app.callback()(lambda: None)
    return CliRunner().invoke(app, ["evaluate-models", *arguments])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def fake(sizes: Sizes, out: Path, work: Path, **options: Any) -> dict[str, Any]:
        calls.append({"sizes": sizes, "out": out, "work": work, **options})
        options["progress"]("patients", 1, 2)
        (out / "MODEL_CARD.md").write_text("the card", encoding="utf-8")
        return {}

    monkeypatch.setattr(evaluate, "evaluate_models", fake)
    return calls


def test_the_full_card_is_the_issues_and_the_quick_one_smaller(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    done = run("--out", str(tmp_path), "--work", str(tmp_path / "w"))
    assert done.exit_code == 0, done.output
    assert "the card" in done.output
    full = asked[0]["sizes"]
    assert full.patients >= 200  # of every agent one pair a patient
    assert full.survival_patients >= 1000
    run("--quick", "--survival", "30", "--out", str(tmp_path), "--work", str(tmp_path / "w"), "--workers", "2")
    quick = asked[1]["sizes"]
    assert quick == Sizes.quick().model_copy(update={"survival_patients": 30})
    assert quick.patients < 20
    assert asked[1]["workers"] == 2
    assert asked[1]["extra"] == {}
    assert asked[1]["command"].startswith("mewm ")


def test_a_quick_card_never_replaces_that_of_the_weights(asked: list[dict[str, Any]]) -> None:
    for options, fewer in (
        (("--quick",), "patients, survival_patients, tumour_free"),
        (("--survival", "300"), "survival_patients"),
    ):
        done = run(*options)
        assert isinstance(done.exception, InputError)
        assert f"(fewer than there: {fewer}); give a folder with --out" in str(done.exception)
    assert not asked


def test_the_folder_of_the_card_is_made(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    assert run("--quick", "--out", str(tmp_path / "new" / "card")).exit_code == 0
    assert (asked[0]["out"] / "MODEL_CARD.md").exists()


def test_a_folder_or_device_that_cannot_be_had_is_refused(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert isinstance(run("--out", str(tmp_path / "file" / "card")).exception, InputError)
    assert run("--device", "tpu", "--out", str(tmp_path)).exit_code == 2
    assert run("--patients", "2", "--out", str(tmp_path)).exit_code == 2
    assert not asked
