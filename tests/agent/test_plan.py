from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.plan import read_plan
from models.errors import RunError
from tests.agent.report.made_plan import made_plan


def test_a_plan_comes_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(made_plan().to_json(), encoding="utf-8")
    assert read_plan(tmp_path / "plan.json") == made_plan()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seeds": 3}, r"is damaged \(seeds: .*\): run `mewm plan` again"),
        ({"chosen": {"place": "first"}}, r"is damaged \(chosen\..*\): run `mewm plan` again"),
        ({"assessed": None}, r"is damaged \(assessed: .*\): run `mewm plan` again"),
        ({"schema_version": 99}, "has schema version 99"),
    ],
)
def test_a_damaged_plan_is_a_sentence(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**json.loads(made_plan().to_json()), **change}), encoding="utf-8")
    with pytest.raises(RunError, match=sentence):
        read_plan(path)


def test_what_is_no_plan(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no plan"):
        read_plan(tmp_path / "none.json")
    for content in ("{", "[]"):
        (tmp_path / "plan.json").write_text(content, encoding="utf-8")
        with pytest.raises(RunError, match="run `mewm plan` again"):
            read_plan(tmp_path / "plan.json")
