"""The patient HCC_009: import from DICOM, plan, and what has to hold on a real scan with a 170 mm tumour."""

from __future__ import annotations

import base64
import io
import resource
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt

from agent.plan import read_plan
from models.case import Case

ROOT = Path(__file__).resolve().parents[1]

PNG = "data:image/png;base64,"
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


class Page(HTMLParser):
    """What a report shows and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.slices: list[str] = []
        self.images: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        if tag == "svg" and known.get("class") == "ct":
            self.slices.append(known["aria-label"])
        if tag in ("img", "image"):
            self.images.append(known.get("href") or known.get("src") or "")
        if tag in ("link", "iframe", "object", "embed", "base") or (tag == "script" and "src" in known):
            self.loads.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def check_report(file: Path, case: Case, depth: int) -> None:
    """The page names the case, shows its slices before and after, and holds every picture itself."""
    page = Page()
    page.feed(file.read_text(encoding="utf-8"))
    assert case.case_id in page.text
    before = [label for label in page.slices if label.startswith("Before treatment")]
    after = [label for label in page.slices if label.startswith("Simulated after")]
    assert before
    assert len(after) >= 2 * len(before)  # the chosen protocol and a runner-up at the least
    assert all(f" of {depth}, " in label for label in page.slices)  # slices of this scan, and not of another
    assert len(page.images) >= len(page.slices)
    assert page.loads == []
    pixels = [Image.open(io.BytesIO(base64.b64decode(href.removeprefix(PNG)))).convert("L") for href in page.images]
    assert all(href.startswith(PNG) for href in page.images)
    assert max(np.asarray(image).std() for image in pixels) > 20  # anatomy, not an empty frame


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
    check_report(tmp_path / "run" / "report.html", case, before.shape[2])
    for file in files:
        after = nib.load(file)
        assert after.shape == before.shape
        np.testing.assert_array_equal(after.affine, before.affine)
        np.testing.assert_array_equal(np.asanyarray(before.dataobj)[far], np.asanyarray(after.dataobj)[far])
