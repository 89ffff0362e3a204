"""LLM policy: language models in the controlling role, through the same typed interface as the embedded policy.

One backend, or a chain with fallbacks, looks at the case, proposes and nominates; another one, or the same, refines and
explains (in the paper GPT-4o and DeepSeek-R1). Every answer is parsed strictly and checked against the facts
(`agent.llm_questions`); an unfit one is asked again with its fault by `agent.llm_client`. What never becomes valid is a
`BackendError`, and the graph then asks the embedded policy and marks the plan degraded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

from agent.backends import Backend
from agent.goal import Goal
from agent.llm_client import LlmClient, RequestBudget
from agent.llm_images import Picture
from agent.llm_questions import (
    Question,
    canonical_proposal,
    check_prompts,
    explaining,
    nominating,
    observing,
    proposing,
    refining,
    shows_pictures,
)
from agent.policy import (
    Answer,
    CaseSummary,
    DepthView,
    Explanation,
    Nomination,
    Observation,
    PlanFacts,
    Proposal,
    Provenance,
    Refinement,
)
from models.errors import BackendError, InputError
from models.formulary import Formulary
from prompts.loader import Role
from prompts.sets import PromptSet
from tools.rulebook import ProtocolVerdict

AnswerT = TypeVar("AnswerT", bound=Answer)

REASONING_ROLES: tuple[Role, ...] = ("refine", "explain")
"""Questions of text only that go to the reasoning backend; the others go to the one that sees."""


@dataclass(frozen=True)
class LlmPolicy:
    """Language models as the policy.

    Attributes:
        sees: Chain of backends for observe, propose and nominate.
        reasons: Chain of backends for refine and explain.
        prompts: The prompt set.
        pictures: Case id -> the pictures of the case.
        attempts: How often one backend is asked for a fitting answer.
        per_decision: Most requests of one question.
        per_plan: Most requests of a plan.
        spent: Requests that the plan has sent before.
    """

    sees: tuple[Backend, ...]
    reasons: tuple[Backend, ...]
    prompts: PromptSet
    pictures: Callable[[str], tuple[Picture, ...]] = field(repr=False)
    attempts: int = 3
    per_decision: int = 12
    per_plan: int = 120
    spent: int = 0

    is_llm = True

    def __post_init__(self) -> None:
        """Refuse prompts that can't work, before anything is asked.

        Raises:
            InputError: see `agent.llm_questions.check_prompts`.
        """
        check_prompts(self.prompts)

    @property
    def name(self) -> str:
        """The backends that are asked first: ``gpt-4o``, or ``gpt-4o and deepseek-r1``."""
        first, second = self.sees[0].name, self.reasons[0].name
        return first if first == second else f"{first} and {second}"

    def after(self, requests: int) -> LlmPolicy:
        """The same policy when the plan has already sent so many requests."""
        return replace(self, spent=requests)

    def prompt_of(self, question: str) -> tuple[str, str]:
        """Id and content hash of the prompt for a question."""
        prompt = self.prompts.prompt(cast(Role, question))
        return prompt.id, prompt.content_hash

    def check_configured(self) -> None:
        """Refuse a chain of which no backend has its key and its address on this machine.

        Raises:
            BackendError: that of the first backend.
        """
        for chain in (self.sees, self.reasons):
            missing: list[BackendError] = []
            for backend in chain:
                try:
                    backend.resolved().api_key()
                except BackendError as error:
                    missing.append(error)
            if len(missing) == len(chain):
                raise missing[0]

    def check_actions(self, actions: str) -> None:
        """Refuse an action set that the texts of the prompts do not list.

        Raises:
            InputError: the prompt set lists the agents of another one.
        """
        wanted = self.prompts.head.actions
        if wanted not in (None, actions):
            raise InputError(
                f"The prompt set {self.prompts.name} lists the agents of the action set {wanted}, the run has "
                f"{actions}: choose --actions {wanted} or another prompt set."
            )

    def chain(self, role: Role) -> tuple[Backend, ...]:
        """The backends that are asked for a role, in order."""
        return self.reasons if role in REASONING_ROLES else self.sees

    def pictures_for(self, role: Role, case: CaseSummary) -> tuple[Picture, ...]:
        """The pictures that go with a question: none where its prompt wants none or the first backend can't see."""
        if not shows_pictures(self.prompts.prompt(role)) or not self.chain(role)[0].vision:
            return ()
        return self.pictures(case.case_id)

    def observe(self, case: CaseSummary) -> Observation:
        """Describe what the pictures, the measurements and the record show.

        Raises:
            BackendError: no backend gave a valid answer.
        """
        return self._answer(observing(self.prompts, case, self.pictures_for("observe", case)))

    def propose(
        self, case: CaseSummary, observation: Observation, formulary: Formulary, d: int, e: int, goal: Goal
    ) -> Proposal:
        """Name at most `d` drugs and `e` embolics worth trying, with canonical names.

        Raises:
            BackendError: no backend gave a valid answer.
        """
        pictures = self.pictures_for("propose", case)
        answer = self._answer(proposing(self.prompts, case, pictures, observation, formulary, d, e, goal))
        proposal, notes = canonical_proposal(answer, formulary)
        assert answer.provenance is not None
        return proposal.model_copy(update={"provenance": answer.provenance.model_copy(update={"notes": notes})})

    def refine(
        self, case: CaseSummary, proposal: Proposal, verdicts: Sequence[ProtocolVerdict], d: int, e: int
    ) -> Refinement:
        """Take out what the rules forbid, each agent by its rule.

        Raises:
            BackendError: no backend gave a valid answer.
        """
        return self._answer(refining(self.prompts, case, proposal, verdicts, d, e))

    def nominate(self, view: DepthView) -> Nomination:
        """Say what to expand at this depth, or stop.

        Raises:
            BackendError: no backend gave a valid answer.
        """
        return self._answer(nominating(self.prompts, view))

    def explain(self, facts: PlanFacts) -> Explanation:
        """Say why the plan is what it is; every number, agent, rule and source is in `facts`.

        Raises:
            BackendError: no backend gave a valid answer.
        """
        return self._answer(explaining(self.prompts, facts))

    def _answer(self, question: Question[AnswerT]) -> AnswerT:
        budget = RequestBudget(self.per_decision, self.per_plan, self.spent)
        client = LlmClient(self.chain(question.role), budget, attempts=self.attempts)
        reply = client.ask(question.messages, question.schema, question.check)
        provenance = Provenance(
            backend=reply.backend,
            prompt_id=question.prompt.id,
            prompt_hash=question.prompt.content_hash,
            model=reply.model,
            requests=reply.requests,
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            cost_usd=reply.cost_usd,
            failures=reply.failures,
            reasoning=reply.reasoning,
        )
        return reply.value.model_copy(update={"provenance": provenance})
