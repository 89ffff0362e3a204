from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from agent.plan import Plan, TreeNode
from agent.report import page, write_report
from models.clinical_record import ClinicalRecord
from models.clinical_survival import clinical_model, clinical_risk
from models.errors import RunError
from models.scores import prognostic_scores
from tests.agent.report.made_plan import MadeWorkspace, blocked_plan, made_plan, made_workspace

VOID = {"meta", "input", "br", "img", "link", "hr"}
LOADING = {"src", "srcset", "poster", "background", "action", "formaction", "data", "ping"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    text: list[str] = field(default_factory=list)


class Reader(HTMLParser):
    """Collects elements and checks that every tag is closed by its own end tag."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[Element] = []
        self.elements: list[Element] = []
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {k: v or "" for k, v in attrs})
        self.elements.append(element)
        if tag not in VOID:
            self.stack.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.stack or self.stack[-1].tag != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")
        else:
            self.stack.pop()

    def handle_data(self, data: str) -> None:
        for element in self.stack:
            element.text.append(data)


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    return reader


def visible(reader: Reader) -> str:
    body = next(e for e in reader.elements if e.tag == "body")
    script = "".join(t for e in reader.elements if e.tag == "script" for t in e.text)
    return "".join(body.text).replace(script, "")


def at_path(plan: Plan, path: str) -> Any:
    value: Any = plan.model_dump()
    for part in path.split("."):
        value = value[int(part)] if part.isdigit() else value[part]
    return value


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch) -> MadeWorkspace:
    made = made_workspace()
    monkeypatch.setattr(page, "compose_outcome", made.compose)
    return made


def written(plan: Plan, workspace: MadeWorkspace, folder: Path) -> Reader:
    return read(write_report(plan, workspace, folder))  # type: ignore[arg-type]


@pytest.fixture
def report(workspace: MadeWorkspace, tmp_path: Path) -> Reader:
    return written(made_plan(), workspace, tmp_path)


def test_page_is_well_formed_and_alone(report: Reader, tmp_path: Path) -> None:
    assert report.faults == []
    assert report.stack == []
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"https?:", text) == []
    assert "@import" not in text
    assert "url(" not in text
    for element in report.elements:
        assert element.tag not in {"link", "iframe", "object", "embed", "base"}
        assert LOADING.isdisjoint(element.attributes)
        for name in ("href", "xlink:href"):
            assert element.attributes.get(name, "data:image/png;base64,").startswith("data:image/png;base64,")


def test_page_shows_the_numbers_of_the_plan(report: Reader) -> None:
    plan = made_plan()
    seen: set[str] = set()
    for element in report.elements:
        path = element.attributes.get("data-field")
        if not path or "@" in path or path.endswith("categories"):
            continue
        expected, shown = at_path(plan, path), element.attributes.get("data-value", None)
        if shown is None:
            assert "".join(element.text) == expected
            continue
        assert float(shown) == expected, path
        seen.add(path)
        # The rounded text has to agree with the value that it carries.
        text = element.text[0].replace("\N{MINUS SIGN}", "-").replace("\N{NARROW NO-BREAK SPACE}", "")
        head = re.match(r"[+-]?[\d.]+", text)
        assert head is not None, (path, text)
        decimals = len(head.group().partition(".")[2])
        factor = 100.0 if path == "confidence" or "fraction" in path else 1.0
        assert abs(float(head.group()) - expected * factor) <= 0.5 * 10**-decimals + 1e-9, path
    for must in (
        "margin.mean",
        "confidence",
        "before.viable_ml",
        "chosen.assessed.log_risk.mean",
        "chosen.assessed.response.viable_ml.mean",
        "chosen.assessed.response.mrecist_mm.mean",
        "runners_up.1.assessed.response.easl_mm2.mean",
        "runners_up.0.margin.mean",
    ):
        assert must in seen
    objectives = {i for i, node in enumerate(plan.tree) if node.objective is not None}
    assert {int(path.split(".")[1]) for path in seen if path.startswith("tree.")} == objectives


def test_survival_table_is_the_step_function_of_the_curve(report: Reader) -> None:
    curve = made_plan().chosen.survival  # type: ignore[union-attr]
    assert curve is not None
    cell = next(e for e in report.elements if e.attributes.get("data-field") == "chosen.survival@24")
    assert float(cell.attributes["data-value"]) == curve.survival[curve.times_months.index(24.0)]


def test_every_node_of_the_search_is_in_the_table_and_kept_ones_in_the_drawing(report: Reader) -> None:
    plan = made_plan()
    assert 60 <= len(plan.tree) <= 130
    rows = [e.attributes["data-row-node"] for e in report.elements if "data-row-node" in e.attributes]
    assert sorted(rows) == sorted(n.node_id for n in plan.tree if n.phase != "root")
    drawn = {e.attributes["data-node"] for e in report.elements if "data-node" in e.attributes}
    assert {n.node_id for n in plan.tree if n.status == "kept" and n.phase != "root"} <= drawn


def test_page_says_what_has_to_be_said(report: Reader) -> None:
    plan = made_plan()
    text = visible(report)
    for sentence in (
        plan.disclaimer,
        "models trained on synthetic data only",
        plan.origin.simulated_how,
        plan.reproduction.command,
        plan.origin.weights_hash,
        plan.goal.changed,
        plan.confidence_note,
        *plan.not_modelled,
        *plan.not_evaluable,
        "1.5 to 15\N{NO-BREAK SPACE}ml",
        "95 % Student t interval over replicas",
        "fitted on n = 612 patients, synthetic data",
        "Total bilirubin",
        "Child-Pugh A: no restriction.",
    ):
        assert sentence in text, sentence
    assert text.count(plan.disclaimer) == 1
    assert not re.search(r"\b(nan|None|inf|NaN)\b", text)


def test_same_slices_in_every_column(report: Reader, workspace: MadeWorkspace) -> None:
    plan = made_plan()
    labels = [
        e.attributes["aria-label"] for e in report.elements if e.tag == "svg" and "ct" in e.attributes.get("class", "")
    ]
    positions: dict[str, list[str]] = {}
    for label in labels:
        title, _, where = label.partition(", axial ")
        positions.setdefault(title, []).append(where)
    assert set(positions) == {"Before treatment", *(f"Simulated after {f.assessed.key}" for f in plan.finalists)}
    assert len({tuple(where) for where in positions.values()}) == 1
    assert workspace.composed == [f.assessed.shown_replica.outcome_id for f in plan.finalists]


HOSTILE = "<script>alert('x')</script><img src=http://evil.example onerror=1>"


def test_hostile_text_is_escaped(workspace: MadeWorkspace, tmp_path: Path) -> None:
    plain = made_plan()
    tree = tuple(n.model_copy(update={"reason": HOSTILE}) for n in plain.tree)
    plan = made_plan(
        case_id=HOSTILE,
        explanation=HOSTILE,
        observation=HOSTILE,
        degraded=True,
        degraded_reason=HOSTILE,
        goal=plain.goal.model_copy(update={"text": HOSTILE}),
        origin=plain.origin.model_copy(update={"case_note": HOSTILE}),
        rules=tuple(r.model_copy(update={"message": HOSTILE, "source": HOSTILE}) for r in plain.rules),
        tree=tree,
    )
    reader = written(plan, workspace, tmp_path)
    assert reader.faults == []
    assert [e for e in reader.elements if e.tag == "img"] == []
    assert len([e for e in reader.elements if e.tag == "script"]) == 1
    case = next(e for e in reader.elements if e.attributes.get("data-field") == "case_id")
    assert "".join(case.text) == HOSTILE


def test_blocked_plan(workspace: MadeWorkspace, tmp_path: Path) -> None:
    plan = blocked_plan()
    reader = written(plan, workspace, tmp_path)
    text = visible(reader)
    ids = {e.attributes.get("id") for e in reader.elements}
    assert "blocked" in ids
    assert "chosen" not in ids
    assert "response" not in ids
    assert plan.blocked_by[0].message in text
    assert plan.blocked_by[0].source in text
    assert workspace.composed == []
    assert reader.faults == []
    assert not re.search(r"\b(nan|None|inf)\b", text)


def test_a_plan_blocked_by_combinations_does_not_claim_that_all_were_tried(
    workspace: MadeWorkspace, tmp_path: Path
) -> None:
    block = blocked_plan().blocked_by[0].model_copy(update={"rule_id": "E07", "protocol": "Cisplatin | NBCA"})
    other = block.model_copy(update={"protocol": "Mitomycin | NBCA"})
    early = block.model_copy(update={"rule_id": "C01", "message": "Two platinums.", "protocol": "Cisplatin | -"})
    reader = written(blocked_plan(blocked_by=(block,), rules=(early, block, other)), workspace, tmp_path)
    text = " ".join(visible(reader).split())
    assert "Every protocol that was tried is blocked" in text
    assert "allow no protocol for this patient" not in text
    rows = ["".join(e.text) for e in reader.elements if e.tag == "tr"]
    (shown,) = [row for row in rows if row.startswith("blockE07")]
    assert "protocols that were tried" in shown
    assert "other protocols" not in shown
    patient = " ".join(visible(written(blocked_plan(), workspace, tmp_path)).split())
    assert "The rules allow no protocol for this patient" in patient


def test_what_is_missing_is_named_with_a_reason(workspace: MadeWorkspace, tmp_path: Path) -> None:
    plan = made_plan()
    assert plan.chosen is not None
    response = plan.chosen.assessed.response.model_copy(
        update={"mrecist_mm": None, "mrecist_change_percent": None, "mrecist_categories": {}, "easl_mm2": None}
    )
    bare = plan.chosen.assessed.model_copy(
        update={
            "response": response,
            "median_survival_months": None,
            "objective": plan.chosen.assessed.objective.model_copy(update={"se": None, "n": 1}),
        }
    )
    chosen = plan.chosen.model_copy(update={"assessed": bare, "survival": None})
    alone = plan.model_copy(
        update={
            "chosen": chosen,
            "runners_up": (),
            "margin": None,
            "margin_interval": None,
            "confidence": None,
            "ties": (),
        }
    )
    reader = written(alone, workspace, tmp_path)
    assert reader.faults == []
    fields: dict[str, list[Element]] = {}
    for element in reader.elements:
        fields.setdefault(element.attributes.get("data-field", ""), []).append(element)
    for name in (
        "margin.mean",
        "confidence",
        "chosen.assessed.median_survival_months",
        "chosen.assessed.response.mrecist_mm.mean",
        "chosen.survival@12",
    ):
        for element in fields[name]:
            text = "".join(element.text)
            assert text.startswith("not evaluable")
            assert element.attributes["data-value"] == ""
            assert element.tag == "b" or len(text) > len("not evaluable") + 10  # a reason follows
    assert not re.search(r"\b(nan|None|inf)\b", visible(reader))


def test_degraded_and_stopped_runs_say_so(workspace: MadeWorkspace, tmp_path: Path) -> None:
    plan = made_plan(
        degraded=True, degraded_reason="the policy gave three invalid answers", stopped_early="budget of 200 used"
    )
    text = visible(written(plan, workspace, tmp_path))
    assert "Degraded plan." in text
    assert "three invalid answers" in text
    assert "budget of 200 used" in text


def test_exhaustive_search_is_listed_by_protocol(workspace: MadeWorkspace, tmp_path: Path) -> None:
    plain = made_plan()
    root = plain.tree[0]
    nodes = tuple(
        TreeNode(
            node_id=f"p{i}", parent=root.node_id, phase="protocol", depth=1, protocol=a.key, added=None,
            objective=a.objective.mean, se=a.objective.se, n=a.objective.n, status="kept" if i < 3 else "pruned",
            reason=f"place {i + 1}",
        )
        for i, a in enumerate(plain.assessed)
    )  # fmt: skip
    text = visible(written(made_plan(tree=(root, *nodes)), workspace, tmp_path))
    assert "Whole protocols" in text
    assert all(a.key in text for a in plain.assessed)


def test_unwritable_folder_is_a_run_error(workspace: MadeWorkspace, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="can't be written"):
        written(made_plan(), workspace, tmp_path / "absent")


def test_made_plan_survives_plan_json() -> None:
    plan = made_plan()
    data = json.loads(plan.to_json())
    data.pop("disclaimer")
    assert Plan.model_validate(data) == plan
    assert math.isfinite(plan.chosen.assessed.objective.mean)  # type: ignore[union-attr]


def test_a_rule_shows_what_it_found_and_the_session_what_was_stated(workspace: MadeWorkspace, tmp_path: Path) -> None:
    reader = written(made_plan(), workspace, tmp_path)
    rows = ["".join(e.text) for e in reader.elements if e.tag == "tr"]
    assert any("C01" in row and "found: dose.Lipiodol = 18" in row for row in rows)
    text = " ".join(visible(reader).split())
    assert "Stated about the session" in text
    for stated in ("techniquedeb-tace", "superselectiveyes", "prior mitomycin mg20.0"):
        assert stated in text.replace("</dt><dd>", "")
    assert "cpu, bf16, preset small" in text
    assert "in this process" not in text


def test_a_milder_rule_that_fires_does_not_hide_what_could_not_be_judged(
    workspace: MadeWorkspace, tmp_path: Path
) -> None:
    update = {"rule_id": "L04", "strength": "warn", "missing": ("record.shunt_marked",), "protocol": None}
    warned = made_plan().rules[2].model_copy(update=update)
    assert warned.unclear is not None
    plan = made_plan(rules=(warned,), not_evaluable=(warned.unclear,))
    text = " ".join(visible(written(plan, workspace, tmp_path)).split())
    assert "L04: fired as warn; a severer level is not evaluable (missing: record.shunt_marked)." in text


def test_the_clinical_model_with_what_each_variable_adds_or_what_is_missing(
    workspace: MadeWorkspace, tmp_path: Path
) -> None:
    plan = made_plan()
    assert plan.clinical is not None
    assert plan.clinical.log_risk is not None
    elements = written(plan, workspace, tmp_path).elements
    first = next(i for i, e in enumerate(elements) if e.attributes.get("id") == "clinical")
    last = next(i for i, e in enumerate(elements) if i > first and e.tag == "p")
    cells = ["".join(e.text) for e in elements[first:last] if e.tag == "td"]
    rows = {cells[i]: cells[i + 2] for i in range(0, len(cells), 3)}
    terms = clinical_model().variants[0].terms
    expected = terms["multinodular"].coefficient * (1 - terms["multinodular"].mean)  # two tumours
    assert rows["more than one tumour (1) or one (0)"] == f"{expected:+.2f}"
    assert rows["Together"] == f"{plan.clinical.log_risk:+.2f}"
    assert len(rows) == len(terms) + 1
    text = " ".join("".join(elements[last].text).split())
    assert f"mean of {clinical_model().variants[0].n} real patients" in text
    assert "part of no risk on this page" in text
    thin = made_plan(clinical=clinical_risk(ClinicalRecord(afp_ng_ml=800.0)))
    (tmp_path / "thin").mkdir()
    told = " ".join(visible(written(thin, workspace, tmp_path / "thin")).split())
    assert "Not evaluable from this record (missing: Child-Pugh class, portal vein invasion" in told


def test_scores_with_class_and_source_or_what_is_missing(workspace: MadeWorkspace, tmp_path: Path) -> None:
    def table(plan: Plan, folder: str) -> dict[str, list[str]]:
        (tmp_path / folder).mkdir()
        elements = written(plan, workspace, tmp_path / folder).elements
        first = next(i for i, e in enumerate(elements) if e.attributes.get("id") == "scores")
        last = next(i for i, e in enumerate(elements) if i > first and e.tag == "p")
        cells = ["".join(e.text) for e in elements[first:last] if e.tag == "td"]
        return {cells[i]: cells[i + 1 : i + 4] for i in range(0, len(cells), 4)}

    full = table(made_plan(), "full")
    assert full["Child-Pugh"] == ["6", "Aas stated", "Pugh, Br J Surg 1973;60:646"]
    assert full["ALBI"][:2] == ["\N{MINUS SIGN}2.59", "2a"]  # 0.66 log10(17.104) - 3.4
    assert full["BCLC"][1] == "Bas stated"
    assert full["HAP"][:2] == ["2", "C"]  # 17.1 umol/L and AFP 500
    assert full["six-and-twelve"][:2] == ["6.80", "intermediate"]
    empty = table(made_plan(scores=prognostic_scores(ClinicalRecord(), 4.8, 2)), "empty")
    assert empty["HAP"][0] == "not evaluablemissing: albumin, total bilirubin, alpha-fetoprotein"
    assert empty["BCLC"][0] == "not evaluablemissing: BCLC stage"
    assert empty["up-to-seven"][:2] == full["up-to-seven"][:2] == ["6.80", "within"]
