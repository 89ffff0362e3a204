"""Goal: what the person asked for in words, and what that changes in the search's objective.

The objective of a protocol is ``tumour * tumour_log_risk + toxicity * toxicity_log_risk + size * mrecist_change /
100``; a goal sets the three weights. Patterns, weights and notes are data (`goals.yaml`).
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict, Field

DEFAULT_GOAL = "default"


class GoalWeights(BaseModel):
    """Weights of the objective; all 0 or more. The default objective is the mortality risk: 1, 1, 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tumour: float = Field(default=1.0, ge=0)
    toxicity: float = Field(default=1.0, ge=0)
    size: float = Field(default=0.0, ge=0)


class Goal(BaseModel):
    """An interpreted goal. `note` is the sentence that the plan shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    names: tuple[str, ...] = Field(
        description="Recognised goals in the order of goals.yaml; ('default',) when there is none"
    )
    not_wanted: tuple[str, ...] = Field(default=(), description="Goals that the text names only to rule them out")
    understood: bool
    weights: GoalWeights
    note: str

    @property
    def name(self) -> str:
        """The recognised goals in one word, joined by ``+``."""
        return "+".join(self.names)

    def objective(
        self, tumour_log_risk: float, toxicity_log_risk: float, mrecist_change_percent: float | None
    ) -> float:
        """Objective of one outcome, lower is better.

        Args:
            tumour_log_risk: What the survival network says, log-risk.
            toxicity_log_risk: The fixed toxicity term, log-hazard.
            mrecist_change_percent: Change of the summed viable diameters, percent (-100 is gone); None when not
                evaluable: then size gets no weight. The scan before treatment alone decides that, so it is so for every
                outcome of a case or for none, and `agent.assess.goal_reading` says it in the plan.

        Returns:
            The weighted sum, no unit.
        """
        value = self.weights.tumour * tumour_log_risk + self.weights.toxicity * toxicity_log_risk
        if mrecist_change_percent is not None:
            value += self.weights.size * mrecist_change_percent / 100.0
        return value


class _GoalEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    label: str
    weights: GoalWeights
    note: str
    patterns: tuple[re.Pattern[str], ...]


class _Negation(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    reach: int
    words: tuple[str, ...]
    exceptions: tuple[str, ...]
    clause_ends: tuple[str, ...]


class _Default(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: GoalWeights
    empty: str
    not_understood: str


class _GoalTable(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    default: _Default
    negation: _Negation
    goals: tuple[_GoalEntry, ...]


@lru_cache(maxsize=1)
def _table() -> _GoalTable:
    return _GoalTable.model_validate(yaml.safe_load(files("agent").joinpath("goals.yaml").read_text(encoding="utf-8")))


def _plain(text: str) -> str:
    """Lower case, no apostrophes or hyphens inside words ("don't" -> "dont", "down-stage" -> "downstage")."""
    text = re.sub(r"(?<=\w)['’‑-](?=\w)", "", text.lower())
    # "side-effects" and "liver-sparing" are two words in the patterns; joining them would hide the words.
    text = re.sub(r"\b(side|liver|hepatic|well|best)(effects?|sparing|friendly|preserving|tolerated)\b", r"\1 \2", text)
    return re.sub(r"\bdown (stag|siz)", r"down\1", re.sub(r"\s+", " ", text)).strip()


def _clause_before(text: str, start: int, ends: tuple[str, ...]) -> str:
    before = text[:start]
    cut = max((before.rfind(end) + len(end) for end in ends if end in before), default=0)
    return before[cut:]


def _negated(text: str, start: int, negation: _Negation) -> bool:
    clause = _clause_before(text, start, negation.clause_ends)
    for exception in negation.exceptions:
        clause = clause.replace(exception, "")
    near = " ".join(clause.split()[-negation.reach :])
    return any(re.search(rf"\b{re.escape(word)}\b", near) for word in negation.words)


def interpret_goal(text: str) -> Goal:
    """Read a goal text by the patterns of `goals.yaml`.

    Args:
        text: Free English text, may be empty.

    Returns:
        The goal. An empty text is the default goal and understood; a text with no known goal has the default weights,
        is not understood, and its note says so. A goal that is only negated ("do not down-stage") gets no weight and
        is listed in `not_wanted`. Several goals take the largest of each weight.
    """
    table = _table()
    plain = _plain(text)
    if not plain:
        return Goal(
            text=text, names=(DEFAULT_GOAL,), understood=True, weights=table.default.weights, note=table.default.empty
        )
    wanted: list[_GoalEntry] = []
    refused: list[_GoalEntry] = []
    for entry in table.goals:
        starts = [match.start() for pattern in entry.patterns for match in pattern.finditer(plain)]
        if any(not _negated(plain, start, table.negation) for start in starts):
            wanted.append(entry)
        elif starts:
            refused.append(entry)
    if not wanted and not refused:
        return Goal(
            text=text,
            names=(DEFAULT_GOAL,),
            understood=False,
            weights=table.default.weights,
            note=table.default.not_understood,
        )
    weights = GoalWeights(
        **{
            axis: max((getattr(entry.weights, axis) for entry in wanted), default=getattr(table.default.weights, axis))
            for axis in GoalWeights.model_fields
        }
    )
    parts = [f"{entry.label}: {entry.note}" for entry in wanted]
    parts += [f"{entry.label} is ruled out by the text and gets no weight of its own" for entry in refused]
    shown = f"tumour {weights.tumour:g}, toxicity {weights.toxicity:g}, size {weights.size:g}"
    note = f"The goal was read as {'; '.join(parts)} ({shown})."
    return Goal(
        text=text,
        names=tuple(entry.id for entry in wanted) or (DEFAULT_GOAL,),
        not_wanted=tuple(entry.id for entry in refused),
        understood=True,
        weights=weights,
        note=note,
    )
