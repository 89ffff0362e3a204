"""The viewer's files against the volumes that they are made of, read back by another library."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from agent.deidentify import NEUTRAL_ID
from agent.web import volumes as module
from agent.web.access import Access, Owner
from agent.web.viewer import scene
from agent.web.volumes import Volumes, case_of, simulated, viewer_settings
from models.case import Case, ImageMeta, write_case
from models.engine import Engine
from models.errors import InputError, MewmError
from models.volume import Volume
from tests.tools.conftest import engine, model, phantom  # noqa: F401
from tools.compose_outcome import compose_outcome
from tools.registry import build_tools
from tools.workspace import Workspace

PROTOCOL = "Doxorubicin | Lipiodol"
SEEDS = [0, 1, 2]


@pytest.fixture(scope="module")
def world(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Owner, Case, Volumes, list[str]]:  # noqa: F811
    """A person with a case of which three replicas of one protocol are simulated and segmented."""
    access = Access(tmp_path_factory.mktemp("world") / "work")
    owner = access.owner_of(access.new_browser())
    assert owner is not None
    before, labels = phantom()
    after = Volume((before.data + 5).astype(np.int16), before.affine)
    images = {
        ImageMeta("pre_arterial", phase="arterial"): before,
        ImageMeta("post", role="follow_up", phase="arterial", day=30): after,
    }
    case = write_case(owner.cases / "two", "two", "synthetic", "two balls", images, labels)

    def open_workspace(folder: Path, artifacts: Path) -> Workspace:
        return Workspace({NEUTRAL_ID: folder}, artifacts, engine=engine)

    tools = build_tools(open_workspace(case.path, owner.chats / "artifacts"))
    told = tools["simulate_tumor"].call(case_id=NEUTRAL_ID, protocols=[PROTOCOL], seeds=SEEDS)
    ids = [outcome.outcome_id for outcome in told.outcomes]
    tools["segment"].call(outcome_ids=ids)
    return owner, case, Volumes(open_workspace), ids


def data(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def composed(world: tuple[Owner, Case, Volumes, list[str]], outcome: str) -> np.ndarray:
    owner, case, volumes, _ = world
    workspace = volumes._open(case.path, owner.chats / "artifacts")
    return compose_outcome(outcome, workspace=workspace)[0].data


def test_images_and_labels_are_those_of_the_case(world: tuple[Owner, Case, Volumes, list[str]]) -> None:
    owner, case, volumes, _ = world
    path = volumes.ct(owner, case, "image-pre_arterial")
    assert path.parent == owner.viewer
    np.testing.assert_array_equal(data(path), phantom()[0].data)
    np.testing.assert_array_equal(nib.load(path).affine, phantom()[0].affine)
    np.testing.assert_array_equal(data(volumes.labels(owner, case, "image-pre_arterial")), phantom()[1])
    assert volumes.ct(owner, case, "image-pre_arterial") == path


def test_a_simulated_ct_its_difference_and_the_spread(world: tuple[Owner, Case, Volumes, list[str]]) -> None:
    owner, case, volumes, ids = world
    replicas = [composed(world, name) for name in ids]
    np.testing.assert_array_equal(data(volumes.ct(owner, case, ids[0])), replicas[0])
    difference = data(volumes.difference(owner, case, ids[0], "image-pre_arterial"))
    np.testing.assert_array_equal(difference, replicas[0].astype(int) - phantom()[0].data)
    assert difference.any()
    between = data(volumes.difference(owner, case, ids[0], ids[1]))
    np.testing.assert_array_equal(between, replicas[0].astype(int) - replicas[1])
    spread = data(volumes.spread(owner, case, ids))
    np.testing.assert_allclose(spread, np.std(replicas, axis=0, ddof=1), atol=1e-3)
    assert spread.max() > 0


def test_what_was_simulated_is_found_without_a_plan(world: tuple[Owner, Case, Volumes, list[str]]) -> None:
    owner, case, _, ids = world
    assert simulated(owner.chats / "artifacts", case.image_key) == {PROTOCOL: tuple(ids)}
    assert simulated(owner.chats / "artifacts", "0" * 64) == {}
    told = scene(owner, case.path, right=f"simulated:{PROTOCOL}")
    assert (told["left"], told["right"], told["hint"]) == ("image:pre_arterial", f"simulated:{PROTOCOL}", "")
    one = next(source for source in told["sources"] if source["id"] == told["right"])
    assert one["replicas"] == ids
    assert "not an observation" in one["note"]
    assert [label["name"] for label in one["labels"].values()] == [
        label.name for label in viewer_settings().after.values()
    ]
    unknown = scene(owner, case.path, right="simulated:Epirubicin | Lipiodol")
    assert "was not simulated" in unknown["hint"]


def test_a_follow_up_says_that_it_is_not_registered(world: tuple[Owner, Case, Volumes, list[str]]) -> None:
    owner, case, volumes, _ = world
    told = scene(owner, case.path)
    after = next(source for source in told["sources"] if source["id"] == "image:post")
    assert "not registered" in after["note"]
    with pytest.raises(InputError, match="not registered"):
        volumes.ct(owner, case, "registered-post")


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "image-",
        "image-../../x",
        "image-nothing",
        "outcome-x",
        "outcome-" + "0" * 20,
        "segmentation-1",
        "/etc/passwd",
    ],
)
def test_anything_else_is_refused_and_leaves_no_file(ref: str, world: tuple[Owner, Case, Volumes, list[str]]) -> None:
    owner, case, volumes, _ = world
    before = set(owner.viewer.iterdir()) if owner.viewer.exists() else set()
    for ask in (volumes.ct, volumes.labels):
        with pytest.raises(MewmError):
            ask(owner, case, ref)
    with pytest.raises(InputError, match="no spread"):
        volumes.spread(owner, case, [ref])
    assert (set(owner.viewer.iterdir()) if owner.viewer.exists() else set()) == before


def test_cases_are_opened_by_name_only(world: tuple[Owner, Case, Volumes, list[str]]) -> None:
    owner = world[0]
    assert case_of(owner, "two").case_id == "two"
    (owner.cases / "link").symlink_to(owner.cases / "two")
    for bad in ("..", "../cases/two", "link", "", "three", "two/"):
        with pytest.raises(InputError, match="There is no case"):
            case_of(owner, bad)


def test_a_damaged_case_is_a_sentence_without_paths(world: tuple[Owner, Case, Volumes, list[str]]) -> None:
    owner = world[0]
    (owner.cases / "broken").mkdir()
    (owner.cases / "broken" / "case.json").write_text("{", encoding="utf-8")
    told = scene(owner, owner.cases / "broken")
    assert told["message"] == "The case broken has a damaged case.json (not JSON); import it again."
    assert told["sources"] == []


@pytest.mark.parametrize(("asked_for", "left"), [(3, {3, 2}), (1, {3, 2, 1})])
def test_the_files_shown_longest_ago_make_room(
    world: tuple[Owner, Case, Volumes, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    asked_for: int,
    left: set[int],
) -> None:
    """What was asked for stays, whatever its age; a file that another request removed meanwhile is no failure."""
    _, case, volumes, _ = world
    owner = Owner("other", "", tmp_path / "other")
    small = viewer_settings().model_copy(update={"cache_mib": 1})
    monkeypatch.setattr(module, "viewer_settings", lambda: small)
    shown = volumes.labels(owner, case, "image-pre_arterial")
    made = {age: owner.viewer / f"{age}.nii" for age in (1, 2, 3)}
    for age, path in made.items():
        path.write_bytes(bytes(400 << 10))
        os.utime(path, (age, age))
    shown.unlink()
    (owner.viewer / "gone.nii").symlink_to(tmp_path / "nowhere")
    module._prune(owner.viewer, 1 << 20, made[asked_for])
    assert {age for age, path in made.items() if path.exists()} == left


def test_a_new_file_makes_the_others_go(
    world: tuple[Owner, Case, Volumes, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, case, volumes, _ = world
    owner = Owner("other", "", tmp_path / "other")
    small = viewer_settings().model_copy(update={"cache_mib": 0})
    monkeypatch.setattr(module, "viewer_settings", lambda: small)
    labels = volumes.labels(owner, case, "image-pre_arterial")
    assert labels.exists(), "what was asked for is there, whatever its size"
    latest = volumes.ct(owner, case, "image-pre_arterial")
    assert list(owner.viewer.iterdir()) == [latest]


def test_windows_are_those_of_the_report() -> None:
    from agent.report.slices import LIVER_WINDOW, OIL_WINDOW

    found = {window.key: (window.low, window.high) for window in viewer_settings().windows}
    assert found["liver"] == (LIVER_WINDOW.low, LIVER_WINDOW.high)
    assert found["lipiodol"] == (OIL_WINDOW.low, OIL_WINDOW.high)
    assert found["wide"][0] <= -1000
