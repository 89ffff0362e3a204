"""Report clauses: which agents of a clause belong together, whether they were given, and how.

Agents that are only joined by commas, "and", amounts and the like form a group and share their predicate. A group is
read with what stands before it (back to the last connector) and after it (on to the next clause).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from models.formulary import Formulary
from tools.report_action import BEADS, OIL, Role
from tools.report_text import AGENT, AMOUNT, SOFT, Mention, ReportText, Sentence
from tools.report_words import Reason, StatusCues, load_words

_JOINTS: tuple[Literal["mixed", "bound"], ...] = ("mixed", "bound")


@dataclass(frozen=True)
class Group:
    """Mentions of a clause that share their predicate.

    Attributes:
        first: Position of the first mention in the clause.
        last: Position of the last one.
        left: What stands before, back to the last connector.
        right: What stands after, on to the next group's connector.
        onward: What stands after, on to the end of the clause that nothing between the groups ends.
        mixed: Whether words mix it with the group before or after it.
        bound: Whether words load it on, or with, the group before or after it.
    """

    first: int
    last: int
    left: str
    right: str
    onward: str = ""
    mixed: bool = False
    bound: bool = False


@dataclass(frozen=True)
class Clause:
    """A stretch between semicolons with its agents."""

    text: ReportText
    sentence: Sentence
    start: int
    end: int
    mentions: tuple[Mention, ...]
    groups: tuple[Group, ...]

    @classmethod
    def read(cls, text: ReportText, sentence: Sentence, start: int, end: int) -> Clause:
        """Find the groups of a clause."""
        mentions = tuple(m for m in text.mentions if start <= m.start < end)
        bare = cls(text, sentence, start, end, mentions, ())
        return replace(bare, groups=tuple(bare._split(bare._with_context(bare._joined()))))

    @property
    def masked(self) -> str:
        """The clause with agents and amounts masked."""
        return self.text.masked[self.start : self.end]

    @property
    def words(self) -> str:
        """The clause as it is written, on one line, shortened."""
        plain = " ".join(self.text.text[self.start : self.end].replace(SOFT, ",").strip(" ;.").split())
        return plain if len(plain) <= 160 else plain[:157] + "..."

    @cached_property
    def gaps(self) -> tuple[str, ...]:
        """What stands between each mention and the next one, without commas that part nothing."""
        comma = load_words().pattern("verb_comma")
        between = (self.text.masked[one.end : two.start] for one, two in itertools.pairwise(self.mentions))
        return tuple(comma.sub(" ", re.sub(rf"\([^()]*{AMOUNT}[^()]*\)", AMOUNT, gap)) for gap in between)

    def group_of(self, index: int) -> Group:
        """The group of a mention."""
        return self.groups[self._group_numbers[index]]

    @cached_property
    def _group_numbers(self) -> tuple[int, ...]:
        return tuple(number for number, group in enumerate(self.groups) for _ in range(group.first, group.last + 1))

    # ------------------------------------------------------------------------------------------------ groups
    def _joined(self) -> list[tuple[int, int]]:
        words = load_words()
        runs: list[tuple[int, int]] = []
        for index in range(len(self.mentions)):
            if not runs:
                runs.append((index, index))
                continue
            gap = self.gaps[index - 1]
            first = runs[-1][0]
            before = self.text.masked[self.start : self.mentions[first].start]
            plain = gap
            if SOFT in gap and not _cue(before.rpartition(SOFT)[2]):
                plain = gap.replace(SOFT, ",")  # a Chinese list whose predicate comes after it
            together = words.pattern("coordination").fullmatch(plain) or gap == ""
            joint = self._joint(index - 1, "mixed") or self._joint(index - 1, "bound")
            if together or (joint and not re.search(r"[A-Za-z]{3}", gap)):
                runs[-1] = (first, index)
            else:
                runs.append((index, index))
        return runs

    def _joint(self, index: int, kind: Literal["mixed", "bound"]) -> bool:
        """Whether the words after a mention mix it with, or load it on, the next one."""
        one, two = self.mentions[index], self.mentions[index + 1]
        if kind == "mixed":
            pair = {one.kind, two.kind} == {"drug", "embolic"} and OIL in (one.name, two.name)
        else:
            pair = {one.kind, two.kind} == {"drug", "embolic"} and bool({BEADS, "Microspheres"} & {one.name, two.name})
        return pair and load_words().pattern(f"joints.{kind}").search(self.gaps[index]) is not None

    def _with_context(self, runs: Sequence[tuple[int, int]]) -> list[Group]:
        cut = load_words().pattern("connectors")
        lefts, rights = [""] * len(runs), [""] * len(runs)
        for number, (first, last) in enumerate(runs):
            if number == 0:
                left = self.text.masked[self.start : self.mentions[first].start]
                lefts[0] = left.partition(":")[2] if self.sentence.header and ":" in left else left
            if number + 1 == len(runs):
                rights[number] = self.text.masked[self.mentions[last].end : self.end]
                continue
            between = self.gaps[last]
            places = [m.start() for m in cut.finditer(between)]
            if not places:  # nothing ends the one clause: the words belong to both
                rights[number] = lefts[number + 1] = between
            else:
                rights[number], lefts[number + 1] = between[: places[-1]], between[places[-1] :]
        self._close_brackets(runs, rights)
        onward = list(rights)
        for number in reversed(range(len(runs) - 1)):
            if not cut.search(self.gaps[runs[number][1]]):
                onward[number] += onward[number + 1]
        groups = [Group(a, b, lefts[i], rights[i], onward[i]) for i, (a, b) in enumerate(runs)]
        for kind in _JOINTS:
            for number, (first, last) in enumerate(runs):
                if any(self._joint(index, kind) for index in range(first, last)):
                    groups[number] = _joined_by(groups[number], kind)
                if number + 1 < len(runs) and self._joint(last, kind):
                    groups[number] = _joined_by(groups[number], kind)
                    groups[number + 1] = _joined_by(groups[number + 1], kind)
                    if kind == "mixed" and load_words().pattern("of_all").search(self.gaps[last]):
                        oils = [n for n, (a, b) in enumerate(runs[:number]) if self._only_oil(a, b)]
                        groups = [_joined_by(g, kind) if n in oils else g for n, g in enumerate(groups)]
        return groups

    def _only_oil(self, first: int, last: int) -> bool:
        return all(mention.name == OIL for mention in self.mentions[first : last + 1])

    def _close_brackets(self, runs: Sequence[tuple[int, int]], rights: list[str]) -> None:
        """ "A (not B) was given": what follows the bracket is said of A."""
        for number in range(len(runs) - 1):
            opened = self.gaps[runs[number][1]]
            inside, bracket, after = rights[number + 1].partition(")")
            if "(" in opened and ")" not in opened and bracket and "(" not in inside:
                rights[number], rights[number + 1] = opened.partition("(")[0] + after, inside

    def _split(self, groups: Sequence[Group]) -> list[Group]:
        """Cut "an emulsion was made of A and B, and C was infused", where C has a verb of its own."""
        words = load_words()
        out: list[Group] = []
        for group in groups:
            phrase = words.pattern("phrase_before").search(group.left)
            rest = self.text.masked[self.mentions[group.last].end : self.end] if phrase else group.right
            own_verb = words.pattern("finite").search(rest)
            clause = words.pattern("clause_before").search(group.left) and _cue(group.left)
            if group.first == group.last or not own_verb or not (phrase or clause):
                out.append(group)
                continue
            gaps = self.gaps[group.first : group.last]
            if phrase:
                places = [i for i, gap in enumerate(gaps) if "," in gap][:1]
            else:
                places = [i for i, gap in enumerate(gaps) if re.search(r",\s*and\b", gap)][-1:]
                places = places or [i for i, gap in enumerate(gaps) if re.search(r"\band\b", gap)][-1:]
            if not places:
                out.append(group)
                continue
            cut = group.first + places[0]
            out += [replace(group, last=cut, right="", onward=""), replace(group, first=cut + 1, left="")]
        return out

    # ---------------------------------------------------------------------------------------------- statuses
    @cached_property
    def ordered(self) -> bool:
        """Whether the clause orders something instead of telling what was done."""
        return self.text.ordered(self.sentence, self.start)

    def status(self, index: int) -> Reason | None:
        """Why an agent counts as not given; None where nothing says so."""
        words, group, mention = load_words(), self.group_of(index), self.mentions[index]
        header, since = self.sentence.header, self.text.masked[self.sentence.start : mention.start]
        if header is not None and header != "given" and words.pattern("ends").search(since) is None:
            return header
        found = {entry.status for number, entry in enumerate(words.statuses) if self._reached(number, group, index)}
        meant = words.pattern("planned_word").search(group.left) and words.pattern("given_past").search(group.right)
        meant = meant or words.pattern("planned_changed").search(group.right)
        order: tuple[Reason, ...] = ("instruction", "negated", "allergy", "previous", "planned")
        for reason in order:
            if reason in found and not (reason == "planned" and meant):
                return reason
        after, before = self.text.masked[mention.end :][:60], self.text.masked[: mention.start][-60:]
        seen_after, seen_before = words.pattern("roles.observed_after"), words.pattern("roles.observed_before")
        return "observed" if seen_after.search(after) or seen_before.search(before) else None

    def _reached(self, number: int, group: Group, index: int) -> bool:
        entry = load_words().statuses[number]
        if entry.reach == "order":
            return self.ordered
        if entry.reach == "onward":
            place = self.mentions[index].start - self.start
            return any(begin < place < end for begin, end in self._scopes.get(number, ()))
        if entry.reach == "back":
            ended = load_words().pattern("clause_end").search(group.onward)
            clause = group.onward[: ended.end()] if ended else group.onward
            return any(not _excluded(entry, clause[: m.start()]) for m in entry.cue.finditer(clause))
        joined = load_words().pattern("coordinator")
        if entry.reach == "next":
            if not any(
                load_words().pattern("fill").fullmatch(group.left[m.end() :]) for m in entry.cue.finditer(group.left)
            ):
                return self._between(entry, group, index)
            return all(joined.search(gap) for gap in self.gaps[group.first : index])
        done = load_words().pattern("given_before_last")
        for match in entry.cue.finditer(group.onward):
            if not done.search(group.onward[: match.start()]):
                return all(joined.search(gap) for gap in self.gaps[index : group.last])
        return False

    def _between(self, entry: StatusCues, group: Group, index: int) -> bool:
        """A cue inside a group: "epirubicin without lipiodol"."""
        fill, joined = load_words().pattern("fill"), load_words().pattern("coordinator")
        for start in range(index, group.first, -1):
            gap = self.gaps[start - 1]
            if any(fill.fullmatch(gap[m.end() :]) for m in entry.cue.finditer(gap)):
                return all(joined.search(gap) for gap in self.gaps[start:index])
        return False

    @cached_property
    def _scopes(self) -> dict[int, list[tuple[int, int]]]:
        """Where each `onward` entry of the statuses reaches in the clause, by its position in the file."""
        words, masked = load_words(), self.masked
        scopes: dict[int, list[tuple[int, int]]] = {}
        for number, entry in enumerate(words.statuses):
            for match in entry.cue.finditer(masked) if entry.reach == "onward" else ():
                if _excluded(entry, masked[: match.start()]):
                    continue
                ends = [words.pattern("ends").search(masked, match.end()), entry.stop(masked, match.end())]
                reach = min((end.start() for end in ends if end is not None), default=len(masked))
                if words.pattern("opening").search(masked[: match.end()]) and "," in masked[match.end() : reach]:
                    reach = masked.index(",", match.end())
                scopes.setdefault(number, []).append((match.start(), max(reach, match.end())))
        return scopes

    # ------------------------------------------------------------------------------------------------- roles
    def told(self, index: int) -> bool:
        """Whether the clause says that something was done with an agent, or is a bare list."""
        group = self.group_of(index)
        if group.mixed or group.bound or self._bare or _cue(self._context(group)):
            return True
        # "A was infused, then B": what was done with A is done with B
        before = group.first - 1
        if before < 0 or not load_words().pattern("elided").fullmatch(group.left):
            return False
        return self.status(before) is None and self.told(before)

    @cached_property
    def _bare(self) -> bool:
        """Whether nothing but agents, amounts and words of a list stand in the clause."""
        content = self.masked.partition(":")[2] if ":" in self.masked else self.masked
        return load_words().pattern("roles.bare").fullmatch(re.sub(f"{AGENT}+", "", content)) is not None

    def role(self, index: int, given: Sequence[int]) -> tuple[Role | None, bool, bool]:
        """How an agent was given.

        Args:
            index: The agent's position.
            given: Positions of the agents of the clause that were given.

        Returns:
            Role, whether it is loaded on beads, and whether the words are only "given" or the like.
        """
        words, group, mention = load_words(), self.group_of(index), self.mentions[index]
        context = self._context(group)
        emulsion = words.pattern("roles.emulsified").search(context) is not None
        mates = [self.mentions[i] for i in given if group.first <= i <= group.last]
        here = [self.mentions[i] for i in given]
        item = Formulary.load("all_known").item(mention.name)
        if item.kind == "embolic" and item.item_class != "oil":
            return "embolised", False, False
        if item.kind == "embolic":
            with_drug = group.mixed or (any(m.kind == "drug" for m in mates) and not self._only_listed(group, context))
            apart = words.pattern("roles.infused").search(context) and not emulsion and not group.mixed
            return ("emulsified" if emulsion or (with_drug and not apart) else "embolised"), False, False
        infused = words.pattern("roles.infused").search(context) is not None
        with_oil = group.mixed or (any(m.name == OIL for m in mates) and not self._only_listed(group, context))
        with_beads = any(m.name == BEADS for m in here)
        if group.bound or (with_beads and words.pattern("roles.bound").search(context) and not emulsion):
            return "embolised", True, False
        mixed = group.mixed or (with_oil and words.pattern("roles.mixed").search(context))
        if emulsion or mixed or (with_oil and not infused):
            return "emulsified", False, False
        if infused:
            return "infused", False, False
        if with_beads:
            return "embolised", True, False
        return ("infused" if words.pattern("roles.given").search(context) else None), False, True

    def _only_listed(self, group: Group, context: str) -> bool:
        """Whether agents stand in a list with commas, and nothing says what was done with them."""
        gaps = "".join(self.gaps[group.first : group.last])
        return not _cue(context) and load_words().pattern("together").search(gaps) is None

    def _context(self, group: Group) -> str:
        """The words that a group's role is read in: its own clause, not what was done before or after."""
        return self._contexts[self._group_numbers[group.first]]

    @cached_property
    def _contexts(self) -> tuple[str, ...]:
        ends = load_words().pattern("act_end")
        parts = []
        for group in self.groups:
            right = ends.split(group.right, maxsplit=1)[0]
            parts.append(f"{group.left} {' '.join(self.gaps[group.first : group.last])} {right}")
        return tuple(parts)


def _cue(context: str) -> bool:
    """Whether words of giving stand there."""
    return load_words().acts.search(context) is not None


def _excluded(entry: StatusCues, before: str) -> bool:
    return entry.excluded is not None and entry.excluded.search(before) is not None


def _joined_by(group: Group, kind: Literal["mixed", "bound"]) -> Group:
    return replace(group, mixed=True) if kind == "mixed" else replace(group, bound=True)
