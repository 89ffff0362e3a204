"""Questions: what a language model is asked for each role, as messages with pictures, schema and check.

A question is complete before anything is sent, so that the command line can show it (`mewm plan --dry-run-llm`,
`mewm prompts render`) exactly as a run would send it. Case ids, dates and header text never get in here: see
`agent.deidentify`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from agent.deidentify import public_summary, public_text, public_words
from agent.fact_check import explanation_faults, observation_faults, reason_faults
from agent.faults import proposal_faults, refinement_faults, removal_faults
from agent.goal import Goal
from agent.llm_images import Picture
from agent.policy import (
    Answer,
    CaseSummary,
    Choice,
    DepthView,
    Explanation,
    Nomination,
    Observation,
    PlanFacts,
    Proposal,
    Refinement,
    nomination_errors,
)
from agent.quantities import case_quantities, plan_quantities, view_quantities
from agent.search import parse_key
from models.errors import InputError, UnknownItemError
from models.formulary import Formulary
from prompts.loader import Prompt, Role
from prompts.sets import PromptSet
from tools.rule_facts import known_agents
from tools.rulebook import Finding, ProtocolVerdict, Rule, load_rulebook

AnswerT = TypeVar("AnswerT", bound=Answer)

SCHEMAS: dict[Role, type[Answer]] = {
    "observe": Observation,
    "propose": Proposal,
    "refine": Refinement,
    "nominate": Nomination,
    "explain": Explanation,
}
OFFERED: dict[Role, frozenset[str]] = {
    "observe": frozenset({"case", "pictures"}),
    "propose": frozenset({"case", "pictures", "observation", "formulary", "d", "e", "goal", "goal_text"}),
    "refine": frozenset({"case", "proposal", "verdicts", "combinations", "d", "e"}),
    "nominate": frozenset({"view"}),
    "explain": frozenset({"facts", "numbers"}),
}
"""Variables that a prompt of each role may use."""


@dataclass(frozen=True)
class Question(Generic[AnswerT]):
    """One question, ready to be sent.

    Attributes:
        role: What it is for.
        prompt: The prompt file that it was made from.
        messages: What is sent, pictures included.
        pictures: The pictures in them, in order.
        schema: Type of the answer.
        check: What is wrong with a parsed answer, one sentence each.
    """

    role: Role
    prompt: Prompt
    messages: tuple[BaseMessage, ...]
    pictures: tuple[Picture, ...]
    schema: type[AnswerT]
    check: Callable[[AnswerT], list[str]]


def check_prompts(prompts: PromptSet) -> None:
    """Refuse a set that a planner can't use, before anything is asked.

    Raises:
        InputError: the set is not for language models, lacks a role, or a prompt asks for another schema or for a
            variable that its role does not have.
    """
    if not prompts.head.for_llm:
        raise InputError(
            f"The prompt set {prompts.name} belongs to the embedded policy; choose another for a language model."
        )
    for role, schema in SCHEMAS.items():
        head = prompts.prompt(role).head
        if head.output_schema != schema.__name__:
            raise InputError(
                f"The prompt {head.id} says that {head.output_schema} answers it, but the answer to '{role}' is a "
                f"{schema.__name__}; correct its output_schema."
            )
        if strange := sorted(set(head.variables) - OFFERED[role]):
            raise InputError(
                f"The prompt {head.id} uses {', '.join(strange)}; a prompt for '{role}' may use "
                f"{', '.join(sorted(OFFERED[role]))}."
            )


def shows_pictures(prompt: Prompt) -> bool:
    """Whether the pictures of the case go with a prompt: it uses their captions."""
    return "pictures" in prompt.head.variables


def _question(
    prompts: PromptSet,
    role: Role,
    schema: type[AnswerT],
    check: Callable[[AnswerT], list[str]],
    pictures: Sequence[Picture],
    values: Mapping[str, Any],
) -> Question[AnswerT]:
    prompt = prompts.prompt(role)
    sent = tuple(pictures) if shows_pictures(prompt) else ()
    offered = {**values, "pictures": [picture.caption for picture in sent]}
    rendered = prompt.messages(**{name: offered[name] for name in prompt.head.variables})
    messages: list[BaseMessage] = []
    for kind, text in rendered:
        messages.append(SystemMessage(text) if kind == "system" else HumanMessage(text))
    if sent:
        messages[-1] = HumanMessage([{"type": "text", "text": rendered[-1][1]}, *_blocks(sent)])
    return Question(role, prompt, tuple(messages), sent, schema, check)


def _blocks(pictures: Sequence[Picture]) -> list[str | dict[Any, Any]]:
    blocks: list[str | dict[Any, Any]] = []
    for number, picture in enumerate(pictures, start=1):
        blocks.append({"type": "text", "text": f"Picture {number}: {picture.caption}."})
        data = base64.b64encode(picture.png).decode("ascii")
        blocks.append({"type": "image", "base64": data, "mime_type": "image/png"})
    return blocks


def plain_text(message: BaseMessage) -> str:
    """The text of a message, with ``[picture N]`` where a picture is."""
    if isinstance(message.content, str):
        return message.content
    parts, pictures = [], 0
    for block in message.content:
        if isinstance(block, dict) and block.get("type") == "text":
            parts.append(str(block["text"]))
        else:
            pictures += 1
            parts.append(f"[picture {pictures}]")
    return "\n".join(parts)


def speaker(message: BaseMessage) -> str:
    """Whose message it is, as the protocol names it."""
    if isinstance(message, SystemMessage):
        return "system"
    return "assistant" if isinstance(message, AIMessage) else "user"


def observing(prompts: PromptSet, case: CaseSummary, pictures: Sequence[Picture]) -> Question[Observation]:
    """What the images and the record show."""
    shown = public_summary(case)
    count = len(pictures) if shows_pictures(prompts.prompt("observe")) else 0
    return _question(
        prompts,
        "observe",
        Observation,
        lambda answer: observation_faults(answer, shown, count),
        pictures,
        {"case": described(shown)},
    )


def proposing(
    prompts: PromptSet,
    case: CaseSummary,
    pictures: Sequence[Picture],
    observation: Observation,
    formulary: Formulary,
    d: int,
    e: int,
    goal: Goal,
) -> Question[Proposal]:
    """The drugs and embolics worth trying."""
    shown = public_summary(case)
    goal_text = public_words(goal.text, (case.case_id,))
    texts = [feature.value for feature in observation.features] + [observation.summary]
    agents = [item.name for item in formulary.items]

    def check(answer: Proposal) -> list[str]:
        try:
            proposal, _ = canonical_proposal(answer, formulary)
        except UnknownItemError as error:
            return [str(error)]
        faults = proposal_faults(proposal, formulary, d, e)
        faults += [
            f"No {kind} was proposed; name at least one."
            for kind, choices in (("drug", proposal.drugs), ("embolic agent", proposal.embolics))
            if not choices
        ]
        reasons = [(c.item, c.reason) for c in _choices(proposal)]
        return faults + reason_faults(reasons, case_quantities(shown), agents, texts)

    return _question(
        prompts,
        "propose",
        Proposal,
        check,
        pictures,
        {
            "case": described(shown),
            "observation": observation.model_dump(mode="json", exclude={"provenance"}),
            "formulary": [
                {"name": item.name, "kind": item.kind, "class": item.item_class.replace("_", " ")}
                for item in formulary.items
            ],
            "d": d,
            "e": e,
            "goal": {"understood_as": goal.names, "ruled_out": goal.not_wanted, "weights": goal.weights},
            "goal_text": goal_text,
        },
    )


def refining(
    prompts: PromptSet, case: CaseSummary, proposal: Proposal, verdicts: Sequence[ProtocolVerdict], d: int, e: int
) -> Question[Refinement]:
    """What the rules take out."""
    shown = public_summary(case)
    by_item = {items[0]: verdict for verdict in verdicts if len(items := parse_key(verdict.protocol).items) == 1}
    blocked = [item for item, verdict in by_item.items() if not verdict.allowed]
    combinations = combination_rules(proposal.items)
    rules_of = {
        item: {f.rule_id for f in by_item[item].findings if _speaks(f)} if item in by_item else set()
        for item in proposal.items
    }
    for rule in combinations:
        for item in _covered(rule, proposal.items):
            rules_of[item].add(rule.id)
    messages = [finding.message for verdict in by_item.values() for finding in verdict.findings]
    texts = [
        *messages,
        *(rule.title for rule in combinations),
        *(level.message for rule in combinations for level in rule.levels),
        *(choice.reason for choice in _choices(proposal)),
        *(rule_id for rules in rules_of.values() for rule_id in rules),
    ]

    def check(answer: Refinement) -> list[str]:
        faults = refinement_faults(answer, proposal, blocked, d, e)
        faults += removal_faults(answer, proposal, blocked, rules_of)
        kept = [(c.item, c.reason) for c in (*answer.drugs, *answer.embolics)]
        reasons = kept + [(r.item, r.reason) for r in (*answer.removed, *answer.cautions)]
        return faults + reason_faults(reasons, case_quantities(shown), proposal.items, texts)

    return _question(
        prompts,
        "refine",
        Refinement,
        check,
        (),
        {
            "case": described(shown),
            "proposal": proposal.model_dump(mode="json", exclude={"provenance"}),
            "verdicts": [
                {
                    "agent": item,
                    "allowed": verdict.allowed,
                    "rules": [
                        {"rule": f.rule_id, "status": f.status, "strength": f.strength, "message": f.message}
                        for f in verdict.findings
                        if _speaks(f)
                    ],
                }
                for item, verdict in by_item.items()
            ],
            "combinations": [{"rule": rule.id, "title": rule.title} for rule in combinations],
            "d": d,
            "e": e,
        },
    )


def nominating(prompts: PromptSet, view: DepthView) -> Question[Nomination]:
    """What to expand at a depth, or to stop."""
    agents = [*view.candidates, *(item for beam in view.beams for item in parse_key(beam.protocol).items)]

    def check(answer: Nomination) -> list[str]:
        reasons = [("the nomination", answer.reason)]
        return nomination_errors(view, answer) + reason_faults(reasons, view_quantities(view), agents, ())

    return _question(prompts, "nominate", Nomination, check, (), {"view": view})


def explaining(prompts: PromptSet, facts: PlanFacts) -> Question[Explanation]:
    """Why the plan is what it is."""
    shown = public_facts(facts)
    return _question(
        prompts,
        "explain",
        Explanation,
        lambda answer: explanation_faults(answer.text, shown),
        (),
        {
            # What a person wrote as the goal gives no fact; what it was understood as is in `names` and `weights`.
            "facts": shown.model_dump(mode="json", exclude={"goal": {"text", "note"}, "people": True}),
            "numbers": [quantity.as_row() for quantity in plan_quantities(shown)],
        },
    )


def described(case: CaseSummary) -> dict[str, Any]:
    """A case as a prompt shows it: without its id, numbers to three digits after the point."""
    values = case.model_dump(mode="json", exclude={"case_id"})
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}
    percent = case.tumour_liver_percent
    return {**rounded, "tumour_liver_percent": None if percent is None else round(percent, 1)}


def public_facts(facts: PlanFacts) -> PlanFacts:
    """The facts of a plan as they may leave: no case id, and nothing that identifies in reasons that people wrote."""
    known = (facts.case.case_id, *facts.people)
    removed = tuple(r.model_copy(update={"reason": public_text(r.reason, known)}) for r in facts.removed)
    choices = tuple(c.model_copy(update={"reason": public_text(c.reason, known)}) for c in facts.choices)
    case = public_summary(facts.case)
    return facts.model_copy(update={"case": case, "removed": removed, "choices": choices, "people": ()})


def canonical_proposal(proposal: Proposal, formulary: Formulary) -> tuple[Proposal, tuple[str, ...]]:
    """The proposal with canonical names, and how it was read where a name was another one.

    Two spellings of one agent (the paper's lists hold THP and Pirarubicin) become one, at the first place, with both
    reasons.

    Raises:
        UnknownItemError: a name is unknown or not in the formulary.
    """
    notes: list[str] = []
    seen: dict[str, tuple[str, int]] = {}
    sides: dict[str, list[Choice]] = {}
    for side in ("drugs", "embolics", "reserve_drugs", "reserve_embolics"):
        choices: list[Choice] = []
        for choice in getattr(proposal, side):
            name = formulary.canonical(choice.item).name
            if name != choice.item:
                notes.append(f"'{choice.item}' was read as {name}")
            if name in seen:
                where, index = seen[name]
                into = choices if where == side else sides[where]
                into[index] = Choice(item=name, reason=f"{into[index].reason} {choice.reason}")
                notes.append(f"{name} was named twice and counts once")
                continue
            seen[name] = (side, len(choices))
            choices.append(Choice(item=name, reason=choice.reason))
        sides[side] = choices
    return proposal.model_copy(update={side: tuple(choices) for side, choices in sides.items()}), tuple(notes)


def combination_rules(items: Sequence[str]) -> tuple[Rule, ...]:
    """Rules of the rulebook on how these agents go together: those that name several agents, or count some."""
    rules = []
    for rule in load_rulebook().rules:
        bare = [name for name in rule.inputs if "." not in name]
        together = len(bare) > 1 or (bare and len(bare) == len(rule.inputs))
        if rule.scope == "protocol" and together and _covered(rule, items):
            rules.append(rule)
    return tuple(rules)


def _speaks(finding: Finding) -> bool:
    """Whether a finding bears on the choice: it fired, or a block could not be judged."""
    return finding.status == "fired" or (finding.status == "not_evaluable" and finding.strength == "block")


def _covered(rule: Rule, items: Sequence[str]) -> list[str]:
    """The agents that a rule names, by themselves or by their class or kind."""
    names = set(rule.groups())
    known = {item.name: item for item in known_agents().items}
    return [item for item in items if item in known and names & {item, known[item].item_class, f"{known[item].kind}s"}]


def _choices(proposal: Proposal) -> tuple[Choice, ...]:
    return (*proposal.drugs, *proposal.embolics, *proposal.reserve_drugs, *proposal.reserve_embolics)
