from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from agent.cli.case import app
from models.case import Case, ImageMeta, write_case
from models.errors import CaseError, InputError, MaskError
from models.volume import Volume
from tests.models.scan_pair import Motion, ScanPair, make_pair


def mewm_case(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], terminal_width=100)


@pytest.fixture(scope="module")
def pair() -> ScanPair:
    return make_pair(Motion(shift=(10.0, -6.0, 8.0), degrees=4.0))


@pytest.fixture
def case(pair: ScanPair, tmp_path: Path) -> Case:
    images = {
        ImageMeta("pre_arterial", "pre", "arterial"): pair.fixed,
        ImageMeta("after", "follow_up", "arterial", 30): pair.moving,
    }
    return write_case(tmp_path / "c", "c-1", "synthetic", "A test.", images, pair.fixed_labels)


def test_register_writes_transform_scan_and_picture(case: Case, pair: ScanPair, tmp_path: Path) -> None:
    done = mewm_case("register", case.path, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    for text in ("may be used", "oil inside the tumour", "as scanned", "folding"):
        assert text in done.output
    report = json.loads((case.path / "registration" / "after.json").read_text())
    assert report["report"]["usable"] is True
    assert report["moving"]["sha256"] == case.image("after").sha256
    registered = nib.load(tmp_path / "out" / "after_registered.nii.gz")
    assert registered.shape == pair.fixed.shape
    np.testing.assert_allclose(registered.affine, pair.fixed.affine)
    assert (tmp_path / "out" / "after_checkerboard.png").read_bytes().startswith(b"\x89PNG")
    Case.load(case.path)  # the case itself is as it was


def test_labels_of_the_follow_up_are_used(case: Case, pair: ScanPair, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(pair.moving_labels, pair.moving.affine), tmp_path / "after.nii.gz")
    done = mewm_case("register", case.path, "--labels", tmp_path / "after.nii.gz")
    assert done.exit_code == 0, done.output
    assert "Dice of the livers" in done.output
    assert (
        json.loads((case.path / "registration" / "after.json").read_text())["report"]["deformed"]["liver_dice"] > 0.93
    )
    nib.save(nib.Nifti1Image(pair.fixed_labels, pair.fixed.affine), tmp_path / "other.nii.gz")
    wrong = mewm_case("register", case.path, "--labels", tmp_path / "other.nii.gz")
    assert isinstance(wrong.exception, MaskError)


def test_a_pair_that_does_not_fit_is_marked(pair: ScanPair, tmp_path: Path) -> None:
    mirrored = Volume(np.ascontiguousarray(pair.moving.data[::-1]), pair.moving.affine)
    images = {ImageMeta("pre"): pair.fixed, ImageMeta("after", "follow_up", "unknown", 30): mirrored}
    case = write_case(tmp_path / "m", "m", "synthetic", "A test.", images, pair.fixed_labels)
    done = mewm_case("register", case.path)
    assert done.exit_code == 0, done.output
    assert "marked and will not be used" in done.output
    assert json.loads((case.path / "registration" / "after.json").read_text())["report"]["usable"] is False


def test_without_a_follow_up_there_is_a_sentence(pair: ScanPair, tmp_path: Path) -> None:
    case = write_case(tmp_path / "n", "n", "synthetic", "A test.", {ImageMeta("pre"): pair.fixed}, pair.fixed_labels)
    refused = mewm_case("register", case.path, "--out", tmp_path / "out")
    assert isinstance(refused.exception, CaseError)
    assert "no follow-up" in str(refused.exception)
    assert not (tmp_path / "out").exists()


def test_several_cases_go_on_after_one_that_fails(pair: ScanPair, tmp_path: Path) -> None:
    images = {ImageMeta("pre"): pair.fixed, ImageMeta("after", "follow_up", "unknown", 30): pair.moving}
    for name in ("a", "b"):
        write_case(tmp_path / name, name, "synthetic", "A test.", images, pair.fixed_labels)
    write_case(tmp_path / "n", "n", "synthetic", "A test.", {ImageMeta("pre"): pair.fixed}, pair.fixed_labels)
    folders = [tmp_path / name for name in ("a", "n", "b")]
    done = mewm_case("register", *folders, "--out", tmp_path / "out", "--jobs", 2)
    assert isinstance(done.exception, CaseError)
    assert "1 of 3 cases" in str(done.exception)
    assert "n: can't be registered" in done.output
    assert done.output.count("may be used") == 2
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a", "b"]
    stamp = (tmp_path / "a" / "registration" / "after.tfm").stat().st_mtime_ns
    again = mewm_case("register", tmp_path / "a", tmp_path / "b")
    assert again.exit_code == 0, again.output
    assert again.output.count("registered before") == 2
    assert (tmp_path / "a" / "registration" / "after.tfm").stat().st_mtime_ns == stamp
    refused = mewm_case("register", *folders, "--labels", tmp_path / "x.nii.gz")
    assert isinstance(refused.exception, InputError)
