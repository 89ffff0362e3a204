"""Rulebook: clinical rules as data (`rules.yaml`) and their judgement on one protocol."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.resources import files
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tools.rule_conditions import Compare, ConditionField, Count, Present
from tools.rule_facts import Facts

Strength = Literal["block", "warn", "info"]
Stage = Literal["partial", "complete"]
Profile = Literal["eu", "us", "cn"]
Status = Literal["fired", "passed", "not_evaluable"]
Confidence = Literal["V", "B"]
PROFILES: tuple[Profile, ...] = ("eu", "us", "cn")


class Level(BaseModel):
    """One threshold of a rule. The most severe comes first in the file; the first that holds is the finding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    when: ConditionField
    strength: Strength
    strict: Strength | None = Field(default=None, description="Strength in strict mode, where it differs")
    profiles: tuple[Profile, ...] = PROFILES
    stage: Stage | None = Field(default=None, description="Where it differs from the rule's")
    message: str = Field(min_length=1)
    source: str | None = None
    confidence: Confidence | None = None


class Rule(BaseModel):
    """One rule of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[A-Z]\d{2}$")
    title: str = Field(min_length=1)
    scope: Literal["patient", "protocol"]
    stage: Stage
    inputs: tuple[str, ...] = Field(description="Every field, agent and class that the conditions read")
    applies: ConditionField | None = Field(default=None, description="Only protocols for which this holds are judged")
    source: str = Field(min_length=1)
    confidence: Confidence
    levels: tuple[Level, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _inputs_are_what_is_read(self) -> Self:
        read: set[str] = set()
        for condition in (*((self.applies,) if self.applies else ()), *(level.when for level in self.levels)):
            for leaf in condition.leaves():
                if isinstance(leaf, Compare):
                    read.add(leaf.path)
                elif isinstance(leaf, Present):
                    read.update(leaf.present)
                elif isinstance(leaf, Count):
                    read.update(leaf.count)
        if read != set(self.inputs):
            raise ValueError(f"{self.id}: inputs are {sorted(self.inputs)}, the conditions read {sorted(read)}")
        if self.scope == "patient" and self.applies is not None:
            raise ValueError(f"{self.id}: a patient rule applies to every protocol")
        return self

    def groups(self) -> tuple[str, ...]:
        """Agents and classes that the rule is about."""
        return tuple(dict.fromkeys(name.rpartition(".")[2] if "." in name else name for name in self.inputs))


class Rulebook(BaseModel):
    """The rules file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    reference: str
    rules: tuple[Rule, ...]

    @model_validator(mode="after")
    def _unique(self) -> Self:
        ids = [rule.id for rule in self.rules]
        if repeated := sorted({rule_id for rule_id in ids if ids.count(rule_id) > 1}):
            raise ValueError(f"rule id used twice: {', '.join(repeated)}")
        return self

    def rule(self, rule_id: str) -> Rule:
        """The rule of that id.

        Raises:
            KeyError: There is none.
        """
        for rule in self.rules:
            if rule.id == rule_id:
                return rule
        raise KeyError(rule_id)


class Finding(BaseModel):
    """What one rule says about one protocol, or about the patient. Rules that don't apply are not reported."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule_id: str
    scope: Literal["patient", "protocol"]
    strength: Strength
    status: Status
    stage: Stage
    message: str
    items: tuple[str, ...] = Field(default=(), description="Agents of the protocol that the finding is about")
    found: tuple[str, ...] = Field(default=(), description="Values that made it fire")
    missing: tuple[str, ...] = Field(default=(), description="Inputs that were absent; also where a milder level fired")
    source: str
    confidence: Confidence

    @property
    def blocks(self) -> bool:
        """Whether the protocol may not be given."""
        return self.status == "fired" and self.strength == "block"


class ProtocolVerdict(BaseModel):
    """What the rules say about one protocol. `allowed` counts the patient's blocks too, `findings` are its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: str
    allowed: bool
    findings: tuple[Finding, ...] = ()


class CheckRulesResult(BaseModel):
    """Patient findings once, then one verdict per protocol in the order given (repeats included)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case_id: str
    profile: Profile
    strict: bool
    stage: Stage
    rules_version: str
    rules_hash: str
    patient_allowed: bool = Field(description="False when a patient rule blocks every protocol")
    patient: tuple[Finding, ...] = ()
    verdicts: tuple[ProtocolVerdict, ...] = ()


@lru_cache(maxsize=1)
def _rules_text() -> str:
    return files("tools").joinpath("rules.yaml").read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def load_rulebook() -> Rulebook:
    """The shipped rules, checked against their schema.

    Raises:
        pydantic.ValidationError: The file is not valid; a packaging error, not the user's.
    """
    return Rulebook.model_validate(yaml.safe_load(_rules_text()))


@lru_cache(maxsize=1)
def rules_hash() -> str:
    """SHA-256 of the rules file, for the trace."""
    return hashlib.sha256(_rules_text().encode()).hexdigest()


def judge(rule: Rule, facts: Facts, profile: Profile, strict: bool, stage: Stage) -> Finding | None:
    """One rule on one protocol.

    Args:
        rule: The rule.
        facts: Protocol, record, measured and stated facts.
        profile: Guideline region.
        strict: Use the `strict` strengths.
        stage: With ``partial`` only levels that no later agent can cure are judged.

    Returns:
        The finding, or None where the rule (or every one of its levels) does not apply.
    """
    every = [level for level in rule.levels if profile in level.profiles]
    levels = [level for level in every if stage == "complete" or (level.stage or rule.stage) == "partial"]
    if not levels or (rule.applies is not None and rule.applies.judge(facts).holds is not True):
        return None
    truths = [level.when.judge(facts) for level in levels]
    missing = tuple(dict.fromkeys(name for truth in truths for name in truth.missing))
    fired = next((i for i, truth in enumerate(truths) if truth.holds), None)
    unknown = next((i for i, truth in enumerate(truths) if truth.holds is None), None)
    status: Status
    if fired is not None:
        level, status = levels[fired], "fired"
        # Only what could still have made a severer level fire is worth telling.
        missing = tuple(dict.fromkeys(name for truth in truths[:fired] for name in truth.missing))
        message, found = level.message, tuple(dict.fromkeys(truths[fired].found))
    elif unknown is not None:
        level, status, found = levels[unknown], "not_evaluable", ()
        message = f"Not evaluable: {rule.title} (missing: {', '.join(missing)})."
    elif len(levels) < len(every):
        return None  # some levels wait for the finished protocol: passing the others is no pass
    else:
        level, status, found, message = levels[0], "passed", (), f"Checked: {rule.title}."
    items = tuple(dict.fromkeys(item for name in rule.groups() for item in facts.members(name)))
    return Finding(
        rule_id=rule.id,
        scope=rule.scope,
        strength=(level.strict or level.strength) if strict else level.strength,
        status=status,
        stage=level.stage or rule.stage,
        message=message,
        items=() if rule.scope == "patient" else items,
        found=found,
        missing=missing if status != "passed" else (),
        source=level.source or rule.source,
        confidence=level.confidence or rule.confidence,
    )
