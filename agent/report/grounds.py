"""What stands behind the plan as the page shows it: rules, missing inputs, the search's candidates, and origins."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from agent.plan import Plan, RuleFinding, TreeNode
from agent.report.text import Cell, absent, measure, number
from agent.report.tree import STATUS_WORDS, chosen_path, tags
from agent.report.view import Named, dash
from models.clinical_record import ClinicalRecord, field_label

ELSEWHERE, TRIED = "other protocols", "protocols that were tried"
STRENGTHS = {"block": 0, "warn": 1, "info": 2}


@dataclass(frozen=True)
class RuleRow:
    """A rule's finding with everything it concerns, so that one rule is one line."""

    rule_id: str
    strength: str
    message: str
    source: str
    confidence: str
    concerns: tuple[str, ...]
    found: tuple[str, ...] = ()


@dataclass(frozen=True)
class TreeRow:
    """A node of the search for the table below the drawing."""

    node_id: str
    depth: str
    tag: str
    parent: str
    added: str
    protocol: str
    objective: Cell
    n: int
    status: str
    status_words: str
    reason: str
    on_path: bool


def _concern(finding: RuleFinding, names: dict[str, str]) -> str:
    if finding.protocol is None:
        return "the patient"
    return names.get(finding.protocol, ELSEWHERE)


def rule_rows(plan: Plan, finalists: list[Named], status: str = "fired") -> tuple[list[RuleRow], list[RuleRow]]:
    """Findings of one status, one line per rule and message.

    Returns:
        Those that concern the patient or a finalist, and those that concern only other protocols of the search.
    """
    names = {f.key: f.name.lower() for f in finalists}
    found: dict[tuple[str, str], tuple[RuleFinding, list[str], list[str]]] = {}
    everything: Iterable[RuleFinding] = (
        *plan.blocked_by,
        *(finding for f in plan.finalists for finding in f.findings),
        *plan.rules,
    )
    for finding in everything:
        if finding.status != status:
            continue
        _, concerns, values = found.setdefault((finding.rule_id, finding.message), (finding, [], []))
        values += [value for value in finding.found if value not in values]
        if finding in plan.blocked_by:
            concern = "every protocol" if finding.protocol is None else TRIED
        else:
            concern = _concern(finding, names)
        if concern == ELSEWHERE and TRIED in concerns:
            continue
        if concern not in concerns:
            concerns.append(concern)
    order = {"every protocol": 0, "the patient": 1, **{name: 2 + i for i, name in enumerate(names.values())}}
    rows = [
        RuleRow(
            f.rule_id,
            f.strength,
            f.message,
            f.source,
            f.confidence,
            tuple(sorted(concerns, key=lambda c: order.get(c, 9))),
            tuple(values),
        )
        for f, concerns, values in found.values()
    ]
    rows.sort(key=lambda r: (STRENGTHS.get(r.strength, 9), r.rule_id, r.message))
    near = [r for r in rows if r.concerns != (ELSEWHERE,)]
    return near, [r for r in rows if r.concerns == (ELSEWHERE,)]


def missing_inputs(plan: Plan, finalists: list[Named], rules: Iterable[RuleRow]) -> list[str]:
    """Everything that could not be judged, once each; what the table of `rules` says already is left out."""
    said = {f"{row.rule_id}: {row.message}" for row in rules}
    texts = [*plan.not_evaluable, *(text for f in finalists for text in f.finalist.not_evaluable)]
    return [text for text in dict.fromkeys(texts) if text not in said]


def tree_rows(plan: Plan) -> list[TreeRow]:
    """Every node of the search except the root, in the order of depth, then what was kept, then risk."""
    names = tags(plan.tree)
    path = chosen_path(plan)

    def key(pair: tuple[int, TreeNode]) -> tuple[int, int, float]:
        _, node = pair
        rank = ("kept", "pruned", "blocked", "unassessed", "duplicate").index(node.status)
        return node.depth, rank, node.objective if node.objective is not None else math.inf

    rows = []
    for i, node in sorted(((i, n) for i, n in enumerate(plan.tree) if n.phase != "root"), key=key):
        # Status and reason stand beside it and say why there is no number.
        cell = (
            dash() if node.objective is None else measure(node.objective, "", f"tree.{i}.objective", "", 3, signed=True)
        )
        if node.se is not None and node.objective is not None:
            cell = Cell(cell.text, cell.field, cell.value, f"\N{PLUS-MINUS SIGN} {number(node.se, 3)}")
        rows.append(
            TreeRow(
                node_id=node.node_id,
                depth=f"{node.depth}, {node.phase}",
                tag=names.get(node.node_id, ""),
                parent=names.get(node.parent or "", node.parent or ""),
                added=f"+ {node.added}" if node.added else "whole" if node.phase == "protocol" else "unchanged",
                protocol=node.protocol,
                objective=cell,
                n=node.n,
                status=node.status,
                status_words=STATUS_WORDS[node.status],
                reason=node.reason,
                on_path=node.node_id in path,
            )
        )
    return rows


def origin_rows(plan: Plan) -> list[tuple[str, str, str, bool]]:
    """Where every number comes from: part, what it gives, origin, and whether synthetic data made it."""
    origin = plan.origin
    synthetic = origin.model_origin == "synthetic"
    trained = (
        f"trained on synthetic data only (phantom cohort); weights {origin.weights_hash}"
        if synthetic
        else f"trained on {origin.model_origin} data; weights {origin.weights_hash}"
    )
    case_synthetic = origin.case_origin == "synthetic"
    note = f": {origin.case_note}" if origin.case_note else ""
    llm = plan.execution.llm
    policy = "a language model" if origin.policy_is_llm else "written rules, not a language model"
    baseline = "" if origin.baseline_n is None else f"; baseline survival fitted on n = {origin.baseline_n} patients"
    clinical = []
    if plan.clinical is not None and plan.clinical.log_risk is not None:
        patients = f"fitted on n = {plan.clinical.n} real patients: {plan.clinical.data}"
        clinical = [("Clinical model", "what the record alone says; part of no risk", patients, False)]
    networks = [
        ("World model", "the simulated CT after treatment and the response it predicts", trained, synthetic),
        ("Segmentation", "viable, necrotic, oil; mRECIST, EASL, ml", trained, synthetic),
        ("Survival network", "tumour share of the risk, survival curve", f"{trained}{baseline}", synthetic),
    ]
    return [
        ("CT and outlines before", "the case", f"{origin.case_origin}{note}", case_synthetic),
        *(networks if plan.finalists else []),
        (
            "Toxicity term",
            "toxicity share of the risk",
            "fixed table with sources (models/toxicity.yaml); not fitted to data",
            False,
        ),
        *clinical,
        ("Rules", "what is blocked, warned of, or not evaluable", "rules file; each rule names its source", False),
        ("Doses", "ranges", "formulary; each agent names its sources", False),
        ("Policy", "which items are proposed and expanded", f"{origin.policy}: {policy}", False),
        *([("Language models", "observation, proposal, rationale", llm.sentence, False)] if llm else []),
    ]


@dataclass(frozen=True)
class ScoreRow:
    """A prognostic score: its value, its class, and where it comes from."""

    name: str
    value: Cell
    grade: Cell
    source: str


def score_rows(plan: Plan) -> list[ScoreRow]:
    """The prognostic scores, with what is missing where one can't be had."""
    rows = []
    for i, score in enumerate(plan.scores):
        field = f"scores.{i}"
        if score.missing:
            why = "missing: " + ", ".join(_input_name(name) for name in score.missing)
            rows.append(ScoreRow(score.name, absent(f"{field}.value", why), dash(), score.source))
            continue
        value = dash()
        if score.value is not None:
            digits = 0 if score.value.is_integer() else 2 if abs(score.value) < 10 else 1
            value = measure(score.value, "", f"{field}.value", "", digits)
        note = "as stated" if score.stated else ""
        grade = Cell(score.grade, note=note) if score.grade else dash()
        rows.append(ScoreRow(score.name, value, grade, score.source))
    return rows


@dataclass(frozen=True)
class ClinicalRow:
    """A variable of the clinical model, what the record says of it, and what it adds; or the sum of all."""

    meaning: str
    value: Cell
    log_hazard: Cell


def clinical_rows(plan: Plan) -> list[ClinicalRow]:
    """What each variable adds to the clinical model's log hazard, then their sum; no rows where it has no estimate."""
    found = plan.clinical
    if found is None or found.log_risk is None:
        return []
    rows = []
    for i, part in enumerate(found.parts):
        field = f"clinical.parts.{i}"
        rows.append(
            ClinicalRow(
                part.meaning,
                measure(part.value, "", f"{field}.value", "", 0 if part.value.is_integer() else 2),
                measure(part.log_hazard, "", f"{field}.log_hazard", "", 2, signed=True),
            )
        )
    total = measure(found.log_risk, "", "clinical.log_risk", "", 2, signed=True)
    return [*rows, ClinicalRow("Together", dash(), total)]


def clinical_sentences(plan: Plan) -> str:
    """How good the clinical model is, what it says, and what it is no part of; why not, where it has no estimate."""
    found = plan.clinical
    if found is None:
        return ""
    missing = ", ".join(found.not_evaluable)
    if found.log_risk is None or found.c_index is None:
        return f"Not evaluable from this record (missing: {missing}); nothing is filled in."
    c, median = found.c_index, found.median_survival_months
    said = [
        f"Log hazard against the mean of {found.n} real patients ({found.data}).",
        f"Cross-validated c-index {c.value:.2f} ({c.low:.2f} to {c.high:.2f}), where 0.5 is a coin.",
        "Median survival in that cohort at this log hazard: "
        + (f"{number(median, 0)} months." if median is not None else "not reached in its follow-up."),
        "It is the same for every protocol and part of no risk on this page; the search does not use it.",
    ]
    if missing:
        said.append(f"A smaller variant of the model, since the record lacks: {missing}.")
    return " ".join(said)


def _input_name(name: str) -> str:
    label = field_label(name) if name in ClinicalRecord.model_fields else name.replace("_", " ")
    return label if label[:2].isupper() else label[:1].lower() + label[1:]
