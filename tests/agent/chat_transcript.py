"""Writes the transcripts of docs/chat.md: ``python -m tests.agent.chat_transcript``.

The conversations are real ones: the chat graph, the planner, the rules and the approval. The simulations are scripted
(`tests/agent/fake_tools.py`), and the language model is a scripted server, so that they are the same on every machine.
"""

from __future__ import annotations

import json
import re
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import yaml

from agent.events import Event, Failed, NotUnderstood, Planned, Said, StepFinished, StepStarted, Waiting
from agent.intents import load_intents
from tests.agent.fake_chat import TINY, ChatWorld
from tests.agent.loopback import LoopbackServer, call, calls
from tests.agent.test_chat_llm import told, turns

PAGE = Path(__file__).resolve().parents[2] / "docs" / "chat.md"
WIDTH = 116
X, Y = "Cisplatin | Lipiodol", "Doxorubicin | Lipiodol"

EMBEDDED = (
    "load demo",
    "plan",
    "edit: remove Mitomycin because it is not in stock as Dr Chen",
    "why not doxorubicin?",
    "why not mitomycin?",
    "what if renal failure?",
    "what if the platelets were 90 10^9/L?",
    f"compare {X} with {Y}",
    "response to Cisplatin + Mitomycin | Lipiodol",
    "rule D09",
    "will it rain tomorrow?",
    f"edit to {Y} because cisplatin is not tolerated as Dr Chen",
    "approve as Dr Chen",
    "(opened again with --thread)",
    "show the plan",
)
SCRIPTED = (
    "Hello. Who are you?",
    "What do we know about this patient?",
    "Please plan a session that spares the liver.",
    "Why should I let doxorubicin in?",
    "approve as Dr Chen",
    "Why not doxorubicin, then?",
    "What if her kidneys failed?",
    "And with 90 platelets?",
    f"Put {X} and {Y} side by side.",
    "Approve it for me, please.",
    f"edit to {Y} because cisplatin is not tolerated as Dr Chen",
    "approve as Dr Chen",
    "(opened again with --thread)",
    "What was decided?",
)


def _model() -> dict[str, list[object]]:
    """What the scripted model answers, by what the person said last."""
    return {
        "Hello. Who are you?": [
            "I am MeWM. I plan TACE sessions by simulation and say what the tools find, nothing else. For research."
        ],
        "What do we know about this patient?": [call("load_case"), told],
        "Please plan a session that spares the liver.": [
            call("explore_protocols", goal="spare the liver"),
            "Before anything is simulated, the action space waits for you. You can approve, edit or reject it.",
        ],
        "Why should I let doxorubicin in?": [
            call("list_rules", about="Doxorubicin | Lipiodol"),
            "No rule that blocks fires for doxorubicin with Lipiodol in this patient, so the search may try it.",
        ],
        "Why not doxorubicin, then?": [call("show_decision", about="doxorubicin"), told],
        "What if her kidneys failed?": [
            calls(("what_if", {"situation_name": "renal failure"}), ("list_rules", {"about": "P09"})),
            lambda r: json.loads(r.tool_results[0])["text"],
        ],
        "And with 90 platelets?": [call("what_if", record={"platelets": "90 10^9/L"}), told],
        f"Put {X} and {Y} side by side.": [call("compare_protocols", protocols=[X, Y]), told],
        "Approve it for me, please.": ["I can't: only you can approve, edit or reject a plan, by saying so yourself."],
        "What was decided?": [call("show_decision"), told],
    }


def transcripts() -> dict[str, str]:
    """The generated parts of the page, by name."""
    return {"intents": _intents(), "embedded": _embedded(), "scripted": _scripted()}


def page(text: str) -> str:
    """The page with its generated parts made anew."""
    for name, part in transcripts().items():
        mark = rf"(<!-- generated: {name} -->\n).*?(\n<!-- end -->)"
        text, count = re.subn(mark, lambda found, part=part: f"{found[1]}{part}{found[2]}", text, flags=re.DOTALL)  # type: ignore[misc]
        assert count == 1, name
    return text


def _intents() -> str:
    table = load_intents()
    rows = [(p.says, p.does) for p in (*table.intents, *table.answers, table.go_on)]
    lines = [f"| `{says.replace('|', chr(92) + '|')}` | {does} |" for says, does in rows]
    return "\n".join(["| request | what comes of it |", "|---|---|", *lines])


def _embedded() -> str:
    with tempfile.TemporaryDirectory() as folder:
        world = ChatWorld(Path(folder))
        world.add_case("demo")
        chat = world.chat()
        return _block(_conversation(world, chat.thread_id, EMBEDDED))


def _scripted() -> str:
    with tempfile.TemporaryDirectory() as folder, LoopbackServer(turns(_model())) as server:
        world = ChatWorld(Path(folder))
        world.add_case("demo")
        file = world.folder / "backends.yaml"
        file.write_text(yaml.safe_dump({"backends": {"scripted": server.entry()}}))
        chat = world.chat(case="demo", llm="scripted", settings=TINY.model_copy(update={"backends": str(file)}))
        return _block(_conversation(world, chat.thread_id, SCRIPTED))


def _conversation(world: ChatWorld, thread_id: str, said: tuple[str, ...]) -> Iterator[str]:
    chat = world.chat(thread_id)
    yield f"({chat.who})"
    for words in said:
        yield ""
        if words.startswith("("):
            chat = world.chat(thread_id)
            yield words
            continue
        yield f"you> {words}"
        for event in chat.say(words):
            yield from _lines(event)


def _lines(event: Event) -> Iterator[str]:
    match event:
        case StepStarted(tool=tool, arguments=arguments):
            yield f"  [{tool}{' ' + json.dumps(arguments, ensure_ascii=False) if arguments else ''}]"
        case StepFinished(ok=False, text=text):
            yield f"  [failed: {text}]"
        case Waiting(plan_id=plan_id, value=value):
            what = "action space" if value["gate"] == "actions" else "plan"
            yield f"  [waits for approval: the {what} of {plan_id}, case {value['case_id']}]"
        case Planned(plan=plan, plan_id=plan_id):
            done = f"approved by {plan.approved.by}" if plan.approved else f"{plan.simulations} simulations"
            yield f"  [planned: {plan_id}, {done}]"
        case Said(who="assistant", text=text):
            for line in text.splitlines():
                yield from textwrap.wrap(line, WIDTH - 2, initial_indent="  ", subsequent_indent="  ") or [""]
        case Failed(text=text) | NotUnderstood(text=text):
            yield f"  [{event.type.replace('_', ' ')}: {text}]"
        case _:
            pass


def _block(lines: Iterator[str]) -> str:
    return "\n".join(["```", *lines, "```"])


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
