from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agent.cli.main import app
from models.case import Case
from models.collection import download
from tests.models.collection.synthetic_patient import write_patient, write_table


def run(*arguments: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["data", "hcc-tace-seg", *map(str, arguments)], terminal_width=200)
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.output


def test_plan_lists_the_collection_offline() -> None:
    text = run("plan")
    assert "105 patients, 572 CT series (27.3 GB), 448 segmentation objects (105 by the experts, 318 by an AI" in text
    assert "HCC_009, 0.20 GB\n  baseline, day 0\n" in text
    assert "CT 'Recon 2: LIVER 3 PHASE (C/A/P)', 69 images, contrast, phase not said, 36 MB" in text
    assert "  follow-up, day 33 (4.71 weeks)\n" in text
    assert "note: users found one usable visit only" in text
    assert "19980215" not in text


def test_plan_as_json_of_some_patients() -> None:
    listed = json.loads(run("plan", "--json", "--patients", "HCC_009,HCC_021"))
    assert listed["totals"]["patients"] == 2
    assert [patient["follow_up_days"] for patient in listed["patients"]] == [33, 46]
    assert [visit["role"] for visit in listed["patients"][0]["visits"]] == ["baseline", "follow_up"]
    segs = [one["made_by"] for visit in listed["patients"][0]["visits"] for one in visit["series"] if one["made_by"]]
    assert segs.count("experts") == 1
    assert "HCC_777 is no patient" in run("plan", "--patients", "HCC_777", code=2)


def test_plan_shows_every_interval_that_differs(real_data: Path) -> None:
    table = real_data / "clinical" / "HCC-TACE-Seg_clinical_data-V2.dev.xlsx"
    text = run("plan", "--clinical", table)
    assert "53 of 63 in the table are those of the chosen visits, to the day; 10 are not:" in text
    assert "HCC_083: table 11.86 weeks, archive 12.71 weeks (89 days); no visit of the patient fits" in text
    assert "8 of these 10 are the interval of the next patient" in text
    content = json.loads(run("plan", "--json", "--clinical", table))
    assert len(content["intervals"]["mismatches"]) == 10
    assert "HCC_004" in content["without_regimen"]


def test_download_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def download_from_selection(self, downloadDir: str, **options: Any) -> None:
            pass  # a network that brings nothing

    monkeypatch.setattr(download, "_client", Client)
    assert "10 of 10 series are incomplete (first CT " in run(
        "download", "--patients", "HCC_009", "--out", tmp_path, code=8
    )
    assert "Missing option" in run("download", "--out", tmp_path, code=2)


def test_import_and_import_again(tmp_path: Path) -> None:
    write_patient(tmp_path / "data")
    write_patient(tmp_path / "data", "HCC_902", segmented=False)
    table = write_table(tmp_path / "t.xlsx", {}, {"TCIA_ID": "HCC_902", "Interval_FU": 9})
    arguments = ("import", tmp_path / "data", "--clinical", table, "--out", tmp_path / "cases")
    text = run(*arguments)
    assert "2 of 2 patients passed and are in" in text
    assert Case.load(tmp_path / "cases" / "HCC_901").record.bclc == "B"
    assert (tmp_path / "cases" / "quality" / "index.html").exists()
    assert run(*arguments) == text
    assert "1 of 1 patients passed" in run(*arguments, "--patients", "HCC_902")


def test_import_names_what_is_kept_apart(tmp_path: Path) -> None:
    write_patient(tmp_path / "data")
    table = write_table(tmp_path / "t.xlsx", {f"{n}_RECIST_BL": 400 for n in (1, 2)})
    text = run("import", tmp_path / "data", "--clinical", table, "--out", tmp_path / "cases")
    assert "HCC_901 is kept apart (kept_apart/HCC_901): The largest tumour part is" in text
    assert "0 of 1 patients passed" in text
    assert Case.load(tmp_path / "cases" / "kept_apart" / "HCC_901").labels is not None


def test_what_can_not_be_imported_is_a_sentence(tmp_path: Path) -> None:
    write_patient(tmp_path / "data", segmented=False)
    table = write_table(tmp_path / "t.xlsx")
    out = ("--out", tmp_path / "cases")
    assert "There is no folder" in run("import", tmp_path / "x", "--clinical", table, *out, code=2)
    assert "can't be read" in run("import", tmp_path / "data", "--clinical", tmp_path / "x.xlsx", *out, code=2)
    assert "is not PATIENT=FILE" in run(
        "import", tmp_path / "data", "--clinical", table, *out, "--labels", "x.nii.gz", code=2
    )
    assert not (tmp_path / "cases").exists()
