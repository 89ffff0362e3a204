"""The full table: every part is an evaluation of its own, on the same cases, and what is finished is not repeated."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import evals.table as table
from agent.cli.main import app
from evals.ablation import ASSISTANT, TRAINED_WITH, WithoutAssistant
from evals.baselines import NAMES
from evals.model_card.extras import read_full_table
from evals.prepare import Evaluation, _LazyWorkspace
from evals.report.page import write_reports
from evals.report.summary import Summary
from evals.results import BaselineAnswer, BaselineAnswers
from evals.runner import run_evaluation
from models.errors import InputError, WeightsError
from models.networks.preset import Preset
from models.response import VIABLE
from models.weights import FORMAT, PARTS, Manifest
from tests.evals.fake_dataset import Says, dataset, protocol, spec
from tests.tools.conftest import case_folder, engine, make_workspace, model, workspace  # noqa: F401 (fixtures)
from tools.segment import segment
from tools.simulate_tumor import simulate_tumor

pytestmark = pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")
SAYS = {
    "planner": protocol(["Cisplatin"], ["Lipiodol"]),
    "greedy": protocol(["Doxorubicin"], ["Lipiodol"]),
    "other": protocol(["Mitomycin"], ["Lipiodol"]),
}


@pytest.fixture
def prepared(monkeypatch):
    """Calls of `prepare`, which gives evaluations on a small dataset in place of the phantom."""
    calls = []

    def prepare(name, **options):
        calls.append({"name": name, **options})
        data = dataset(3)
        key = "greedy" if options["planner"].get("beams") == 1 else "other" if options["parts_off"] else "planner"
        agent = Says(SAYS[key])
        calls[-1]["agent"] = agent

        def said(case):
            answers = {"constant": BaselineAnswer(label="constant", protocols=dict.fromkeys(case.gold, SAYS["other"]))}
            return BaselineAnswers(answers=answers if options["baselines"] else {}, not_run={})

        told = spec(data, parts_off=options["parts_off"], baselines=options["baselines"])
        return Evaluation(told, data, agent, said)

    monkeypatch.setattr(table, "prepare", prepare)
    return calls


def run(jobs, not_run, out):
    """As the command does, in this process."""
    found = [
        run_evaluation(j.folder, j.evaluation.spec, j.evaluation.dataset, j.evaluation.agent, j.evaluation.baselines)
        for j in jobs
    ]
    return write_reports(found, out, not_run=not_run)


def test_every_part_is_a_line_beside_the_baselines_and_what_is_finished_is_not_asked_again(prepared, tmp_path):
    out = tmp_path / "table"
    summary = run(*table.evaluations(out, n=3, seed=4, planner={"replicas": 3}), out)
    assert {c["name"] for c in prepared} == {"phantom"}
    assert [c["limit"] for c in prepared] == [3] * 4
    assert [c["planner"] for c in prepared] == [
        {"seed": 4, "replicas": 3}, {"seed": 4, "replicas": 3, "beams": 1},
        {"seed": 4, "replicas": 3, "strategy": "paper"}, {"seed": 4, "replicas": 3},
    ]  # fmt: skip
    assert [c["parts_off"] for c in prepared] == [(), ("beam (B = 1)",), (), (ASSISTANT,)]
    assert [c["baselines"] for c in prepared] == [NAMES, (), (), ()]
    assert len({id(c["dataset"]) for c in prepared}) == 1  # the truth of a case is computed once for all parts
    board = summary.boards[0]
    labels = {line.label: line for line in board.lines}
    assert labels["MeWM planner (guideline, without assistant)"].n == 3
    assert labels["constant"].n == 3
    for what in ("contrastive", "attenuation"):
        line = next(x for x in board.lines if x.not_run and what in x.not_run)
        assert line.not_run.startswith("not trained")
        assert f"--weights-without {what}=FOLDER" in line.not_run
    assert len({v.label for v in summary.versus}) == 4
    assert {p.name for p in out.iterdir()} >= {"planner", "greedy", "report.md", "report.html"}
    before = len(prepared)
    again = run(*table.evaluations(out, n=3, seed=4, planner={"replicas": 3}), out)
    assert [len(c["agent"].asked) for c in prepared[before:]] == [0] * 4
    assert again.boards == summary.boards


def test_the_figures_are_published_without_cases(prepared, tmp_path):
    summary = run(*table.evaluations(tmp_path / "table", n=3), tmp_path / "table")
    table.publish_table(summary, tmp_path / "docs")
    figures = Summary.model_validate_json((tmp_path / "docs" / "full-table.json").read_text())
    assert figures.boards == summary.boards
    assert figures.versus == summary.versus
    text = (tmp_path / "docs" / "full-table.md").read_text()
    assert "| MeWM planner (guideline, without assistant) | 3 |" in text
    assert "not run: not trained" in text
    assert "trace.jsonl" not in text
    assert "case-1" not in text
    assert str(tmp_path) not in text


def test_the_card_takes_its_regret_from_the_published_table(prepared, tmp_path):
    """Means and their ratio by hand; three patients, and the constant is no better in one of them."""
    summary = run(*table.evaluations(tmp_path / "table", n=3), tmp_path / "table")
    spec_ = summary.spec.model_copy(update={"conditions": {"weights_hash": "abc"}})
    regrets = {summary.label: (0.1, 0.2, 0.6), "constant": (0.4, 0.5, 0.6), "another line": (0.0, 0.0, 0.0)}
    table.publish_table(summary.model_copy(update={"spec": spec_, "regrets": regrets}), tmp_path / "docs")
    found = read_full_table(tmp_path / "docs" / "full-table.json")
    assert (found["n"], found["weights"]) == (3, "abc")
    assert found["planner"]["value"] == pytest.approx(0.3)
    assert found["constant"]["value"] == pytest.approx(0.5)
    assert found["regret_over_constant"]["value"] == pytest.approx(0.6)
    assert 0.25 <= found["regret_over_constant"]["low"] < 0.6 < found["regret_over_constant"]["high"] <= 1.0
    table.publish_table(summary.model_copy(update={"regrets": {}}), tmp_path / "without")
    with pytest.raises(InputError, match="has no regrets of the planner"):
        read_full_table(tmp_path / "without" / "full-table.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="is no table"):
        read_full_table(tmp_path / "other.json")
    with pytest.raises(InputError, match="can't be read"):
        read_full_table(tmp_path / "nowhere.json")


def trained(folder, **options):
    """A bundle's manifest as `mewm train export` writes it with such settings of the denoiser."""
    preset = Preset.load("small")
    denoiser = preset.training.denoiser
    denoiser = denoiser.model_copy(update={"options": {**denoiser.options, **options}})
    preset = preset.model_copy(update={"training": preset.training.model_copy(update={"denoiser": denoiser})})
    files = {f"{name}.safetensors": {"sha256": "0", "bytes": 0} for name in PARTS}
    manifest = Manifest(format=FORMAT, origin="untrained", preset=preset, files=files, provenance={})
    folder.mkdir()
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def test_weights_that_were_trained_without_a_part_are_run_where_they_are_given(prepared, tmp_path):
    given = {"contrastive": trained(tmp_path / "no-ccl", contrast_weight=0.0)}
    jobs, not_run = table.evaluations(tmp_path, n=3, weights=tmp_path / "full", weights_without=given)
    assert [c["weights"] for c in prepared] == [tmp_path / "full"] * 4 + [tmp_path / "no-ccl"]
    assert prepared[-1]["parts_off"] == ("contrastive learning",)
    assert [j.folder.name for j in jobs][-1] == "no-contrastive"
    assert list(not_run) == ["without attenuation"]


def test_weights_that_were_trained_with_a_part_are_no_weights_without_it(prepared, tmp_path):
    """Else the line of the table would be named after what it does not show."""
    full = trained(tmp_path / "full", contrast_weight=0.02, attenuation_share=0.1)
    for what, setting in (("contrastive", "contrast_weight is 0.02"), ("attenuation", "attenuation_share is 0.1")):
        with pytest.raises(InputError, match=f"were not trained without {what}: their {setting}; train and export"):
            table.evaluations(tmp_path, n=3, weights_without={what: full})
    # the settings that the sentence and docs/training.md name are those of the shipped preset
    assert set(TRAINED_WITH.values()) <= set(Preset.load("small").training.denoiser.options)
    with pytest.raises(WeightsError):
        table.evaluations(tmp_path, n=3, weights_without={"attenuation": tmp_path / "nowhere"})


def test_the_command_says_what_it_costs_goes_on_and_publishes(prepared, tmp_path, monkeypatch):
    """`mewm eval table` as it is called, on the small dataset and in this process."""

    def in_process(jobs, processes, *, shared, done):
        assert shared == tmp_path / "table" / "shared"
        return [
            run_evaluation(
                j.folder, j.evaluation.spec, j.evaluation.dataset, j.evaluation.agent, j.evaluation.baselines, done=done
            )
            for j in jobs
        ]  # fmt: skip

    monkeypatch.setattr("evals.workers.run_in_processes", in_process)
    given = trained(tmp_path / "no-attenuation", attenuation_share=0.0)
    command = ["eval", "table", "--limit", "3", "--beams", "3", "--replicas", "3", "--out", str(tmp_path / "table"),
               "--processes", "2", "--publish", str(tmp_path / "docs"), "--weights-without", f"attenuation={given}",
               "--json"]  # fmt: skip
    first, again = (CliRunner(env={"COLUMNS": "200"}).invoke(app, command) for _ in range(2))
    assert first.exit_code == again.exit_code == 0, (first.output, first.exception)
    assert "3 patients, 5 parts: 15 plans, 0 of them there already." in first.stderr
    assert "15 plans, 15 of them there already." in again.stderr
    assert "15 answers were there already." in again.stderr
    one, two = (Summary.model_validate_json(result.stdout) for result in (first, again))
    assert one.boards == two.boards
    lines = {line.label: line.not_run for line in one.boards[0].lines}
    assert lines["MeWM planner (guideline, without attenuation)"] is None
    assert lines["without contrastive learning"].startswith("not trained")
    assert (tmp_path / "docs" / "full-table.md").is_file()
    listed = CliRunner().invoke(app, ["eval", "list", str(tmp_path), "--json"])
    assert len(json.loads(listed.stdout)["evaluations"]) == 5  # every part can be compared by its folder


def test_the_estimate_is_of_what_is_left_and_shared_by_the_processes(prepared, tmp_path):
    jobs, _ = table.evaluations(tmp_path, n=3)
    on_cpu = [replace(j, evaluation=replace(j.evaluation, spec=j.evaluation.spec.model_copy(
        update={"conditions": {"device": "cpu"}}))) for j in jobs]  # fmt: skip
    run(jobs[:1], {}, tmp_path)
    low, high = table.MINUTES_PER_PLAN
    text = table.cost_estimate(on_cpu, 2)
    assert text.startswith("3 patients, 4 parts: 12 plans, 3 of them there already.")
    assert f"roughly {low * 9 / 2 / 60:.1f} to {high * 9 / 2 / 60:.1f} h on 2" in text
    assert "roughly" not in table.cost_estimate(jobs, 2)  # another device: nothing was measured there


def test_without_the_assistant_every_protocol_leaves_the_whole_tumour(workspace):  # noqa: F811 (fixture)
    """The shipped engine finds what is left; the ablated one calls the original tumour viable."""
    full = workspace.engine
    ablated = WithoutAssistant(full)
    assert (ablated.model, ablated.precision, ablated.batch) == (full.model, full.precision, full.batch)
    prepared = workspace.prepared("two")
    mask = prepared.numbers > 0
    found = ablated.segment(prepared.pre, prepared.pre, mask)
    assert found.shape == prepared.pre.shape
    assert ((found == VIABLE) == mask).all()
    assert set(found.ravel()) <= {0, VIABLE}


def test_with_and_without_the_assistant_share_outcomes_and_no_segmentation(workspace, tmp_path):  # noqa: F811
    full = workspace.engine
    paths = {"two": workspace.case("two").path}
    with_it = _LazyWorkspace(paths, tmp_path / "shared", lambda: full)
    without = _LazyWorkspace(paths, tmp_path / "shared", lambda: WithoutAssistant(full), ASSISTANT)
    calls = [simulate_tumor("two", ["Cisplatin; Lipiodol"], [0, 1], workspace=w) for w in (with_it, without)]
    assert [(c.simulated, c.from_cache) for c in calls] == [(2, 0), (0, 2)]
    ids = [o.outcome_id for o in calls[0].outcomes]
    one, two = (segment(ids, workspace=w) for w in (with_it, without))
    assert (one.segmented, two.segmented) == (2, 2)
    assert not {s.segmentation_id for s in one.segmentations} & {s.segmentation_id for s in two.segmentations}
    assert len({s.viable_ml for s in two.segmentations}) == 1  # nothing is looked for: the whole tumour, every time
