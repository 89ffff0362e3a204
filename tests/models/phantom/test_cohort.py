"""What writing cohorts and pools does with folders that are there already or can't be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.case import Case
from models.errors import InputError
from models.phantom import cohort
from models.phantom.pool import write_pool


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
    cohort.write_phantom_case(cohort.draw_patient(6), tmp_path / cohort.draw_patient(5).patient_id)
    with pytest.raises(InputError, match="is not the case of this patient"):
        cohort.write_cohort(1, 5, tmp_path, tmp_path.with_name("truth"))


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
