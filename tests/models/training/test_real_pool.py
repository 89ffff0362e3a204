from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from models.case import Case, ImageMeta, write_case
from models.clinical_record import ClinicalRecord
from models.collection.clinical_table import read_clinical_table
from models.collection.splits import split_of
from models.errors import InputError
from models.networks.action import action_vector
from models.networks.preset import Preset
from models.patch import crop, crop_mask, plan_patches
from models.phantom.pool import PatchPool, write_pool
from models.protocol import Protocol
from models.registration_file import load_registration, register_case
from models.toxicity import toxicity
from models.training.autoencoder import train_autoencoder
from models.training.denoiser import LOW_HU, OIL_HU, train_denoiser
from models.training.export import load_trained_autoencoder
from models.training.given import Given, conventional, read_given
from models.training.loop import FINAL, Cadence, RunOptions
from models.training.mixed_pool import REAL_FOLDER, Stack, TrainingData, mixed, open_training_data
from models.training.real_pool import RealPool, write_real_pool
from models.training.segmenter import train_segmenter
from models.training.survival import BASELINE, train_survival
from models.volume import read_labels, read_nifti
from tests.models.collection.synthetic_patient import write_table
from tests.models.scan_pair import Motion, ScanPair, make_pair
from tests.models.training.conftest import FakePool, shrink

PROTOCOL = Protocol(drugs=("Doxorubicin",), embolics=("Lipiodol",))
TRAIN = next(name for name in (f"A{n}" for n in range(99)) if split_of(name) == "train")
VALIDATION = next(name for name in (f"B{n}" for n in range(99)) if split_of(name) == "validation")
GIVEN = {name: Given(PROTOCOL, 14.0, True) for name in (TRAIN, VALIDATION, "plain", "bad")}


@pytest.fixture(scope="module")
def pair() -> ScanPair:
    return make_pair(Motion(shift=(10.0, -6.0, 8.0), degrees=4.0))


def a_case(folder: Path, pair: ScanPair, name: str) -> Case:
    images = {
        ImageMeta("pre_arterial", "pre", "arterial"): pair.fixed,
        ImageMeta("after", "follow_up", "arterial", 30): pair.moving,
    }
    return write_case(
        folder / name, name, "real", "A test.", images, pair.fixed_labels, ClinicalRecord(child_pugh_class="B")
    )


@pytest.fixture(scope="module")
def cases(pair: ScanPair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two registered cases, one that is not, one whose registration failed, and one whose treatment is not known."""
    folder = tmp_path_factory.mktemp("cases")
    register_case(a_case(folder, pair, TRAIN))
    for name in (VALIDATION, "bad", "unknown"):
        case = a_case(folder, pair, name)
        (case.path / "registration").mkdir()
        for file in (folder / TRAIN / "registration").iterdir():
            (case.path / "registration" / file.name).write_bytes(file.read_bytes())
    report = folder / "bad" / "registration" / "after.json"
    content = json.loads(report.read_text())
    content["report"] |= {"usable": False, "problems": ["The scans do not fit."]}
    report.write_text(json.dumps(content))
    a_case(folder, pair, "plain")
    return folder


@pytest.fixture(scope="module")
def real(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> RealPool:
    return write_real_pool(cases, GIVEN, tmp_path_factory.mktemp("run") / "real", shrink(Preset.load("small")))


def test_cubes_are_the_scans_before_and_after(cases: Path, pair: ScanPair, real: RealPool, tiny: Preset) -> None:
    assert real.cases == (TRAIN, VALIDATION)
    case = Case.load(cases / TRAIN)
    kept = load_registration(case)
    assert kept is not None
    after = kept[1].apply(pair.moving, pair.fixed)
    (patch,) = plan_patches(pair.fixed_labels, pair.fixed.affine, tiny.size, tiny.spacing_mm)
    for name, volume in (("pre", pair.fixed), ("post", after)):
        found = real.arrays[name][0] if name == "pre" else real.arrays[name][0, 0]
        assert found.dtype == np.int16
        np.testing.assert_allclose(found, crop(volume, patch), atol=0.51)
    tumour = crop_mask(pair.fixed_labels == 2, pair.fixed.affine, patch) >= 0.5
    np.testing.assert_array_equal(real.arrays["tumour_mask"][0], tumour)
    before, later = real.arrays["pre_labels"][0], real.arrays["post_labels"][0, 0]
    assert set(np.unique(before)) == {0, 1, 2}
    np.testing.assert_array_equal(before == 2, tumour)
    post = real.arrays["post"][0, 0]
    np.testing.assert_array_equal(later == 4, tumour & (post > OIL_HU))
    np.testing.assert_array_equal(later == 3, tumour & (post < LOW_HU))
    np.testing.assert_array_equal(later[~tumour], before[~tumour])
    assert (later == 4).sum() > 20


def test_numbers_beside_the_cubes(cases: Path, pair: ScanPair, real: RealPool, tiny: Preset) -> None:
    np.testing.assert_array_equal(real.arrays["actions"][0, 0], action_vector(PROTOCOL))
    case = Case.load(cases / TRAIN)
    kept = load_registration(case)
    assert kept is not None
    after = kept[1].apply(pair.moving, pair.fixed).data
    tumour = pair.fixed_labels == 2
    tumour_ml = tumour.sum() * 0.064
    viable_ml = (tumour & (after >= LOW_HU) & (after <= OIL_HU)).sum() * 0.064
    spacing = float(real.arrays["spacing_mm"][0])
    expected = [np.log1p(viable_ml), np.log1p(tumour_ml), 1, np.log2(spacing / 1.5)]
    np.testing.assert_allclose(real.arrays["burden"][0, 0], expected, rtol=1e-5)
    liver_ml = np.isin(pair.fixed_labels, (1, 2, 3)).sum() * 0.064
    term = toxicity(PROTOCOL, case.record, tumour_ml, liver_ml).log_hazard
    assert real.arrays["toxicity"][0, 0] == pytest.approx(term)
    assert (real.arrays["time_months"][0, 0], bool(real.arrays["event"][0, 0])) == (14.0, True)
    assert np.isnan(real.arrays["true_log_risk"]).all()


def test_cases_that_can_not_be_used_are_left_out_with_the_reason(real: RealPool) -> None:
    assert real.left_out == {
        "bad": "The scans do not fit.",
        "plain": "its follow-up is not registered; run `mewm case register`.",
        "unknown": "what was given is not known.",
    }


def test_cubes_are_cut_once(cases: Path, tiny: Preset, tmp_path: Path) -> None:
    first = write_real_pool(cases, GIVEN, tmp_path / "real", tiny)
    stamp = (tmp_path / "real" / "pre.npy").stat().st_mtime_ns
    assert write_real_pool(cases, GIVEN, tmp_path / "real", tiny).data_hash == first.data_hash
    assert (tmp_path / "real" / "pre.npy").stat().st_mtime_ns == stamp
    other = {**GIVEN, TRAIN: dataclasses.replace(GIVEN[TRAIN], months=3.0)}
    again = write_real_pool(cases, other, tmp_path / "real", tiny)
    assert again.data_hash != first.data_hash
    assert again.arrays["time_months"][0, 0] == 3.0
    with pytest.raises(InputError, match="None of the 5 cases"):
        write_real_pool(cases, {}, tmp_path / "none", tiny)
    assert not (tmp_path / "none").exists()


def test_a_stack_reads_like_one_array() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 99, (5, 3, 4, 2)), rng.integers(0, 99, (2, 1, 4, 2))
    stack = Stack([one, other], 3)
    whole = np.concatenate([one, np.repeat(other, 3, axis=1)])
    assert stack.shape == whole.shape
    for patient in range(7):
        np.testing.assert_array_equal(stack[patient], whole[patient])
        np.testing.assert_array_equal(stack[np.int64(patient), 2], whole[patient, 2])
        np.testing.assert_array_equal(stack[patient, 1, 1:3], whole[patient, 1, 1:3])
        np.testing.assert_array_equal(stack[patient, np.array([2, 0])], whole[patient, [2, 0]])
        np.testing.assert_array_equal(stack[patient, 1:], whole[patient, 1:])
    plain = Stack([one[:, 0], other[:, 0]])
    np.testing.assert_array_equal(plain[6], other[1, 0])
    np.testing.assert_array_equal(plain[5, 1:3], other[0, 0, 1:3])
    assert plain.shape == (7, 4, 2)
    with pytest.raises(IndexError):
        stack[7]


@pytest.mark.parametrize(("ratio", "expected"), [(3.0, 3.0), (12.0, 12.0), (48.0, 48.0), (0.5, 0.5)])
def test_draws_have_the_stated_ratio(ratio: float, expected: float, real: RealPool, pool: FakePool) -> None:
    found = mixed(real, pool, ratio)  # type: ignore[arg-type]
    phantoms = int((found.train < len(pool.records)).sum())
    assert found.ratio == pytest.approx(expected)
    assert phantoms / (len(found.train) - phantoms) == pytest.approx(expected)
    assert set(found.train) == {*range(len(pool.train)), len(pool.records)}  # not the real one of another split
    np.testing.assert_array_equal(found.val, pool.val)
    assert found.origin == "mixed"
    assert found.post.shape == (len(pool.records) + 2, 4, 32, 32, 32)
    np.testing.assert_array_equal(found.post[16, 3], real.arrays["post"][0, 0])
    np.testing.assert_array_equal(found.actions[16, 3], action_vector(PROTOCOL))
    assert found.protocols[16] == [PROTOCOL] * 4


def test_real_cases_alone(real: RealPool) -> None:
    found = mixed(real, None, 0.0)
    assert (found.train.tolist(), found.val.tolist()) == ([0], [1])
    assert (found.origin, found.ratio) == ("real", None)
    assert found.post.shape[:2] == (2, 2)
    one = dataclasses.replace(real, cases=(TRAIN, TRAIN))
    with pytest.raises(InputError, match="validation split"):
        mixed(one, None, 0.0)
    with pytest.raises(InputError, match="training split"):
        mixed(dataclasses.replace(real, cases=(VALIDATION, VALIDATION)), None, 0.0)


def test_what_a_command_is_given(cases: Path, tiny: Preset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--given"):
        open_training_data(cases, tmp_path, tiny)
    with pytest.raises(InputError, match="neither a training pool nor imported cases"):
        open_training_data(tmp_path, tmp_path, tiny)
    given = tmp_path / "given.csv"
    given.write_text(f"case_id,protocol,months,died\n{TRAIN},Doxorubicin + Lipiodol,14,1\n{VALIDATION},Cisplatin,,\n")
    for mix in ("pool", "pool:x", "pool:0", ":3"):
        with pytest.raises(InputError, match="POOL:3"):
            open_training_data(cases, tmp_path, tiny, given, mix)
    found = open_training_data(cases, tmp_path, tiny, given)
    assert isinstance(found, TrainingData)
    assert found.without_outcome == (VALIDATION,)
    assert (tmp_path / REAL_FOLDER / "pre.npy").exists()


def test_given_from_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "given.csv"
    path.write_text("protocol,case_id,months,died\nEpirubicin 40 mg + Lipiodol,a,7.5,0\nTHP,b,,\n", encoding="utf-8")
    found = read_given(path)
    assert found["a"].months == 7.5
    assert found["a"].died is False
    assert found["a"].protocol.dose("Epirubicin") is not None
    assert found["b"] == Given(Protocol(drugs=("Pirarubicin",)), None, None)
    for text, told in (
        ("case_id,protocol\na,Cisplatin\n", "it needs case_id"),
        ("case_id,protocol,months,died\na,Water,,\n", "Line 2"),
        ("case_id,protocol,months,died\na,Cisplatin,,\na,Cisplatin,,\n", "second time"),
        ("case_id,protocol,months,died\n,Cisplatin,,\n", "no case_id"),
        ("case_id,protocol,months,died\na,Cisplatin,x,1\n", "months is 'x'"),
        ("case_id,protocol,months,died\na,Cisplatin,5,\n", "died is ''"),
        ("case_id,protocol,months,died\na,Cisplatin,-5,1\n", "months is '-5'"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=told):
            read_given(path)
    with pytest.raises(InputError, match="neither"):
        read_given(tmp_path / "given.txt")


def test_given_from_the_table(tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "t.xlsx",
        {"TCIA_ID": "HCC_001", "chemotherapy": "Cisplastin", "OS": 43.45, "Death_1_StillAliveorLostToFU_0": 1},
        {"TCIA_ID": "HCC_002", "chemotherapy": "NA"},
        {"TCIA_ID": "HCC_003", "chemotherapy": "doxorubicin LC beads", "OS": "NA"},
    )
    found = read_given(table)
    assert found["HCC_001"].protocol == Protocol(drugs=("Cisplatin",), embolics=("Lipiodol",))
    assert found["HCC_001"].months == pytest.approx(10.0)
    assert "HCC_002" not in found
    assert found["HCC_003"].protocol == Protocol(drugs=("Doxorubicin",), embolics=("Drug-eluting beads",))
    assert found["HCC_003"].months is None
    assert conventional(Protocol(drugs=("Mitomycin",))).embolics == ("Lipiodol",)


def test_a_few_steps_on_the_real_patient_and_phantoms(real_data: Path, tmp_path: Path) -> None:
    """Every network moves on HCC_009 mixed with a tiny phantom pool; the weights are thrown away."""
    folder = real_data / "hcc009-2.5mm"
    before, after = (read_nifti(folder / f"{name}_arterial.nii.gz") for name in ("pre", "post"))
    table = real_data / "clinical" / "HCC-TACE-Seg_clinical_data-V2.dev.xlsx"
    row = read_clinical_table(table).patient("HCC_009")
    assert row is not None
    images = {ImageMeta("pre", "pre", "arterial"): before, ImageMeta("post", "follow_up", "arterial", 33): after}
    labels = read_labels(folder / "pre_labels.nii.gz", before)
    case = write_case(tmp_path / "cases" / "HCC_009", "HCC_009", "real", "A test.", images, labels, row.record)
    register_case(case)
    write_pool(8, 2, 0, tmp_path / "pool", workers=1)
    small = shrink(Preset.load("small")).model_dump()
    small.update(size=64)
    preset = Preset.model_validate(small)
    out = tmp_path / "run"
    data = open_training_data(tmp_path / "cases", out, preset, table, f"{tmp_path / 'pool'}:1")
    assert isinstance(data, TrainingData)
    assert isinstance(PatchPool.open(tmp_path / "pool"), PatchPool)
    assert (data.origin, data.ratio, data.without_outcome) == ("mixed", 1.0, ())
    number = len(data.records) - 1
    assert number in data.train
    assert "Lipiodol" in data.protocols[number][0].embolics
    tumour = data.tumour_mask[number] > 0
    share = float((data.post[number, 0][tumour] > OIL_HU).mean())
    assert 0.01 < share < 0.15  # 48 of 1420 ml at this resolution
    options = RunOptions(steps=2, cadence=Cadence(1e9, 1, 1.0), mixed_precision=False)
    assert train_autoencoder(data, preset, out / "autoencoder", options).finished
    autoencoder, identity = load_trained_autoencoder(out, preset)
    for name, trainer in (("denoiser", train_denoiser), ("segmenter", train_segmenter), ("survival", train_survival)):
        result = trainer(data, preset, autoencoder, out / name, options, autoencoder_id=identity)  # type: ignore[operator]
        assert result.finished
        assert (out / name / FINAL).exists()
    assert (out / "survival" / BASELINE).exists()
