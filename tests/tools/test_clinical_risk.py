"""The clinical model in the result of `survival_risk`: beside the risks, in none of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.case import ImageMeta, write_case
from models.clinical_record import ClinicalRecord
from models.clinical_survival import clinical_model, clinical_risk
from models.engine import Engine
from tests.tools.conftest import phantom
from tools.segment import segment
from tools.simulate_tumor import simulate_tumor
from tools.survival_risk import SurvivalRiskResult, survival_risk
from tools.workspace import Workspace

PROTOCOLS = ["Cisplatin; Lipiodol", "THP 40 mg; gelatin sponge"]
FULL = ClinicalRecord(afp_ng_ml=800.0, child_pugh_class="B", portal_vein_invasion="branch", tumour_number=2)


def risks(record: ClinicalRecord, folder: Path, engine: Engine) -> SurvivalRiskResult:
    volume, labels = phantom()
    images = {ImageMeta("pre_arterial", phase="arterial"): volume}
    write_case(folder / "two", "two", "synthetic", "two balls", images, labels, record)
    workspace = Workspace({"two": folder / "two"}, folder / "artifacts", engine=engine)
    outcomes = simulate_tumor("two", PROTOCOLS, [0], workspace=workspace).outcomes
    parts = segment([o.outcome_id for o in outcomes], workspace=workspace).segmentations
    return survival_risk("two", [p.segmentation_id for p in parts], workspace=workspace)


def test_a_full_record_gives_one_estimate_for_all_protocols(tmp_path: Path, engine: Engine) -> None:
    result = risks(FULL, tmp_path, engine)
    _, labels = phantom()
    share = float((labels == 2).sum() / (labels > 0)[labels != 4].sum())
    assert share < 0.5
    assert result.clinical == clinical_risk(FULL, share)
    assert result.clinical is not None
    assert result.clinical.variant == clinical_model().variants[0].name
    assert result.clinical.log_risk is not None
    for estimate in result.estimates:
        assert estimate.log_risk == pytest.approx(estimate.tumour_log_risk + estimate.toxicity_log_risk)


def test_a_thin_record_is_not_evaluable(tmp_path: Path, engine: Engine) -> None:
    result = risks(ClinicalRecord(age_years=61.0), tmp_path, engine)
    assert result.clinical is not None
    assert result.clinical.log_risk is None
    assert result.clinical.not_evaluable == (
        "AFP", "Child-Pugh class", "portal vein invasion", "number of tumours"
    )  # fmt: skip
