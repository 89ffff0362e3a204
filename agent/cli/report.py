"""`mewm report`: read treatment reports."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agent.cli.options import BackendsOption, PromptsOption
from models.errors import InputError, MewmError

if TYPE_CHECKING:
    from agent.report_reading import LlmReading
    from tools.report_action import ReportReading

app = typer.Typer(no_args_is_help=True, help="Read treatment reports: what was given, and how well it worked.")

_LARGEST = 50_000_000
"""Bytes of one file: far above any collection of reports, far below what fills a memory."""


@app.callback()
def _group() -> None:
    """Keeps `extract` a command of the group while it is the only one."""


@app.command()
def extract(
    file: Annotated[str, typer.Argument(help="Text file with a report, or - for standard input.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the reading as JSON and nothing else on standard output.")
    ] = False,
    lines: Annotated[
        bool, typer.Option("--lines", help="Every line is a report; print one JSON object for each line.")
    ] = False,
    llm: Annotated[
        list[str] | None,
        typer.Option(
            help="Backend that reads instead of the word rules; give several to keep only what they agree on."
        ),
    ] = None,
    backends: BackendsOption = None,
    prompts: PromptsOption = None,
) -> None:
    """Extract agents, roles, doses, particle sizes, the level of attenuation and the core action text from a report.

    With --llm the report is sent to that backend, with dates as offsets and identifiers taken out; of people's names
    only those that the words before them announce ("patient", "performed by", "Dr").
    """
    text = _text(file)
    read = _reader(tuple(llm or ()), backends, prompts)
    if not lines:
        reading = read(text)
        if as_json:
            sys.stdout.write(reading.model_dump_json(indent=2) + "\n")
        else:
            show(reading, Console())
        return
    reports = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text.strip() else []
    if not reports:
        raise InputError(f"There is no report in {_name(file)}: with --lines every line is a report.")
    if empty := [number for number, line in enumerate(reports, start=1) if not line.strip()]:
        raise InputError(f"Line {empty[0]} of {_name(file)} is empty: with --lines every line is a report.")
    for number, line in enumerate(reports, start=1):
        try:
            reading = read(line)
        except MewmError as error:
            error.args = (f"Line {number} of {_name(file)}: {error}",)
            raise
        sys.stdout.write(reading.model_dump_json() + "\n")
        sys.stdout.flush()


def _name(file: str) -> str:
    return "standard input" if file == "-" else file


def _text(file: str) -> str:
    try:
        if file == "-":
            data = sys.stdin.buffer.read(_LARGEST + 1)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(_LARGEST + 1)
    except OSError as exc:
        raise InputError(
            f"The report {file} can't be read ({exc.strerror}): give a text file, or - for input."
        ) from exc
    if len(data) > _LARGEST:
        raise InputError(f"{_name(file)} has more than {_LARGEST // 1_000_000} MB: give a smaller text file.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InputError(f"{_name(file)} is not UTF-8 text: save it as UTF-8 and try again.") from exc


def _reader(names: tuple[str, ...], backends: Path | None, prompts: str | None) -> Callable[[str], ReportReading]:
    """What reads one report: the word rules, or language models."""
    if not names:
        if backends is not None or prompts is not None:
            raise InputError(
                "The word rules ask no backend: name one with --llm, or leave --backends and --prompts out."
            )
        from tools.extract_report import extract_report

        return extract_report
    from agent.report_reading import chains, read_report, report_prompt
    from prompts.sets import DEFAULT_SET

    asked, prompt = chains(names, backends), report_prompt(prompts or DEFAULT_SET)
    errors = Console(stderr=True)

    def read(report: str) -> ReportReading:
        found = read_report(report, asked, prompt)
        told(found, errors)
        return found.reading

    return read


def told(found: LlmReading, console: Console) -> None:
    """Print what the language models took, and their failed attempts."""
    for name, reply in found.replies.items():
        cost = "price not known" if reply.cost_usd is None else f"{reply.cost_usd:.4f} USD"
        by = name if reply.backend == name else f"{reply.backend} (for {name})"
        line = f"{by}: {reply.requests} requests, {reply.input_tokens} + {reply.output_tokens} tokens, {cost}"
        console.print(f"{line}, prompt {found.prompt_id} {found.prompt_hash[:8]}", markup=False, soft_wrap=True)
        for failure in reply.failures:
            console.print(f"  failed attempt: {failure}", markup=False, soft_wrap=True)


def show(reading: ReportReading, console: Console) -> None:
    """Print a reading as tables."""
    if reading.items:
        table = Table("agent", "role", "dose", "particles", "on", title="Given in this session")
        for item in reading.items:
            sizes = ", ".join(map(str, item.particles))
            table.add_row(item.name, item.role or "not told", str(item.dose or "-"), sizes or "-", item.bound_to or "-")
        console.print(table)
    else:
        console.print("The report does not say that anything was given.")
    if reading.not_given:
        table = Table("agent", "reason", "words", title="Named, not given")
        for named in reading.not_given:
            table.add_row(named.name, named.reason, escape(named.words))
        console.print(table)
    effect = reading.attenuation
    if effect is None:
        differs = any(each.about == "level" for each in reading.disagreements)
        console.print(f"Attenuation level: {'the readings differ' if differs else 'not stated'}")
    else:
        quotes = "; ".join(f"'{quote}'" for quote in effect.words)
        console.print(
            f"Attenuation level: {effect.level} of 4, from the {effect.sign}: {escape(quotes)}", soft_wrap=True
        )
    for each in reading.disagreements:
        values = "; ".join(f"{by}: {value}" for by, value in each.readings.items())
        console.print(f"[yellow]Disagreement[/] on {each.item or 'the session'}, {each.about}: {escape(values)}")
    for note in reading.notes:
        console.print(f"[yellow]Note[/] {escape(note)}", soft_wrap=True)
    console.print(f"Protocol: {reading.protocol}", soft_wrap=True, highlight=False)
    console.print(f"Action: {reading.action_text or '-'}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"Read by: {reading.engine}", highlight=False)
