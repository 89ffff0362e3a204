"""Results: what an evaluation run is (`run.json`), and the typed row of every case, read back from the inspect logs.

run.json            what is evaluated and how; a run is continued only under the same conditions
card.md             the dataset's data card
logs/*.eval         inspect_ai's log; every sample's score carries the row of its case
cases/<case>/       baselines.json
cases/<case>/<n>/   epoch n of the case: answer.json, and the planner's run folder with plan.json and trace.jsonl
report.md, report.html, report.json
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.settings import PlannerSettings
from evals.metrics import ProtocolScore, Reachability, Violations
from evals.regret import Regret
from models.errors import InputError, RunError
from models.protocol import Protocol

FORMAT_VERSION = 1
SPEC_FILE, LOGS, CARD = "run.json", "logs", "card.md"
CASES, ANSWER, BASELINES = "cases", "answer.json", "baselines.json"
SCORER = "judge"

Stage = Literal["propose", "plan"]
Status = Literal["answered", "degraded", "blocked", "limit", "failed", "no_image"]
STATUS_TEXT: dict[Status, str] = {
    "answered": "valid answer",
    "degraded": "the backend failed and the embedded policy stood in; counted as no answer",
    "blocked": "the rules allow nothing that was tried: no answer",
    "limit": "stopped at a limit of time, tokens or tool calls: no answer",
    "failed": "an error; run again on resume, until then no answer",
    "no_image": "no image, so nothing to simulate on: no answer",
}


def inside(folder: Path, name: str) -> Path:
    """A file that a result names, which lies in the folder of the evaluation: a log may come from somebody else.

    Raises:
        InputError: it lies elsewhere.
    """
    found = (folder / name).resolve()
    if not found.is_relative_to(folder.resolve()):
        raise InputError(f"The results in {folder} name the file {name}, outside that folder: they are damaged.")
    return found


class ResultModel(BaseModel):
    """Base of what is stored: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(ResultModel):
    """What one case may use; None is no limit."""

    seconds: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1, description="read and written, of all language models together")
    tool_calls: int | None = Field(default=None, ge=1)


class RunSpec(ResultModel):
    """Content of `run.json`. Two runs with equal `conditions` measure the same thing."""

    format_version: Literal[1] = 1
    created: str
    dataset: str
    dataset_version: str
    dataset_hash: str
    data_origin: Literal["synthetic", "real"]
    actions: str = Field(description="action set of gold and answers")
    rows: int = Field(description="rows or patients that the dataset looked at")
    no_image: int = Field(description="cases with gold that are not planned because they have no image")
    seed: int = Field(description="of the dataset; the planner's seeds follow from settings.seed and the epoch")
    limit: int | None
    tier: str | None
    data: str | None = Field(description="folder or file of a dataset that is not generated")
    clinical: str | None = Field(description="clinical table of a dataset that has one")
    stage: Stage
    backend: str = Field(description="who the policy is: guideline or a backend's name")
    prompts: str | None
    prompts_hash: str | None
    epochs: int = Field(ge=1)
    settings: PlannerSettings
    parts_off: tuple[str, ...] = Field(default=(), description="parts of the method that are switched off")
    weights: str | None = Field(default=None, description="weight bundle; None is the shipped one")
    limits: Limits = Limits()
    baselines: tuple[str, ...] = ()
    keep: bool = Field(default=False, description="reports and volumes of every plan are kept")
    conditions: dict[str, str] = Field(description="weights, device, precision, rules, models: name -> value")

    @property
    def label(self) -> str:
        """Short name of what is evaluated, for tables."""
        name = "MeWM planner" if self.stage == "plan" else "policy before any simulation"
        strategy = f", {self.settings.strategy}" if self.stage == "plan" and self.settings.strategy != "beam" else ""
        prompts = f", prompts {Path(self.prompts).name}" if self.prompts else ""
        off = f", without {' and '.join(self.parts_off)}" if self.parts_off else ""
        return f"{name} ({self.backend}{prompts}{strategy}{off})"

    def differences(self, other: RunSpec) -> list[tuple[str, str, str]]:
        """Where another spec measures something else: name, value here, value there; empty where a run can go on."""
        found: list[tuple[str, str, str]] = []
        for name in type(self).model_fields:
            one, two = getattr(self, name), getattr(other, name)
            if name in ("created", "keep") or one == two:
                continue
            if isinstance(one, BaseModel):
                one, two = one.model_dump(exclude=_STATED), two.model_dump(exclude=_STATED)
            if isinstance(one, Mapping):
                keys = [key for key in dict.fromkeys((*one, *two)) if one.get(key) != two.get(key)]
                found += [(key.replace("_", " "), _brief(one.get(key)), _brief(two.get(key))) for key in keys]
            else:
                found.append((name.replace("_", " "), _brief(one), _brief(two)))
        return found


_STATED = {"policy_llm", "prompts"}
"""Settings that the spec holds itself, as `backend` and `prompts`."""


def _brief(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "none"
    text = "none" if value is None else str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text


class NodeUse(ResultModel):
    """What one node of the graph used; whole numbers for a case, means over cases in a report.

    `cost_usd` is None where a model's price is not known.
    """

    seconds: float = 0.0
    requests: float = 0
    input_tokens: float = 0
    output_tokens: float = 0
    cost_usd: float | None = None
    tool_calls: float = 0
    simulations: float = 0


class Usage(ResultModel):
    """What one case used. `cost_usd` is None where a model's price is not known."""

    seconds: float = 0.0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = 0.0
    tool_calls: int = 0
    simulations: int = 0
    by_node: dict[str, NodeUse] = Field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Read and written."""
        return self.input_tokens + self.output_tokens


class SimulatedRisk(ResultModel):
    """The planner's estimate for one protocol (log hazard), and the true one where it is known."""

    protocol: str
    simulated: float
    se: float | None
    true: float | None = None


class RiskCurve(ResultModel):
    """The plan's survival curve at one log-risk; those at other log-risks follow from it (proportional hazards)."""

    log_risk: float
    months: tuple[float, ...]
    survival: tuple[float, ...]


class Answer(ResultModel):
    """What the agent answered to one case in one epoch; kept as `answer.json`, so that it is asked once."""

    case_id: str
    epoch: int = Field(ge=1)
    status: Status
    why: str | None = Field(default=None, description="why there is no answer, or why the plan is degraded")
    protocol: Protocol | None = Field(default=None, description="as answered, also where it does not count")
    space: tuple[str, ...] | None = Field(default=None, description="agents that the policy found worth trying")
    risks: tuple[SimulatedRisk, ...] = ()
    curve: RiskCurve | None = Field(default=None, description="of the chosen protocol; None without a baseline")
    given_risk: float | None = Field(
        default=None, description="simulated log-risk of the protocol really given; None where no survival is known"
    )
    usage: Usage = Usage()
    alone: Protocol | None = Field(default=None, description="the vision-language model's own answer, without a plan")
    alone_status: Literal["not_run", "answered", "invalid"] = "not_run"
    alone_why: str | None = Field(default=None, description="why that answer is invalid")
    alone_unknown: tuple[str, ...] = Field(default=(), description="names in it that the action set does not hold")
    alone_usage: Usage | None = Field(default=None, description="what that answer used, beside `usage`")
    alone_trace: str | None = Field(default=None, description="its trace.jsonl, as `trace`")
    trace: str | None = Field(default=None, description="trace.jsonl, relative to the evaluation's folder")


class BaselineAnswer(ResultModel):
    """What one baseline says to a case. One that learns gold has another answer for every gold variant."""

    label: str
    protocols: dict[str, Protocol | None] = Field(description="by gold variant; None where the rules leave nothing")


class BaselineAnswers(ResultModel):
    """What all baselines say to a case, and why some say nothing; kept as `baselines.json`."""

    answers: dict[str, BaselineAnswer]
    not_run: dict[str, str]


def said(protocol: Protocol | None, unknown: tuple[str, ...]) -> Protocol | list[str] | None:
    """Everything that was answered, as scores take it: a protocol, or with unknown names beside it all names."""
    return [*(protocol.items if protocol else ()), *unknown] if unknown else protocol


class Entry(ResultModel):
    """One contestant's protocol for one case, judged."""

    protocol: Protocol | None
    unknown: tuple[str, ...] = Field(default=(), description="names outside the action set that were answered with it")
    scores: dict[str, ProtocolScore] = Field(description="by gold variant")
    regret: Regret | None = Field(description="None where the truth is not known")
    violations: Violations | None = Field(description="None where there is no protocol")


class BaselineEntry(ResultModel):
    """One baseline's answers to one case, judged: an entry for every gold variant, with the score on that variant."""

    label: str
    by_variant: dict[str, Entry]


class Space(ResultModel):
    """The action space that the policy proposed."""

    items: tuple[str, ...]
    gold_recall: dict[str, float]
    best_recall: float | None = Field(description="share of the agents of the truly best protocol")
    best_within: float | None = Field(description="smallest regret that a search over this space could reach")


class Survival(ResultModel):
    """What became of the patient under the protocol really given."""

    months: float
    died: bool


class CaseRow(ResultModel):
    """One case in one epoch with everything that is reported of it."""

    case_id: str
    epoch: int
    tier: str | None
    status: Status
    why: str | None
    gold: dict[str, Protocol]
    given: Protocol | None
    best: Protocol | None = Field(description="the truly best allowed protocol, where it is known")
    reachable: dict[str, Reachability]
    own: Entry = Field(description="what counts: a degraded plan is an empty answer here")
    fallback: Entry | None = Field(description="the protocol of a degraded plan")
    alone: Entry | None = Field(description="the vision-language model without a world model; None where not run")
    baselines: dict[str, BaselineEntry]
    not_run: dict[str, str] = Field(description="baselines without an answer on this data, and why")
    space: Space | None = Field(description="what counts: empty where the backend or the run failed")
    fallback_space: Space | None = Field(default=None, description="the action space of a degraded plan")
    risks: tuple[SimulatedRisk, ...]
    curve: RiskCurve | None = None
    given_risk: float | None = None
    survival: Survival | None
    usage: Usage
    alone_why: str | None = Field(default=None, description="why the model alone has no answer that can be used")
    alone_usage: Usage | None = None
    alone_trace: str | None = None
    trace: str | None


@dataclass(frozen=True)
class EvalRun:
    """An evaluation as it was read back."""

    folder: Path
    spec: RunSpec
    rows: tuple[CaseRow, ...]
    complete: bool
    log: Path

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Cases in the order of the dataset, each once."""
        return tuple(dict.fromkeys(row.case_id for row in self.rows))

    @property
    def variants(self) -> tuple[str, ...]:
        """Gold variants, in the order of the dataset."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.gold))

    def entries(self, who: str, variant: str) -> list[tuple[CaseRow, Entry]]:
        """All entries of one contestant: ``own``, ``fallback``, ``alone`` or a baseline's name.

        With ``fallback`` a case whose plan was not degraded has its own entry: the whole table as if the embedded
        policy's answers counted.
        """
        found = []
        for row in self.rows:
            if who == "own":
                entry: Entry | None = row.own
            elif who == "fallback":
                entry = row.fallback or row.own
            elif who == "alone":
                entry = row.alone
            else:
                entry = row.baselines[who].by_variant.get(variant) if who in row.baselines else None
            if entry is not None:
                found.append((row, entry))
        return found

    @property
    def contestants(self) -> tuple[str, ...]:
        """Who can be compared, the agent first."""
        names = ["own"]
        if any(row.fallback is not None for row in self.rows):
            names.append("fallback")
        if any(row.alone is not None for row in self.rows):
            names.append("alone")
        return (*names, *dict.fromkeys(name for row in self.rows for name in row.baselines))


def safe_folder(name: str) -> str:
    """A case id as a folder name; ids that differ stay different."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}", name):
        return name
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60]
    return f"{text or 'case'}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def read_spec(folder: Path) -> RunSpec:
    """Read the `run.json` of an evaluation.

    Raises:
        RunError: there is none, or it is damaged or of another format version.
    """
    path = folder / SPEC_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"There is no evaluation in {folder}: give a folder that `mewm eval run` made.") from None
    except (OSError, ValueError) as exc:
        raise RunError(f"The file {path} can't be read ({exc}): start a new evaluation.") from exc
    found = data.get("format_version") if isinstance(data, dict) else None
    if found != FORMAT_VERSION or "dataset" not in data:
        raise RunError(
            f"{folder} holds no evaluation that this program reads (format version {found}): give a folder that "
            "`mewm eval run` made."
        )
    try:
        return RunSpec.model_validate(data)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RunError(f"The file {path} is damaged ({where}: {first['msg']}): start a new evaluation.") from exc


def read_run(folder: Path) -> EvalRun:
    """Read an evaluation from its logs.

    Where several logs are there (a run that was stopped), the newest complete one counts, else the newest.

    Raises:
        RunError: no evaluation there, no log yet, or a log that can't be read.
    """
    spec = read_spec(folder)
    logs = sorted((folder / LOGS).glob("*.eval"))
    if not logs:
        raise RunError(f"The evaluation in {folder} has no log yet: go on with `mewm eval resume {folder}`.")
    from inspect_ai.log import read_eval_log

    headers = []
    for path in logs:
        try:
            headers.append((path, read_eval_log(str(path), header_only=True)))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            # a log that a kill cut off; its cases are in answer.json
            continue
    if not headers:
        raise RunError(f"No log in {folder / LOGS} can be read: go on with `mewm eval resume {folder}`.")
    done = [path for path, header in headers if header.status == "success"]
    path = (done or [path for path, _ in headers])[-1]
    rows = _rows(read_eval_log(str(path)).samples or [], path)
    return EvalRun(folder, spec, rows, complete=bool(done), log=path)


def _rows(samples: Sequence[Any], path: Path) -> tuple[CaseRow, ...]:
    rows = []
    for sample in samples:
        score = (sample.scores or {}).get(SCORER)
        if score is None or not score.metadata or "row" not in score.metadata:
            continue  # cancelled before it was judged
        try:
            rows.append((sample.metadata.get("position", 0), CaseRow.model_validate(score.metadata["row"])))
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise RunError(
                f"The log {path} was written by another version of this program ({where} does not fit): run it again."
            ) from exc
    return tuple(row for _, row in sorted(rows, key=lambda pair: (pair[0], pair[1].epoch)))
