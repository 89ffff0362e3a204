"""The visual Turing test: slices, forms, key and figures."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from agent.run import start_run
from agent.settings import PlannerSettings
from evals.slices import axial_png, tumour_centre, tumour_levels
from evals.study import KEY, READERS
from evals.turing import Key, KeyedSlice, make_turing, read_form, read_key, score_turing, turing_markdown
from models.case import Case, ImageMeta, write_case
from models.errors import CaseError, InputError, MaskError, RunError
from models.volume import Volume, write_nifti
from tests.agent.fake_tools import FakeWorld, fake_services, make_case

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def treated_case(folder: Path, case_id: str, oil_hu: int) -> Path:
    """A ball of tumour in liver before treatment, filled with oil in the scan after it."""
    grid = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij")) - 12
    radius = np.sqrt((grid**2).sum(axis=0))
    before = np.where(radius < 10, 100, -900).astype(np.int16)
    labels = np.where(radius < 4, 2, np.where(radius < 10, 1, 0)).astype(np.uint8)
    after = before.copy()
    after[labels == 2] = oil_hu
    images = {
        ImageMeta("pre_arterial", "pre", "arterial"): Volume(before, AFFINE),
        ImageMeta("post_arterial", "follow_up", "arterial", day=30): Volume(after, AFFINE),
    }
    write_case(folder, case_id, "synthetic", "made for a test", images, labels, labels_image="pre_arterial")
    return folder


def finished_plan(folder: Path, case: Path, log: Path) -> Path:
    """A run folder whose chosen protocol has a simulated scan on disk."""

    def publish(plan):
        volume = Case.load(case).volume()
        data = volume.data.copy()
        data[Case.load(case).label_array() == 2] = 20  # necrotic
        (folder / "finalists" / "1_x").mkdir(parents=True)
        write_nifti(Volume(data, volume.affine), folder / "finalists" / "1_x" / "simulated.nii.gz")
        return {"simulated 1": "finalists/1_x/simulated.nii.gz"}

    make = fake_services(FakeWorld(log))
    run = start_run(case, folder, PlannerSettings(actions="hcc_tace_seg"))
    for _ in run.execute(lambda *parts: replace(make(*parts), publish=publish)):
        pass
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("turing")
    real = [treated_case(root / f"real-{i}", f"real-{i}", 400) for i in range(3)]
    simulated = [
        finished_plan(root / f"run-{i}", make_case(root / f"case-{i}", f"sim-{i}"), root / f"{i}.log") for i in range(2)
    ]
    return real, simulated


def test_slices_are_shuffled_alike_and_tell_nothing_but_their_picture(sources, tmp_path):
    key = make_turing(*sources, tmp_path / "study", each=2, seed=3)
    readers = tmp_path / "study" / READERS
    pictures = sorted((readers / "slices").iterdir())
    assert [p.name for p in pictures] == ["001.png", "002.png", "003.png", "004.png"]
    assert sorted(e.truth for e in key.slices) == ["real", "real", "simulated", "simulated"]
    assert read_key(tmp_path / "study") == key
    for path, entry in zip(pictures, key.slices, strict=True):
        picture = Image.open(path)
        assert (picture.size, picture.mode, picture.info) == ((384, 384), "L", {})
        # the tumour lies in the middle: full of oil where scanned, dark where simulated
        centre = int(np.asarray(picture)[192, 192])
        assert centre == 255 if entry.truth == "real" else centre < 120
    visible = "".join(p.read_text() for p in (readers / "form.csv", readers / "form.html"))
    assert not re.search(r"real-\d|sim-\d|weights|fakeweights", visible)
    assert not re.search(r"(?:https?:)?//(?!\s)[a-z0-9.-]+\.[a-z]{2,}", re.sub(r"base64,[^\"]+", "", visible))
    assert "default-src 'none'" in visible
    again = make_turing(*sources, tmp_path / "again", each=2, seed=3)
    assert again == key
    assert make_turing(*sources, tmp_path / "other", each=2, seed=4) != key


def test_the_slice_is_seen_as_radiologists_see_it():
    """A bright voxel at the patient's right front lies at the upper left; one field of view is 160 mm wide."""
    hu = np.full((100, 100, 5), -1000, np.int16)
    hu[70, 70, 2] = 3000  # +x is right, +y is anterior
    volume = Volume(hu, AFFINE)
    middle = (AFFINE @ [50, 50, 2, 1])[:3]
    picture = np.asarray(Image.open(io.BytesIO(axial_png(volume, middle))))
    rows, columns = np.nonzero(picture > 128)
    mm = 160.0 / 384
    assert np.mean(columns) * mm == pytest.approx(80 - 40, abs=2)
    assert np.mean(rows) * mm == pytest.approx(80 - 40, abs=2)


def test_the_tumour_is_shown_where_it_is_widest():
    labels = np.zeros((20, 20, 10), np.uint8)
    labels[5:8, 5:8, 2:9] = 2
    labels[4:15, 4:15, 6] = 2
    centre = tumour_centre(labels, AFFINE)
    assert centre == pytest.approx([18.0, 18.0, 12.0])
    levels = [point[2] / 2 for point in tumour_levels(labels, AFFINE)]
    assert levels == sorted(levels)
    assert 6 in levels
    with pytest.raises(MaskError, match="hold no tumour"):
        tumour_centre(np.zeros((4, 4, 4), np.uint8), AFFINE)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"each": 3}, InputError, "3 slices of either kind were asked for, but there are 3 cases .* and 2 plans"),
        ({"window": "bone"}, InputError, "no window 'bone'"),
        ({"real": "plain"}, CaseError, "has no scan after treatment"),
        ({"simulated": "empty"}, RunError, "There is no run in"),
    ],
)
def test_sources_that_can_not_be_used_are_refused_and_nothing_is_left(sources, tmp_path, change, error, message):
    real, simulated = sources
    if change.get("real") == "plain":
        real = [make_case(tmp_path / "plain")]
    if change.get("simulated") == "empty":
        simulated = [tmp_path / "nothing"]
    options = {"each": change.get("each"), "window": change.get("window", "liver")}
    with pytest.raises(error, match=message):
        make_turing(real, simulated, tmp_path / "study", seed=0, **options)
    assert not (tmp_path / "study").exists()


def paper_key(n: int = 24) -> Key:
    slices = [KeyedSlice(slice=f"{i:03d}", truth="real" if i <= n else "simulated", source="scanner" if i <= n else
                         "weights a", origin="real", case_id=f"c{i}") for i in range(1, 2 * n + 1)]  # fmt: skip
    return Key(seed=0, window="liver", slices=tuple(slices))


def test_the_figures_of_the_papers_table_1_come_out():
    """MeWM, reader R1: all 24 real ones found, 19 of 24 simulated ones found: 100.0, 79.17, 89.58."""
    key = paper_key()
    answers = {e.slice: "real" if e.truth == "real" or int(e.slice) > 43 else "simulated" for e in key.slices}
    found = score_turing(key, {"R1": answers}).readers[0]
    assert 100 * found.sensitivity.share == 100.0
    assert 100 * found.specificity.share == pytest.approx(79.17, abs=0.005)
    assert 100 * found.accuracy.share == pytest.approx(89.58, abs=0.005)
    # Wilson's interval, written out.
    z, p, n = stats.norm.ppf(0.975), 19 / 24, 24
    middle, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n),
    )
    assert (found.specificity.low, found.specificity.high) == (
        pytest.approx(middle - half),
        pytest.approx(middle + half),
    )


def test_several_readers_open_answers_and_the_mean_over_readers():
    key = paper_key(4)
    right = {e.slice: e.truth for e in key.slices}
    wrong = {name: "real" if truth == "simulated" else "simulated" for name, truth in right.items()}
    del wrong["008"]
    result = score_turing(key, {"good": right, "bad": wrong})
    assert [r.accuracy.share for r in result.readers] == [1.0, 0.0]
    assert result.readers[1].unanswered == ("008",)
    assert result.readers[1].specificity.n == 3
    assert result.mean_accuracy.mean == pytest.approx((7 * 0.5 + 1.0) / 8)
    text = turing_markdown(result)
    assert "| bad | 0.0 % [0.0," in text
    assert "Mean accuracy over readers" in text
    with pytest.raises(InputError, match="No filled form"):
        score_turing(key, {})


def test_several_simulators_have_a_specificity_each():
    key = paper_key(2)
    last = key.slices[-1].model_copy(update={"source": "weights b"})
    key = key.model_copy(update={"slices": (*key.slices[:-1], last)})
    answers = {e.slice: "real" for e in key.slices} | {"004": "simulated"}
    found = score_turing(key, {"r": answers}).readers[0]
    assert {name: rate.share for name, rate in found.by_source.items()} == {"weights a": 0.0, "weights b": 1.0}


def test_a_form_is_read_as_people_fill_it_in(tmp_path):
    key = paper_key(2)
    path = tmp_path / "ada.csv"
    path.write_text("\ufeffslice,answer,confidence\n1, Real ,5\n002,S,\n003,synthetic,1\n004,,\n", encoding="utf-8")
    assert read_form(path, key) == {"001": "real", "002": "simulated", "003": "simulated"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slice,answer\n009,real\n", "names slice '009' in line 2"),
        ("slice,answer\n001,maybe\n", "says 'maybe' in line 2"),
        ("slice,answer\n001,real\n1,real\n", "answers slice 001 twice"),
        ("name,what\nx,y\n", "needs the columns slice and answer"),
        ("slice,answer\n001,\n", "holds no answer"),
    ],
)
def test_a_form_that_can_not_be_read_is_refused_by_its_line(tmp_path, text, message):
    path = tmp_path / "form.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_form(path, paper_key(2))


def test_the_form_of_a_study_is_filled_in_and_scored(sources, tmp_path):
    key = make_turing(*sources, tmp_path / "study", each=2, seed=0)
    rows = list(csv.DictReader((tmp_path / "study" / READERS / "form.csv").read_text().splitlines()))
    assert [row["slice"] for row in rows] == [e.slice for e in key.slices]
    filled = tmp_path / "eve.csv"
    lines = [f"{row['slice']},real," for row in rows]
    filled.write_text("slice,answer,confidence\n" + "\n".join(lines))
    result = score_turing(key, {"eve": read_form(filled, key)})
    assert (result.readers[0].sensitivity.share, result.readers[0].specificity.share) == (1.0, 0.0)
    assert result.origins == {"synthetic": 4}


def test_a_damaged_or_missing_key_is_refused(tmp_path):
    with pytest.raises(InputError, match="There is no key"):
        read_key(tmp_path)
    (tmp_path / KEY).write_text(json.dumps({"format_version": 9}))
    with pytest.raises(InputError, match="can't be read"):
        read_key(tmp_path)
