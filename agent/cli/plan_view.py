"""How a running plan and its result look in the terminal."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from agent.events import DOING, Degraded, DepthFinished, Event, NodeStarted, ToolFinished, ToolProgress, ToolStarted
from agent.plan import Estimate, Finalist, Plan, RuleFinding
from models.clinical_survival import ClinicalRisk


class Progress:
    """Shows events on a console: one line for each finished depth, and a bar for the tool at work."""

    def __init__(self, console: Console, budget: int) -> None:
        self.console = console
        self.budget = budget
        self.bars = Bars(
            TextColumn("[progress.description]{task.description}", markup=True),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self.live = Live(self.bars, console=console, transient=True, refresh_per_second=8)
        self.task = self.bars.add_task("loading", total=None)
        self.node = ""

    def __enter__(self) -> Self:
        self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.__exit__(kind, error, trace)

    def show(self, event: Event) -> None:
        """Show one event."""
        match event:
            case NodeStarted(text=text):
                self.node = text
                self.bars.reset(self.task, description=text, total=None)
            case ToolStarted(tool=tool, items=items):
                self.bars.reset(self.task, description=f"{self.node}: {DOING.get(tool, tool)}", total=items)
            case ToolProgress(done=done, total=total):
                self.bars.update(self.task, completed=done, total=total)
            case ToolFinished(items=items):
                self.bars.update(self.task, completed=items, total=items)
            case DepthFinished():
                self.console.print(depth_line(event), highlight=False)
            case Degraded(reason=reason):
                self.console.print(Text(f"degraded: {reason}", style="yellow"), highlight=False)
            case _:
                pass


def depth_line(event: DepthFinished) -> Text:
    """One finished depth: what was tried and what leads."""
    best = event.beams[0]
    where = "all protocols" if event.phase == "protocol" else f"{event.phase} {event.depth}"
    line = Text()
    line.append(f"{where:<10}", style="bold")
    line.append(f"{event.candidates:>3} tried, {len(event.beams)} kept  ", style="dim")
    line.append(f"{best.objective:+.2f} ")
    line.append(best.protocol, style="cyan")
    line.append(f"  [{event.simulations} of {event.budget}]", style="dim")
    return line


def summary(plan: Plan, folder: Path, console: Console) -> None:
    """Print a plan for a person."""
    console.print(blocked_panel(plan) if plan.chosen is None else plan_panel(plan, plan.chosen))
    if plan.chosen is not None:
        console.print(finalist_table(plan))
        console.print(Text(plan.confidence_note, style="dim"))
    lines = [f"Goal: {plan.goal.note} {plan.goal.changed}" if plan.goal.text.strip() else plan.goal.changed]
    if plan.ties:
        lines.append(f"Can't be told apart from the chosen one: {'; '.join(plan.ties)}.")
    lines += [f"Rule {f.rule_id} ({f.strength}): {f.message}" for f in finalist_rules(plan)]
    if plan.not_evaluable:
        lines.append(f"Not evaluable: {len(plan.not_evaluable)} inputs or rules, listed in the report.")
    if plan.stopped_early:
        lines.append(plan.stopped_early)
    if plan.degraded:
        lines.append(f"Degraded: {plan.degraded_reason}")
    for line in lines:
        console.print(Text(f"- {line}"))
    origin = plan.origin
    console.print(
        Text(
            f"{plan.simulations} simulations in {plan.execution.seconds:.0f} s; {origin.simulated_how}; case: "
            f"{origin.case_origin}, models: trained on {origin.model_origin} data; policy: {origin.policy}"
            + ("." if origin.policy_is_llm else " (not a language model)."),
            style="dim",
        )
    )
    if plan.execution.llm is not None:
        console.print(Text(plan.execution.llm.sentence, style="dim"))
    for text, style in approval_lines(plan):
        console.print(Text(text, style=style))
    console.print(Text(plan.disclaimer, style="bold yellow"))
    for name in ("report", "plan"):
        if name in plan.artifacts:
            console.print(f"{name.capitalize():<7}{folder / plan.artifacts[name]}", soft_wrap=True, highlight=False)


def approval_lines(plan: Plan) -> list[tuple[str, str]]:
    """What people decided and what a what-if changed, each with its style; an override in red."""
    lines = [(f"What if: {text}. A question, not a plan for this patient.", "bold magenta") for text in plan.what_if]
    for a in plan.approvals:
        what = f": {a.after}" if a.decision == "edit" else ""
        why = f" ({a.reason})" if a.reason else ""
        done = {"approve": "approved", "edit": "edited", "reject": "rejected"}[a.decision]
        gate = "action space" if a.gate == "actions" else "plan"
        lines.append((f"{gate} {done} by {a.by}, {a.at}{what}{why}", "bold red" if a.decision == "reject" else "green"))
        if a.overridden:
            lines.append((f"Approved although rules block it: {' '.join(a.overridden)}", "bold red"))
            lines.append((f"Override reason of {a.by}: {a.override_reason}", "bold red"))
    return lines


def finalist_rules(plan: Plan) -> list[RuleFinding]:
    """Findings that fired on the chosen protocol or the patient, warnings first."""
    chosen = plan.chosen.findings if plan.chosen else ()
    fired = [f for f in (*plan.rules, *chosen) if f.status == "fired" and (f.protocol is None or f in chosen)]
    unique = {(f.rule_id, f.message): f for f in fired}
    return sorted(unique.values(), key=lambda f: (["block", "warn", "info"].index(f.strength), f.rule_id))


def plan_panel(plan: Plan, chosen: Finalist) -> Panel:
    """The chosen protocol with doses and the main figures."""
    a = chosen.assessed
    doses = Table.grid(padding=(0, 2))
    for dose in chosen.doses:
        doses.add_row(Text(dose.item, style="bold"), dose.kind, dose.text)
    lines = [
        f"Log-risk {measure(a.log_risk, 2)}: tumour {a.tumour_log_risk.mean:+.2f}, toxicity {a.toxicity_log_risk:+.2f}",
        f"Viable tumour {amount(plan.before.viable_ml, 'ml')} -> {measure(a.response.viable_ml, 1, sign=False)} ml",
    ]
    if a.response.mrecist_change_percent is not None:
        counts = ", ".join(f"{name} {n}" for name, n in a.response.mrecist_categories.items())
        lines.append(f"mRECIST {a.response.mrecist_change_percent.mean:+.0f} % ({counts} of {a.objective.n} replicas)")
    if a.median_survival_months is not None:
        lines.append(f"Median survival {a.median_survival_months:g} months by the survival model")
    if plan.clinical is not None:
        lines.append(clinical_line(plan.clinical))
    if plan.margin is not None:
        interval = plan.margin_interval
        span = f" [{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else ""
        sure = "" if plan.confidence is None else f", best in {plan.confidence:.0%} of resamples"
        lines.append(f"Margin over the runner-up {plan.margin.mean:+.3f}{span}{sure}")
    return Panel(Group(doses, *[Text(line) for line in lines]), title=Text(a.key, style="bold green"), expand=False)


def clinical_line(found: ClinicalRisk) -> str:
    """What the record alone says by the clinical model, and how good that is."""
    if found.log_risk is None or found.c_index is None:
        return f"Clinical model: not evaluable (the record lacks {', '.join(found.not_evaluable)})"
    c = found.c_index
    return (
        f"Clinical model {found.log_risk:+.2f} by the record alone, part of no risk (n = {found.n} real patients, "
        f"c-index {c.value:.2f}, {c.low:.2f} to {c.high:.2f})"
    )


def blocked_panel(plan: Plan) -> Panel:
    """Why there is no protocol."""
    rules = [Text(f"- {f.message} ({f.rule_id}; {f.source})") for f in plan.blocked_by]
    every = "the rules allow none for this patient" if plan.patient_blocked else "every one that was tried is blocked"
    if plan.rejected is not None and plan.rejected.gate == "actions":
        every = "the action space was rejected"
    head = Text(f"No protocol is proposed: {every}.")
    return Panel(Group(head, *rules), title=Text("blocked", style="bold red"), expand=False)


def finalist_table(plan: Plan) -> Table:
    """The finalists side by side."""
    n = plan.finalists[0].assessed.objective.n
    table = Table(title=f"Finalists, {n} replicas each on common seeds (± standard error)")
    table.add_column("")
    table.add_column("protocol", min_width=18)
    for name in ("objective", "viable ml", "mRECIST", "behind by"):
        table.add_column(name, justify="right", no_wrap=True)
    for place in plan.finalists:
        a = place.assessed
        change = a.response.mrecist_change_percent
        behind = "" if place.margin is None else f"{place.margin.mean:+.3f}"
        table.add_row(
            str(place.place),
            Text(a.key),
            measure(a.objective, 2),
            f"{a.response.viable_ml.mean:.1f}",
            "-" if change is None else f"{change.mean:+.0f} %",
            f"{behind} tie" if place.tied_with_chosen else behind,
        )
    return table


def measure(value: Estimate, digits: int, *, sign: bool = True) -> str:
    """Mean with its standard error over replicas."""
    mean = f"{value.mean:{'+' if sign else ''}.{digits}f}"
    return mean if value.se is None else f"{mean} ± {value.se:.{digits}f}"


def amount(value: float | None, unit: str) -> str:
    """A number with its unit, or that it is not known."""
    return "not evaluable" if value is None else f"{value:.1f} {unit}"
