from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from agent.cli.case import app
from models.errors import CaseError, MaskError, SeriesChoiceError
from tests.models.synthetic_ct import labels_of, trunk, write_series

SHAPE = (64, 56, 32)
AFFINE = np.array([[2.0, 0, 0, -30], [0, 2.5, 0, -20], [0, 0, 5.0, 100], [0, 0, 0, 1]])


def mewm_case(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], terminal_width=100)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    nib.save(nib.Nifti1Image(trunk(SHAPE), AFFINE), tmp_path / "scan.nii.gz")
    nib.save(nib.Nifti1Image(labels_of(SHAPE), AFFINE), tmp_path / "labels.nii.gz")
    return tmp_path / "scan.nii.gz"


def test_import_and_show(scan: Path, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps({"albumin": "38 g/L", "bclc": "B"}), encoding="utf-8")
    done = mewm_case(
        "import", scan, "--out", tmp_path / "c", "--labels", tmp_path / "labels.nii.gz",
        "--record", tmp_path / "r.json", "--id", "demo-1",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    shown = mewm_case("show", tmp_path / "c", "--out", tmp_path / "c.png")
    assert shown.exit_code == 0, shown.output
    tumour_ml = (labels_of(SHAPE) == 2).sum() * 0.025
    for text in ("demo-1", "pre_arterial", "64x56x32", "2x2.5x5", f"{tumour_ml:.1f}", "Albumin", "3.8", "g/dL"):
        assert text in shown.output
    assert done.output.strip() in shown.output
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_series_and_tumour_label(tmp_path: Path) -> None:
    write_series(tmp_path / "p" / "a", trunk(SHAPE), series="1.2.3.1")
    write_series(tmp_path / "p" / "b", trunk(SHAPE), series="1.2.3.2", date="20010301")
    asked = mewm_case("import", tmp_path / "p", "--out", tmp_path / "c")
    assert isinstance(asked.exception, SeriesChoiceError)
    assert "--series" in str(asked.exception)
    nib.save(nib.Nifti1Image((labels_of(SHAPE) == 2).astype(np.uint8), AFFINE), tmp_path / "t.nii.gz")
    options = ("import", tmp_path / "p", "--out", tmp_path / "c", "--series", "1,2", "--labels", tmp_path / "t.nii.gz")
    refused = mewm_case(*options)
    assert isinstance(refused.exception, MaskError)
    assert "--tumour-label" in str(refused.exception)
    done = mewm_case(*options, "--tumour-label", 1)
    assert done.exit_code == 0, done.output
    assert "follow_up" in done.output
    assert "26" in done.output


def test_show_refuses_what_is_no_case_and_no_png(scan: Path, tmp_path: Path) -> None:
    assert isinstance(mewm_case("show", tmp_path / "none").exception, CaseError)
    assert mewm_case("import", scan, "--out", tmp_path / "c").exit_code == 0
    refused = mewm_case("show", tmp_path / "c", "--out", tmp_path / "c.jpg")
    assert isinstance(refused.exception, CaseError)
    assert not (tmp_path / "c.jpg").exists()
