"""The patient HCC_009: import from DICOM, plan, and what has to hold on a real scan with a 170 mm tumour."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from agent.plan import read_plan
from models.case import Case

ROOT = Path(__file__).resolve().parents[1]

RECORD = """\
bclc: C
afp: 209147 ng/ml
"""


def mewm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "agent", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def imported(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hcc009")
    (folder / "record.yaml").write_text(RECORD, encoding="utf-8")
    source, labels = real_data / "dicom" / "HCC_009", real_data / "hcc009-native" / "pre_labels.nii.gz"
    listed = mewm("case", "import", str(source), "--out", str(folder / "none"), "--labels", str(labels))
    assert listed.returncode == 2
    assert "--series" in listed.stderr
    assert "Traceback" not in listed.stderr
    assert not (folder / "none").exists()
    options = ["--labels", str(labels), "--record", str(folder / "record.yaml"), "--series", "1"]
    done = mewm("case", "import", str(source), "--out", str(folder / "case"), *options)
    assert done.returncode == 0, done.stderr
    return folder / "case"


def test_the_plan_on_a_real_patient(imported: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    done = mewm("plan", str(imported), "--run", str(tmp_path / "run"))
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr[-3000:]
    peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
    print(f"HCC_009 planned in {seconds:.0f} s, peak memory {peak_gb:.2f} GB")
    assert peak_gb < 4.0
    plan = read_plan(tmp_path / "run" / "plan.json")
    assert plan.origin.case_origin == "real"
    assert plan.origin.model_origin == "synthetic"
    assert "coarser" in plan.origin.simulated_how
    case = Case.load(imported)
    before = nib.load(case.path / case.default_image().file)
    tumour = case.label_array() == 2
    far = distance_transform_edt(~tumour, sampling=before.header.get_zooms()[:3]) > 8.0
    files = sorted((tmp_path / "run" / "finalists").glob("*/simulated.nii.gz"))
    assert len(files) >= 2
    for file in files:
        after = nib.load(file)
        assert after.shape == before.shape
        np.testing.assert_array_equal(after.affine, before.affine)
        np.testing.assert_array_equal(np.asanyarray(before.dataobj)[far], np.asanyarray(after.dataobj)[far])
