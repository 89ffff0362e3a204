"""Formulary: the drugs and embolic agents that the program knows, their doses, and the paper's action sets.

The content is data (`formulary.yaml`); this module checks it, names things canonically and parses protocol texts.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.errors import InputError, UnknownItemError
from models.protocol import Dose, DoseUnit, Kind, Protocol

ItemClass = Literal[
    "platinum", "anthracycline", "antibiotic_alkylator", "ts_inhibitor", "topo1_inhibitor",
    "oil", "temporary_particle", "permanent_particle", "drug_eluting", "liquid", "unclassified",
]  # fmt: skip

ITEM_ORDER: tuple[str, ...] = (
    "Cisplatin", "Doxorubicin", "Epirubicin", "Hydroxycamptothecin", "Idarubicin", "Lobaplatin", "Mitomycin",
    "Nedaplatin", "Oxaliplatin", "Pirarubicin", "Raltitrexed",
    "Absolute alcohol", "Drug-eluting beads", "Gelatin sponge", "KMG", "Lipiodol", "NBCA", "PVA",
)  # fmt: skip
"""Canonical order of the 18 items of the `all` set. Trained networks index their action vector by it: never reorder."""

ACTION_SETS: tuple[str, ...] = ("policy", "in_house", "hcc_tace_seg", "all")
_ALL_KNOWN = "all_known"

_SEPARATORS = re.compile(r"[;,/+|\n\r、。]|\s+and\s+|\s+with\s+", re.IGNORECASE)
_PER_AREA = re.compile(r"(?:mg|ml|g|毫克|毫升)\s*/\s*(?:m\s*(?:2|\^2)|kg)", re.IGNORECASE)
_NUMBER = r"\d+(?:\.\d+)?"
_DOSE = re.compile(rf"(?<![\w.-])({_NUMBER})\s*([^\W\d_]+)(?![\w-])|({_NUMBER})\s*(毫克|毫升)", re.IGNORECASE)
_NEAR = 0.5  # difflib ratio below which a suggestion only confuses
_UNITS: dict[str, DoseUnit] = {"mg": "mg", "毫克": "mg", "ml": "ml", "cc": "ml", "毫升": "ml"}


class DoseRange(BaseModel):
    """Amount of one agent in one session; `reference` is the usual session dose."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float = Field(gt=0)
    high: float = Field(gt=0)
    unit: DoseUnit
    reference: float = Field(gt=0)
    reference_source: str
    sources: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.reference <= self.high:
            raise ValueError(f"reference {self.reference:g} is outside {self.low:g}-{self.high:g}")
        return self

    def __str__(self) -> str:
        return f"{self.low:g}-{self.high:g} {self.unit}"


class Item(BaseModel):
    """One drug or embolic agent. `dose` is None where no range could be sourced."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Kind
    item_class: ItemClass
    synonyms: tuple[str, ...] = ()
    unit: DoseUnit | None = None
    dose: DoseRange | None = None
    dose_with_beads: DoseRange | None = None
    sources: tuple[str, ...] = Field(min_length=1)
    note: str = ""

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        for dose in (self.dose, self.dose_with_beads):
            if dose is not None and dose.unit != self.unit:
                raise ValueError(f"{self.name} counts in {self.unit}, its dose range in {dose.unit}")
        return self


class _Combination(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...]
    items: tuple[str, ...]


class _ActionSet(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str
    items: tuple[str, ...]


class _FormularyFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    action_sets: dict[str, _ActionSet]
    combinations: tuple[_Combination, ...]
    items: tuple[Item, ...]


def _fold(text: str) -> str:
    """Spelling without case, width, spaces, hyphens, quotes and trade marks."""
    wide = unicodedata.normalize("NFKC", text.replace("®", "").replace("™", "")).casefold()
    return "".join(c for c in wide if c.isalnum())


@dataclass(frozen=True)
class _Vocabulary:
    """Everything that is known, whatever the action set."""

    file: _FormularyFile
    items: dict[str, Item]
    spellings: dict[str, tuple[str, ...]]

    @classmethod
    def read(cls) -> _Vocabulary:
        text = resources.files("models").joinpath("formulary.yaml").read_text(encoding="utf-8")
        file = _FormularyFile.model_validate(yaml.safe_load(text))
        items = {item.name: item for item in file.items}
        if tuple(items)[: len(ITEM_ORDER)] != ITEM_ORDER:
            raise ValueError("formulary.yaml does not list the items of ITEM_ORDER first and in that order")
        spellings: dict[str, tuple[str, ...]] = {}
        named: list[tuple[str, tuple[str, ...]]] = [
            (spelling, (item.name,)) for item in file.items for spelling in (item.name, *item.synonyms)
        ]
        named += [(spelling, combo.items) for combo in file.combinations for spelling in combo.names]
        for spelling, names in named:
            if spellings.setdefault(_fold(spelling), names) != names:
                raise ValueError(f"formulary.yaml: {spelling!r} names both {spellings[_fold(spelling)]} and {names}")
        in_sets = {name for action_set in file.action_sets.values() for name in action_set.items}
        if in_sets != set(ITEM_ORDER):
            raise ValueError("formulary.yaml: the action sets together are not the items of ITEM_ORDER")
        return cls(file, items, spellings)

    def nearest(self, text: str, among: Iterable[str], n: int = 3) -> list[str]:
        """Canonical names of `among` whose spellings come nearest to `text`, best first; none if nothing is near."""
        wanted, allowed = _fold(text), set(among)
        best: dict[str, float] = {}
        for spelling, names in self.spellings.items():
            score = difflib.SequenceMatcher(None, wanted, spelling).ratio()
            for name in names if len(names) == 1 else ():
                if name in allowed:
                    best[name] = max(score, best.get(name, 0.0))
        near = [name for name, score in best.items() if score >= _NEAR]
        return sorted(near, key=lambda name: (-best[name], name))[:n]


@cache
def _vocabulary() -> _Vocabulary:
    return _Vocabulary.read()


@dataclass(frozen=True)
class Formulary:
    """A named action base: the items that a protocol may hold, drugs first, in canonical order."""

    name: str
    version: str
    items: tuple[Item, ...]

    @classmethod
    def load(cls, name: str = "all") -> Formulary:
        """Load an action set.

        Args:
            name: ``policy``, ``in_house`` or ``hcc_tace_seg`` (MeWM paper, Figures 10 to 12), ``all`` (their union,
                18 items), or ``all_known`` (also agents of the rules that are in no action set).

        Raises:
            InputError: no action set has that name.
        """
        vocabulary = _vocabulary()
        if name == "all":
            wanted = set(ITEM_ORDER)
        elif name == _ALL_KNOWN:
            wanted = set(vocabulary.items)
        elif name in vocabulary.file.action_sets:
            wanted = set(vocabulary.file.action_sets[name].items)
        else:
            known = ", ".join((*ACTION_SETS, _ALL_KNOWN))
            raise InputError(f"There is no action set named {name!r}; choose one of {known}.")
        return cls(name, vocabulary.file.version, tuple(i for n, i in vocabulary.items.items() if n in wanted))

    def only(self, names: Iterable[str]) -> Formulary:
        """The formulary narrowed to some of its items (any known spelling), in canonical order.

        Raises:
            UnknownItemError: a name is unknown or not in this formulary.
            InputError: nothing is left.
        """
        wanted = {self.canonical(name).name for name in names}
        if not wanted:
            raise InputError(f"The action set is empty; name at least one item of {self.name}.")
        return Formulary(f"{self.name} (selection)", self.version, tuple(i for i in self.items if i.name in wanted))

    @property
    def drugs(self) -> tuple[Item, ...]:
        """The drugs, in canonical order."""
        return tuple(item for item in self.items if item.kind == "drug")

    @property
    def embolics(self) -> tuple[Item, ...]:
        """The embolic agents, in canonical order."""
        return tuple(item for item in self.items if item.kind == "embolic")

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over name, version and every item with its doses and sources."""
        content = {"name": self.name, "version": self.version, "items": [i.model_dump(mode="json") for i in self.items]}
        return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def __contains__(self, name: object) -> bool:
        return any(item.name == name for item in self.items)

    def item(self, name: str) -> Item:
        """The item with this exact canonical name.

        Raises:
            UnknownItemError: no item of this formulary has that name.
        """
        for item in self.items:
            if item.name == name:
                return item
        return self._refuse(name)

    def canonical(self, text: str) -> Item:
        """The item that a name, synonym or Chinese name stands for; case, spaces and hyphens do not matter.

        The whole text has to be the name: "polyvinyl alcohol" is PVA, and never matches the "alcohol" inside it.

        Raises:
            UnknownItemError: the name is unknown (the message gives the nearest known ones), is known but not in this
                formulary, or stands for two items.
        """
        names = self._names(text)
        if len(names) > 1:
            raise UnknownItemError(f"{text.strip()!r} names {' and '.join(names)}; name one of them.")
        return self.item(names[0])

    def parse(self, text: str) -> Protocol:
        """Read a protocol such as ``"Cisplatin 50 mg; THP; LC beads"`` or ``"顺铂、碘化油 10 ml"``.

        Separators are ; , / + | 、 their fullwidth forms, line ends, "and", "with"; a `Protocol.key` reads back as
        itself. A dose stands before or after its agent; drugs count in mg, oil and liquids in ml.

        Args:
            text: agents in any order, repetitions allowed; empty text is the empty protocol.

        Raises:
            UnknownItemError: a name is unknown or not in this formulary.
            InputError: a dose has no agent, no unit, the wrong unit, is relative to body size, or two doses of one
                agent differ.
        """
        plain = unicodedata.normalize("NFKC", text)
        if found := _PER_AREA.search(plain):
            unit = found.group().replace(" ", "")
            raise InputError(f"The dose unit {unit!r} depends on body size; state the dose of the session in mg.")
        found_items: list[Item] = []
        doses: dict[str, Dose] = {}
        for token in (part.strip() for part in _SEPARATORS.split(plain)):
            if token in ("", "-"):  # a lone dash is the empty side of a protocol key ("Cisplatin | -")
                continue
            names_text, dose = _split_dose(token)
            if not _fold(names_text):
                raise InputError(f"The dose {token!r} stands without an agent; write it next to its name.")
            items = [self.item(name) for name in self._names(names_text)]
            found_items += items
            if dose is not None:
                item = _dosed_item(items, dose, token)
                if doses.setdefault(item.name, dose) != dose:
                    raise InputError(f"{item.name} is given two doses, {doses[item.name]} and {dose}; state one.")
        return Protocol(
            drugs=tuple(i.name for i in found_items if i.kind == "drug"),
            embolics=tuple(i.name for i in found_items if i.kind == "embolic"),
            doses=tuple(doses.items()),
        )

    def _names(self, text: str) -> tuple[str, ...]:
        names = _vocabulary().spellings.get(_fold(text))
        return names if names is not None else (self._refuse(text).name,)

    def _refuse(self, text: str) -> Item:
        """Raise the error that fits: known elsewhere, or unknown with the nearest names."""
        vocabulary, shown = _vocabulary(), text.strip()
        if names := vocabulary.spellings.get(_fold(shown)):
            here = ", ".join(item.name for item in self.items)
            raise UnknownItemError(
                f"{' and '.join(names)} is known but not in the action set {self.name!r}, which has {here}."
            )
        names_here = [item.name for item in self.items]
        if near := vocabulary.nearest(shown, names_here):
            hint = f"the nearest known ones are {', '.join(near)}"
        else:
            hint = f"none is near; known are {', '.join(names_here)}"
        raise UnknownItemError(f"{shown!r} is not a known drug or embolic; {hint}.")


def _split_dose(token: str) -> tuple[str, Dose | None]:
    """Separate ``"Cisplatin 50 mg"`` into its name and its dose."""
    if _fold(token) in _vocabulary().spellings:
        return token, None  # names such as "Glubran 2" or "254-S" hold numbers of their own
    found = _DOSE.search(token)
    if found is None:
        if re.search(rf"\s{_NUMBER}\s*$|^\s*{_NUMBER}(?:\s|$)", token):
            raise InputError(f"The dose in {token!r} has no unit; write mg for drugs, ml for liquids.")
        return token, None
    amount, unit_text = (found.group(1), found.group(2)) if found.group(1) else (found.group(3), found.group(4))
    unit = _UNITS.get(unit_text.casefold())
    if unit is None:
        raise InputError(f"{found.group().strip()!r} in {token!r} is no dose; write mg for drugs, ml for liquids.")
    if float(amount) <= 0:
        raise InputError(f"The dose in {token!r} is not above zero; leave the agent or the dose out.")
    return (token[: found.start()] + " " + token[found.end() :]).strip(" ()[]:="), Dose(amount=float(amount), unit=unit)


def _dosed_item(items: list[Item], dose: Dose, token: str) -> Item:
    """The item that a dose belongs to, after the unit guard (a drug in ml is a volume, not a dose)."""
    fitting = [item for item in items if item.unit == dose.unit]
    if len(items) == 1 and not fitting:
        item = items[0]
        if item.unit is None:
            raise InputError(f"{item.name} takes no dose, {token!r} was given; state that of the loaded drug instead.")
        raise InputError(f"{item.name} is counted in {item.unit}, {token!r} was given; state its dose in {item.unit}.")
    if len(fitting) != 1:
        raise InputError(f"The dose in {token!r} could belong to more than one agent; name the agents one by one.")
    return fitting[0]
