"""`mewm plan` and `mewm resume` over fake tools: standard output, progress, exit codes."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import agent.services
from agent.cli.main import app
from agent.plan import Plan
from agent.run import open_run
from tests.agent.fake_tools import FakeWorld, fake_services, make_case

SMALL = ["--actions", "hcc_tace_seg"]


@pytest.fixture
def world(tmp_path, monkeypatch):
    world = FakeWorld(tmp_path / "log")
    monkeypatch.setattr(agent.services, "make_services", fake_services(world))
    return world


@pytest.fixture
def case(tmp_path):
    return str(make_case(tmp_path / "case"))


def mewm(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], terminal_width=100)


def test_json_puts_the_plan_and_nothing_else_on_standard_output(tmp_path, case, world):
    done = mewm("plan", case, "--run", tmp_path / "run", "--json", *SMALL)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == (tmp_path / "run" / "plan.json").read_text()
    assert Plan.model_validate_json(done.stdout).chosen is not None
    assert "drug 1" in done.stderr  # progress goes to standard error
    again = mewm("resume", tmp_path / "run", "--json")
    assert again.stdout == done.stdout


def test_the_summary_names_the_choice_its_doses_and_the_report(tmp_path, case, world):
    done = mewm("plan", case, "--run", tmp_path / "run", "--goal", "spare liver function", *SMALL)
    assert done.exit_code == 0, done.stderr
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    text = " ".join(done.stdout.split())
    assert plan["chosen"]["assessed"]["key"] in text
    for dose in plan["chosen"]["doses"]:
        assert dose["text"] in text
    assert f"{tmp_path / 'run'}/report.html" in text
    assert "spare liver function" in text
    assert "not a treatment recommendation" in text


def test_a_blocked_plan_shows_the_rules_instead_of_a_protocol(tmp_path, case, monkeypatch):
    world = FakeWorld(tmp_path / "log", patient_block="decompensated cirrhosis")
    monkeypatch.setattr(agent.services, "make_services", fake_services(world))
    done = mewm("plan", case, "--run", tmp_path / "run", *SMALL)
    assert done.exit_code == 6
    assert "No protocol is proposed" in done.stdout
    assert "decompensated cirrhosis" in done.stdout
    assert "Traceback" not in done.stderr
    again = mewm("resume", tmp_path / "run", "--json")
    assert again.exit_code == 6
    assert again.stdout == (tmp_path / "run" / "plan.json").read_text()
    assert json.loads(again.stdout)["blocked"]


def test_options_reach_the_settings(tmp_path, case, world):
    options = ["--beams", 2, "--replicas", 3, "--drug-horizon", 2, "--embolic-horizon", 1, "--budget", 90, "--seed", 7]
    mewm("plan", case, "--run", tmp_path / "run", "--strict", "--profile", "us", *options, *SMALL)
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    expected = {
        "beams": 2, "replicas": 3, "drug_horizon": 2, "embolic_horizon": 1, "budget": 90, "seed": 7,
        "strict": True, "profile": "us", "actions": "hcc_tace_seg", "strategy": "beam",
    }  # fmt: skip
    assert settings | expected == settings


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["plan", "{tmp}/nowhere", "--run", "{tmp}/run"], 2, "nowhere"),
        (["plan", "{case}", "--run", "{tmp}/log/run"], 4, "can't be written"),
        (["plan", "{case}", "--run", "{tmp}/run", "--beams", "0"], 2, "beams"),
        (
            ["plan", "{case}", "--run", "{tmp}/run", "--strategy", "paper", "--budget", "30"],
            2,
            "budget of 30 is too small",
        ),
        (["plan", "{case}", "--run", "{tmp}/run", "--session", "{tmp}/log"], 2, "neither YAML nor JSON"),
        (["resume", "{tmp}/nowhere"], 4, "There is no run in"),
    ],
)
def test_errors_are_one_sentence_and_an_exit_code(tmp_path, case, world, arguments, code, sentence):
    (tmp_path / "log").write_text("")
    done = mewm(*[a.format(tmp=tmp_path, case=case) for a in arguments])
    assert done.exit_code == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


def test_ctrl_c_before_the_search_begins_tells_how_to_go_on(tmp_path, case, world, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("agent.cli.plan._go", interrupted)
    done = mewm("plan", case, "--run", tmp_path / "run")
    assert done.exit_code == 130
    assert f"Stopped; resume with: mewm resume {tmp_path / 'run'}" in done.stderr
    monkeypatch.undo()
    monkeypatch.setattr(agent.services, "make_services", fake_services(world))
    assert mewm("resume", tmp_path / "run").exit_code == 0


def test_stated_session_facts_reach_the_rules_the_run_and_the_command(tmp_path, case, world):
    stated = tmp_path / "session.yaml"
    stated.write_text("technique: ctace\nprior_mitomycin: 20 mg\nsuperselective: true\n")
    done = mewm("plan", case, "--run", tmp_path / "run", "--session", stated, "--json", *SMALL)
    assert done.exit_code == 0, done.stderr
    facts = {"technique": "ctace", "prior_mitomycin_mg": 20.0, "superselective": True}
    plan = json.loads(done.stdout)
    assert plan["session"] == facts
    assert all(call["session"] == facts for call in world.tools["check_rules"].calls)
    assert f"--session {stated}" in open_run(tmp_path / "run").command
    stated.unlink()  # the run keeps what was stated
    assert mewm("resume", tmp_path / "run", "--json").stdout == done.stdout


def test_demo_plans_the_embedded_case_and_keeps_it(tmp_path, world, monkeypatch):
    import models.phantom.cohort as cohort

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cohort, "write_demo_case", make_case)
    done = mewm("plan", "demo", *SMALL)
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "cases" / "demo" / "case.json").is_file()
    monkeypatch.setattr(cohort, "write_demo_case", lambda folder: None)  # the second time it is there
    assert mewm("plan", "demo", *SMALL).exit_code == 0
    assert len(list((tmp_path / "runs").glob("tiny-*/plan.json"))) == 2
