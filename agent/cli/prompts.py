"""`mewm prompts`: list, show, compare and fill in the prompt sets."""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from models.errors import InputError
from prompts.loader import ROLES, Prompt, Role, prompt_sets
from prompts.sets import PromptSet, load_prompt_set

if TYPE_CHECKING:
    from agent.llm_questions import Question
    from agent.planned_questions import PlannedQuestion
    from agent.policy import Explanation

app = typer.Typer(no_args_is_help=True, help="List, show, compare and fill in the prompt sets of the language models.")

SetName = Annotated[str, typer.Argument(metavar="SET", help="Prompt set: a name, or a folder such as ./my-prompts.")]
RoleName = Annotated[Role, typer.Argument(metavar="ROLE", help=f"One of {', '.join(ROLES)}.")]


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print the sets as JSON.")] = False,
) -> None:
    """Print the shipped prompt sets: their prompts with version and content hash, and what they take from others."""
    sets = [load_prompt_set(name) for name in prompt_sets()]
    if as_json:
        json.dump([_row(one) for one in sets], sys.stdout, ensure_ascii=False, indent=2)
        sys.stdout.write("\n")
        return
    console = Console(highlight=False)
    for one in sets:
        actions = "for any action set" if one.head.actions is None else f"for the action set {one.head.actions}"
        notes = f"{one.head.source}; {actions if one.head.for_llm else 'no language model reads it'}"
        console.print(f"[bold]{one.name}[/]: {escape(one.head.title)} ({escape(notes)})", soft_wrap=True)
        for role in one.own:
            prompt = one.prompts[role]
            console.print(f"  {role:<15}{prompt.id:<34}{prompt.content_hash[:8]}", soft_wrap=True)
        for other in dict.fromkeys(one.head.takes_from.values()):
            roles = [role for role, name in one.head.takes_from.items() if name == other]
            console.print(f"  [dim]from {other}: {', '.join(roles)}[/]", soft_wrap=True)


def _row(one: PromptSet) -> dict[str, object]:
    prompts = {
        role: {
            "id": prompt.id,
            "content_hash": prompt.content_hash,
            "from": one.name if role in one.own else one.head.takes_from[role],
            "variables": prompt.head.variables,
            "output_schema": prompt.head.output_schema,
        }
        for role, prompt in one.prompts.items()
    }
    return {"set": one.name, **one.head.model_dump(exclude={"takes_from"}), "prompts": prompts}


@app.command()
def show(set_: SetName, role: RoleName) -> None:
    """Print a prompt file: front matter and template."""
    sys.stdout.write(load_prompt_set(set_).prompt(role).text)


@app.command()
def diff(
    one: Annotated[str, typer.Argument(metavar="SET", help="A prompt set.")],
    other: Annotated[str, typer.Argument(metavar="OTHER", help="Another one.")],
    role: Annotated[Role | None, typer.Option(help="Only the prompt of this role.")] = None,
) -> None:
    """Print where the prompts of two sets differ, role by role, as a unified diff."""
    left, right = load_prompt_set(one), load_prompt_set(other)
    roles = [r for r in ROLES if r in left.prompts or r in right.prompts] if role is None else [role]
    lines: list[str] = []
    for each in roles:
        a, b = left.prompts.get(each), right.prompts.get(each)
        lines += difflib.unified_diff(_lines(a), _lines(b), _title(one, each, a), _title(other, each, b))
    sys.stdout.write("".join(lines) or "The prompts are the same.\n")


def _lines(prompt: Prompt | None) -> list[str]:
    return [] if prompt is None else [f"{line}\n" for line in prompt.text.splitlines()]


def _title(name: str, role: Role, prompt: Prompt | None) -> str:
    return f"{name}/{role}.md" + (" (not there)" if prompt is None else f" ({prompt.id} {prompt.content_hash[:8]})")


@app.command()
def render(
    set_: SetName,
    role: RoleName,
    case: Annotated[str | None, typer.Option(help="A case folder, or the word 'demo'.")] = None,
    run: Annotated[Path | None, typer.Option(help="A finished run folder; needed for explain.")] = None,
    goal: Annotated[str, typer.Option(help="Treatment goal in words.")] = "",
    actions: Annotated[str | None, typer.Option(help="Action set; by default that of the set, else policy.")] = None,
    pictures: Annotated[bool, typer.Option(help="Whether the backend can see pictures.")] = True,
) -> None:
    """Fill in a prompt for a case and print the messages; nothing is sent.

    Questions that follow on answers are filled in with the embedded policy's answers; explain needs the plan of a run.
    """
    prompts = load_prompt_set(set_)
    prompt = prompts.prompt(role)
    errors = Console(stderr=True)
    from agent.llm_questions import OFFERED
    from agent.planned_questions import EXACT, PlannedQuestion, as_text

    if role not in OFFERED or not prompts.head.for_llm:
        raise InputError(
            f"The prompt {prompt.id} has no question about a case; print it with: mewm prompts show {set_} {role}"
        )
    if role == "explain":
        found = PlannedQuestion("explain", _explanation(prompts, run), EXACT)
    else:
        found = _of_case(prompts, role, case, goal, actions, pictures)
    errors.print(f"{found.question.prompt.id}: {found.note}.", markup=False, highlight=False, soft_wrap=True)
    sys.stdout.write(as_text(found, None) + "\n")


def _of_case(
    prompts: PromptSet, role: Role, case: str | None, goal: str, actions: str | None, pictures: bool
) -> PlannedQuestion:
    from agent.cli.plan import DEMO, demo_case
    from agent.llm_images import case_pictures
    from agent.llm_questions import check_prompts
    from agent.planned_questions import planned_questions
    from agent.run import case_facts
    from agent.settings import make_settings
    from tools.registry import build_tools
    from tools.workspace import Workspace

    if case is None:
        raise InputError(f"The prompt for '{role}' is filled in with a case: add --case CASE.")
    check_prompts(prompts)
    folder = demo_case() if case == DEMO and not Path(case).is_dir() else Path(case)
    facts = case_facts(folder, labelled=True)
    workspace = Workspace({facts.case_id: folder}, Path("unused"))
    shown = case_pictures(workspace.case(facts.case_id)) if pictures else ()
    settings = make_settings(actions=actions or prompts.head.actions)
    planned = planned_questions(prompts, lambda _: shown, build_tools(workspace), facts.case_id, settings, goal)
    return next(one for one in planned if one.role == role)


def _explanation(prompts: PromptSet, run: Path | None) -> Question[Explanation]:
    from agent.llm_questions import check_prompts, explaining
    from agent.plan_nodes import plan_facts
    from agent.run import open_run

    if run is None:
        raise InputError("The prompt for 'explain' is filled in with a plan: add --run RUN, a finished run folder.")
    check_prompts(prompts)
    state = open_run(run).state()
    if state is None or state.plan is None or state.plan.chosen is None:
        raise InputError(f"The run in {run} has no plan with a protocol, so nothing would be asked; give another run.")
    return explaining(prompts, plan_facts(state, state.plan, state.plan.chosen))
