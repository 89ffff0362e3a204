"""check_rules: judge protocols for one patient by the rules file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from models.errors import ToolError
from models.protocol import Protocol
from tools.describe_case import describe_case
from tools.rule_facts import CaseFacts, Facts, SessionFacts, known_agents
from tools.rulebook import (
    PROFILES,
    CheckRulesResult,
    Finding,
    Profile,
    ProtocolVerdict,
    Stage,
    judge,
    load_rulebook,
    rules_hash,
)
from tools.workspace import Workspace

__all__ = ["CheckRulesResult", "Finding", "ProtocolVerdict", "check_rules", "judge_protocols"]

# The measured facts of a case by its content hash: a search asks about the same case at every depth.
_measured: dict[str, CaseFacts] = {}


def check_rules(
    case_id: Annotated[str, Field(description="Id of a known case")],
    protocols: Annotated[
        list[str],
        Field(
            description="Protocols such as 'Cisplatin 50 mg + Mitomycin | Lipiodol'; empty asks about the patient only"
        ),
    ],
    profile: Annotated[Profile, Field(description="Guideline region: eu, us or cn")] = "eu",
    strict: Annotated[bool, Field(description="Block where the sources disagree between warning and block")] = False,
    stage: Annotated[
        Stage, Field(description="partial: only what no later agent can cure; complete: the finished protocol")
    ] = "complete",
    session: Annotated[
        SessionFacts | None, Field(description="What is stated about the session beyond the clinical record")
    ] = None,
    *,
    workspace: Workspace,
) -> CheckRulesResult:
    """Judge protocols by clinical rules on combinations, doses, Lipiodol and the patient; every finding names its
    source.

    A rule whose input is missing is reported as not_evaluable with the missing inputs, never as passed. A rule about
    an agent that a protocol does not hold is not reported for it.

    Args:
        case_id: Id of a known case.
        protocols: Protocol texts or keys; agents outside the action set are judged too.
        profile: Guideline region.
        strict: Use the strict strengths.
        stage: ``partial`` for a protocol that will still grow, ``complete`` for a finished one.
        session: Facts of the session; None means that nothing is stated.
        workspace: Where the case is.

    Returns:
        Patient findings once, then a verdict per protocol in the order given.

    Raises:
        ToolError: The case or the profile is not known.
        CaseError: The case folder is damaged.
        UnknownItemError: A protocol names an agent that nothing knows.
        InputError: A dose has no agent or the wrong unit (millilitres for a drug).
    """
    case = workspace.case(case_id)
    if case.labels is None:
        facts = CaseFacts()
    else:
        if case.content_hash not in _measured:
            _measured[case.content_hash] = _measure(case_id, workspace)
        facts = _measured[case.content_hash]
    base = Facts(record=case.record, case=facts, session=session or SessionFacts())
    parsed = [known_agents().parse(text) for text in protocols]
    return judge_protocols(case_id, base, parsed, profile, strict, stage)


def judge_protocols(
    case_id: str, base: Facts, protocols: list[Protocol], profile: Profile, strict: bool, stage: Stage
) -> CheckRulesResult:
    """Judge protocols on given facts; the pure part of `check_rules`.

    Args:
        case_id: Goes into the result.
        base: Facts of the patient; its protocol is not looked at.
        protocols: What to judge.
        profile: Guideline region.
        strict: Use the strict strengths.
        stage: ``partial`` or ``complete``.

    Returns:
        The result.

    Raises:
        ToolError: The profile is not known.
    """
    if profile not in PROFILES:
        raise ToolError(f"There is no rule profile '{profile}'; use one of {', '.join(PROFILES)}.")
    book = load_rulebook()
    patient_rules = [rule for rule in book.rules if rule.scope == "patient"]
    protocol_rules = [rule for rule in book.rules if rule.scope == "protocol"]
    patient_facts = Facts(record=base.record, case=base.case, session=base.session)
    found = (judge(rule, patient_facts, profile, strict, stage) for rule in patient_rules)
    patient = tuple(finding for finding in found if finding is not None)
    patient_allowed = not any(finding.blocks for finding in patient)
    verdicts: dict[str, ProtocolVerdict] = {}
    for protocol in protocols:
        if protocol.key in verdicts:
            continue
        facts = Facts(record=base.record, case=base.case, session=base.session, protocol=protocol)
        judged = (judge(rule, facts, profile, strict, stage) for rule in protocol_rules)
        findings = tuple(finding for finding in judged if finding is not None)
        allowed = patient_allowed and not any(finding.blocks for finding in findings)
        verdicts[protocol.key] = ProtocolVerdict(protocol=protocol.key, allowed=allowed, findings=findings)
    return CheckRulesResult(
        case_id=case_id,
        profile=profile,
        strict=strict,
        stage=stage,
        rules_version=book.version,
        rules_hash=rules_hash(),
        patient_allowed=patient_allowed,
        patient=patient,
        verdicts=tuple(verdicts[protocol.key] for protocol in protocols),
    )


def _measure(case_id: str, workspace: Workspace) -> CaseFacts:
    seen = describe_case(case_id, workspace=workspace)
    return CaseFacts(
        lesion_count=seen.lesion_count,
        largest_diameter_cm=seen.largest_diameter_mm / 10.0,
        tumour_liver_percent=100.0 * seen.tumour_ml / seen.liver_ml if seen.liver_ml else None,
        contrast_hu=seen.contrast_hu,
        heterogeneity_hu=seen.heterogeneity_hu,
        hypodense_fraction=seen.hypodense_fraction,
    )
