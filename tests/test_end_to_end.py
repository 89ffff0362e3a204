"""A whole plan on the shipped weights: what a run leaves, and what it never touched."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from agent.plan import Plan, read_plan
from models.case import Case
from models.phantom.cohort import write_cohort

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "--drugs",
    "3",
    "--embolics",
    "2",
    "--beams",
    "2",
    "--replicas",
    "2",
    "--drug-horizon",
    "2",
    "--embolic-horizon",
    "1",
]

# Plans in a process of its own that reports every file it opened and every module it imported.
AUDITED = """
import json, sys
opened, imported = [], []
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        opened.append(arguments[0])
    elif event == "import":
        imported.append(arguments[0])
sys.addaudithook(hook)
from agent.cli.main import app
report, arguments = sys.argv[1], sys.argv[2:]
try:
    app(arguments)
except SystemExit as stop:
    code = stop.code
json.dump({"opened": opened, "imported": imported, "code": code}, open(report, "w"))
"""


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("plan")
    case = write_cohort(1, 900_003, folder / "cases")[0]
    paths = {"case": case, "truth": folder / "cases-truth", "run": folder / "run", "audit": folder / "audit.json"}
    command = [
        sys.executable,
        "-c",
        AUDITED,
        str(paths["audit"]),
        "plan",
        str(case),
        "--run",
        str(paths["run"]),
        *SMALL,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    paths["summary"] = folder / "summary.txt"
    paths["summary"].write_text(done.stdout)
    return paths


@pytest.fixture(scope="module")
def plan(planned: dict[str, Path]) -> Plan:
    return read_plan(planned["run"] / "plan.json")


def test_the_planner_never_opens_the_truth(planned: dict[str, Path]) -> None:
    audit = json.loads(planned["audit"].read_text())
    truth = str(planned["truth"])
    assert planned["truth"].is_dir()
    assert any(str(planned["case"]) in path for path in audit["opened"])  # the hook sees what is opened
    assert not [path for path in audit["opened"] if truth in path]
    assert not [name for name in audit["imported"] if name.startswith("models.phantom")]


def test_a_plan_has_a_drug_an_embolic_and_a_margin(plan: Plan) -> None:
    assert plan.chosen is not None
    assert plan.chosen.assessed.protocol.drugs
    assert plan.chosen.assessed.protocol.embolics
    assert plan.margin is not None
    assert plan.confidence is not None
    assert 0.0 < plan.confidence <= 1.0
    assert plan.origin.model_origin == "synthetic"
    assert not plan.degraded


def test_the_chosen_protocol_has_the_lowest_objective_of_the_finalists(plan: Plan) -> None:
    values = [finalist.assessed.objective.mean for finalist in plan.finalists]
    assert values == sorted(values)


def test_every_network_result_came_through_a_traced_tool_call(planned: dict[str, Path], plan: Plan) -> None:
    rows = [json.loads(line) for line in (planned["run"] / "trace.jsonl").read_text().splitlines()]
    ids = [row["decision_id"] for row in rows]
    assert len(ids) == len(set(ids))
    tools = {row["tool"] for row in rows if row["tool"]}
    assert {"check_rules", "simulate_tumor", "segment", "measure_response", "survival_risk"} <= tools
    assert {row["node"] for row in rows} >= {"observe", "propose", "refine", "expand", "prune", "finalise", "explain"}
    assert [row["tool"] for row in rows if row["node"] == "report"] == ["segment", None]
    assert {row["weights_hash"] for row in rows if row["tool"] == "simulate_tumor"} == {plan.origin.weights_hash}


def test_outside_the_feathered_tumour_the_simulated_ct_is_the_input(planned: dict[str, Path]) -> None:
    case = Case.load(planned["case"])
    before = nib.load(case.path / case.default_image().file)
    tumour = case.label_array() == 2
    far = distance_transform_edt(~tumour, sampling=before.header.get_zooms()[:3]) > 8.0
    files = sorted((planned["run"] / "finalists").glob("*/simulated.nii.gz"))
    assert files
    for file in files:
        after = nib.load(file)
        assert after.shape == before.shape
        np.testing.assert_array_equal(after.affine, before.affine)
        one, two = np.asanyarray(before.dataobj), np.asanyarray(after.dataobj)
        np.testing.assert_array_equal(one[far], two[far])
        assert np.abs(one[tumour].astype(float) - two[tumour]).mean() > 3.0  # inside, something happened


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("img", "script", "link", "iframe", "image"):
            self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_report_is_one_self_contained_file(planned: dict[str, Path], plan: Plan) -> None:
    text = (planned["run"] / "report.html").read_text(encoding="utf-8")
    links = _Links()
    links.feed(text)
    assert links.loaded
    assert all(link.startswith(("data:", "#")) for link in links.loaded)
    assert plan.chosen is not None
    for item in plan.chosen.assessed.protocol.items:
        assert item in text
    assert "synthetic" in text


def test_the_summary_names_the_choice_and_the_report(planned: dict[str, Path], plan: Plan) -> None:
    text = " ".join(planned["summary"].read_text().split())
    assert plan.chosen is not None
    assert all(item in text for item in plan.chosen.assessed.protocol.items)
    assert "report.html" in text


def test_json_output_is_the_plan_and_nothing_else(planned: dict[str, Path], plan: Plan) -> None:
    command = [sys.executable, "-m", "agent", "resume", str(planned["run"]), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["case_id"] == plan.case_id
    assert done.stdout == (planned["run"] / "plan.json").read_text()
