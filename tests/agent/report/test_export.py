from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from agent import export
from agent.export import export_finalists, finalist_folder, slug
from models.errors import RunError
from tests.agent.report.made_plan import MadeWorkspace, blocked_plan, made_plan, made_workspace


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch) -> MadeWorkspace:
    made = made_workspace()
    monkeypatch.setattr(export, "compose_outcome", made.compose)
    return made


def run(workspace: MadeWorkspace, folder: Path) -> dict[str, str]:
    return export_finalists(made_plan(), workspace, folder)  # type: ignore[arg-type]


def test_volumes_have_the_grid_and_the_values_of_the_outcome(workspace: MadeWorkspace, tmp_path: Path) -> None:
    plan = made_plan()
    paths = run(workspace, tmp_path)
    assert set(paths) == {f"{what} {n}" for what in ("simulated", "segmentation") for n in (1, 2, 3)}
    for finalist in plan.finalists:
        expected, labels = workspace.outcomes[finalist.assessed.shown_replica.outcome_id]
        image = nib.load(tmp_path / paths[f"simulated {finalist.place}"])
        mask = nib.load(tmp_path / paths[f"segmentation {finalist.place}"])
        for found in (image, mask):
            assert found.shape == workspace.made.image.shape
            assert np.array_equal(found.affine, workspace.made.image.affine)
        assert image.get_data_dtype() == np.int16
        assert mask.get_data_dtype() == np.uint8
        assert np.array_equal(np.asanyarray(image.dataobj), expected.data)
        assert np.array_equal(np.asanyarray(mask.dataobj), labels)
        about = json.loads((tmp_path / finalist_folder(finalist) / "about.json").read_text(encoding="utf-8"))
        assert about["protocol"] == finalist.assessed.key
        assert about["models_trained_on"] == "synthetic"


def test_a_second_export_gives_the_same_files_and_leaves_nothing_else(workspace: MadeWorkspace, tmp_path: Path) -> None:
    run(workspace, tmp_path)
    first = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    (tmp_path / "finalists" / "stale").mkdir()
    run(workspace, tmp_path)
    second = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert first == second
    assert [p.name for p in tmp_path.iterdir()] == ["finalists"]
    assert not (tmp_path / "finalists" / "stale").exists()


def test_a_failed_export_leaves_nothing(
    workspace: MadeWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def failing(outcome_id: str, *, workspace: object) -> object:
        calls.append(outcome_id)
        if len(calls) == 2:
            raise RunError("stop")
        return made.compose(outcome_id, workspace=workspace)

    made = workspace
    monkeypatch.setattr(export, "compose_outcome", failing)
    with pytest.raises(RunError, match="stop"):
        run(workspace, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_blocked_plan_exports_nothing(workspace: MadeWorkspace, tmp_path: Path) -> None:
    assert export_finalists(blocked_plan(), workspace, tmp_path) == {}  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_missing_run_folder_is_a_run_error(workspace: MadeWorkspace, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="can't be written"):
        run(workspace, tmp_path / "absent")


def test_slug() -> None:
    assert slug("Cisplatin 50 mg + Pirarubicin | Lipiodol") == "cisplatin-50-mg-pirarubicin-lipiodol"
    assert slug("- | -") == "protocol"
    assert len(slug("x" * 200)) == 60
