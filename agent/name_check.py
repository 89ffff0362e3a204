"""Name check: agents, rules, grades and sources that a written text names, against those that it may name.

Agents are found by every spelling of the formulary, and other drugs by the stems of international nonproprietary names
and a list. What it can't see: a drug without a known stem that no list has, or a false statement in plain words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from agent.written_numbers import sentence_at, words
from tools.rule_facts import known_agents

RULE_ID = re.compile(r"(?<![\w-])[A-Z]\d{2}(?![\w-])")
_OF_RULE = re.compile(rf"{RULE_ID.pattern}|\b[Rr]ules?\b|\bwarn")
_SHORT = 4
"""Spellings up to this length are abbreviations: found in capitals only."""


@lru_cache(maxsize=1)
def _spellings() -> dict[str, str]:
    left_out = set(words().not_agents)
    return {
        spelling: item.name
        for item in known_agents().items
        for spelling in (item.name, *item.synonyms)
        if spelling not in left_out
    }


@lru_cache(maxsize=1)
def _folded() -> dict[str, str]:
    return {_fold(spelling): name for spelling, name in _spellings().items()}


def _fold(spelling: str) -> str:
    return re.sub(r"[\s-]+", " ", spelling).casefold()


@lru_cache(maxsize=1)
def _agents() -> re.Pattern[str]:
    def as_pattern(spelling: str) -> str:
        loose = r"[\s-]+".join(re.escape(part) for part in re.split(r"[\s-]+", spelling))
        ending = "s?" if spelling[-1].isalpha() and spelling.isascii() and len(spelling) > _SHORT else ""
        loose = loose if len(spelling) <= _SHORT else f"(?i:{loose}{ending})"
        return rf"(?<!\w){loose}(?!\w)" if spelling.isascii() else loose

    return re.compile("|".join(as_pattern(s) for s in sorted(_spellings(), key=len, reverse=True)))


@lru_cache(maxsize=1)
def _foreign() -> re.Pattern[str]:
    listed = "|".join(re.escape(name) for name in sorted(words().other_drugs, key=len, reverse=True))
    stems = "|".join(words().drug_stems)
    return re.compile(rf"(?<![\w-])(?:{listed})(?![\w-])|(?<!\w)[A-Za-z]{{2,}}(?:{stems})(?!\w)", re.IGNORECASE)


def agents_in(text: str) -> tuple[str, ...]:
    """Canonical names of the agents of the formulary that a text names, each once, in order."""
    return tuple(dict.fromkeys(_agent(match.group()) for match in _agents().finditer(text)))


def _agent(spelling: str) -> str:
    folded = _fold(spelling)
    return _folded().get(folded) or _folded()[folded.removesuffix("s")]


def foreign_drugs_in(text: str) -> tuple[str, ...]:
    """Words that are drugs and no agent of the formulary, as written."""
    rest = _agents().sub(" ", text)
    return tuple(dict.fromkeys(match.group() for match in _foreign().finditer(rest)))


def sources_in(text: str) -> tuple[str, ...]:
    """Signs of a source (an author with a year, a society, "et al.", a link), as written."""
    found = [match.group() for pattern in words().sources for match in pattern.finditer(text)]
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class KnownNames:
    """What a text may name.

    Attributes:
        agents: Canonical names.
        rules: Rule ids.
        texts: Sentences of the facts: agents, rules and sources in them may be repeated.
        grades: Grades that are known, by the words that introduce them: ``{"Child-Pugh": ("A",)}``.
    """

    agents: Sequence[str]
    rules: Sequence[str] = ()
    texts: Sequence[str] = ()
    grades: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def faults(self, text: str) -> list[str]:
        """What is wrong with the names of a text, one sentence each; empty where all are right."""
        quoted = "\n".join(self.texts)
        agents = {*self.agents, *agents_in(quoted)}
        rules = {*self.rules, *RULE_ID.findall(quoted)}
        foreign = {word.casefold() for word in foreign_drugs_in(quoted)}
        faults = [f"{name} is not among the facts; leave it out." for name in agents_in(text) if name not in agents]
        faults += [
            f"'{word}' is a drug that is not among the facts; leave it out."
            for word in foreign_drugs_in(text)
            if word.casefold() not in foreign
        ]
        faults += [
            f"The rule '{rule}' is not among the facts; name only rules that are."
            for rule in dict.fromkeys(RULE_ID.findall(text))
            if rule not in rules
        ]
        faults += [
            f"'{source}' points to a source that is not among the facts; cite nothing."
            for source in sources_in(text)
            if source.casefold() not in quoted.casefold()
        ]
        return faults + self._grade_faults(text, quoted)

    def _grade_faults(self, text: str, quoted: str) -> list[str]:
        faults = []
        for scale, known in self.grades.items():
            introduced = rf"{re.escape(scale)}(?:\s+(?:class|grade|stage|category|status))?[\s:(-]*"
            for match in re.finditer(rf"{introduced}([A-D0-4]|CR|PR|SD|PD)\b", text):
                grade = match[1]
                # A sentence on a rule may repeat its grade: "L02: at most 10 mL in Child-Pugh B".
                of_rule = _OF_RULE.search(sentence_at(text, match.start()))
                if grade in known or (of_rule and re.search(rf"{introduced}{grade}\b", quoted)):
                    continue
                faults.append(f"'{scale} {grade}' is wrong: it is {', '.join(known) or 'not known'}.")
        return list(dict.fromkeys(faults))


def rules_in(texts: Iterable[str]) -> tuple[str, ...]:
    """Rule ids that stand in texts."""
    return tuple(dict.fromkeys(rule for text in texts for rule in RULE_ID.findall(text)))
