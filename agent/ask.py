"""Ask: one question to the policy; where it has no valid answer, to the embedded policy, and the plan is degraded.

A language model is re-asked by its own client (`agent.llm_client`), so a question is put to each policy once. A resumed
run does not put a question again whose answer is checkpointed: the node that asked is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from agent.nodes import Services
from agent.policy import Answer, Metered, Policy
from agent.trace import Decision, Recorder
from models.errors import BackendError, PlanningError

AnswerT = TypeVar("AnswerT", bound=Answer)


def bare(answer: AnswerT) -> AnswerT:
    """An answer without who gave it and what it cost: equal answers are equal inputs of the next question."""
    return answer.model_copy(update={"provenance": None})


def ask(
    services: Services,
    question: str,
    inputs: object,
    put: Callable[[Policy], AnswerT],
    faults: Callable[[AnswerT], list[str]],
    recorder: Recorder,
    earlier: Sequence[Decision],
) -> tuple[AnswerT, str | None]:
    """Ask the policy and check its answer; where there is no valid one, ask the embedded policy instead.

    Args:
        services: Holds both policies.
        question: ``observe``, ``propose``, ``refine``, ``nominate`` or ``explain``.
        inputs: What is hashed into the decision.
        put: Asks one policy.
        faults: What is wrong with an answer, as sentences; empty for a valid one.
        recorder: Every answer becomes a decision, an invalid one and a failure too.
        earlier: The decisions of the run so far: what they asked of backends counts against the plan's budget.

    Returns:
        The valid answer, and why the plan is degraded (None where it is not).

    Raises:
        PlanningError: the embedded policy's answer is invalid as well.
    """
    degraded: str | None = None
    for policy in (services.policy, services.fallback):
        asked, prompt = policy, None
        if isinstance(policy, Metered):
            asked, prompt = policy.after(sum(d.requests for d in earlier)), policy.prompt_of(question)
        started = time.perf_counter()
        try:
            answer = put(asked)
        except BackendError as error:
            seconds = time.perf_counter() - started
            recorder.failed(question, inputs, policy.name, prompt, error, seconds)
            degraded = f"{policy.name} gave no answer to '{question}', {services.fallback.name} was asked: {error}"
            continue
        seconds = time.perf_counter() - started
        wrong = faults(answer)
        notes = answer.provenance.notes if answer.provenance else ()
        verdict = "valid answer" if not wrong else f"invalid answer: {' '.join(wrong)}"
        recorder.answered(question, inputs, answer, seconds, f"{policy.name}: {'; '.join((verdict, *notes))}")
        if not wrong:
            return answer, degraded
        degraded = (
            f"{policy.name} answered '{question}' invalidly, {services.fallback.name} was asked: {' '.join(wrong)}"
        )
    raise PlanningError(f"No policy gave a valid answer to '{question}': {degraded}")
