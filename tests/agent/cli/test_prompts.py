"""`mewm prompts`: list, show, diff, render."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from agent.cli.main import app
from agent.run import start_run
from prompts.loader import prompt_root
from prompts.sets import load_prompt_set
from tests.agent.fake_tools import FakeWorld, fake_services, make_case
from tests.agent.llm_script import TINY


def mewm(*arguments, code=0):
    done = CliRunner().invoke(app, ["prompts", *map(str, arguments)], terminal_width=160)
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def case(tmp_path):
    return make_case(tmp_path / "case", "Smith_1950")


def test_list_names_every_prompt_with_its_hash():
    text = mewm("list").stdout
    ours = load_prompt_set("mewm")
    for role, prompt in ours.prompts.items():
        assert re.search(rf"{role} +{prompt.id} +{prompt.content_hash[:8]}\n", text), role
    assert "from mewm: observe, refine, nominate, explain, chat" in text
    rows = {row["set"]: row for row in json.loads(mewm("list", "--json").stdout)}
    assert set(rows) == {"guideline", "mewm", "paper-policy", "paper-vlm-hcc-tace-seg", "paper-vlm-in-house"}
    paper = rows["paper-policy"]
    assert paper["source"] == "MeWM paper, Figure 10"
    assert paper["prompts"]["observe"]["from"] == "mewm"
    assert paper["prompts"]["observe"]["content_hash"] == ours.prompts["observe"].content_hash
    assert paper["prompts"]["propose"]["output_schema"] == "Proposal"


def test_show_prints_the_file():
    assert mewm("show", "mewm", "explain").stdout == (prompt_root() / "mewm" / "explain.md").read_text()
    assert "There is no prompt set 'x'" in mewm("show", "x", "explain", code=2).stderr
    assert "has no prompt for 'observe'" in mewm("show", "guideline", "observe", code=2).stderr


def test_diff_shows_where_two_sets_differ():
    text = mewm("diff", "mewm", "paper-policy").stdout
    assert text.startswith("--- mewm/propose.md (mewm-propose@1 ")
    assert "+++ paper-policy/propose.md (paper-policy-propose@1 " in text
    assert "observe.md" not in text  # taken from mewm, so it is the same
    assert mewm("diff", "mewm", "mewm").stdout == "The prompts are the same.\n"
    assert mewm("diff", "mewm", "paper-policy", "--role", "refine").stdout == "The prompts are the same.\n"
    assert "(not there)" in mewm("diff", "mewm", "guideline", "--role", "observe").stdout


def test_render_fills_in_a_prompt_for_a_case_without_what_identifies_it(case):
    done = mewm("render", "mewm", "observe", "--case", case)
    assert "exactly as a plan would send it" in done.stderr
    assert done.stdout.startswith("[system]\nYou are an interventional radiologist")
    assert "[picture 1: 01-arterial-1-plain.png]" in done.stdout
    described = json.loads(re.search(r'<data name="case">\n(.*?)\n</data>', done.stdout, re.DOTALL)[1])
    assert described["tumour_ml"] == pytest.approx(4 / 3 * 3.1416 * 0.8**3, rel=0.2)  # a ball of 8 mm radius
    assert "Smith" not in done.stdout
    blind = mewm("render", "mewm", "observe", "--case", case, "--no-pictures").stdout
    assert "There are no pictures" in blind
    propose = mewm("render", "mewm", "propose", "--case", case, "--goal", "least toxicity on 2024-03-12")
    assert '"least toxicity on [day 0]"' in propose.stdout
    assert "the embedded policy's observation stands in" in propose.stderr
    refine = mewm("render", "mewm", "refine", "--case", case, "--actions", "in_house").stdout
    assert '"agent": "Lipiodol"' in refine
    nominate = mewm("render", "mewm", "nominate", "--case", case).stdout
    assert '"mandatory": true' in nominate
    paper = mewm("render", "paper-vlm-hcc-tace-seg", "propose", "--case", case)
    assert "LC Beads" in paper.stdout
    assert "exactly as a plan would send it" in paper.stderr


def test_render_explain_needs_a_plan(tmp_path, case):
    assert "add --run RUN" in mewm("render", "mewm", "explain", "--case", case, code=2).stderr
    run = start_run(case, tmp_path / "run", TINY)
    assert "has no plan" in mewm("render", "mewm", "explain", "--run", tmp_path / "run", code=2).stderr
    plan = list(run.execute(fake_services(FakeWorld(tmp_path / "log"))))[-1].plan
    text = mewm("render", "mewm", "explain", "--run", tmp_path / "run").stdout
    assert f'"what": "chosen protocol: objective", "value": "{plan.chosen.assessed.objective.mean:.3f}"' in text
    assert plan.chosen.assessed.key in text


def test_what_has_no_question_is_said(case):
    assert "mewm prompts show mewm chat" in mewm("render", "mewm", "chat", "--case", case, code=2).stderr
    assert "has no question" in mewm("render", "guideline", "explain", "--case", case, code=2).stderr
    assert "add --case CASE" in mewm("render", "mewm", "observe", code=2).stderr
