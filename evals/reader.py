"""Reader study (`mewm eval reader`): what a physician would give before and after seeing the plan.

The paper's headline is such a study (its Table 2, "Physician w/ Pre-CT" and "Physician w/ MeWM", and Figure 7). `make`
writes a form from the finished plans of an evaluation; the first answer is locked before the plan is shown. The filled
forms are scored by `evals.reader_score`.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from agent.plan import Plan, read_plan
from agent.report.slices import LIVER_WINDOW
from agent.report.text import number, paragraphs
from evals.datasets import EvalCase, load_dataset
from evals.results import CaseRow, EvalRun, ResultModel, inside, read_run
from evals.slices import FIELD_MM, axial_png, tumour_levels
from evals.study import read_form_rows, read_study_key, refuse_taken, write_study
from models.case import Case
from models.errors import InputError
from models.formulary import Formulary
from models.protocol import Protocol
from tools.rule_facts import known_agents

COLUMNS = ("case", "before", "after", "comment")


class ReaderCase(ResultModel):
    """A case of the study; gold is not for the readers."""

    case: str = Field(description="as the form calls it")
    case_id: str
    plan: Protocol
    gold: dict[str, Protocol]


class Key(ResultModel):
    """Content of `key.json`; not for the readers."""

    format_version: Literal[1] = 1
    seed: int
    planned_by: str
    data: str
    actions: str = Field(description="action set of gold")
    offered: str = Field(description="action set that the form offers")
    cases: tuple[ReaderCase, ...]


class Answers(NamedTuple):
    """What a reader gave for one case."""

    before: Protocol
    after: Protocol


def make_reader(run_folder: Path, out: Path, *, limit: int | None = None, seed: int = 0) -> Key:
    """Write form and key.

    Args:
        run_folder: An evaluation of stage ``plan``.
        out: New folder.
        limit: Most cases; which ones is drawn.
        seed: Of the choice and the order.

    Raises:
        InputError: a folder that holds something already, no finished plan, or data that have changed since.
        RunError: no evaluation there.
    """
    refuse_taken(out)
    run = read_run(run_folder)
    rows = [row for row in run.rows if row.epoch == 1 and row.own.protocol is not None and row.trace is not None]
    if run.spec.stage != "plan" or not rows:
        raise InputError(
            f"The evaluation in {run_folder} has no finished plan: make one with `mewm eval run --stage plan`."
        )
    rng = np.random.default_rng(seed)
    rows = [rows[i] for i in rng.permutation(len(rows))[:limit]]
    cases = _dataset_cases(run)
    width = max(2, len(str(len(rows))))
    names = [f"{place:0{width}d}" for place in range(1, len(rows) + 1)]
    shown = [_shown(name, row, cases[row.case_id], run.folder) for name, row in zip(names, rows, strict=True)]
    entries = tuple(
        ReaderCase(case=name, case_id=row.case_id, plan=row.own.protocol or Protocol(), gold=row.gold)
        for name, row in zip(names, rows, strict=True)
    )
    spec = run.spec
    key = Key(
        seed=seed, planned_by=spec.label, data=f"{spec.dataset} {spec.dataset_version}, {spec.data_origin} patients",
        actions=spec.actions, offered=spec.settings.actions, cases=entries,
    )  # fmt: skip
    formulary = Formulary.load(key.offered)
    write_study(
        out, "reader", key, COLUMNS, names, cases=shown, drugs=[item.name for item in formulary.drugs],
        embolics=[item.name for item in formulary.embolics], data=key.data, window=LIVER_WINDOW, field_mm=FIELD_MM,
    )  # fmt: skip
    return key


def _dataset_cases(run: EvalRun) -> dict[str, EvalCase]:
    spec = run.spec
    data = load_dataset(
        spec.dataset, seed=spec.seed, limit=spec.limit, tier=spec.tier,
        data=None if spec.data is None else Path(spec.data),
        clinical=None if spec.clinical is None else Path(spec.clinical), strict=spec.settings.strict,
        profile=spec.settings.profile,
    )  # fmt: skip
    if data.content_hash != spec.dataset_hash:
        raise InputError(
            f"The data of {run.folder} have changed since it was evaluated ({data.content_hash[:12]}, then "
            f"{spec.dataset_hash[:12]}): evaluate them again first."
        )
    # a run of stage `plan` counts its limit over the cases with images: they may lie beyond the dataset's first rows
    return {case.case_id: case for case in data.pool}


def _shown(name: str, row: CaseRow, case: EvalCase, folder: Path) -> dict[str, object]:
    """What the form shows of a case: pictures and record before, the plan after."""
    with case.opened() as path:
        stored = Case.load(path, verify=False)
        volume, labels = stored.volume(), stored.label_array()
    pictures = [axial_png(volume, point) for point in tumour_levels(labels, volume.affine)]
    plan = read_plan(inside(folder, str(Path(row.trace or "").parent / "plan.json")))
    return {
        "name": name,
        "pictures": [base64.b64encode(png).decode() for png in pictures],
        "record": [(label, f"{value} {unit}".strip()) for label, value, unit in case.record.to_display()],
        "plan": plan,
        "rationale": paragraphs(plan.explanation),
        "finalists": _finalists(plan),
    }


def _finalists(plan: Plan) -> list[tuple[str, str, str, str]]:
    """Protocol, log-risk with interval, mRECIST change and predicted median survival of the best protocols."""
    rows = []
    for finalist in plan.finalists[:3]:
        a = finalist.assessed
        span = a.objective.interval
        risk = number(a.objective.mean, 2) + (f" [{number(span[0], 2)}, {number(span[1], 2)}]" if span else "")
        change = a.response.mrecist_change_percent
        months = a.median_survival_months
        rows.append((
            a.key, risk, "not evaluable" if change is None else f"{number(change.mean, 0, signed=True)} %",
            "not reached" if months is None else f"{number(months, 0)} months",
        ))  # fmt: skip
    return rows


def read_key(path: Path) -> Key:
    """Read a key, given as file or as the folder that `make_reader` wrote.

    Raises:
        InputError: it is missing or damaged.
    """
    return read_study_key(path, Key, "mewm eval reader make")


def read_form(path: Path, key: Key) -> dict[str, Answers]:
    """The answers of one reader by case; cases without both answers are left out.

    A protocol is written as ``Cisplatin + Doxorubicin | Lipiodol`` in any known spelling, ``-`` for no agent.

    Raises:
        InputError: not a form, an unknown case or agent, or a case twice.
    """
    known = {entry.case for entry in key.cases}
    answers: dict[str, Answers] = {}
    for line, row in enumerate(read_form_rows(path), start=2):
        if any(row.get(column) is None for column in COLUMNS[:3]):
            raise InputError(f"The form {path} needs the columns case, before and after; line {line} lacks one.")
        # a spreadsheet turns 01 into 1
        name = row["case"].strip().zfill(len(key.cases[0].case))
        if name not in known:
            raise InputError(f"The form {path} names case '{row['case']}' in line {line}; the key has no such one.")
        if name in answers:
            raise InputError(f"The form {path} answers case {name} twice (line {line}).")
        if not row["before"].strip() or not row["after"].strip():
            continue
        answers[name] = Answers(*(_protocol(row[side], path, line) for side in ("before", "after")))
    if not answers:
        raise InputError(f"The form {path} holds no complete answer: fill in before and after for every case.")
    return answers


def _protocol(text: str, path: Path, line: int) -> Protocol:
    if text.strip() in ("-", "- | -"):
        return Protocol()
    try:
        return known_agents().parse(text)
    except InputError as exc:
        raise InputError(f"The form {path} can't be read in line {line}: {exc}") from exc
