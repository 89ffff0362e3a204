"""Planned questions: what a plan of a case would ask a language model, without asking it.

Observe is exact. What comes later depends on answers: there the embedded policy's answers stand in, and a note says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.backends import Backend
from agent.case_nodes import summarise
from agent.files import unwritable, write_text
from agent.goal import interpret_goal
from agent.guideline import GuidelinePolicy
from agent.llm_client import as_request
from agent.llm_images import Picture
from agent.llm_questions import Question, nominating, observing, plain_text, proposing, refining, speaker
from agent.nodes import Tool
from agent.policy import BeamView, DepthView, single_item_keys
from agent.settings import PlannerSettings
from models.errors import RunError
from models.formulary import Formulary
from models.protocol import Protocol
from prompts.loader import Role
from prompts.sets import PromptSet

EXACT = "exactly as a plan would send it"
STANDS_IN = "the embedded policy's {what} stands in for the model's, which is not known before it answers"


@dataclass(frozen=True)
class PlannedQuestion:
    """A question, and how far it is the one that a plan would put."""

    role: Role
    question: Question[Any]
    note: str


def planned_questions(
    prompts: PromptSet,
    pictures: Callable[[Role], Sequence[Picture]],
    tools: Mapping[str, Tool],
    case_id: str,
    settings: PlannerSettings,
    goal: str,
) -> list[PlannedQuestion]:
    """The questions of a plan up to the first step of the search, in order.

    Args:
        prompts: The prompt set.
        pictures: Role -> the pictures that would go with it.
        tools: `describe_case` and `check_rules`; nothing is simulated.
        case_id: The case.
        settings: Of the plan.
        goal: Treatment goal in words.

    Raises:
        PlanningError: the action set leaves nothing to propose.
    """
    stand_in = GuidelinePolicy()
    formulary = Formulary.load(settings.actions)
    (d, e), reading = settings.proposed(formulary), interpret_goal(goal)
    summary = summarise(tools["describe_case"].call(case_id=case_id))
    found = [PlannedQuestion("observe", observing(prompts, summary, pictures("observe")), EXACT)]

    observation = stand_in.observe(summary)
    question = proposing(prompts, summary, pictures("propose"), observation, formulary, d, e, reading)
    exact = "observation" not in question.prompt.head.variables
    note = EXACT if exact else STANDS_IN.format(what="observation")
    found.append(PlannedQuestion("propose", question, note))

    proposal = stand_in.propose(summary, observation, formulary, d, e, reading)
    keys = list(single_item_keys(proposal.items, formulary).values())
    session = None if settings.session is None else settings.session.model_dump(exclude_none=True)
    verdicts = (
        tools["check_rules"]
        .call(
            case_id=case_id,
            protocols=keys,
            profile=settings.profile,
            strict=settings.strict,
            stage="partial",
            session=session,
        )
        .verdicts
    )
    refined = refining(prompts, summary, proposal, verdicts, d, e)
    found.append(PlannedQuestion("refine", refined, STANDS_IN.format(what="proposal")))

    drugs = tuple(choice.item for choice in stand_in.refine(summary, proposal, verdicts, d, e).drugs)
    view = DepthView(
        kind="drug",
        depth=1,
        horizon=settings.drug_horizon,
        mandatory=True,
        beams=(BeamView(protocol=Protocol().key, allowed=drugs),),
        candidates=drugs,
        simulations_left=settings.budget,
    )
    found.append(PlannedQuestion("nominate", nominating(prompts, view), STANDS_IN.format(what="refinement")))
    return found


def as_text(planned: PlannedQuestion, backend: Backend | None) -> str:
    """The messages of a question for reading, with the names of the picture files.

    Args:
        planned: The question.
        backend: Where it would go; what its client adds to the messages is shown too. None shows the prompt alone.
    """
    question = planned.question
    messages = question.messages if backend is None else as_request(backend, question.messages, question.schema)[0]
    parts = []
    for message in messages:
        text = plain_text(message)
        for number, picture in enumerate(question.pictures, start=1):
            text = text.replace(f"[picture {number}]", f"[picture {number}: {file_name(number, picture)}]")
        parts.append(f"[{speaker(message)}]\n{text}")
    return "\n\n".join(parts)


def file_name(number: int, picture: Picture) -> str:
    """File of a picture in the folder of `save`."""
    return f"{number:02d}-{picture.name}.png"


def save(planned: Sequence[PlannedQuestion], backends: Mapping[Role, Backend], folder: Path) -> list[Path]:
    """Write the questions as JSON, with the form that the answer is bound to, and the pictures beside them.

    Args:
        planned: The questions.
        backends: Where each would go.
        folder: A folder that is made; files in it are replaced.

    Returns:
        The files.

    Raises:
        RunError: the folder can't be written.
    """
    files: list[Path] = []
    for one in planned:
        backend, question = backends[one.role], one.question
        messages, options = as_request(backend, question.messages, question.schema)
        content = {
            "role": one.role,
            "note": one.note,
            "prompt": question.prompt.id,
            "prompt_hash": question.prompt.content_hash,
            "backend": backend.name,
            "base_url": backend.base_url,
            "model": backend.model,
            "messages": [{"role": speaker(m), "content": _content(m.content, question.pictures)} for m in messages],
            "options": options,
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for number, picture in enumerate(question.pictures, start=1):
                path = folder / file_name(number, picture)
                path.write_bytes(picture.png)
                files.append(path)
        except OSError as exc:
            raise RunError(unwritable(folder, exc)) from exc
        path = folder / f"{one.role}.json"
        write_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        files.append(path)
    return list(dict.fromkeys(files))


def _content(content: Any, pictures: Sequence[Picture]) -> Any:
    """The content of a message with file names in place of the pictures' bytes."""
    if isinstance(content, str):
        return content
    names = iter(file_name(number, picture) for number, picture in enumerate(pictures, start=1))
    return [block if block.get("type") == "text" else {"type": "image", "file": next(names)} for block in content]
