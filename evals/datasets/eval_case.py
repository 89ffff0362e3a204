"""EvalCase and Dataset: what the harness scores on, whatever it comes from.

A case shows its gold and, for a phantom, its truth to the harness only. What an agent gets is the case folder that
`EvalCase.write` names, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from agent.case_nodes import summarise
from agent.policy import CaseSummary
from evals.regret import RiskTable, allowed_by_rules
from models.clinical_record import ClinicalRecord
from models.formulary import Formulary
from models.phantom.cohort import all_protocols
from models.protocol import Protocol
from tools.describe_case import describe_case
from tools.rule_facts import CaseFacts, Facts
from tools.rulebook import Profile
from tools.workspace import Workspace

Origin = Literal["synthetic", "real"]


@dataclass(frozen=True)
class SearchSpace:
    """The protocols that count as answers: an action set, horizons, a rule profile and its strengths."""

    actions: str
    drug_horizon: int = 3
    embolic_horizon: int = 2
    profile: Profile = "eu"
    strict: bool = False

    @property
    def formulary(self) -> Formulary:
        """The action set."""
        return Formulary.load(self.actions)

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """Every protocol with at least one drug and one embolic within the horizons, rules apart, in a fixed order."""
        return _protocols(self.actions, self.drug_horizon, self.embolic_horizon)


@lru_cache(maxsize=8)
def _protocols(actions: str, drug_horizon: int, embolic_horizon: int) -> tuple[Protocol, ...]:
    return tuple(all_protocols(actions, drug_horizon, embolic_horizon))


class FollowUp(NamedTuple):
    """What became of the patient under the protocol that was given."""

    months: float
    died: bool


class EvalCase(ABC):
    """One case of a dataset.

    Attributes:
        case_id: Unique in the dataset.
        record: The clinical record.
        given: The protocol that was really given, where known.
        tier: Difficulty, on phantom cases.
        origin: Whether the patient is real.
        space: The protocols that count as answers.
    """

    def __init__(
        self,
        case_id: str,
        record: ClinicalRecord,
        given: Protocol | None,
        tier: str | None,
        origin: Origin,
        space: SearchSpace,
    ) -> None:
        """See the class."""
        self.case_id = case_id
        self.record = record
        self.given = given
        self.tier = tier
        self.origin: Origin = origin
        self.space = space
        self._written: Path | None = None

    @property
    @abstractmethod
    def gold(self) -> Mapping[str, Protocol]:
        """Gold protocol by variant."""

    @property
    def truth(self) -> RiskTable | None:
        """True risk of every allowed protocol; None where nobody knows it (every real case)."""
        return None

    @property
    def survival(self) -> FollowUp | None:
        """Follow-up under `given`; None where it is not known."""
        return None

    @property
    @abstractmethod
    def has_image(self) -> bool:
        """Whether the case can be planned, or is a clinical record only."""

    @abstractmethod
    def write(self, folder: Path) -> Path | None:
        """The case folder that an agent may read.

        Args:
            folder: Where a case that is generated is written, as ``folder/case_id``; one that is there is kept.

        Returns:
            The case folder; None where the case has no image.
        """

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """The case folder: where it was written last, else in a temporary place for as long as it is needed.

        Raises:
            ValueError: The case has no image; ask `has_image` first.
        """
        if self._written is not None and (self._written / "case.json").exists():
            yield self._written
            return
        with tempfile.TemporaryDirectory() as name:
            folder = self.write(Path(name))
            if folder is None:
                raise ValueError(f"{self.case_id} has no image")
            yield folder

    @cached_property
    def summary(self) -> CaseSummary:
        """What a policy may know: the record, and where there is an image what is measured on it."""
        if not self.has_image:
            return CaseSummary(case_id=self.case_id, origin=self.origin, record=self.record.known())
        with self.opened() as folder, tempfile.TemporaryDirectory() as artifacts:
            workspace = Workspace({self.case_id: folder}, Path(artifacts))
            return summarise(describe_case(self.case_id, workspace=workspace))

    @property
    def facts(self) -> Facts:
        """What the rules may ask about this case, apart from a protocol."""
        if not self.has_image:
            return Facts(record=self.record)
        seen = self.summary
        measured = CaseFacts(
            lesion_count=seen.lesion_count,
            largest_diameter_cm=None if seen.largest_diameter_mm is None else seen.largest_diameter_mm / 10.0,
            tumour_liver_percent=seen.tumour_liver_percent,
            contrast_hu=seen.contrast_hu,
            heterogeneity_hu=seen.heterogeneity_hu,
            hypodense_fraction=seen.hypodense_fraction,
        )
        return Facts(record=self.record, case=measured)

    @cached_property
    def allowed(self) -> tuple[Protocol, ...]:
        """Every protocol of the search space that the rules allow; empty where they exclude the patient."""
        return allowed_by_rules(self.facts, self.space.protocols, self.space.profile, self.space.strict)


class LeftOut(NamedTuple):
    """A row or patient without a case, and why."""

    case_id: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Cases with gold, frozen by a hash.

    Attributes:
        name: ``phantom``, ``hcc-tace-seg`` or ``own``.
        version: Of the gold: changes whenever a gold protocol could.
        content_hash: SHA-256 over everything that the gold follows from; beside every result.
        card: The data card, Markdown.
        cases: What is scored (after the limit).
        variants: Names of the gold variants, the one to lead with first.
        origin: Whether the patients are real.
        space: The protocols that count as answers.
        rows: Rows or patients that were looked at before anything was left out or limited.
        left_out: Those without a case, and why. Cases beyond the limit are not in it.
        pool: Every case with gold, whatever the limit: what baselines may learn from, out of fold.
        folds: Case ids of `pool` by fixed fold; empty where the training cases are other patients.
    """

    name: str
    version: str
    content_hash: str
    card: str
    cases: tuple[EvalCase, ...]
    variants: tuple[str, ...]
    origin: Origin
    space: SearchSpace
    rows: int
    left_out: tuple[LeftOut, ...] = ()
    pool: tuple[EvalCase, ...] = ()
    folds: tuple[tuple[str, ...], ...] = field(default=())

    @property
    def formulary(self) -> Formulary:
        """The action set of gold and answers."""
        return self.space.formulary


def content_hash(content: object) -> str:
    """SHA-256 of a JSON-able object, independent of the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
