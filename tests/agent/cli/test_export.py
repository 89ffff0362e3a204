from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner, Result

from agent import export
from agent.cli.case import app
from agent.export import export_finalists, finalist_folder
from agent.run import start_run
from agent.settings import PlannerSettings
from models.case import Case, ImageMeta, write_case
from models.errors import CaseError, InputError, RunError
from tests.agent.report.made_plan import blocked_plan, made_plan, made_workspace, write_plan_json


def mewm_case(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], terminal_width=100)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    made = made_workspace().made
    folder = tmp_path_factory.mktemp("cases") / "c"
    return write_case(
        folder, "c-1", "synthetic", "A test.", {ImageMeta("pre_arterial", phase="arterial"): made.image}, made.labels
    )


@pytest.fixture
def run(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run on the case, as `mewm plan` leaves it."""
    workspace = made_workspace()
    monkeypatch.setattr(export, "compose_outcome", workspace.compose)
    started = start_run(case.path, tmp_path / "run", PlannerSettings())
    plan = made_plan()
    export_finalists(plan, workspace, started.folder)  # type: ignore[arg-type]
    write_plan_json(plan, started.folder)
    return started.folder


def test_a_case_without_a_run(case: Case, tmp_path: Path) -> None:
    done = mewm_case("export", case.path, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["labels.dcm", "pre_arterial"]
    again = mewm_case("export", case.path, "--out", tmp_path / "out")
    assert isinstance(again.exception, CaseError)


def test_the_chosen_protocol_or_every_finalist(case: Case, run: Path, tmp_path: Path) -> None:
    done = mewm_case("export", case.path, "--out", tmp_path / "one", "--run", run)
    assert done.exit_code == 0, done.output
    assert "research only" in done.output
    expected = ["labels.dcm", "pre_arterial", "simulated_1", "simulated_1_tissue.dcm"]
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == expected
    chosen = made_plan().chosen
    assert chosen is not None
    slice_ = pydicom.dcmread(tmp_path / "one" / "simulated_1" / "0014.dcm")
    assert chosen.assessed.key in slice_.ImageComments
    volume = nib.load(run / finalist_folder(chosen) / "simulated.nii.gz")
    np.testing.assert_array_equal(slice_.pixel_array.T[::-1, ::-1], np.asanyarray(volume.dataobj)[:, :, 13])
    every = mewm_case("export", case.path, "--out", tmp_path / "all", "--run", run, "--all")
    assert every.exit_code == 0, every.output
    assert sum(p.is_dir() for p in (tmp_path / "all").iterdir()) == 1 + len(made_plan().finalists)


def test_runs_that_can_not_be_exported(case: Case, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    alone = mewm_case("export", case.path, "--out", out, "--all")
    assert isinstance(alone.exception, InputError)
    nothing = mewm_case("export", case.path, "--out", out, "--run", tmp_path / "none")
    assert isinstance(nothing.exception, RunError)
    about = next((run / "finalists").glob("1_*")) / "about.json"
    kept = about.read_text()
    about.unlink()
    gone = mewm_case("export", case.path, "--out", out, "--run", run)
    assert "can't be read" in str(gone.exception)
    for damaged in ("{}", "[1]"):
        about.write_text(damaged)
        odd = mewm_case("export", case.path, "--out", out, "--run", run)
        assert isinstance(odd.exception, RunError)
        assert "can't be read" in str(odd.exception)
    about.write_text(kept)
    (run / "plan.json").write_text(blocked_plan().to_json())
    blocked = mewm_case("export", case.path, "--out", out, "--run", run)
    assert "blocked" in str(blocked.exception)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"case_hash": "0" * 64}))
    other = mewm_case("export", case.path, "--out", out, "--run", run)
    assert "another case" in str(other.exception)
    assert not out.exists()
