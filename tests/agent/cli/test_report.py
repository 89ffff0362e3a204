from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from agent.cli.report import app
from models.errors import BackendError, InputError
from prompts.sets import load_prompt_set
from tests.agent.loopback import LoopbackServer, as_json, error
from tests.agent.test_report_reading import REPORT, answer

TEXT = "Raltitrexed 4 mg was infused; no lipiodol was used; 100 ml Oxaliplatin was infused; tumor staining disappeared."


def mewm_report(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["extract", *map(str, arguments)], input=stdin, terminal_width=200)


def file(folder: Path, text: str | bytes) -> Path:
    path = folder / "report.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_table_tells_everything(tmp_path: Path) -> None:
    done = mewm_report(file(tmp_path, TEXT))
    assert done.exit_code == 0, done.output
    for words in (
        "Raltitrexed", "infused", "4 mg", "Lipiodol", "negated", "no lipiodol was used", "4 of 4", "staining",
        "'100 ml'", "Oxaliplatin + Raltitrexed 4 mg | -", "Read by: words",
    ):  # fmt: skip
        assert words in done.output


def test_json_from_a_file_and_from_standard_input_are_the_same(tmp_path: Path) -> None:
    one, two = mewm_report(file(tmp_path, TEXT), "--json"), mewm_report("-", "--json", stdin=TEXT)
    assert one.exit_code == two.exit_code == 0
    assert one.output == two.output
    assert json.loads(one.output)["protocol"] == "Oxaliplatin + Raltitrexed 4 mg | -"


def test_every_line_is_a_report(tmp_path: Path) -> None:
    reports = ["Cisplatin 50 mg was infused.", "碘化油10ml栓塞。", "No lipiodol was used. [bold]"]
    done = mewm_report(file(tmp_path, "\r\n".join(reports) + "\r\n"), "--lines")
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in done.output.splitlines()]
    assert [one["protocol"] for one in found] == ["Cisplatin 50 mg | -", "- | Lipiodol 10 ml", "- | -"]


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        ("  \n", (), "empty"),
        ("", ("--lines",), "no report"),
        ("Cisplatin 50 mg\n\nLipiodol", ("--lines",), "Line 2 of"),
        (b"\xff\xfe\x00", (), "not UTF-8"),
        ("x" * 10_001, (), "10001 characters"),
        ("ok\n" + "x" * 10_001, ("--lines",), "Line 2 of"),
        (TEXT, ("--llm", "nobody"), "no backend 'nobody'"),
        (TEXT, ("--backends", "x.yaml"), "--llm"),
        (TEXT, ("--prompts", "mewm"), "--llm"),
        (TEXT, ("--llm", "openai", "--prompts", "paper-policy"), "no prompt for 'extract_report'"),
    ],
)
def test_user_errors_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes, options: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done = mewm_report(file(tmp_path, content), *options)
    assert isinstance(done.exception, InputError)
    assert sentence in str(done.exception)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        assert isinstance(mewm_report(path).exception, InputError)


def test_two_language_models(tmp_path: Path) -> None:
    other = answer(items=answer()["items"][:2], attenuation=None)
    with LoopbackServer([as_json(answer())]) as one, LoopbackServer([as_json(other)]) as two:
        own = tmp_path / "backends.yaml"
        own.write_text(yaml.safe_dump({"backends": {"a": one.entry(), "b": two.entry()}}), encoding="utf-8")
        done = mewm_report(file(tmp_path, REPORT), "--llm", "a", "--llm", "b", "--backends", own)
    assert done.exit_code == 0, done.output
    for words in (
        "Disagreement on Epirubicin, given: a: given; b: not given",
        "Attenuation level: the readings differ",
        "a + b",
        "a: 1 requests, 100 + 20 tokens",
    ):
        assert words in done.output


def test_a_line_that_no_model_can_read_is_named(tmp_path: Path) -> None:
    with LoopbackServer([as_json(answer()), *[error(500)] * 3]) as server:
        own = tmp_path / "backends.yaml"
        own.write_text(yaml.safe_dump({"backends": {"a": server.entry()}}), encoding="utf-8")
        done = mewm_report(file(tmp_path, f"{REPORT}\n{REPORT}"), "--lines", "--llm", "a", "--backends", own)
    assert isinstance(done.exception, BackendError)
    assert str(done.exception).startswith("Line 2 of")
    assert len([line for line in done.stdout.splitlines() if line.startswith("{")]) == 1


def test_a_prompt_of_ones_own_reads(tmp_path: Path) -> None:
    own = tmp_path / "ours"
    own.mkdir()
    (own / "set.yaml").write_text("title: ours\nsource: us\n", encoding="utf-8")
    text = load_prompt_set("mewm").prompt("extract_report").text.replace("id: mewm-", "id: ours-")
    (own / "extract_report.md").write_text(text.replace("Write down", "Please write down"), encoding="utf-8")
    with LoopbackServer([as_json(answer())]) as server:
        path = tmp_path / "backends.yaml"
        path.write_text(yaml.safe_dump({"backends": {"a": server.entry()}}), encoding="utf-8")
        done = mewm_report(file(tmp_path, REPORT), "--llm", "a", "--backends", path, "--prompts", own)
        assert done.exit_code == 0, done.output
        assert "ours-extract-report@1" in done.output
        assert "Please write down what was given" in server.requests[0].last_user
        (own / "extract_report.md").write_text(text.replace("ReportFacts", "Facts"), encoding="utf-8")
        refused = mewm_report(file(tmp_path, REPORT), "--llm", "a", "--backends", path, "--prompts", own)
    assert "output_schema has to be ReportFacts" in str(refused.exception)
    assert len(server.requests) == 1
