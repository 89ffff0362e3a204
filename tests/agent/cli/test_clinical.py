from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from agent.cli.train import _train
from models.clinical_survival import ClinicalModel
from models.errors import RecordError
from models.training import clinical_survival
from tests.models.collection.synthetic_patient import write_table


def test_one_command_makes_coefficients_and_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clinical_survival, "REPEATS", 1)
    monkeypatch.setattr(clinical_survival.cross_validate, "__defaults__", (1, None))
    monkeypatch.setattr(clinical_survival, "RESAMPLES", 50)
    monkeypatch.setattr(clinical_survival, "PENALTIES", (10.0,))
    rows = [
        {
            "TCIA_ID": f"HCC_{n:03d}", "OS": 20.0 + 7 * (n * 37 % 61), "Interval_FU": 6.0,
            "Death_1_StillAliveorLostToFU_0": int(n % 5 != 0), "AFP": 3.0 * 1.4 ** (n % 23), "CPS": "AB"[n % 3 == 0],
            "tumor_nodul": ("uninodular", "multinodular")[n % 2], "BCLC": f"Stage-{'ABC'[n % 3]}",
            "Vascular invasion": int(n % 4 == 0), "Portal Vein Thrombosis": 0,
            "T_involvment": ("< or = 50%", ">50%")[n % 7 == 0],
            "1_mRECIST_BL": 40, "1_mRECIST_FU": 20, "1_mRECIST": 2 + n % 2,
        }
        for n in range(60)
    ]  # fmt: skip
    table = write_table(tmp_path / "t.xlsx", *rows)
    done = CliRunner().invoke(_train, ["clinical", "--clinical", str(table), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "c-index" in done.output
    content = yaml.safe_load((tmp_path / "out" / "clinical_survival.yaml").read_text())
    model = ClinicalModel.model_validate(content)
    assert model.variants[0].n == 60
    assert model.command == "mewm train clinical --clinical t.xlsx --seed 0"
    card = (tmp_path / "out" / "clinical_survival.md").read_text()
    assert f"{model.variants[0].c_index.value:.3f}" in card
    assert "HCC_0" not in card


def test_a_missing_table_is_a_sentence(tmp_path: Path) -> None:
    refused = CliRunner().invoke(
        _train, ["clinical", "--clinical", str(tmp_path / "none.xlsx"), "--out", str(tmp_path)]
    )
    assert isinstance(refused.exception, RecordError)
    assert list(tmp_path.iterdir()) == []
