from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from agent.cli.main import app
from tests.agent.loopback import LoopbackServer, error
from tests.agent.test_backend_check import capable


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MEWM_BACKENDS", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.delenv("DEEPSEEK_API_KEY", raising=False)
    return tmp_path


def mewm_backends(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["backends", *arguments], terminal_width=120)


def own_file(home: Path, **entries: object) -> None:
    path = home / ".config" / "mewm" / "backends.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump({"backends": entries}), encoding="utf-8")


def test_list_shows_every_backend_and_no_key(home: Path) -> None:
    with LoopbackServer([]) as server:
        own_file(home, lab=server.entry(fallback=["vllm"]))
    shown = mewm_backends("list")
    assert shown.exit_code == 0, shown.output
    for text in (
        "openai",
        "deepseek-v4-pro",
        "json_object",
        "12.00 out",
        "DEEPSEEK_API_KEY",
        "not set",
        "lab then vllm",
    ):
        assert text in shown.output
    assert "sk-secret" not in shown.output
    listed = mewm_backends("list", "--json")
    entries = {entry["name"]: entry for entry in json.loads(listed.output)}
    assert (entries["openai"]["key_is_set"], entries["deepseek"]["key_is_set"]) == (True, False)
    assert entries["lab"]["fallback"] == ["vllm"]
    assert "sk-secret" not in listed.output


def test_check_of_an_endpoint_that_is_only_in_the_users_file(home: Path) -> None:
    with LoopbackServer(capable) as server:
        own_file(home, lab=server.entry(), broken=server.entry(structured="tools"))
        done = mewm_backends("check", "lab")
        assert done.exit_code == 0, done.output
        for text in ("endpoint", "text", "stream", "image", "structured", "tools", "Usable for planning."):
            assert text in done.output
        assert done.output.count("works") == 6
        as_json = mewm_backends("check", "lab", "--json")
        report = json.loads(as_json.stdout)
    assert as_json.exit_code == 0
    assert (report["backend"], report["usable"]) == ("lab", True)
    assert [check["status"] for check in report["checks"]] == ["works"] * 6


def test_a_file_can_be_named(home: Path) -> None:
    path = home / "others.yaml"
    with LoopbackServer(capable) as server:
        path.write_text(yaml.safe_dump({"backends": {"elsewhere": server.entry()}}), encoding="utf-8")
        listed = mewm_backends("list", "--backends", str(path))
        assert "elsewhere" in listed.output
        assert "others.yaml" in " ".join(listed.output.split())
        assert mewm_backends("check", "elsewhere", "--backends", str(path)).exit_code == 0
    assert mewm_backends("check", "elsewhere").exit_code == 2


def test_check_fails_with_the_exit_code_of_backends(home: Path) -> None:
    with LoopbackServer(lambda request: error(404)) as server:
        own_file(home, lab=server.entry())
        failed = mewm_backends("check", "lab")
        as_json = mewm_backends("check", "lab", "--json")
    assert (failed.exit_code, as_json.exit_code) == (7, 7)
    assert "knows no model" in " ".join(failed.output.split())
    assert "not tried" in failed.output
    assert json.loads(as_json.stdout)["usable"] is False
    locked = mewm_backends("check", "deepseek")
    assert locked.exit_code == 7
    assert "DEEPSEEK_API_KEY" in locked.output


def test_unknown_names_and_bad_files_are_sentences(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = mewm_backends("check", "nobody")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert "There is no backend 'nobody'" in unknown.output
    monkeypatch.setenv("MEWM_BACKENDS", str(home / "none.yaml"))
    missing = mewm_backends("list")
    assert missing.exit_code == 2
    assert "does not exist" in " ".join(missing.output.split())
