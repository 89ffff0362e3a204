"""Report words: the words file that treatment reports are read with, checked."""

from __future__ import annotations

import re
from functools import cache, cached_property
from importlib.resources import files
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.formulary import Formulary

Unit = Literal["mg", "g", "ml", "um", "mm"]
Reason = Literal["negated", "planned", "previous", "allergy", "observed", "instruction", "mentioned"]
Reach = Literal["next", "last", "onward", "back", "order"]
Section = Literal["allergy", "previous", "planned", "given"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spelling(_Part):
    """Further names of one agent."""

    items: tuple[str, ...] = Field(min_length=1)
    source: str
    patterns: tuple[str, ...]


class StatusCues(_Part):
    """Words that say that an agent was named and not given."""

    status: Reason
    reach: Reach
    source: str
    cues: tuple[str, ...]
    not_after: str | None = None
    stops: str | None = None

    @cached_property
    def cue(self) -> re.Pattern[str]:
        """Any of the cues."""
        return compiled("|".join(self.cues))

    @cached_property
    def excluded(self) -> re.Pattern[str] | None:
        """What may not stand right before a cue."""
        return None if self.not_after is None else compiled(self.not_after)

    def stop(self, text: str, start: int) -> re.Match[str] | None:
        """Where a reach that begins before `start` ends by this entry's own rule."""
        return None if self.stops is None else compiled(self.stops).search(text, start)


class Joints(_Part):
    """Words between two agents that put the one into the other."""

    mixed: str
    bound: str


class Roles(_Part):
    """Words of the roles, and around agents that are only seen or listed."""

    emulsified: str
    mixed: str
    bound: str
    infused: str
    given: str
    used: str
    bare: str
    observed_after: str
    observed_before: str


class Headers(_Part):
    """First words of a line with a colon, by what the line is about."""

    allergy: str
    previous: str
    planned: str
    given: str


class EffectPattern(_Part):
    """One way to tell the effect; `parts` are put into `find`."""

    sign: Literal["staining", "arteries"]
    level: Literal[1, 2, 3, 4]
    find: str


class AttenuationWords(_Part):
    """Patterns of the effect, the ones with a degree first."""

    parts: dict[str, str]
    patterns: tuple[EffectPattern, ...]
    not_in: str

    @cached_property
    def ready(self) -> tuple[tuple[EffectPattern, re.Pattern[str]], ...]:
        """Every pattern with its parts filled in."""
        done = []
        for pattern in self.patterns:
            text = pattern.find
            for name, part in self.parts.items():
                text = text.replace("{" + name + "}", f"(?:{part})")
            done.append((pattern, compiled(text)))
        return tuple(done)


class Grade(_Part):
    """Words for one grade of the oil's deposition."""

    grade: Literal["satisfactory", "acceptable", "poor"]
    find: str


class DepositionWords(_Part):
    """Words for how the oil lay in the tumour."""

    oil: str
    lying: str
    grades: tuple[Grade, ...]

    @cached_property
    def lies(self) -> re.Pattern[str]:
        """The oil, and that it lies somewhere."""
        return compiled(f"(?:{self.oil})[^.;]{{0,30}}?(?:{self.lying})|(?:{self.lying}) of (?:the )?(?:{self.oil})")


class Effects(_Part):
    """Sentences of the effect by sign and level."""

    staining: dict[int, str]
    arteries: dict[int, str]


class Sentences(_Part):
    """Templates of the core action text; two forms are for one agent and for several."""

    infused: tuple[str, str]
    emulsified: tuple[str, str]
    bound: str
    injected: tuple[str, str]
    embolised: tuple[str, str]
    unstated: tuple[str, str]
    deposition: str
    effect: Effects


class ReportWords(_Part):
    """The words file."""

    version: str
    sources: tuple[str, ...] = Field(min_length=1)
    spellings: tuple[Spelling, ...]
    exact_case: tuple[str, ...]
    look_alikes: tuple[str, ...]
    anaphora: dict[str, str]
    units: dict[Unit, tuple[str, ...]]
    per_body: tuple[str, ...]
    per_other: tuple[str, ...]
    number_words: dict[str, int]
    not_doses: str
    dose_words: str
    former: str
    latter: str
    respectively: str
    substances: tuple[str, ...]
    mixtures: str
    mixed_volume: str
    parting: str
    diluted: str
    ratio: str
    planned_dose: str
    planned_changed: str
    fillers: tuple[str, ...]
    each: str
    each_before: str
    portion: str
    medicine_ending: str
    summary: str
    verb_comma: str
    together: str
    clause_end: str
    act_end: str
    abbreviations: tuple[str, ...]
    coordination: str
    coordinator: str
    joints: Joints
    of_all: str
    connectors: str
    elided: str
    finite: str
    clause_before: str
    phrase_before: str
    roles: Roles
    fill: str
    ends: str
    opening: str
    statuses: tuple[StatusCues, ...]
    planned_word: str
    given_before_last: str
    given_past: str
    headers: Headers
    attenuation: AttenuationWords
    deposition: DepositionWords
    sentences: Sentences

    @model_validator(mode="after")
    def _known_agents(self) -> Self:
        formulary = Formulary.load("all_known")
        spelled = (name for spelling in self.spellings for name in spelling.items)
        for name in (*spelled, *self.anaphora, *self.anaphora.values()):
            if name not in formulary:
                raise ValueError(f"report_words.yaml names {name!r}, which is not in the formulary")
        return self

    def pattern(self, name: str) -> re.Pattern[str]:
        """A pattern of the file by its dotted name, for example ``roles.infused``."""
        value: object = self
        for part in name.split("."):
            value = getattr(value, part)
        return compiled(str(value))

    @cached_property
    def orders(self) -> re.Pattern[str]:
        """What orders something instead of telling what was done."""
        return compiled("|".join(cue for entry in self.statuses if entry.reach == "order" for cue in entry.cues))

    @cached_property
    def acts(self) -> re.Pattern[str]:
        """Any words of giving."""
        roles = self.roles
        return compiled("|".join((roles.emulsified, roles.mixed, roles.bound, roles.infused, roles.given, roles.used)))


@cache
def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern of the words, without case."""
    return re.compile(pattern, re.IGNORECASE)


@cache
def load_words() -> ReportWords:
    """The shipped words, checked.

    Raises:
        pydantic.ValidationError: The file is not valid; a packaging error, not the user's.
    """
    text = files("tools").joinpath("report_words.yaml").read_text(encoding="utf-8")
    return ReportWords.model_validate(yaml.safe_load(text))
