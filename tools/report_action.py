"""Report action: what a treatment report says was done, typed, and its structured core action text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.formulary import Formulary
from models.protocol import Dose, Protocol
from tools.report_words import Reason, load_words

Role = Literal["infused", "emulsified", "embolised"]
Sign = Literal["staining", "arteries"]
Deposition = Literal["satisfactory", "acceptable", "poor"]

BEADS, OIL = "Drug-eluting beads", "Lipiodol"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ParticleSize(_Model):
    """Diameter of particles or beads in micrometres; both ends are equal where one number is stated."""

    low_um: float = Field(gt=0)
    high_um: float = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low_um > self.high_um:
            raise ValueError(f"the size {self.low_um:g}-{self.high_um:g} um is turned round")
        return self

    def __str__(self) -> str:
        if self.low_um == self.high_um:
            return f"{self.low_um:g} um"
        return f"{self.low_um:g}-{self.high_um:g} um"


class ReportedItem(_Model):
    """One administration: an agent given in one role. An agent that was given twice is there twice."""

    name: str = Field(description="Canonical name of a drug or embolic agent of the formulary")
    role: Role | None = Field(
        description="infused: through the catheter; emulsified: mixed with oil, the oil included; embolised: every "
        "other embolic, and a drug that is loaded on beads; null where the report does not tell"
    )
    dose: Dose | None = Field(description="Amount as stated, mg or ml; null where none, or none in a fitting unit")
    particles: tuple[ParticleSize, ...] = Field(description="Sizes of particles or beads; empty where none is stated")
    bound_to: str | None = Field(description="'Drug-eluting beads' for a drug that is loaded on them, else null")


class NotGiven(_Model):
    """An agent that the report names without saying that it was given in this session."""

    name: str = Field(description="Canonical name of a drug or embolic agent of the formulary")
    reason: Reason = Field(
        description="negated: said not to be given; planned; previous: another session; allergy; observed: seen in "
        "the image; instruction: the text orders something; mentioned: none of these"
    )
    words: str = Field(description="The words of the report that say so")


class Attenuation(_Model):
    """How far the tumour was shut off at the end of the session."""

    level: Literal[1, 2, 3, 4] = Field(
        description="1 no effect, 2 reduced, 3 tumour arteries occluded or staining mostly gone, 4 staining disappeared"
    )
    sign: Sign = Field(description="What was looked at: the tumour's staining or its arteries")
    words: tuple[str, ...] = Field(min_length=1, description="The words of the report that decided, verbatim")

    @model_validator(mode="after")
    def _arteries_reach_three(self) -> Self:
        if self.sign == "arteries" and self.level == 4:
            raise ValueError("level 4 is said of the staining only: occluded arteries are level 3")
        return self


class ReportFacts(_Model):
    """What one engine reads in a report."""

    items: tuple[ReportedItem, ...] = Field(description="Everything given in this session, in the report's order")
    not_given: tuple[NotGiven, ...] = Field(description="Agents that are named but were not given in this session")
    attenuation: Attenuation | None = Field(description="null where the report says nothing about it")
    deposition: Deposition | None = Field(description="How the oil lay in the tumour; null where nothing is said")


class Disagreement(_Model):
    """What two readings of one report do not share."""

    item: str | None = Field(description="The agent; null for what is said of the whole session")
    about: str = Field(description="What they differ in: given, role, dose, particles, bound_to, level ...")
    readings: dict[str, str] = Field(description="What each reading says, by backend")


class ReportReading(ReportFacts):
    """A report as a protocol: facts, the protocol that they make, and the structured core action text."""

    engine: str = Field(description="What read it: words, or the language models")
    unknown: tuple[str, ...] = Field(description="Words with a dose that name no agent of the formulary")
    notes: tuple[str, ...] = Field(description="What could not be taken as it stands, such as a dose in a wrong unit")
    disagreements: tuple[Disagreement, ...] = Field(description="Where two readings differ")
    protocol: str = Field(description="The protocol, with the whole session's doses where every portion's is known")
    action_text: str = Field(description="Structured core action text, in the form of the MeWM paper's Table 5")

    @classmethod
    def of(
        cls,
        facts: ReportFacts,
        engine: str,
        *,
        unknown: Sequence[str] = (),
        notes: Sequence[str] = (),
        disagreements: Sequence[Disagreement] = (),
    ) -> Self:
        """A reading from its facts; protocol and action text follow from them."""
        return cls(
            **{name: getattr(facts, name) for name in ReportFacts.model_fields},
            engine=engine,
            unknown=tuple(dict.fromkeys(unknown)),
            notes=tuple(dict.fromkeys(notes)),
            disagreements=tuple(disagreements),
            protocol=protocol_of(facts.items).key,
            action_text=action_text(facts),
        )


def protocol_of(items: Sequence[ReportedItem]) -> Protocol:
    """The protocol of a session: every agent once, its portions added up.

    An agent has a dose only where each of its portions has one, in the unit that the formulary counts it in.
    """
    formulary = Formulary.load("all_known")
    doses: dict[str, Dose] = {}
    for name in dict.fromkeys(item.name for item in items):
        portions = [item.dose for item in items if item.name == name]
        unit = formulary.item(name).unit
        known = [dose.amount for dose in portions if dose is not None and dose.unit == unit]
        if unit is not None and len(known) == len(portions):
            doses[name] = Dose(amount=sum(known), unit=unit)
    kinds = {name: formulary.item(name).kind for name in {item.name for item in items}}
    return Protocol(
        drugs=tuple(name for name, kind in kinds.items() if kind == "drug"),
        embolics=tuple(name for name, kind in kinds.items() if kind == "embolic"),
        doses=tuple(doses.items()),
    )


def action_text(facts: ReportFacts) -> str:
    """The structured core action text: drugs infused, emulsion, loaded beads, embolics, deposition, effect.

    The form is that of the processed texts in Table 5 of the MeWM paper; names are canonical.
    """
    words = load_words().sentences
    infused = [i for i in facts.items if i.role == "infused"]
    emulsified = [i for i in facts.items if i.role == "emulsified"]
    bound = [i for i in facts.items if i.bound_to is not None]
    beads = [i for i in facts.items if i.name == BEADS]
    rest = [i for i in facts.items if i.role == "embolised" and i not in bound and not (bound and i in beads)]
    unstated = [i for i in facts.items if i.role is None and i not in bound]
    out = [
        *_sentence(words.infused, infused, after=True),
        *_sentence(words.emulsified, emulsified),
    ]
    if bound:
        carrier = _listed([_dosed(bead) for bead in beads]) if beads else BEADS
        out.append(words.bound.format(beads=carrier, items=_listed([_dosed(item) for item in bound])))
    for item in rest:
        out += _sentence(words.injected if item.name == OIL else words.embolised, [item])
    out += _sentence(words.unstated, unstated, after=True)
    if facts.deposition is not None:
        out.append(words.deposition.format(grade=facts.deposition))
    if facts.attenuation is not None:
        out.append(getattr(words.effect, facts.attenuation.sign)[facts.attenuation.level])
    return "; ".join(out) + "." if out else ""


def _sentence(forms: tuple[str, str], items: Sequence[ReportedItem], *, after: bool = False) -> list[str]:
    """One sentence about some agents; none where there are none. `after`: the dose stands after the name."""
    if not items:
        return []
    return [forms[len(items) > 1].format(items=_listed([_dosed(item, after=after) for item in items]))]


def _dosed(item: ReportedItem, *, after: bool = False) -> str:
    sizes = f" ({', '.join(map(str, item.particles))})" if item.particles else ""
    if item.dose is None:
        return item.name + sizes
    return f"{item.name} {item.dose}{sizes}" if after else f"{item.dose} {item.name}{sizes}"


def _listed(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
