"""Chat panel: a conversation's events as messages, with steps that fold and hold what the planner did in them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from agent.events import (
    DOING,
    Decided,
    Degraded,
    DepthFinished,
    Event,
    Failed,
    NodeStarted,
    Planned,
    Proposed,
    Said,
    StepFinished,
    StepStarted,
    Stopped,
    Token,
    ToolFinished,
    ToolProgress,
    ToolStarted,
    Waiting,
)
from agent.report.text import number

STEP_NAMES = {
    "load_case": "Open the case",
    "explore_protocols": "Search protocols",
    "compare_protocols": "Compare protocols",
    "show_decision": "Look up the decision",
    "what_if": "What if",
    "list_rules": "Look up rules",
    "describe_case": "Measure the case",
    "check_rules": "Check rules",
    "simulate_tumor": "Simulate",
    "segment": "Segment",
    "survival_risk": "Score risk",
    "measure_response": "Measure response",
    "extract_report": "Read a report",
    "approve": "Approve",
    "edit": "Edit",
    "reject": "Reject",
    "continue": "Go on",
}
_DEPTH = "Next depth"
_CASE, _END = "Case and action space", "Last comparison, plan and report"
STAGES = {
    **dict.fromkeys(("load", "observe", "propose", "refine", "approve_actions"), _CASE),
    "expand": _DEPTH,
    **dict.fromkeys(("finalise", "approve_plan", "revise", "refuse", "explain", "report"), _END),
}
"""Nodes that begin a part of a run, with the part's title; other nodes belong to the part that is there."""
_LONGEST = 140
Message = dict[str, Any]


class Transcript:
    """Messages for `gr.Chatbot` from events, and what is going on right now."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.progress: tuple[str, int, int] = ("", 0, 0)
        """What the planner does, how much of it is done, and of how much."""
        self.simulations: tuple[int, int] = (0, 0)
        """Outcomes of the search so far, and its budget."""
        self._steps: dict[str, Message] = {}
        self._stages: dict[str, Message] = {}
        self._writing: Message | None = None
        self._node = ""

    def hear(self, events: Iterable[Event]) -> None:
        """Take in further events."""
        for event in events:
            self._hear(event)

    def _hear(self, event: Event) -> None:
        match event:
            case Said(who="person", text=text):
                self._end()
                self._say("user", text)
            case Token(text=text):
                if self._writing is None:
                    self._writing = self._say("assistant", "")
                self._writing["content"] += text
            case Said(text=text):
                if self._writing is None:
                    self._say("assistant", text)
                else:
                    self._writing["content"] = text
                self._writing = None
            case StepStarted(step=step, tool=tool, arguments=arguments):
                self._writing = None
                self._step(step, tool, arguments)
            case StepFinished(step=step, tool=tool):
                self._finish(event, self._steps.get(step) or self._step(step, tool, {}))
            case NodeStarted(step=step, node=node, text=text):
                self._node = text
                self.progress = (text, 0, 0)
                self._stage(step, node)
            case ToolStarted(tool=tool, items=items):
                self._doing(tool, 0, items)
            case ToolProgress(tool=tool, done=done, total=total):
                self._doing(tool, done, total)
            case ToolFinished(tool=tool, items=items):
                self._doing(tool, items, items)
            case DepthFinished():
                self._depth(event)
            case Decided(step=step, decision=decision) if decision.kind != "policy":
                stage = self._stages.get(step) or self._stage(step, decision.node)
                what = decision.tool or decision.node
                lines = "" if decision.result == {} else f" `{_short(decision.result)}`"
                stage["content"] += f"- **{what}**: {decision.reason}{lines if decision.kind == 'tool' else ''}\n"
            case Degraded(reason=reason):
                self._note("Degraded", reason)
            case Waiting(value=value, plan_id=plan_id):
                what = "action space" if value["gate"] == "actions" else "plan"
                self._note("Waits for your decision", f"The {what} of {plan_id}, case {value['case_id']}: see below.")
            case Failed(text=text):
                self._end()
                self._note("This turn failed", text)
            case Stopped():
                self._end()
                self._note("Stopped", "Nothing that was simulated is lost; the conversation can go on.")
            case Proposed() | Planned():
                self.progress = ("", 0, 0)
            case _:
                pass

    def _say(self, role: str, text: str) -> Message:
        message: Message = {"role": role, "content": text, "metadata": {}}
        self.messages.append(message)
        return message

    def _note(self, title: str, text: str) -> None:
        self._writing = None
        self._say("assistant", f"**{title}.** {text}")

    def _step(self, step: str, tool: str, arguments: dict[str, Any]) -> Message:
        given = {name: value for name, value in arguments.items() if value not in ("", None, [], {})}
        told = ", ".join(f"{name} {_short(value)}" for name, value in given.items())
        title = STEP_NAMES.get(tool, tool) + (f": {told}" if told else "")
        message = self._say("assistant", "")
        message["metadata"] = {"title": _cut(title), "id": step, "status": "pending"}
        self._steps[step] = message
        return message

    def _finish(self, event: StepFinished, message: Message) -> None:
        self._writing = None
        self.progress = ("", 0, 0)
        data = {name: value for name, value in event.result.items() if name != "text"}
        details = f"\n```json\n{json.dumps(data, indent=1, ensure_ascii=False)}\n```" if data else ""
        message["content"] = event.text + (details if not event.text else "") or "Done."
        message["metadata"] |= {"status": "done", "log": "" if event.ok else "failed"}
        if (stage := self._stages.pop(event.step, None)) is not None:
            stage["metadata"]["status"] = "done"

    def _stage(self, step: str, node: str) -> Message:
        """The part of a planner's run that a node belongs to; `STAGES` says which nodes begin one."""
        stage = self._stages.get(step)
        title = STAGES.get(node, _DEPTH if stage is None else stage["metadata"]["title"])
        if stage is None or stage["metadata"]["title"] != title:
            stage = self._begin_stage(step, title)
        return stage

    def _begin_stage(self, step: str, title: str) -> Message:
        if (before := self._stages.get(step)) is not None:
            before["metadata"]["status"] = "done"
        stage: Message = {
            "role": "assistant",
            "content": "",
            "metadata": {"title": title, "parent_id": step, "status": "pending"},
        }
        # A step's parts stand behind it, before anything that was said later.
        told = [(m["metadata"].get("id"), m["metadata"].get("parent_id")) for m in self.messages]
        places = [place for place, names in enumerate(told) if step in names]
        self.messages.insert(places[-1] + 1 if places else len(self.messages), stage)
        self._stages[step] = stage
        return stage

    def _depth(self, event: DepthFinished) -> None:
        self.simulations = (event.simulations, event.budget)
        stage = self._stages.get(event.step) or self._begin_stage(event.step, _DEPTH)
        where = "All protocols" if event.phase == "protocol" else f"{event.phase.capitalize()}, depth {event.depth}"
        best = event.beams[0]
        title = f"{where}: {event.candidates} tried, {len(event.beams)} kept; best {best.protocol}"
        stage["metadata"] |= {"title": _cut(title), "status": "done", "log": number(best.objective, 2, signed=True)}
        rows = [
            f"| {beam.protocol.replace('|', 'with')} | {number(beam.objective, 3, signed=True)} | "
            f"{'' if beam.se is None else number(beam.se, 3)} | {beam.n} |"
            for beam in event.beams
        ]
        head = "| kept | objective | standard error | n |\n|---|---:|---:|---:|\n"
        stage["content"] = head + "\n".join(rows) + "\n\n" + stage["content"]

    def _doing(self, tool: str, done: int, total: int) -> None:
        if total:
            doing = DOING.get(tool, STEP_NAMES.get(tool, tool).lower())
            self.progress = (f"{self._node}: {doing}" if self._node else doing, done, total)
        else:
            self.progress = ("Another conversation simulates: waiting for its turn", 0, 0)

    def _end(self) -> None:
        """Nothing is at work any more."""
        self._writing = None
        self.progress = ("", 0, 0)
        for message in self.messages:
            if message["metadata"].get("status") == "pending":
                message["metadata"] |= {"status": "done", "log": "cut off"}


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _cut(text.replace("`", "'"))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3].rstrip() + "..."
