from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from agent.cli import train
from agent.cli.recorded_command import recorded_command, source_commit
from agent.cli.train import COMMAND, DATA, ORDER, _train, _trained_on, shared_out
from models.case import Case, ImageMeta, write_case
from models.collection.splits import split_of
from models.errors import InputError
from models.networks.preset import Preset
from models.phantom.pool import write_pool
from models.registration_file import register_case
from models.training.loop import FINAL
from models.weights import PARTS, init_world_model, save_world_model
from tests.models.scan_pair import Motion, make_pair
from tests.models.test_engine import tiny_preset
from tests.models.training.conftest import shrink

NAME = next(name for name in (f"A{n}" for n in range(99)) if split_of(name) == "train")


def mewm_train(*arguments: object) -> Result:
    return CliRunner().invoke(_train, [str(a) for a in arguments], terminal_width=100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One registered case in `cases`, what it was given in `given.csv`, and a phantom pool in `pool`."""
    folder = tmp_path_factory.mktemp("training")
    pair = make_pair(Motion(shift=(10.0, -6.0, 8.0)))
    images = {
        ImageMeta("pre", "pre", "arterial"): pair.fixed,
        ImageMeta("after", "follow_up", "arterial", 30): pair.moving,
    }
    register_case(write_case(folder / "cases" / NAME, NAME, "real", "A test.", images, pair.fixed_labels))
    (folder / "given.csv").write_text(f"case_id,protocol,months,died\n{NAME},Doxorubicin + Lipiodol,,\n")
    write_pool(8, 2, 0, folder / "pool", workers=1)
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    content = shrink(Preset.load("small")).model_dump()
    content.update(size=64)
    preset = Preset.model_validate(content)
    monkeypatch.setattr(Preset, "load", lambda name, changes=(): preset)


def test_real_cases_are_mixed_with_phantoms(folder: Path, tmp_path: Path) -> None:
    options = ("--data", folder / "cases", "--given", folder / "given.csv", "--mix", f"{folder / 'pool'}:3")
    done = mewm_train("autoencoder", *options, "--out", tmp_path / "run", "--steps", 1)
    assert done.exit_code == 0, done.output
    assert "mixed, 3 phantoms drawn for one real cube" in done.output
    assert json.loads((tmp_path / "run" / "autoencoder" / DATA).read_text())["origin"] == "mixed"
    assert json.loads((tmp_path / "run" / "autoencoder" / DATA).read_text())["seed"] == 0
    refused = mewm_train("survival", *options, "--out", tmp_path / "run", "--steps", 1)
    assert isinstance(refused.exception, InputError)
    assert f"no outcome: {NAME}" in str(refused.exception)
    alone = mewm_train("autoencoder", *options[:4], "--out", tmp_path / "other", "--steps", 1)
    assert "validation split" in str(alone.exception)
    pool = mewm_train("autoencoder", "--data", folder / "pool", *options[2:4], "--out", tmp_path / "p", "--steps", 1)
    assert "is a phantom pool" in str(pool.exception)
    assert Case.load(folder / "cases" / NAME).case_id == NAME


def test_phantom_stands_for_a_pool_that_is_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "PATIENTS", 8)
    run = ("--data", "phantom", "--out", tmp_path / "run", "--steps", 1)
    done = mewm_train("autoencoder", *run)
    assert done.exit_code == 0, done.output
    rendered = (tmp_path / "run" / "pool" / "pool.json").stat().st_mtime_ns
    assert json.loads((tmp_path / "run" / "pool" / "pool.json").read_text())["arguments"]["k"] == 4
    assert mewm_train("localiser", *run).exit_code == 0
    refused = mewm_train("autoencoder", "--data", "phantom", "--mix", "x:3", "--out", tmp_path / "other")
    assert "not with phantom" in str(refused.exception)
    assert not (tmp_path / "other").exists()  # nothing was rendered
    assert (tmp_path / "run" / "pool" / "pool.json").stat().st_mtime_ns == rendered


def test_an_export_says_what_the_networks_were_trained_on(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--data"):
        _trained_on(tmp_path, None)
    assert _trained_on(tmp_path, folder / "pool")[1] == "synthetic"
    for name in ORDER:
        (tmp_path / name).mkdir()
        about = {"data_hash": "ab", "origin": "synthetic", "commit": "12", "seed": 5, "steps": 7}
        (tmp_path / name / DATA).write_text(json.dumps(about))
    steps = "autoencoder 7, denoiser 7, segmenter 7, localiser 7, survival 7"
    assert _trained_on(tmp_path, None) == ({"data": "ab", "seed": "5", "commit": "12", "steps": steps}, "synthetic")
    (tmp_path / "denoiser" / DATA).write_text(json.dumps({"data_hash": "cd", "origin": "real", "commit": "34"}))
    told, origin = _trained_on(tmp_path, None)
    assert (told["data"], origin) == ("ab (autoencoder, segmenter, localiser, survival); cd (denoiser)", "mixed")
    assert told["commit"] == "12 (autoencoder, segmenter, localiser, survival); 34 (denoiser)"
    assert told["seed"] == "5 (autoencoder, segmenter, localiser, survival); unknown (denoiser)"
    assert "denoiser unknown, segmenter 7" in told["steps"]


def test_networks_of_a_bundle_become_a_run_that_says_what_they_were_trained_on(tmp_path: Path) -> None:
    model = init_world_model(tiny_preset(), seed=5)
    told = {
        "autoencoder": "mewm train autoencoder", "denoiser": "mewm train denoiser", "data": "ab",
        "commit": "12 (autoencoder, segmenter); 34 (denoiser, localiser, survival)",
        "steps": "autoencoder 7, denoiser unknown, segmenter 9, localiser 9, survival 9",
    }  # fmt: skip
    networks = {name: model.part(name) for name in PARTS}
    save_world_model(networks, model.preset, tmp_path / "weights", origin="synthetic", provenance=told)
    done = mewm_train("unpack", tmp_path / "run", "--weights", tmp_path / "weights", "--only", "denoiser")
    assert done.exit_code == 0, done.output
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["denoiser"]
    written = tmp_path / "run" / "denoiser"
    assert (written / COMMAND).read_text() == "mewm train denoiser\n"
    assert json.loads((written / DATA).read_text()) == {
        "data_hash": "ab", "origin": "synthetic", "commit": "34", "seed": "unknown", "steps": "unknown",
    }  # fmt: skip
    assert mewm_train("unpack", tmp_path / "all", "--weights", tmp_path / "weights").exit_code == 0
    found, origin = _trained_on(tmp_path / "all", None)
    assert origin == "synthetic"
    assert (found["data"], found["commit"]) == (told["data"], told["commit"])
    assert found["steps"] == told["steps"]
    wrong = mewm_train("unpack", tmp_path / "x", "--only", "policy")
    assert "no network 'policy'" in str(wrong.exception)


def test_the_commit_is_that_of_the_program_and_shows_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
        done = subprocess.run(["git", "-C", tmp_path, *identity, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    place = tmp_path / "agent" / "cli" / "recorded_command.py"
    place.parent.mkdir(parents=True)
    place.write_text("first")
    monkeypatch.setattr("agent.cli.recorded_command.__file__", str(place))
    assert source_commit() == "unknown"
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD")[:12]
    assert source_commit() == head
    place.write_text("second")
    assert source_commit() == head + "+"
    monkeypatch.setattr("agent.cli.recorded_command.__file__", str(tmp_path / "agent" / "x" / "y" / "module.py"))
    assert source_commit() == "unknown"


def test_the_command_of_a_finished_training_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--data", folder / "pool", "--out", tmp_path / "run", "--steps", 1)
    monkeypatch.setattr(sys, "argv", ["mewm", "train", "first"])
    assert mewm_train("autoencoder", *options).exit_code == 0
    monkeypatch.setattr(sys, "argv", ["mewm", "train", "later"])
    assert mewm_train("autoencoder", *options, "--resume").exit_code == 0
    written = tmp_path / "run" / "autoencoder" / COMMAND
    assert written.read_text() == "mewm train first\n"
    (written.parent / FINAL).unlink()  # broken off before its end: the call that ends it counts
    assert mewm_train("autoencoder", *options, "--resume").exit_code == 0
    assert written.read_text() == "mewm train later\n"


def test_the_recorded_command_has_every_option_and_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train", "all", "--data=/home/me/pool", "--out", "/home/me/run", "--set", "denoiser.steps=3", "--resume"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mewm", *words])
    assert recorded_command() == "mewm train all --data=pool --out run --set denoiser.steps=3 --resume"
    monkeypatch.setattr(sys, "argv", ["x", "--without", "contrastive=/a/b/weights", "--set", "a=b", "/a/c=d/e"])
    assert recorded_command("x") == "x --without contrastive=weights --set a=b e"


def test_a_picture_that_can_not_be_written_is_one_sentence(tmp_path: Path) -> None:
    done = mewm_train("attenuation-picture", "--out", tmp_path / "absent" / "picture.png")
    assert isinstance(done.exception, InputError)
    assert "choose another --out" in str(done.exception)


def test_the_minutes_of_all_networks_are_shared_out_as_in_the_preset() -> None:
    preset = Preset.load("small")
    found = shared_out(20.0, ORDER, preset)
    assert sum(found.values()) == pytest.approx(20.0)
    own = {name: getattr(preset.training, name).minutes for name in ORDER}
    assert found["denoiser"] / found["survival"] == pytest.approx(own["denoiser"] / own["survival"])
    assert shared_out(7.0, ("survival",), preset) == {"survival": 7.0}
    assert shared_out(None, ORDER, preset) == dict.fromkeys(ORDER)
