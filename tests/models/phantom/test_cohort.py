"""What writing cohorts and pools does with folders that are there already or can't be written."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from models.case import Case
from models.errors import CaseError, InputError
from models.phantom import cohort, pool
from models.phantom.patient import draw_patient
from models.phantom.pool import PatchPool, write_pool
from models.phantom.response import clinician_protocol


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases of a 27th of the voxels: what is asked here does not depend on the grid."""
    monkeypatch.setattr(cohort, "CASE_SHAPE", (58, 41, 30))
    monkeypatch.setattr(cohort, "CASE_SPACING_MM", (6.0, 6.0, 7.5))


@pytest.mark.usefixtures("quick")
def test_the_truth_is_written_where_it_is_missing_and_the_cases_stay(tmp_path: Path) -> None:
    (case,) = cohort.write_cohort(1, 5, tmp_path / "cases")
    first = tmp_path / "cases-truth" / case.name
    before = {path: path.stat().st_mtime_ns for path in sorted(case.iterdir())}
    assert cohort.write_cohort(1, 5, tmp_path / "cases", tmp_path / "other") == [case]
    assert {path: path.stat().st_mtime_ns for path in sorted(case.iterdir())} == before
    assert sorted(path.name for path in (tmp_path / "other" / case.name).iterdir()) == sorted(
        path.name for path in first.iterdir()
    )
    for path in first.iterdir():
        assert (tmp_path / "other" / case.name / path.name).read_bytes() == path.read_bytes()


@pytest.mark.usefixtures("quick")
def test_the_folder_that_one_stands_in_has_its_truth_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (case,) = cohort.write_cohort(1, 5, Path())
    assert Case.load(case).case_id == case.name
    assert (tmp_path / "here-truth" / case.name / "truth.json").is_file()


def test_there_is_nothing_beside_the_root() -> None:
    with pytest.raises(InputError, match="no place for the truth beside /"):
        cohort.truth_folder(Path("/"))


@pytest.mark.usefixtures("quick")
def test_a_case_of_another_seed_is_not_taken_for_this_patient(tmp_path: Path) -> None:
    cohort.write_phantom_case(draw_patient(6), tmp_path / draw_patient(5).patient_id)
    with pytest.raises(InputError, match="is not the case of this patient"):
        cohort.write_cohort(1, 5, tmp_path, tmp_path.with_name("truth"))


@pytest.mark.usefixtures("quick")
def test_the_demo_case_is_kept_while_it_is_right_and_else_written_anew(tmp_path: Path) -> None:
    out = tmp_path / "cases" / "demo"
    made = cohort.write_demo_case(out)
    kept = (out / "case.json").stat().st_ino
    assert cohort.write_demo_case(out) == made
    assert (out / "case.json").stat().st_ino == kept
    spoil = {
        "an older phantom": lambda: _say(out, origin_note="synthetic phantom (models/phantom, version 0, seed 182)"),
        "a damaged image": lambda: (out / "pre_portal.nii.gz").write_bytes(b"x"),
        "a missing image": lambda: (out / "pre_portal.nii.gz").unlink(),
        "another schema": lambda: _say(out, schema_version=0),
    }
    for what, damage in spoil.items():
        damage()
        assert cohort.write_demo_case(out) == made, what
        assert Case.load(out) == made, what
        assert [path.name for path in out.parent.iterdir()] == ["demo"], what


@pytest.mark.usefixtures("quick")
def test_a_case_of_somebody_else_is_never_overwritten_by_the_demo(tmp_path: Path) -> None:
    cohort.write_demo_case(tmp_path / "demo")
    _say(tmp_path / "demo", origin="real", origin_note="Imported from a NIfTI file.")
    (tmp_path / "demo" / "pre_portal.nii.gz").unlink()
    with pytest.raises(InputError, match="is a case of its own and not the demo case"):
        cohort.write_demo_case(tmp_path / "demo")
    (tmp_path / "demo" / "case.json").write_text("{", encoding="utf-8")  # whose it was nobody can tell
    with pytest.raises(InputError, match="is a case of its own and not the demo case"):
        cohort.write_demo_case(tmp_path / "demo")
    assert (tmp_path / "demo" / "case.json").read_text(encoding="utf-8") == "{"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(CaseError, match="exists already"):
        cohort.write_demo_case(tmp_path / "other")
    with pytest.raises(CaseError, match="File name too long"):
        cohort.write_demo_case(tmp_path / ("x" * 300))
    assert (tmp_path / "other" / "notes.txt").read_text(encoding="utf-8") == "mine"


def _say(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    (folder / "case.json").write_text(json.dumps(content | changes), encoding="utf-8")


def _below_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    return tmp_path / "file" / "x"


def test_folders_below_a_file(tmp_path: Path) -> None:
    out = _below_a_file(tmp_path)
    for write in (
        lambda: cohort.write_cohort(1, 5, out),
        lambda: cohort.write_cohort(1, 5, tmp_path / "cases", out),
        lambda: write_pool(8, 2, 0, out),
    ):
        with pytest.raises(InputError, match=r"can't be written.*Not a directory; choose another") as refused:
            write()
        assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("n", "k", "seed"), [(7, 2, 0), (8, 1, 0), (8, 2, -1)])
def test_pools_that_teach_nothing(tmp_path: Path, n: int, k: int, seed: int) -> None:
    with pytest.raises(InputError, match="at least 8 patients, 2 protocols"):
        write_pool(n, k, seed, tmp_path / "pool")
    assert not (tmp_path / "pool").exists()


def test_a_damaged_pool_index_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "pool.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"pool\.json is damaged"):
        write_pool(8, 2, 0, tmp_path)
    assert (tmp_path / "pool.json").read_text(encoding="utf-8") == "{"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> PatchPool:
    """Nine patients in two processes, without a break."""
    out = tmp_path_factory.mktemp("pool") / "whole"
    write_pool(9, 2, 20, out, workers=2)
    return PatchPool.open(out)


def test_a_pool_has_the_cubes_of_the_preset_that_is_trained_on_it(whole: PatchPool, tmp_path: Path) -> None:
    write_pool(8, 2, 20, tmp_path, workers=2, size=24, finest_mm=4.0)
    coarse = PatchPool.open(tmp_path)
    assert coarse.pre.shape == (8, 24, 24, 24)
    assert coarse.post_labels.shape == (8, 2, 24, 24, 24)
    assert ((coarse.spacing_mm >= 4.0) & (coarse.spacing_mm <= 12.0)).all()
    assert coarse.protocols == whole.protocols[:8]  # the same patients
    assert np.array_equal(coarse.true_log_risk, whole.true_log_risk[:8])
    # the same tumours: their volume in the cube, give or take the border voxels
    volumes = [(p.tumour_mask[:8] > 0).sum((1, 2, 3)) * p.spacing_mm[:8] ** 3 for p in (coarse, whole)]
    assert np.corrcoef(np.log1p(volumes))[0, 1] > 0.95


def test_a_broken_off_pool_is_gone_on_with_and_processes_change_nothing(
    whole: PatchPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_BLOCK", 2)

    def interrupt(done: int, _: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pool(9, 2, 20, tmp_path / "pool", 1, interrupt)
    with pytest.raises(InputError, match="No training pool"):
        PatchPool.open(tmp_path / "pool")
    seen: list[int] = []
    write_pool(9, 2, 20, tmp_path / "pool", 1, lambda done, _: seen.append(done))
    assert 2 <= seen[0] < 9
    resumed = PatchPool.open(tmp_path / "pool")
    assert resumed.data_hash == whole.data_hash
    for name in ("pre", "pre_labels", "post", "wide", "wide_labels", "time_months", "event"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))
    assert (resumed.protocols, resumed.records, resumed.given) == (whole.protocols, whole.records, whole.given)
    assert not (tmp_path / "pool" / "blocks").exists()
    stamp = (tmp_path / "pool" / "pool.json").stat().st_mtime_ns
    write_pool(9, 2, 20, tmp_path / "pool")
    assert (tmp_path / "pool" / "pool.json").stat().st_mtime_ns == stamp


def blank_patient(seed: int, k: int, size: int, finest_mm: float) -> dict[str, object]:
    """What a pool keeps of a patient, all ones."""
    shapes = {name: (size,) * 3 if shape == pool._CUBE else shape for name, (_, shape, _) in pool._ARRAYS.items()}
    leading = {name: (k, *shapes[name]) if per else shapes[name] for name, (_, _, per) in pool._ARRAYS.items()}
    arrays: dict[str, object] = {name: np.full(shape, 1, pool._ARRAYS[name][0]) for name, shape in leading.items()}
    return {**arrays, "protocols": [], "record": {}, "given": {}}


def test_the_hash_of_a_pool_covers_all_that_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ProcessPoolExecutor", lambda workers, **_: ThreadPoolExecutor(workers))

    def hash_with(changed: str) -> str:
        def render(seed: int, k: int, size: int, finest_mm: float) -> dict[str, object]:
            patient = blank_patient(seed, k, size, finest_mm)
            if seed == 27 and changed in pool._ARRAYS:
                np.asarray(patient[changed]).flat[-1] = 0
            elif seed == 27 and changed:
                patient[changed] = {"other": 1}
            return patient

        monkeypatch.setattr(pool, "_render_patient", render)
        write_pool(8, 2, 20, tmp_path / f"pool{changed}", size=8)
        return str(json.loads((tmp_path / f"pool{changed}" / "pool.json").read_text(encoding="utf-8"))["data_hash"])

    changes = ("", *pool._ARRAYS, "protocols", "record", "given")
    hashes = [hash_with(name) for name in changes]
    assert len(set(hashes)) == len(changes)
    shutil.rmtree(tmp_path / "pool")
    assert hash_with("") == hashes[0]


def test_a_pool_that_broke_off_between_its_last_files_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "pool"

    def fail(patients: list[str]) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "_render_patient", blank_patient)
    monkeypatch.setattr(pool, "ProcessPoolExecutor", lambda workers, **_: ThreadPoolExecutor(workers))
    with monkeypatch.context() as broken:
        broken.setattr(pool, "pool_hash", fail)  # all arrays have their names, the index is not there
        with pytest.raises(KeyboardInterrupt):
            write_pool(8, 2, 20, out)
    assert not (out / "pool.json").exists()
    write_pool(8, 2, 20, out)
    assert json.loads((out / "pool.json").read_text(encoding="utf-8"))["patients"] == 8
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*(f"{name}.npy" for name in pool._ARRAYS), "pool.json"]
    )


def test_a_pool_that_an_earlier_version_half_wrote_is_begun_anew(tmp_path: Path) -> None:
    seen: list[int] = []

    def begin(done: int, _: int) -> None:
        seen.append(done)
        raise KeyboardInterrupt

    begun = tmp_path / "pool.part.json"
    for changed in ({}, {"block_format": pool._BLOCK_FORMAT}, {"block_format": 1}):
        with pytest.raises(KeyboardInterrupt):
            write_pool(16, 2, 20, tmp_path, 1, begin)
        pool._block_file(tmp_path, 8).write_text("{}", encoding="utf-8")  # as if drawn
        begun.write_text(json.dumps(json.loads(begun.read_text(encoding="utf-8")) | changed), encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        write_pool(16, 2, 20, tmp_path, 1, begin)
    assert seen == [0, 8, 8, 0]


def test_a_pool_of_an_earlier_version_is_refused(whole: PatchPool, tmp_path: Path) -> None:
    (tmp_path / "pool.json").write_text('{"patients": 9, "protocols": [], "records": [], "data_hash": ""}')
    with pytest.raises(InputError, match="earlier version"):
        PatchPool.open(tmp_path)


def test_the_pool_is_consistent(whole: PatchPool) -> None:
    assert whole.post.shape == (9, 2, 64, 64, 64)
    np.testing.assert_allclose(whole.shares.sum(axis=2), 1.0, atol=1e-6)
    for i in range(9):
        patient = draw_patient(20 + i)
        assert whole.records[i] == patient.record
        assert whole.given[i] == clinician_protocol(patient)
        np.testing.assert_allclose(
            np.expm1(whole.burden[i, :, 0]), whole.shares[i, :, 0] * patient.tumour_ml, rtol=1e-4
        )
        for j, protocol in enumerate(whole.protocols[i]):
            oil = whole.post_labels[i, j] == 4
            assert bool(oil.any()) <= ("Lipiodol" in protocol.embolics)
    assert (whole.pre_labels >= 2).any(axis=(1, 2, 3)).all()
    assert np.array_equal(whole.pre_labels[whole.tumour_mask == 1] >= 2, np.ones(int(whole.tumour_mask.sum()), bool))


@pytest.mark.usefixtures("quick")
def test_no_truth_leaks_into_a_case_folder(tmp_path: Path) -> None:
    patient = draw_patient(5)
    cohort.write_phantom_case(patient, tmp_path / "case")
    assert sorted(path.name for path in (tmp_path / "case").iterdir()) == [
        "case.json", "labels.nii.gz", "pre_arterial.nii.gz", "pre_portal.nii.gz",
    ]  # fmt: skip
    written = (tmp_path / "case" / "case.json").read_text(encoding="utf-8")
    for word in ("traits", "hidden", "hazard", "response", "protocol", "infiltration", "capsule", "survival", "follow"):
        assert word not in written
    for value in (*patient.traits.values(), *patient.hidden, patient.toxicity_sensitivity):
        assert f"{value:.4f}"[1:] not in written
    # labels tell organs and tumour, not what is alive in it
    assert set(np.unique(nib.load(tmp_path / "case" / "labels.nii.gz").dataobj)) <= {0, 1, 2, 3, 4}
