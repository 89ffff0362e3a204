"""What leaves for a language model instead of what identifies a patient: a neutral id, offsets for dates, no old ages.

The clinical record and the measured features are typed numbers and words of fixed lists, so they hold no identifier but
the age. Free text (a goal, a report, a note) goes through `public_text`. Names of people are found where the words
before them say so, in what a person types wherever they begin with a capital letter. A name in small letters, or one
that nothing announces in a report, is not recognised. `mewm plan --dry-run-llm` shows what would be sent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from functools import cached_property, lru_cache
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict

from agent.policy import CaseSummary
from tools.rule_facts import known_agents

NEUTRAL_ID = "case"
"""The id of every case in what a language model is told."""


_WORD = re.compile(r"[^\W\d_][\w'’-]*")


class _Names(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    cues: str
    cues_of_two: str
    not_names: str

    @cached_property
    def cue(self) -> re.Pattern[str]:
        """What stands before a name."""
        return re.compile(rf"(?:{self.cues})\Z", re.IGNORECASE)

    @cached_property
    def cue_of_two(self) -> re.Pattern[str]:
        """What stands before a name of two words or more."""
        return re.compile(rf"(?:{self.cues_of_two})\Z", re.IGNORECASE)

    @cached_property
    def others(self) -> frozenset[str]:
        """Words in small letters that are no names."""
        agents = (s for item in known_agents().items for s in (item.name, *item.synonyms))
        return frozenset(word.lower() for text in (self.not_names, *agents) for word in re.findall(r"[^\W\d_]+", text))

    def like(self, word: str) -> bool:
        """Whether a word may be a person's name: ``Smith``, ``O'Neill``, ``Müller-Lang``; not ``HCC``."""
        if not word[0].isupper() or not any(letter.islower() for letter in word[1:]):
            return False
        parts = re.findall(r"[^\W\d_]{2,}", word.lower())
        return any(part not in self.others for part in parts)


class _Rules(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    oldest_age_years: int
    removed: str
    identifiers: tuple[str, ...]
    measure: str
    names: _Names
    months: dict[str, int]

    @cached_property
    def identifier_patterns(self) -> tuple[re.Pattern[str], ...]:
        """The patterns of identifiers, with what a unit is filled in."""
        return tuple(re.compile(pattern.replace("{measure}", self.measure)) for pattern in self.identifiers)


@lru_cache(maxsize=1)
def _rules() -> _Rules:
    text = files("agent").joinpath("deidentify.yaml").read_text(encoding="utf-8")
    return _Rules.model_validate(yaml.safe_load(text))


def removed_mark() -> str:
    """What stands for what was taken out."""
    return _rules().removed


def public_age(years: float) -> float:
    """An age in years, where one above 89 is 90 (the group "90 or more" of HIPAA's Safe Harbor)."""
    oldest = _rules().oldest_age_years
    return float(oldest + 1) if years > oldest else years


def public_summary(case: CaseSummary) -> CaseSummary:
    """The case without its id, and with an age above 89 as 90 (the group "90 or more" of HIPAA's Safe Harbor)."""
    record = dict(case.record)
    age = record.get("age_years")
    if isinstance(age, int | float):
        record["age_years"] = public_age(age)
    return case.model_copy(update={"case_id": NEUTRAL_ID, "record": record})


def public_text(text: str, known: Sequence[str] = ()) -> str:
    """Free text without dates and identifiers.

    Args:
        text: Written by a person.
        known: Identifiers that are known, such as the case id.

    Returns:
        The text, where a date is ``[day N]`` counted from the earliest date in it (``[date]`` where day and month can't
        be told apart or the day is not given), and what looks like an identifier is ``[removed]``.
    """
    rules = _rules()
    for name in sorted(filter(None, known), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", rules.removed, text, flags=re.IGNORECASE)
    found = [(match, _date_of(match)) for match in _date_pattern().finditer(text)]
    days = [day for _, day in found if isinstance(day, date)]
    pieces, end = [], 0
    for match, day in found:
        if day is None:  # no date after all, such as 45.13.2020
            continue
        offset = f"[day {(day - min(days)).days}]" if isinstance(day, date) else "[date]"
        pieces += [text[end : match.start()], offset]
        end = match.end()
    text = "".join([*pieces, text[end:]])
    for pattern in rules.identifier_patterns:
        text = pattern.sub(rules.removed, text)
    return _without_names(text, everywhere=False)


def public_words(text: str, known: Sequence[str] = (), spare: Sequence[str] = ()) -> str:
    """What a person typed (a goal, a message) as `public_text` gives it, without any word that begins like a name.

    Such a text is short, and a word too many may go: the weights of a goal were read from the words as they were typed.

    Args:
        text: Typed by a person.
        known: As for `public_text`.
        spare: Words that stay, such as the name of a case that is to be opened.
    """
    return _without_names(public_text(text, known), everywhere=True, spare=spare)


def _without_names(text: str, *, everywhere: bool, spare: Sequence[str] = ()) -> str:
    """The text without names of people: behind a cue; `everywhere`: all but a single word that begins a sentence."""
    names, removed = _rules().names, _rules().removed
    pieces, end = [], 0
    for run in _runs(text, {word.casefold() for word in spare}):
        start = run[0].start()
        before = text[:start]
        count = sum(names.like(word.group()) for word in run)
        cued = names.cue.search(before[-40:]) or (count > 1 and names.cue_of_two.search(before[-40:]))
        opens = not before.strip() or before.rstrip()[-1] in ".!?:"
        if cued or (everywhere and (count > 1 or not opens)):
            pieces += [text[end:start], removed]
            end = run[-1].end()
    return "".join([*pieces, text[end:]])


def _runs(text: str, spare: set[str]) -> list[list[re.Match[str]]]:
    """Words that may be a name together: ``John R. Smith``, ``Smith, John``."""
    names = _rules().names
    runs: list[list[re.Match[str]]] = []
    end, initial = -1, False
    for word in _WORD.finditer(text):
        letters = word.group()
        one = len(letters) == 1 and letters.isupper()
        if letters.casefold() in spare or not (one or names.like(letters)):
            continue
        gap = text[end : word.start()] if end >= 0 else ""
        if end >= 0 and re.fullmatch(r"\.?\s*" if initial else r",?\s+", gap):
            runs[-1].append(word)
        else:
            runs.append([word])
        end, initial = word.end(), one
    return [run for run in runs if any(names.like(word.group()) for word in run)]


@lru_cache(maxsize=1)
def _date_pattern() -> re.Pattern[str]:
    month = "|".join(_rules().months)
    return re.compile(
        rf"""(?<![\d.])(?:
            (?P<y1>(?:19|20)\d\d)(?P<s1>[-/.])(?P<m1>\d{{1,2}})(?P=s1)(?P<d1>\d{{1,2}})
          | (?P<a>\d{{1,2}})(?P<s2>[-/.])(?P<b>\d{{1,2}})(?P=s2)(?P<y2>(?:19|20)?\d\d)
          | (?P<y3>(?:19|20)\d\d)(?P<m3>0[1-9]|1[0-2])(?P<d3>0[1-9]|[12]\d|3[01])
          | (?P<y4>(?:19|20)\d\d)\s*年\s*(?P<m4>\d{{1,2}})\s*月(?:\s*(?P<d4>\d{{1,2}})\s*日)?
          | (?:(?P<d5>\d{{1,2}})(?:st|nd|rd|th)?\.?\s+)?\b(?P<m5>{month})[a-z]*\.?,?\s+(?P<y5>(?:19|20)\d\d)
          | \b(?P<m6>{month})[a-z]*\.?\s+(?P<d6>\d{{1,2}})(?:st|nd|rd|th)?,?\s+(?P<y6>(?:19|20)\d\d)
        )(?!\d)""",
        re.IGNORECASE | re.VERBOSE,
    )


def _date_of(match: re.Match[str]) -> date | str | None:
    """The day; ``""`` for a date without a certain day; None for what is no date."""
    parts = {name: value for name, value in match.groupdict().items() if value}
    try:
        if "a" in parts:
            return _day_or_month_first(int(parts["a"]), int(parts["b"]), parts["y2"])
        for number in "13456":
            if f"y{number}" in parts:
                named = parts[f"m{number}"]
                month = int(named) if named.isdecimal() else _rules().months[named[:3].lower()]
                if f"d{number}" not in parts:
                    return ""
                return date(int(parts[f"y{number}"]), month, int(parts[f"d{number}"]))
    except ValueError:
        return None
    return None


def _day_or_month_first(a: int, b: int, year_text: str) -> date | str | None:
    if len(year_text) == 2 and (a > 31 or b > 31):
        return None
    if a <= 12 and b <= 12 and a != b:
        return ""
    year = int(year_text) + (2000 if len(year_text) == 2 else 0)
    return date(year, b, a) if a > 12 or a == b else date(year, a, b)
