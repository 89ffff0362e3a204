from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.cli.main import app
from models.phantom import cohort, pool


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("phantom", "--n", "1", "--out", "file/x"), "can't be written: Not a directory"),
        (("phantom", "--n", "1", "--out", "."), "choose one apart with --truth"),
        (("phantom", "--n", "1", "--out", "/"), "no place for the truth beside /"),
        (("phantom", "--n", "1", "--out", "cases", "--seed", "-1"), "a seed of 0 or more"),
        (("pool", "--n", "8", "--out", "file/x"), "can't be written to file/x: Not a directory"),
        (("pool", "--n", "8", "--out", "pool", "--k", "1"), "--k"),
    ],
)
def test_what_can_not_be_written_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    if "." in arguments:  # on its own this folder is fine: see `test_cohort`
        arguments = (*arguments, "--truth", "truth")
    done = CliRunner().invoke(app, ["data", *arguments], terminal_width=200)
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert isinstance(done.exception, SystemExit)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_last_line_names_the_truth_that_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort, "CASE_SHAPE", (58, 41, 30))
    monkeypatch.setattr(cohort, "CASE_SPACING_MM", (6.0, 6.0, 7.5))
    for truth in ("first", "second"):
        arguments = ["data", "phantom", "--n", "1", "--out", str(tmp_path / "cases"), "--truth", str(tmp_path / truth)]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        assert f"their truth to {tmp_path / truth}." in done.output.replace("\n", "")
        assert len(list((tmp_path / truth).glob("*/truth.json"))) == 1


def test_a_pool_is_made_for_the_preset_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, float]] = []
    monkeypatch.setattr(pool, "write_pool", lambda *_, **sizes: asked.append(sizes))
    for preset in ((), ("--preset", "paper")):
        done = CliRunner().invoke(app, ["data", "pool", "--n", "8", "--out", str(tmp_path), *preset])
        assert done.exit_code == 0, done.output
    assert asked == [{"size": 64, "finest_mm": 1.5}, {"size": 96, "finest_mm": 1.0}]
