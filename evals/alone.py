"""The paper's baseline: a vision-language model that is asked for a whole protocol, once, with no planner around it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from agent.goal import Goal
from agent.guideline import GuidelinePolicy
from agent.llm_policy import LlmPolicy
from agent.llm_questions import canonical_proposal, proposing
from agent.policy import CaseSummary, Observation, Proposal
from models.errors import UnknownItemError
from models.formulary import Formulary

SIDES = ("drugs", "embolics", "reserve_drugs", "reserve_embolics")


@dataclass(frozen=True)
class ModelAlone(LlmPolicy):
    """Asks nothing but the protocol: the planner's other questions are not the baseline's to fail or to pay.

    Attributes:
        unknown: Names in the answer that the action set does not hold, as written. The planner would ask again until
            there is none; here they are part of the answer, and count against it.
    """

    unknown: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, policy: LlmPolicy) -> ModelAlone:
        """The same models and prompts, asked so."""
        return cls(**{one.name: getattr(policy, one.name) for one in fields(policy)})

    def observe(self, case: CaseSummary) -> Observation:
        """What is measured, in the embedded policy's words: the paper's prompt does not show it."""
        return GuidelinePolicy().observe(case)

    def propose(
        self, case: CaseSummary, observation: Observation, formulary: Formulary, d: int, e: int, goal: Goal
    ) -> Proposal:
        """Name at most `d` drugs and `e` embolics.

        Raises:
            BackendError: no backend gave an answer that can be read.
        """
        pictures = self.pictures_for("propose", case)
        question = proposing(self.prompts, case, pictures, observation, formulary, d, e, goal)
        answer = self._answer(replace(question, check=lambda said: question.check(_known(said, formulary))))
        known, notes = canonical_proposal(_known(answer, formulary), formulary)
        names = dict.fromkeys(choice.item for side in SIDES[:2] for choice in getattr(answer, side))
        self.unknown[:] = [name for name in names if not _holds(formulary, name)]
        assert answer.provenance is not None
        return known.model_copy(update={"provenance": answer.provenance.model_copy(update={"notes": notes})})


def _known(proposal: Proposal, formulary: Formulary) -> Proposal:
    """The proposal without the names that the action set does not hold."""
    kept = {side: tuple(c for c in getattr(proposal, side) if _holds(formulary, c.item)) for side in SIDES}
    return proposal.model_copy(update=kept)


def _holds(formulary: Formulary, name: str) -> bool:
    try:
        formulary.canonical(name)
    except UnknownItemError:
        return False
    return True
