"""Shown: what the page shows of a conversation, read from the stores and the checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from agent.chat import Chat
from agent.chat_store import ChatStore, Thread
from agent.events import Event, StepStarted
from agent.plan import Plan, TreeNode
from agent.report.text import timestamp
from agent.run import Standing
from agent.web import approval_panel, plan_panel, report_panel, settings_panel
from agent.web.access import Owner
from agent.web.cases import Shelf, panel_value
from agent.web.chat_panel import Transcript
from agent.web.layout import ASK, Layout
from agent.web.plan_panel import empty, part, problem
from agent.web.turns import Conversation, Conversations
from agent.web.viewer import scene
from models.errors import MewmError

GOES_ON = ("approve", "edit", "reject", "continue")
"""Steps that go on with a plan that is there."""
Updates = dict[Any, Any]
"""Controls with what they show now."""


@dataclass(frozen=True)
class Looked:
    """What the page shows of one conversation.

    Attributes:
        standings: Where each plan stands, by its name, oldest first.
        plan_id: The plan that is shown; empty where there is none.
        nodes: Its search tree as far as it has grown.
    """

    standings: dict[str, Standing]
    plan_id: str
    nodes: tuple[TreeNode, ...] = ()

    @property
    def keys(self) -> list[str]:
        """Protocols of the tree that were simulated."""
        return list(dict.fromkeys(node.protocol for node in self.nodes if node.n))

    @property
    def plan(self) -> Plan | None:
        """The plan that is shown, where it is ready."""
        standing = self.standings.get(self.plan_id)
        return None if standing is None else standing.plan


class Shown(Layout):
    """Updates of the page's controls."""

    def __init__(self, shelf: Shelf, conversations: Conversations) -> None:
        """Args: shelf: the cases; conversations: those that are open."""
        self.shelf, self.conversations = shelf, conversations

    def _page(self, owner: Owner, thread_id: str, plan_id: str = "", pictures: bool = True) -> Updates:
        """Everything as it stands; where no conversation is open, what to do."""
        store = ChatStore(owner.chats)
        threads = store.threads()
        now = next((t for t in threads if t.thread_id == thread_id), None)
        case = "" if now is None or now.case_path is None else Path(now.case_path).name
        updates: Updates = {
            self.thread: "" if now is None else now.thread_id,
            self.case: case,
            self.cases: panel_value(owner, self.shelf, case or None),
            self.threads: part("threads", found=[_listed(t) for t in threads], opened=thread_id),
            self.working: gr.update(visible=False, value=""),
            self.send: gr.update(visible=True),
            self.stop: gr.update(visible=False),
            self.settings_problem: "",
            self.chat_problem: "",
            self.at_rest: True,
        }
        if now is None:
            return updates | self._nothing(owner)
        try:
            conversation = self.conversations.get(owner, thread_id)
            looked = look(conversation.chat, plan_id)
        except MewmError as exc:
            return updates | self._nothing(owner) | self._choices(now) | {self.chat_problem: problem(str(exc))}
        chat, going = conversation.chat, conversation.at_work  # asked before what was said is read: it may end now
        transcript = Transcript()
        transcript.hear(conversation.heard)
        updates |= {
            self.at_rest: not going,
            self.head: part("head", case=case, who=Markup(settings_panel.who_html(chat.who))),
            self.chat: list(transcript.messages),
            self.approvals: approval_panel.panel_value(None if going else chat),
            self.resume: gr.update(visible=not going and (chat.unfinished or bool(chat.desk.stopped()))),
        }
        updates |= self._choices(now) | self._plan_parts(owner, chat, looked)
        if pictures:
            path = None if now.case_path is None else Path(now.case_path)
            updates[self.view] = scene(owner, path, looked.plan, keys=looked.keys)
        return updates

    def _nothing(self, owner: Owner) -> Updates:
        return {
            self.head: part("head", case="", who=""),
            self.chat: [],
            self.approvals: approval_panel.panel_value(),
            self.resume: gr.update(visible=False),
            self.view: scene(owner, None),
            self.plans: gr.update(visible=False, choices=[], value=None),
            **{panel: empty("Open a case on the left to begin.") for panel in self._panels()},
            self.table: gr.update(visible=False),
            self.dicom: gr.update(visible=False),
        }

    def _choices(self, thread: Thread) -> Updates:
        backends = settings_panel.backend_choices(thread.settings.backends)
        return {
            self.llm: gr.update(choices=backends, value=thread.llm or settings_panel.EMBEDDED),
            self.prompts: gr.update(choices=settings_panel.prompt_choices(thread.prompts), value=thread.prompts,
                                    interactive=thread.llm is not None),
        }  # fmt: skip

    def _plan_parts(self, owner: Owner, chat: Chat, looked: Looked) -> Updates:
        """The plan's panels."""
        names = [(_plan_label(name, standing), name) for name, standing in looked.standings.items()]
        chosen: Updates = {self.plans: gr.update(choices=names, value=looked.plan_id or None, visible=bool(names))}
        standing = looked.standings.get(looked.plan_id)
        if standing is None:
            return chosen | {
                **{panel: empty(ASK) for panel in self._panels()},
                self.table: gr.update(visible=False),
                self.dicom: gr.update(visible=False),
            }
        folder = chat.desk.store.plan_folder(chat.desk.row(looked.plan_id))
        report = report_panel.report_html(owner, folder, looked.plan_id, standing)
        plan = standing.plan
        ready = plan is not None and plan.chosen is not None and (folder / plan.artifacts.get("report", "-")).is_file()
        made: Updates = {self.report: report, self.dicom: gr.update(visible=ready), self.report_problem: ""}
        if plan is None:
            why = unready(looked.plan_id, standing)
            tree = plan_panel.tree_html(looked.nodes, set(), running=False) or empty(why)
            for panel in (self.overview, self.table_hint, self.outcome, self.rules):
                made[panel] = empty(why)
            return chosen | made | {self.tree: tree, self.table: gr.update(visible=False)}
        rows = plan_panel.table_rows(plan)
        return (
            chosen
            | made
            | {
                self.overview: plan_panel.overview_html(plan, looked.plan_id),
                self.tree: plan_panel.plan_tree_html(plan),
                self.table_hint: part("table_hint") if rows else empty("No protocol was assessed."),
                self.table: gr.update(value=rows, visible=bool(rows)),
                self.outcome: plan_panel.outcome_html(plan),
                self.rules: plan_panel.rules_html(plan),
            }
        )

    def _growing(self, conversation: Conversation) -> Updates:
        """What the page shows of a plan that is at work: its tree, and that the rest is to come."""
        chat, plan_id = conversation.chat, plan_at_work(conversation.heard)
        row = chat.desk.row(plan_id) if plan_id else chat.desk.plans()[-1]
        state = chat.desk.run_of(row).state()
        nodes = () if state is None else state.search.tree
        names = [(f"{r.plan_id}: at work" if r == row else r.plan_id, r.plan_id) for r in chat.desk.plans()]
        coming = empty(f"{row.plan_id} is at work. This part stands here when the search is done.")
        return {
            self.plans: gr.update(choices=names, value=row.plan_id, visible=True),
            self.tree: plan_panel.tree_html(nodes, set(), running=True),
            **{panel: coming for panel in self._panels() if panel is not self.tree},
            self.table: gr.update(visible=False),
            self.dicom: gr.update(visible=False),
        }


def look(chat: Chat, plan_id: str = "") -> Looked:
    """What there is to show of a conversation: the plan of that name, else the latest one that is no what-if."""
    standings = chat.standings()
    newest = [row.plan_id for row in sorted(chat.desk.plans(), key=lambda row: row.kind == "plan")]
    shown = plan_id if plan_id in standings else next(reversed(newest), "")
    nodes: tuple[TreeNode, ...] = ()
    if shown and standings[shown].plan is None and standings[shown].status != "new":
        state = chat.desk.run_of(chat.desk.row(shown)).state()
        nodes = state.search.tree if state is not None else ()
    return Looked(standings, shown, nodes)


def plan_at_work(heard: Sequence[Event]) -> str:
    """The plan that the last step goes on with; empty where it makes a new one."""
    steps = [event for event in heard if isinstance(event, StepStarted)]
    return str(steps[-1].arguments.get("plan", "")) if steps and steps[-1].tool in GOES_ON else ""


def unready(plan_id: str, standing: Standing) -> str:
    """Why a plan can't be shown yet."""
    if standing.status == "waiting":
        return f"{plan_id}: the action space waits for your decision; nothing is simulated before."
    return f"{plan_id} is not ready: it was stopped, or is at work. Resume goes on where it was."


def _plan_label(name: str, standing: Standing) -> str:
    plan = standing.plan
    if standing.status == "waiting":
        return f"{name}: waits"
    if plan is None:
        return f"{name}: stopped"
    state = "approved" if plan.approved else "rejected" if plan.rejected else "blocked" if plan.blocked else ""
    return f"{name}: {state}" if state else name


def _listed(thread: Thread) -> dict[str, str]:
    case = "no case" if thread.case_path is None else Path(thread.case_path).name
    return {
        "id": thread.thread_id,
        "title": thread.title or "New conversation",
        "case": case,
        "llm": thread.llm or "",
        "used": timestamp(thread.updated).removesuffix(" UTC"),
    }
