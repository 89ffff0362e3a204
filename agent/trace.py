"""Trace: every tool call, policy answer and node decision of a run, as typed records in the checkpointed state.

`trace.jsonl` is exported from that state, so it can't disagree with it. Ids are ``<number>-<node>-<hash of the
inputs>``: the same run gives the same ids, and a resumed run continues the numbers, so no decision is there twice.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from agent.files import write_text
from agent.policy import Answer
from agent.spans import mark
from models.errors import BackendError, RunError

TIMING_FIELDS = ("seconds", "time", "from_cache")
"""Fields that may differ between a broken-and-resumed run and an unbroken one."""

Result = TypeVar("Result", bound=BaseModel)
AnswerT = TypeVar("AnswerT", bound=Answer)


class Decision(BaseModel):
    """One traced step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decision_id: str
    step: int = Field(ge=0, description="number of the decision in the run, from 0")
    node: str
    kind: Literal["node", "tool", "policy"]
    inputs_hash: str = Field(description="SHA-256 over the canonical JSON of the inputs")
    tool: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict, description="the inputs, long lists shortened")
    result: dict[str, Any] = Field(default_factory=dict, description="what came out, in short")
    reason: str
    seconds: float = Field(ge=0)
    from_cache: int | None = Field(default=None, description="outcomes that a tool found already computed")
    requests: int = Field(default=0, ge=0, description="requests to language models, failed ones included")
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = Field(default=None, description="list price; None where no price is known")
    failures: tuple[str, ...] = Field(default=(), description="failed attempts of a language model, in order")
    reasoning: str | None = None
    seed: int | None = None
    weights_hash: str | None = None
    prompt_id: str | None = None
    prompt_hash: str | None = None
    backend: str | None = None
    model: str | None = Field(default=None, description="the model that answered, as its endpoint names it")
    time: str = Field(description="UTC, ISO 8601")


def plain(value: object) -> object:
    """`value` as what JSON holds: models as objects, tuples as lists."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(inner) for inner in value]
    return value


def content_hash(value: object) -> str:
    """SHA-256 over the canonical JSON of `value`."""
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def short(value: object, longest: int = 12) -> Any:
    """`value` for reading: of a long list the first items and the number of all."""
    value = plain(value)
    if isinstance(value, dict):
        return {key: short(inner, longest) for key, inner in value.items()}
    if isinstance(value, list):
        head = [short(inner, longest) for inner in value[:longest]]
        return head if len(value) <= longest else [*head, f"... {len(value)} in all"]
    return value


class Recorder:
    """Collects the decisions of one node execution; the node returns them with its update."""

    def __init__(self, node: str, first: int, seed: int | None, weights_hash: str | None) -> None:
        """Args: first: number of decisions already in the state."""
        self.node = node
        self.first = first
        self.seed = seed
        self.weights_hash = weights_hash
        self.decisions: list[Decision] = []
        self._started = time.perf_counter()

    def add(self, kind: Literal["node", "tool", "policy"], inputs: object, reason: str, **fields: Any) -> Decision:
        """Append a decision. `inputs` is hashed whole; `fields` are further fields of `Decision`."""
        digest = content_hash(inputs)
        step = self.first + len(self.decisions)
        decision = Decision(
            decision_id=f"{step:04d}-{self.node}-{digest[:8]}",
            step=step,
            node=self.node,
            kind=kind,
            inputs_hash=digest,
            reason=reason,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            **{"seed": self.seed, "weights_hash": self.weights_hash, **fields},
        )
        self.decisions.append(decision)
        mark(decision)
        return decision

    def answered(self, question: str, inputs: object, answer: AnswerT, seconds: float, reason: str) -> AnswerT:
        """Append a policy's answer with its provenance; returns the answer."""
        source = answer.provenance
        self.add(
            "policy",
            {"question": question, "inputs": inputs},
            reason,
            arguments={"question": question},
            result=short(answer.model_dump(mode="json", exclude={"provenance"})),
            seconds=seconds,
            **(source.model_dump(exclude={"notes"}) if source else {}),
        )
        return answer

    def failed(
        self,
        question: str,
        inputs: object,
        policy: str,
        prompt: tuple[str, str] | None,
        error: BackendError,
        seconds: float,
    ) -> None:
        """Append that a policy gave no answer, with every attempt and what they cost."""
        self.add(
            "policy",
            {"question": question, "inputs": inputs},
            f"{policy}: no answer: {error}",
            arguments={"question": question},
            seconds=seconds,
            backend=policy,
            prompt_id=prompt[0] if prompt else None,
            prompt_hash=prompt[1] if prompt else None,
            requests=error.requests,
            input_tokens=error.input_tokens,
            output_tokens=error.output_tokens,
            cost_usd=error.cost_usd,
            failures=error.failures,
        )

    def close(self, inputs: object, result: Mapping[str, object], reason: str) -> list[Decision]:
        """Append the node's own decision and return all of this execution."""
        seconds = time.perf_counter() - self._started
        self.add("node", inputs, reason, result=short(result), seconds=seconds)
        return self.decisions


def write_trace(decisions: Sequence[Decision], path: Path) -> None:
    """Write `trace.jsonl`, one decision per line in order, each id once.

    Raises:
        RunError: the file can't be written.
        ValueError: two decisions have one id (a bug: the state must never hold a decision twice).
    """
    ids = [decision.decision_id for decision in decisions]
    if repeated := sorted({name for name in ids if ids.count(name) > 1}):
        msg = f"the trace holds a decision twice: {', '.join(repeated)}"
        raise ValueError(msg)
    write_text(path, "".join(decision.model_dump_json() + "\n" for decision in decisions))


def read_trace(path: Path) -> list[Decision]:
    """Read a `trace.jsonl`.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [Decision.model_validate_json(line) for line in lines]
    except (OSError, ValueError) as exc:
        raise RunError(f"The trace {path} can't be read ({exc}): export it again with `mewm resume`.") from exc
