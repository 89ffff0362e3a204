"""What only the harness knows: the true risk of every protocol of a phantom patient, and what a choice lost by it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from models.phantom.cohort import all_protocols
from models.phantom.patient import Patient
from models.phantom.response import respond
from models.protocol import Protocol
from tools.check_rules import check_rules
from tools.rule_facts import Facts
from tools.rulebook import Profile, Rule, judge, load_rulebook
from tools.workspace import Workspace


class Regret(BaseModel):
    """What a choice lost against the best allowed protocol. Risks are true log hazards, lower is better.

    A missing choice, and one that the rules or the horizons exclude, counts as the worst allowed protocol: it must not
    gain by breaking a rule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    of_range: float = Field(description="Share of worst minus best: 0 is the best allowed protocol, 1 the worst")
    of_random: float = Field(
        description="Share of random minus best: 0 is the best, 1 as good as the mean random allowed protocol"
    )
    true_risk: float = Field(description="Of the choice; that of the worst where the choice does not count")
    best: float
    worst: float
    random_mean: float = Field(description="Mean over all allowed protocols")
    win_vs_given: float | None = Field(
        description="1 where the choice is truly better than the protocol that was given, 0.5 where it is the same, 0 "
        "where it is worse; None where none was given"
    )
    allowed: bool = Field(description="The choice is one of the allowed protocols")


@dataclass(frozen=True, eq=False)
class RiskTable:
    """True log hazard of every protocol that rules and horizons allow for one patient.

    Attributes:
        protocols: Without doses, in a fixed order; reference doses are meant.
        log_hazard: (P,) one per protocol.
        given_log_hazard: True log hazard of the protocol really given, whether it is in the table or not.
    """

    protocols: tuple[Protocol, ...]
    log_hazard: npt.NDArray[np.float64]
    given_log_hazard: float | None = None

    @property
    def best(self) -> Protocol:
        """The allowed protocol of lowest true risk."""
        return self.protocols[int(self.log_hazard.argmin())]

    @cached_property
    def _index(self) -> dict[Protocol, int]:
        return {protocol: index for index, protocol in enumerate(self.protocols)}

    def place(self, protocol: Protocol) -> int | None:
        """Where a protocol stands in the table, doses apart; None where it is not allowed."""
        return self._index.get(Protocol(drugs=protocol.drugs, embolics=protocol.embolics))

    def regret(self, protocol: Protocol) -> float:
        """True risk above the best allowed protocol, as a share of worst minus best (0 best, 1 worst).

        Raises:
            KeyError: The protocol is not allowed for this patient, or outside the horizons.
        """
        index = self.place(protocol)
        if index is None:
            raise KeyError(protocol.key)
        return float(self.regrets[index])

    @cached_property
    def regrets(self) -> npt.NDArray[np.float64]:
        """Regret of every allowed protocol, as a share of worst minus best; 0 where all are equal."""
        low, high = self.log_hazard.min(), self.log_hazard.max()
        return np.asarray((self.log_hazard - low) / (high - low or 1.0))

    def best_within(self, items: Iterable[str]) -> float:
        """Smallest regret of a protocol that holds only these agents: what no search over them can avoid; 1 if none.

        Args:
            items: Canonical names of a proposed action space.
        """
        names = frozenset(items)
        inside = [r for p, r in zip(self.protocols, self.regrets, strict=True) if names.issuperset(p.items)]
        return float(min(inside, default=1.0))

    def judge(self, choice: Protocol | None) -> Regret:
        """Judge a choice; see `Regret` for one that is missing or not allowed."""
        best, worst = float(self.log_hazard.min()), float(self.log_hazard.max())
        random_mean = float(self.log_hazard.mean())
        index = None if choice is None else self.place(choice)
        risk = worst if index is None else float(self.log_hazard[index])
        given = self.given_log_hazard
        return Regret(
            of_range=(risk - best) / (worst - best or 1.0),
            of_random=(risk - best) / (random_mean - best or 1.0),
            true_risk=risk,
            best=best,
            worst=worst,
            random_mean=random_mean,
            win_vs_given=None if given is None else 0.0 if index is None else float(np.sign(given - risk) + 1.0) / 2.0,
            allowed=index is not None,
        )


@lru_cache(maxsize=1)
def _blocking_rules() -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
    """The rules that can block at all: of the patient, of the protocol."""
    rules = [r for r in load_rulebook().rules if any("block" in (level.strength, level.strict) for level in r.levels)]
    return tuple(r for r in rules if r.scope == "patient"), tuple(r for r in rules if r.scope == "protocol")


def _blocked(rules: tuple[Rule, ...], facts: Facts, protocol: Protocol, profile: Profile, strict: bool) -> bool:
    asked = Facts(record=facts.record, case=facts.case, session=facts.session, protocol=protocol)
    found = (judge(rule, asked, profile, strict, "complete") for rule in rules)
    return any(finding is not None and finding.blocks for finding in found)


def patient_blocked(facts: Facts, profile: Profile = "eu", strict: bool = False) -> bool:
    """Whether a rule on the patient blocks every protocol."""
    return _blocked(_blocking_rules()[0], facts, Protocol(), profile, strict)


def allowed_by_rules(
    facts: Facts, protocols: Sequence[Protocol], profile: Profile = "eu", strict: bool = False
) -> tuple[Protocol, ...]:
    """The protocols that no blocking rule forbids, in the order given; what `check_rules` allows, without its findings.

    Args:
        facts: Of the patient; its protocol is not looked at.
        protocols: Finished protocols.
        profile: Guideline region.
        strict: Use the strict strengths.

    Returns:
        None of them where a rule blocks the patient.
    """
    if patient_blocked(facts, profile, strict):
        return ()
    rules = _blocking_rules()[1]
    return tuple(protocol for protocol in protocols if not _blocked(rules, facts, protocol, profile, strict))


def allowed_protocols(
    case_id: str, workspace: Workspace, action_set: str = "policy", drug_horizon: int = 3, embolic_horizon: int = 2
) -> tuple[Protocol, ...]:
    """The protocols of an action set that no blocking rule forbids for a case on disk, in a fixed order."""
    candidates = list(all_protocols(action_set, drug_horizon, embolic_horizon))
    verdicts = check_rules(case_id, [p.key for p in candidates], workspace=workspace).verdicts
    return tuple(p for p, verdict in zip(candidates, verdicts, strict=True) if verdict.allowed)


def true_risks(patient: Patient, protocols: tuple[Protocol, ...], given: Protocol | None = None) -> RiskTable:
    """The risk table of a patient over allowed protocols.

    Args:
        patient: The patient, truth included.
        protocols: Allowed for this patient.
        given: The protocol really given.
    """

    def risk(protocol: Protocol) -> float:
        return respond(patient, protocol).log_hazard

    return RiskTable(protocols, np.array([risk(p) for p in protocols]), None if given is None else risk(given))
