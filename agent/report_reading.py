"""Report reading: a treatment report read by language models, each by itself, and their readings aggregated.

The question, the schema and the checks are the same for every backend. A model's answer counts only where it names
agents of the formulary, gives doses and sizes that stand in the report, and quotes the report verbatim; otherwise it is
asked again (`agent.llm_client`). Readings of several backends are aggregated as in the MeWM paper (section 3.2): what
they agree on is kept, what they differ in is listed and left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage

from agent.backends import Backend, load_backends, resolve_chain
from agent.deidentify import public_text
from agent.llm_client import LlmClient, Reply, RequestBudget
from models.errors import InputError, UnknownItemError
from prompts.loader import Prompt
from prompts.sets import DEFAULT_SET, load_prompt_set
from tools.extract_report import extract_report
from tools.report_action import (
    BEADS,
    OIL,
    Attenuation,
    Disagreement,
    NotGiven,
    ReportedItem,
    ReportFacts,
    ReportReading,
)
from tools.report_text import ReportText
from tools.rule_facts import known_agents

REQUESTS = 12
"""Most requests to one backend for one report, the client's own retries included."""
OFFERED = frozenset({"formulary", "report"})
"""Variables that the prompt may use."""

ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class LlmReading:
    """A reading with what it took.

    Attributes:
        reading: The reading; aggregated where there are several replies.
        replies: What each backend answered, by the name that was asked for.
        prompt_id: Prompt with version.
        prompt_hash: SHA-256 of the prompt file.
    """

    reading: ReportReading
    replies: Mapping[str, Reply[ReportFacts]]
    prompt_id: str
    prompt_hash: str


def chains(names: Sequence[str], user_file: Path | None = None) -> dict[str, tuple[Backend, ...]]:
    """The backends to ask, by name.

    One backend may fall back to others; of several each has to answer itself, or two readings could be one model's.

    Raises:
        InputError: a backend is unknown, named twice, or the backend file can't be used.
    """
    if len(set(names)) != len(names):
        raise InputError("A backend is named twice: two readings of one model are not independent.")
    backends = load_backends(user_file)
    found = {name: resolve_chain(name, backends) for name in names}
    return found if len(found) == 1 else {name: chain[:1] for name, chain in found.items()}


def report_prompt(prompts: str = DEFAULT_SET) -> Prompt:
    """The prompt that reports are read with.

    Args:
        prompts: Prompt set: a shipped one, or a folder.

    Raises:
        InputError: there is no such set, it has no prompt for reports, or that asks for something else.
    """
    prompt = load_prompt_set(prompts).prompt("extract_report")
    if prompt.head.output_schema != ReportFacts.__name__ or set(prompt.head.variables) - OFFERED:
        raise InputError(
            f"The prompt {prompt.id} can't read reports: its output_schema has to be {ReportFacts.__name__}, and it "
            f"may use the variables {' and '.join(sorted(OFFERED))}."
        )
    return prompt


def read_report(report: str, asked: Mapping[str, Sequence[Backend]], prompt: Prompt | None = None) -> LlmReading:
    """Read a report with language models.

    Dates become offsets and identifiers are taken out before anything is sent (`agent.deidentify`).

    Args:
        report: Text of one report.
        asked: Chain of backends by the name that was asked for, at least one.
        prompt: Of `report_prompt`; None is that of the default set.

    Raises:
        InputError: the report is empty or too long.
        BackendError: a backend can't be used, or never gave a fitting answer.
    """
    shown = public_text(report)
    words = extract_report(shown)
    prompt = prompt or report_prompt()
    offered = {"formulary": _formulary(), "report": shown}
    messages: list[BaseMessage] = [
        SystemMessage(text) if kind == "system" else HumanMessage(text)
        for kind, text in prompt.messages(**{name: offered[name] for name in prompt.head.variables})
    ]
    replies: dict[str, Reply[ReportFacts]] = {}
    for name, chain in asked.items():
        client = LlmClient(chain, RequestBudget(per_decision=REQUESTS, per_plan=REQUESTS))
        replies[name] = client.ask(messages, ReportFacts, lambda facts: faults(facts, shown, words))
    facts, disagreements = aggregate({name: reply.value for name, reply in replies.items()})
    reading = ReportReading.of(
        facts,
        " + ".join(reply.backend for reply in replies.values()),
        unknown=words.unknown,
        notes=_notes(facts, shown),
        disagreements=disagreements,
    )
    return LlmReading(reading, replies, prompt.id, prompt.content_hash)


def _formulary() -> list[dict[str, object]]:
    return [
        {"name": i.name, "kind": i.kind, "counted_in": i.unit, "synonyms": list(i.synonyms)}
        for i in known_agents().items
    ]


# --------------------------------------------------------------------------------------------------------- checks
def faults(facts: ReportFacts, report: str, words: ReportReading) -> list[str]:
    """What is wrong with a model's answer, one sentence each.

    Args:
        facts: The answer.
        report: The text as it was sent.
        words: The deterministic reading of the same text.
    """
    found: list[str] = []
    numbers = _numbers(report)
    ordered = {n.name for n in words.not_given if n.reason == "instruction"} - {i.name for i in words.items}
    for item in facts.items:
        if (unknown := _unknown(item.name)) is not None:
            found.append(unknown)
            continue
        found += _item_faults(item, facts, numbers)
        if item.name in ordered:
            found.append(f"{item.name} stands only in an order inside the text; an order is not a thing that was done.")
    for named in facts.not_given:
        if (unknown := _unknown(named.name)) is not None:
            found.append(unknown)
        if not _quoted(named.words, report):
            found.append(f"The words '{named.words[:80]}' for {named.name} do not stand in the report; quote it.")
    for quote in facts.attenuation.words if facts.attenuation else ():
        if not _quoted(quote, report):
            found.append(f"The words '{quote[:80]}' for the attenuation do not stand in the report; quote it.")
    return list(dict.fromkeys(found))


def _unknown(name: str) -> str | None:
    try:
        item = known_agents().canonical(name)
    except UnknownItemError as error:
        return str(error)
    return None if item.name == name else f"'{name}' is not the name in the formulary; write {item.name}."


def _item_faults(item: ReportedItem, facts: ReportFacts, numbers: set[float]) -> list[str]:
    agent = known_agents().item(item.name)
    found = []
    if item.dose is not None:
        if agent.unit is not None and item.dose.unit != agent.unit:
            found.append(f"{item.name} is counted in {agent.unit}, not in {item.dose.unit}; such a dose is null.")
        if item.dose.amount not in numbers:
            found.append(f"The dose {item.dose} of {item.name} does not stand in the report.")
    for size in item.particles:
        if agent.unit is not None:
            found.append(f"{item.name} has no particle size.")
        elif not {size.low_um, size.high_um} <= numbers:
            found.append(f"The particle size {size} of {item.name} does not stand in the report.")
    roles = {"embolised"} if agent.kind == "embolic" else {"infused", "emulsified", None}
    if item.name == OIL:
        roles |= {"emulsified"}
    if agent.kind == "drug" and item.bound_to is not None:
        roles = {"embolised"}
    if item.role not in roles:
        found.append(f"{item.name} can't have the role {item.role}.")
    if item.bound_to is not None and (agent.kind != "drug" or item.bound_to != BEADS):
        found.append(f"{item.name} can't be bound to {item.bound_to}; only a drug is, and only to {BEADS}.")
    elif item.bound_to is not None and BEADS not in {other.name for other in facts.items}:
        found.append(f"{item.name} is bound to {BEADS}, which have no entry of their own.")
    return found


def _numbers(report: str) -> set[float]:
    """Every number of the report, amounts also in the unit that they are counted in (1 g as 1000 mg, 1 mm as 1000)."""
    text = ReportText.read(report)
    plain = {float(found) for found in re.findall(r"\d+(?:\.\d+)?", text.text)}
    scale = {"mm": 1000.0}
    return plain | {end * scale.get(a.unit, 1.0) for a in text.amounts for end in (a.low, a.high)}


def _quoted(quote: str, report: str) -> bool:
    wanted, there = (" ".join(text.casefold().split()) for text in (quote, report))
    return bool(wanted) and wanted in there


def _notes(facts: ReportFacts, report: str) -> list[str]:
    """What a person should look at: an agent that the reading has and the text does not name in a known spelling."""
    named = {mention.name for mention in ReportText.read(report).mentions}
    return [
        f"{name} is read from words that are no known name of it; look at the report."
        for name in dict.fromkeys(item.name for item in facts.items)
        if name not in named
    ]


# ---------------------------------------------------------------------------------------------------- aggregation
def aggregate(readings: Mapping[str, ReportFacts]) -> tuple[ReportFacts, tuple[Disagreement, ...]]:
    """What all readings agree on, and where they differ.

    An agent that every reading has is kept: as it is, where its administrations are equal; else once, with the fields
    that are equal in all, where every reading has it once; else those administrations that are equal. An agent that
    not all have is left out. Effect and deposition are kept where all say the same.

    Args:
        readings: Facts by backend, at least one.

    Returns:
        The facts and the disagreements; one reading comes back as it is.
    """
    if len(readings) == 1:
        return next(iter(readings.values())), ()
    found: list[Disagreement] = []
    items: list[ReportedItem] = []
    for name in dict.fromkeys(item.name for facts in readings.values() for item in facts.items):
        given = {by: [item for item in facts.items if item.name == name] for by, facts in readings.items()}
        if not all(given.values()):
            told = {by: "given" if entries else "not given" for by, entries in given.items()}
            found.append(Disagreement(item=name, about="given", readings=told))
            continue
        kept, differences = _agreed(name, given)
        items += kept
        found += differences
    effects = {by: facts.attenuation for by, facts in readings.items()}
    effect = _same("level", {by: None if e is None else (e.level, e.sign) for by, e in effects.items()}, found)
    attenuation = None
    if effect is not None:
        quotes = dict.fromkeys(quote for e in effects.values() if e is not None for quote in e.words)
        attenuation = Attenuation(level=effect[0], sign=effect[1], words=tuple(quotes))
    deposition = _same("deposition", {by: facts.deposition for by, facts in readings.items()}, found)
    return (
        ReportFacts(
            items=tuple(items),
            not_given=_not_given(readings, {item.name for item in items}),
            attenuation=attenuation,
            deposition=deposition,
        ),
        tuple(found),
    )


def _agreed(name: str, given: Mapping[str, Sequence[ReportedItem]]) -> tuple[list[ReportedItem], list[Disagreement]]:
    """The administrations of one agent that all readings share, and what they differ in."""
    first, *others = given.values()
    if all(sorted(map(str, entries)) == sorted(map(str, first)) for entries in others):
        return list(first), []
    if any(len(entries) != 1 for entries in given.values()):
        shared = [item for item in first if all(item in entries for entries in others)]
        told = {by: "; ".join(_shown(item) for item in entries) for by, entries in given.items()}
        kept = shared or [ReportedItem(name=name, role=None, dose=None, particles=(), bound_to=None)]
        return kept, [Disagreement(item=name, about="administrations", readings=told)]
    single = {by: entries[0] for by, entries in given.items()}
    found: list[Disagreement] = []
    fields: dict[str, Any] = {}
    for field in ("role", "dose", "particles", "bound_to"):
        values = {by: getattr(item, field) for by, item in single.items()}
        equal = len({str(value) for value in values.values()}) == 1
        fields[field] = getattr(first[0], field) if equal else (() if field == "particles" else None)
        if not equal:
            told = {by: _text(value) for by, value in values.items()}
            found.append(Disagreement(item=name, about=field, readings=told))
    return [ReportedItem(name=name, **fields)], found


def _same(about: str, values: Mapping[str, ValueT], found: list[Disagreement]) -> ValueT | None:
    """The value that all readings have; None, and a disagreement, where they differ."""
    first = next(iter(values.values()))
    if all(value == first for value in values.values()):
        return first
    told = {by: _text(value) for by, value in values.items()}
    found.append(Disagreement(item=None, about=about, readings=told))
    return None


def _not_given(readings: Mapping[str, ReportFacts], given: set[str]) -> tuple[NotGiven, ...]:
    """Agents that every reading says were named and not given, with the first one's words."""
    first, *others = readings.values()
    reasons = [{(n.name, n.reason) for n in facts.not_given} for facts in others]
    return tuple(n for n in first.not_given if n.name not in given and all((n.name, n.reason) in r for r in reasons))


def _shown(item: ReportedItem) -> str:
    parts = [item.role, item.dose, *item.particles, f"on {item.bound_to}" if item.bound_to else None]
    return " ".join(str(part) for part in parts if part is not None) or "given"


def _text(value: object) -> str:
    if value is None or value == ():
        return "not stated"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
