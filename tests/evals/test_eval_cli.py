"""`mewm eval` as people call it: own gold, language models over real HTTP, real table, a synthetic patient, studies."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import zipfile
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from agent.cli.main import app
from agent.trace import read_trace
from evals.baselines import NAMES as BASELINE_NAMES
from evals.cli import FAILED, GATE
from evals.datasets import NAMES, load_dataset
from evals.datasets.phantom import PhantomCase, draw_cases, settings
from evals.report.summary import Summary
from evals.results import read_run
from models.formulary import Formulary
from prompts.loader import prompt_root
from prompts.sets import load_prompt_set
from tests.agent.fake_tools import make_case
from tests.agent.llm_script import choices, outside_fences, script, unknown, write_backends
from tests.agent.loopback import LoopbackServer, error
from tests.evals.test_baselines import constant_out_of_fold, gold_sets

pytestmark = pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")
GOLD = ("Cisplatin | Lipiodol", "Cisplatin | Lipiodol", "Cisplatin | Lipiodol", "Epirubicin | Lipiodol")
FEATURES = ("size", "number", "location", "enhancement", "necrosis", "capsule", "portal_vein", "shunt", "burden",
            "liver_function")  # fmt: skip
OBSERVATION = {"features": [unknown(name) for name in FEATURES], "summary": "Nothing is evaluable."}
MARK = "Think of anthracyclines first."
ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/evaluation.md", "docs/own-dataset.md", "docs/prompts.md", "docs/training.md")


def mewm(*arguments, code=0):
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["eval", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """Four small cases with gold."""
    root = tmp_path_factory.mktemp("own")
    lines = []
    for index, gold in enumerate(GOLD):
        make_case(root / f"case-{index}", f"patient-{index}")
        lines.append(json.dumps({"case_id": f"patient-{index}", "gold": gold, "case": f"case-{index}"}))
    (root / "own.jsonl").write_text("\n".join(lines))
    return root / "own.jsonl"


@pytest.fixture
def two_prompt_sets(tmp_path) -> tuple[Path, Path]:
    """The shipped set, and a copy that asks otherwise."""
    folders = []
    for name in ("plain", "marked"):
        folder = tmp_path / "sets" / name
        shutil.copytree(prompt_root() / "mewm", folder)
        for file in folder.glob("*.md"):
            text = file.read_text().replace("id: mewm-", f"id: {name}-")
            if name == "marked" and file.name == "propose.md":
                text = text.replace("<!-- user -->", f"{MARK}\n<!-- user -->", 1)
            file.write_text(text)
        folders.append(folder)
    return folders[0], folders[1]


def proposal(request):
    """One drug or the other as the prompt says; the paper's prompts get an answer of their own."""
    asked = outside_fences(request.text)
    drug = "Raltitrexed" if "radiation oncologist" in asked else "Epirubicin" if MARK in asked else "Cisplatin"
    return {"drugs": choices(drug), "embolics": choices("Lipiodol"), "reserve_drugs": [], "reserve_embolics": []}


def run_with(server, own, folder, cache, *more, prompts=None, code=0, baselines="alone"):
    asked = ["--prompts", prompts] if prompts else []
    return mewm("run", "own", "--data", own, "--stage", "propose", "--backend", "mine", "--baselines", baselines,
                "--out", folder, "--cache", cache, "--json", *asked, *more, code=code)  # fmt: skip


def test_two_prompt_sets_differ_as_scripted_and_compare_finds_it(own, two_prompt_sets, tmp_path, monkeypatch):
    with LoopbackServer(script(Observation=OBSERVATION, Proposal=proposal)) as server:
        monkeypatch.setenv("MEWM_BACKENDS", str(write_backends(tmp_path / "mine.yaml", {"mine": server.entry()})))
        plain, marked = two_prompt_sets
        cache = tmp_path / "answers.sqlite"
        first = Summary.model_validate_json(run_with(server, own, tmp_path / "a", cache, prompts=plain).stdout)
        other = Summary.model_validate_json(run_with(server, own, tmp_path / "b", cache, prompts=marked).stdout)
        sent = len(server.requests)
        bare = run_with(server, own, tmp_path / "bare", tmp_path / "new", prompts=plain, baselines="none")
        assert not any("radiation oncologist" in outside_fences(r.text) for r in server.requests[sent:])
        sent = len(server.requests)
        # The same questions again, in a new folder: not one request, the same figures.
        again = Summary.model_validate_json(run_with(server, own, tmp_path / "again", cache, prompts=plain).stdout)
        assert len(server.requests) == sent
        # a set given as a relative path is the same set from any folder
        monkeypatch.chdir(plain.parent)
        run_with(server, own, tmp_path / "there", cache, prompts=f"./{plain.name}")
        monkeypatch.chdir(tmp_path)
        mewm("resume", tmp_path / "there", "--cache", cache)
        assert read_run(tmp_path / "there").spec.prompts == str(plain)
    assert first.statuses == other.statuses == {"answered": 4}, [case.why for case in other.cases]
    f1 = first.boards[0].line("own").figures["f1"]
    assert Summary.model_validate_json(bare.stdout).boards[0].line("own").figures["f1"] == f1
    assert f1.mean == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert again.boards[0].line("own").figures["f1"] == f1
    assert [case.tokens for case in again.cases] == [case.tokens for case in first.cases]
    assert again.boards[0].line("own").figures["requests"].mean == 0.0
    # cases that look alike share answers: between one set of questions for all four and one for each
    assert 0.75 <= first.boards[0].line("own").figures["requests"].mean <= 3.0
    cost = first.boards[0].line("own").figures["cost_usd"]
    assert cost.mean > 0
    # The model alone, with the paper's prompts: Raltitrexed | Lipiodol, half of every gold.
    assert first.boards[0].line("alone").figures["f1"].mean == pytest.approx(0.5)

    # The model alone was asked once a case at most, and for its protocol only.
    assert 0 < first.boards[0].line("alone").figures["requests"].mean <= 1.0
    run = read_run(tmp_path / "a")
    assert {d.node for row in run.rows for d in read_trace(tmp_path / "a" / row.alone_trace) if d.requests} == {
        "propose"
    }
    assert run.spec.conditions["prompts of the model alone"] == load_prompt_set("paper-vlm-in-house").content_hash

    found = json.loads(mewm("compare", tmp_path / "a", tmp_path / "b", "--json").stdout)
    difference = next(d for d in found["differences"] if d["metric"] == "f1")
    # By hand: three cases lose half, one gains half. Of 16 sign patterns 10 have a mean as far from 0.
    assert difference["mean"] == pytest.approx(-0.25)
    assert difference["p"] == pytest.approx(10 / 16)
    assert (difference["wins"], difference["ties"], difference["losses"]) == (1, 0, 3)
    assert f"prompts: A {plain}, B {marked}" in found["settings"]
    assert found["a"] == f"policy before any simulation (mine, prompts plain) of {tmp_path / 'a'}"
    assert found["b"] == f"policy before any simulation (mine, prompts marked) of {tmp_path / 'b'}"
    both = json.loads(mewm("report", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both", "--json").stdout)
    assert (
        f"prompts {marked} in place of {plain}" in both["others"]["policy before any simulation (mine, prompts marked)"]
    )
    assert str(marked) in (tmp_path / "both" / "report.md").read_text()
    assert str(marked) in (tmp_path / "both" / "report.html").read_text()

    failed = mewm("compare", tmp_path / "a", tmp_path / "b", "--fail-below", "F1=-0.02", code=GATE)
    assert "F1: B is worse by 0.2500" in failed.stderr
    mewm("compare", tmp_path / "a", tmp_path / "b", "--fail-below", "F1=-0.3")
    mewm("compare", tmp_path / "b", tmp_path / "a", "--fail-below", "F1=0.2")


def test_a_backend_that_is_down_gives_empty_answers_and_the_fallback_beside_them(own, tmp_path, monkeypatch):
    with LoopbackServer(lambda _: error(500)) as server:
        monkeypatch.setenv("MEWM_BACKENDS", str(write_backends(tmp_path / "mine.yaml", {"mine": server.entry()})))
        result = run_with(server, own, tmp_path / "run", tmp_path / "cache", "--limit", 2, code=FAILED)
    assert "gave no answer that can be used to any case: mend the backend" in result.stderr
    summary = Summary.model_validate_json(result.stdout)
    assert summary.statuses == {"degraded": 2}
    own_line, fallback = (summary.boards[0].line(who) for who in ("own", "fallback"))
    assert own_line.figures["f1"].mean == 0.0
    assert fallback.figures["f1"].mean > 0.0
    assert summary.boards[0].line("alone").empty == 2
    assert "counted as no answer" in " ".join(summary.notes)
    (alone,) = (note for note in summary.notes if "of the model alone" in note)
    assert alone.startswith("2 of 2 answers of the model alone can't be used")
    assert "because: " in alone


def test_a_name_that_nothing_knows_counts_against_the_model_alone_and_is_not_asked_about_again(
    own, tmp_path, monkeypatch
):
    """Cisplatin, Wonderdrug and Lipiodol: precision 2/3 where gold is Cisplatin | Lipiodol, one request a case."""

    def said(request):
        drugs = (
            ("Cisplatin", "Wonderdrug") if "radiation oncologist" in outside_fences(request.text) else ("Cisplatin",)
        )
        return {"drugs": choices(*drugs), "embolics": choices("Lipiodol"), "reserve_drugs": [], "reserve_embolics": []}

    with LoopbackServer(script(Observation=OBSERVATION, Proposal=said)) as server:
        monkeypatch.setenv("MEWM_BACKENDS", str(write_backends(tmp_path / "mine.yaml", {"mine": server.entry()})))
        result = run_with(server, own, tmp_path / "run", tmp_path / "cache", "--limit", 3)
    summary = Summary.model_validate_json(result.stdout)
    line = summary.boards[0].line("alone")
    assert line.figures["precision"].mean == pytest.approx(2 / 3)
    assert line.figures["f1"].mean == pytest.approx(4 / 5)
    assert line.micro_f1 == pytest.approx(4 / 5)
    assert (line.empty, line.unknown) == (0, 3)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "Names outside the action set, each a false positive: VLM alone, the paper's prompts 3." in report
    assert "unknown: Wonderdrug](cases/patient-0/1/alone/trace.jsonl)" in report


@pytest.fixture(scope="module")
def evaluated(own, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "runs" / "first"
    result = mewm("run", "own", "--data", own, "--stage", "propose", "--out", folder, "--baselines", "random,rules")
    assert "Leaderboard, gold: gold (4 cases)" in result.stdout
    assert "random: random allowed protocol" in result.stdout  # the name that `compare FOLDER@NAME` takes, explained
    assert "not run" in result.stdout
    left_out = "Left out with --baselines: constant, frequency, neighbour, policy_first, policy_full, regressor"
    assert left_out in " ".join(result.stdout.split())
    return folder


def test_an_evaluation_is_listed_reported_resumed_and_bundled(evaluated, tmp_path):
    listed = json.loads(mewm("list", evaluated.parent, "--json").stdout)
    assert tuple(listed["datasets"]) == NAMES
    assert [(e["folder"], e["answers"], e["dataset"]) for e in listed["evaluations"]] == [(str(evaluated), 4, "own")]
    assert str(evaluated) in mewm("list", evaluated.parent).stdout.replace("\n", "")
    data = json.loads(mewm("report", evaluated, "--json").stdout)
    assert data["n_cases"] == 4
    assert data["statuses"] == {"answered": 4}
    assert (evaluated / "card.md").read_text().startswith("# Data card: own")
    before = {p: p.stat().st_mtime_ns for p in evaluated.glob("cases/*/*/answer.json")}
    resumed = mewm("resume", evaluated)
    assert "4 answers were there already." in resumed.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before
    mewm("report", evaluated, copy_of(evaluated, tmp_path / "other [b]"))
    joint = {name: (evaluated / name).read_bytes() for name in ("report.md", "report.html", "report.json")}
    mewm("bundle", evaluated, "--out", tmp_path / "bundle")
    assert {name: (evaluated / name).read_bytes() for name in joint} == joint  # a bundle changes nothing in the folder
    mewm("report", evaluated)
    assert {"index.html", "report.html", "report.md"} <= {p.name for p in (tmp_path / "bundle").iterdir()}
    links = re.findall(r'href="(cases/[^"]+)"', (tmp_path / "bundle" / "report.html").read_text())
    assert len(links) == 4
    assert all((tmp_path / "bundle" / link).is_file() for link in links)
    page = (tmp_path / "bundle" / "index.html").read_text()
    assert not re.search(r"<(?:script|link)[^>]+(?:src|href)=[\"'](?:https?:)?//", page)
    mewm("bundle", evaluated, "--out", tmp_path / "bundle", code=2)


def copy_of(folder, other):
    shutil.copytree(folder, other)
    return other


def test_two_runs_are_told_apart_on_the_terminal_whatever_their_folders_are_called(evaluated, tmp_path):
    shown = mewm("report", evaluated, copy_of(evaluated, tmp_path / "b"), "--out", tmp_path / "out").stdout
    assert "(guideline) [b]" in " ".join(shown.split())
    assert "[red]" in mewm("list", copy_of(evaluated, tmp_path / "runs" / "[red]").parent).stdout


def test_a_log_that_names_files_outside_of_its_folder_is_not_bundled(evaluated, tmp_path):
    run = copy_of(evaluated, tmp_path / "received")
    (tmp_path / "secret.jsonl").write_text("secret")
    (log,) = run.glob("logs/*.eval")
    with zipfile.ZipFile(log) as old:
        members = {name: old.read(name) for name in old.namelist()}
    trace = re.search(rb"cases/patient-1/1/[a-z/]*trace\.jsonl", b"".join(members.values()))
    assert trace is not None
    with zipfile.ZipFile(log, "w") as new:
        for name, content in members.items():
            new.writestr(name, content.replace(trace[0], b"../secret.jsonl"))
    done = mewm("bundle", run, "--out", tmp_path / "bundle", code=2)
    assert "outside that folder" in done.stderr.replace("\n", " ")
    assert not (tmp_path / "bundle").exists()


def test_no_test_of_evaluations_reaches_another_machine(network):
    with pytest.raises(ConnectionRefusedError, match=r"reached out to 192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    assert network == ["192.0.2.1"]
    network.clear()


def without_times(report: Path):
    """A report's content without what a clock decides."""
    clock = {"seconds", "created", "by_node"}

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items() if key not in clock}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    return plain(json.loads(report.read_text()))


def test_resume_ends_an_evaluation_that_was_cut_off_with_the_report_of_an_unbroken_one(own, evaluated, tmp_path):
    """What a kill leaves: two of four answers, no finished log, no report."""
    folder = tmp_path / "first"
    shutil.copytree(evaluated, folder)
    for name in ("patient-1", "patient-3"):
        shutil.rmtree(folder / "cases" / name)
    for path in [*folder.glob("logs/*"), *folder.glob("report.*")]:
        path.unlink()
    assert "has no log yet: go on with `mewm eval resume" in mewm("report", folder, code=4).stderr.replace("\n", " ")
    before = {p: p.stat().st_mtime_ns for p in folder.glob("cases/*/*/answer.json")}
    assert len(before) == 2
    assert "2 answers were there already." in mewm("resume", folder).stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert without_times(folder / "report.json") == without_times(evaluated / "report.json")


def test_every_baseline_stands_in_the_table_of_a_small_phantom_run(tmp_path, monkeypatch):
    """Two patients before any simulation. The learned ones learn from few here: that they are there is what counts."""
    few = tuple(case for case, _ in zip(
        (c for c in draw_cases(settings().training_first_seed) if isinstance(c, PhantomCase)), range(6), strict=False
    ))  # fmt: skip

    class LeastRisk:
        def __init__(self, labels, seed):
            self.labels = labels

        def risks(self, case, protocols):
            return np.arange(len(protocols), dtype=float)

    monkeypatch.setattr("evals.baselines.training_cases", lambda strict: few)
    monkeypatch.setattr("evals.baselines.DirectRegressor", LeastRisk)
    result = mewm("run", "phantom", "--limit", 2, "--stage", "propose", "--out", tmp_path / "run")
    shown = result.stdout
    for name in BASELINE_NAMES:
        assert re.search(rf"^ *{name}: ", shown, re.M), name
    assert re.search(r"^ *policy before any simulation \(guideline\) ", shown, re.M)
    assert "VLM alone, the paper's prompts: not run: no endpoint was given (--backend)" in shown
    (board,) = Summary.model_validate_json((tmp_path / "run" / "report.json").read_text()).boards
    assert [line.who for line in board.lines] == ["own", *BASELINE_NAMES, "alone"]
    for line in board.lines[:-1]:
        assert (line.n, line.empty) == (2, 0), line.who
        assert 0.0 <= line.figures["f1"].mean <= 1.0
        assert 0.0 <= line.figures["regret"].mean <= 1.0
    for case in load_dataset("phantom", limit=2).cases:  # the first allowed one, as its regressor says
        row = next(row for row in read_run(tmp_path / "run").rows if row.case_id == case.case_id)
        assert row.baselines["regressor"].by_variant["best"].protocol == case.allowed[0]


def test_the_same_command_goes_on_and_another_one_is_refused(own, evaluated):
    same = mewm("run", "own", "--data", own, "--stage", "propose", "--out", evaluated, "--baselines", "random,rules")
    assert "4 answers were there already." in same.stderr
    other = mewm("run", "own", "--data", own, "--stage", "propose", "--out", evaluated, "--seed", 1, code=4)
    assert "under other conditions" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "nothing"], 2, "There is no dataset 'nothing'"),
        (["run", "hcc-tace-seg"], 2, "needs its clinical table"),
        (["run", "phantom", "--prompts", "mewm"], 2, "The embedded policy reads no prompts"),
        (["run", "phantom", "--backend", "nobody", "--stage", "propose", "--limit", "1"], 2, "no backend 'nobody'"),
        (["run", "phantom", "--baselines", "magic"], 2, "There is no baseline 'magic'"),
        (["run", "phantom", "--drug-horizon", "5"], 2, "drug_horizon of phantom is at most 3, got 5"),
        (["resume", "nowhere"], 4, "There is no evaluation in nowhere"),
        (["report", "nowhere"], 4, "There is no evaluation in nowhere"),
        (["compare", "nowhere", "nowhere"], 4, "There is no evaluation in nowhere"),
        (["compare", "a", "b", "--fail-below", "F9=1"], 2, "There is no metric 'F9'"),
        (["run", "phantom", "--profile", "cn"], 2, "rules of profile eu only; leave cn out"),
        (["table", "--weights-without", "magic=x"], 2, "takes contrastive=FOLDER or attenuation=FOLDER"),
        (["turing", "score", "nowhere", "x.csv"], 2, "There is no key at nowhere"),
        (["reader", "score", "nowhere", "x.csv"], 2, "There is no key at nowhere"),
    ],
)
def test_what_can_not_be_used_is_one_sentence(tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    result = mewm(*arguments, code=code)
    assert message in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_line_that_is_not_there_is_refused(evaluated):
    result = mewm("compare", f"{evaluated}@magic", evaluated, code=2)
    assert "has no line 'magic'; it has own, random, rules" in result.stderr.replace("\n", " ")
    mewm("compare", f"{evaluated}@random", evaluated)


def test_the_real_table_is_scored_on_every_row_with_all_gold_variants(real_data, tmp_path):
    table = real_data / "clinical" / "HCC-TACE-Seg_clinical_data-V2.dev.xlsx"
    result = mewm("run", "hcc-tace-seg", "--clinical", table, "--stage", "propose", "--out", tmp_path / "run",
                  "--baselines", "constant", "--json")  # fmt: skip
    summary = Summary.model_validate_json(result.stdout)
    # Counted here from the sheet itself: rows, and rows whose regimen is neither empty nor NA.
    book = openpyxl.load_workbook(table, read_only=True, data_only=True)
    sheet = book.worksheets[0]
    rows = list(sheet.iter_rows(values_only=True))
    column = next(i for i, name in enumerate(rows[0]) if str(name).strip().lower() == "chemotherapy")
    regimens = [str(row[column]).strip() for row in rows[1:] if row[0]]
    book.close()
    given = [text for text in regimens if text not in ("NA", "None", "")]
    assert (len(regimens), len(given)) == (70, 57)
    assert summary.n_cases == 57
    assert sorted(board.variant for board in summary.boards) == ["ctace_lipiodol", "paper_style", "raw"]
    # One fixed answer, scored by hand on the words of the sheet.
    drugs = {"cisp": "Cisplatin", "doxo": "Doxorubicin", "mito": "Mitomycin"}
    answer = {*drugs.values(), "Lipiodol"}
    f1 = []
    for text in given:
        gold = {name for stem, name in drugs.items() if stem in text.lower()} | {"Lipiodol"}
        gold |= {"Drug-eluting beads"} if re.search(r"bead|lc", text.lower()) else set()
        f1.append(2 * len(answer & gold) / (len(answer) + len(gold)))
    run = read_run(tmp_path / "run")
    by_case = {row.case_id: row.gold["paper_style"] for row in run.rows}
    ours = [2 * len(answer & set(gold.items)) / (len(answer) + len(gold.items)) for gold in by_case.values()]
    assert sum(ours) / 57 == pytest.approx(sum(f1) / 57)
    # The constant baseline of every gold variant, fold by fold, computed without the program.
    folds = load_dataset("hcc-tace-seg", clinical=table).folds
    for board in summary.boards:
        constant = board.line("constant").figures["f1"]
        assert constant.mean == pytest.approx(constant_out_of_fold(gold_sets(table, board.variant), folds))
        assert constant.n == 57
        assert constant.low < constant.mean < constant.high
    assert {e.protocol for _, e in run.entries("own", "raw")} != {None}
    assert all(set(row.gold["raw"].items) <= {i.name for i in Formulary.load("hcc_tace_seg").items} for row in run.rows)


def documented(name):
    """The commands of evaluations and of training that a page shows, as arguments."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = re.findall(r"^ *(mewm (?:eval|train) [^\n]+)", text, re.M)
    lines += re.findall(r"`(mewm (?:eval|train) [^`]+)`", text)
    found = []
    for line in lines:
        group, *rest = shlex.split(line.replace("...", ""), comments=True)[1:]
        several = [one for one in rest[0].split("|") if one] if rest else []  # `eval run\|report` names commands
        found += [(name, [group, one, *rest[1:]]) for one in several] or [(name, [group])]
    return found


@pytest.mark.parametrize(("page", "arguments"), [pair for page in PAGES for pair in documented(page)])
def test_a_command_of_the_docs_is_one_that_there_is(page, arguments):
    """Names, options and their values are read by the command itself, which is not run."""
    command, rest = get_command(app), list(arguments)
    while isinstance(command, TyperGroup) and rest:
        assert rest[0] in command.commands, (page, arguments)
        command = command.commands[rest.pop(0)]
    if rest:  # a name alone only speaks of the command
        command.make_context(arguments[-1], rest)


def test_cases_without_images_are_scored_before_a_simulation_and_left_out_of_plans(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(json.dumps({"case_id": f"p{i}", "gold": "Cisplatin | Lipiodol"}) for i in range(3)))
    found = mewm("run", "own", "--data", file, "--out", tmp_path / "plan", code=2)
    assert "No case of own has an image to plan on" in found.stderr
    assert not (tmp_path / "plan").exists()
    mewm("run", "own", "--data", file, "--out", tmp_path / "propose", "--stage", "propose", "--baselines", "none")
    assert len(read_run(tmp_path / "propose").rows) == 3


def test_a_synthetic_patient_is_planned_on_the_shipped_weights(tmp_path):
    """One case end to end, as small as it gets."""
    small = ["--beams", 1, "--replicas", 1, "--drugs", 2, "--embolics", 1, "--drug-horizon", 1, "--embolic-horizon", 1,
             "--steps", 2, "--budget", 40]  # fmt: skip
    mewm("run", "phantom", "--limit", 1, "--out", tmp_path / "run", "--baselines", "random,rules", *small)
    run = read_run(tmp_path / "run")
    (row,) = run.rows
    assert row.status == "answered"
    assert 0.0 <= row.space.best_within <= row.own.regret.of_range <= 1.0
    assert row.given is not None
    assert row.survival is not None
    # the protocol really given is simulated too, though the search can't name its agents
    assert not set(row.given.items) <= {item.name for item in Formulary.load("policy").items}
    assert row.given.key not in {risk.protocol for risk in row.risks}
    assert abs(row.given_risk - np.mean([risk.simulated for risk in row.risks])) < 2.0
    assert row.usage.simulations > 0
    assert run.spec.conditions["weights_hash"]
    assert not list((tmp_path / "run" / "cases").glob("*/case"))  # scans of a finished synthetic case are removed
    assert "Synthetic patients" in (tmp_path / "run" / "report.md").read_text()
