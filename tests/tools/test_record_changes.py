"""A changed record, to ask what if: what was simulated stays valid, what reads the record does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from models.case import Case
from models.engine import Engine
from models.errors import RecordError
from tools.check_rules import check_rules
from tools.describe_case import describe_case
from tools.segment import segment
from tools.simulate_tumor import simulate_tumor
from tools.survival_risk import survival_risk
from tools.workspace import Workspace

MakeWorkspace = Callable[[], Workspace]
PROTOCOLS = ["Cisplatin; Lipiodol"]
CHANGES = {"creatinine_clearance_ml_min": 20.0, "age_years": 85.0}


@pytest.fixture
def changed(case_folder: Path, engine: Engine, tmp_path: Path) -> Workspace:
    return Workspace({"two": case_folder}, tmp_path / "artifacts", engine=engine, record_changes={"two": CHANGES})


def scored(workspace: Workspace, case_id: str = "two") -> tuple[list[str], list[float], int, int]:
    outcomes = simulate_tumor(case_id, PROTOCOLS, [0, 1], workspace=workspace)
    segmented = segment([o.outcome_id for o in outcomes.outcomes], workspace=workspace)
    ids = [s.segmentation_id for s in segmented.segmentations]
    risks = survival_risk(case_id, ids, workspace=workspace)
    return ids, [e.tumour_log_risk for e in risks.estimates], outcomes.simulated, segmented.segmented


def test_a_changed_record_leaves_the_case_as_it_is(case_folder: Path) -> None:
    case = Case.load(case_folder)
    other = case.with_changes(CHANGES)
    assert other.record.creatinine_clearance_ml_min == 20.0
    assert other.record.child_pugh_class == case.record.child_pugh_class
    assert other.image_key == case.image_key == case.content_hash != other.content_hash
    assert case.with_changes({}) is case
    assert case.with_changes({"age_years": case.record.age_years}) is case
    assert case.with_changes({"age_years": None}).record.age_years is None
    assert other.content_hash == Case.load(case_folder).with_changes(CHANGES).content_hash
    with pytest.raises(RecordError, match="no field 'kidneys'"):
        case.with_changes({"kidneys": 1})
    with pytest.raises(RecordError):
        case.with_changes({"age_years": 300.0})


def test_what_was_simulated_and_segmented_is_used_again_and_the_risk_is_computed_anew(
    workspace: Workspace, changed: Workspace
) -> None:
    ids, risks, made, segmented = scored(workspace)
    assert (made, segmented) == (2, 2)
    again, other, fresh, freshly = scored(changed)
    assert (fresh, freshly) == (0, 0)
    assert again == ids
    assert other != risks  # the survival network reads the age
    assert scored(workspace)[1] == risks  # and what it said before is not mixed up with it


def test_the_order_does_not_matter_and_no_bit_changes(
    case_folder: Path, engine: Engine, tmp_path: Path, changed: Workspace, workspace: Workspace
) -> None:
    """Simulated first under the changed record, by an engine that never saw the case as it is."""
    alone = Engine("cpu", model=engine.model, precision="fp32", batch=4)
    first = Workspace({"two": case_folder}, tmp_path / "a", engine=alone, record_changes={"two": CHANGES})
    ids, risks, _, _ = scored(first)
    plain = Workspace({"two": case_folder}, tmp_path / "b", engine=engine)
    ids_plain, risks_plain, _, _ = scored(plain)
    assert ids == ids_plain
    for name in ids:
        one, two = first.segmentation(name), plain.segmentation(name)
        assert (one.tissue == two.tissue).all()
        assert (one.outcome.composite == two.outcome.composite).all()
    assert risks == scored(changed)[1]
    assert risks_plain == scored(workspace)[1]


def test_two_records_of_one_case_in_one_workspace_keep_their_own_risks(
    case_folder: Path, engine: Engine, tmp_path: Path
) -> None:
    both = Workspace(
        {"as-is": case_folder, "changed": case_folder}, tmp_path / "artifacts", engine=engine,
        record_changes={"changed": CHANGES},
    )  # fmt: skip
    _, as_is, made, _ = scored(both, "as-is")
    _, other, again, _ = scored(both, "changed")
    assert (made, again) == (2, 0)
    assert as_is != other
    assert scored(both, "as-is")[1] == as_is


def test_rules_and_description_see_the_changed_record(workspace: Workspace, changed: Workspace) -> None:
    plain = check_rules("two", ["Cisplatin | Lipiodol"], workspace=workspace)
    other = check_rules("two", ["Cisplatin | Lipiodol"], workspace=changed)
    assert plain.patient_allowed
    assert not other.patient_allowed
    assert "P09" in [f.rule_id for f in other.patient if f.blocks]
    assert describe_case("two", workspace=changed).record["creatinine_clearance_ml_min"] == 20.0
