"""The page: cases and conversations on the left, pictures and plan in the middle, the conversation on the right.

Every part shows what the stores hold and what `Chat` says; what a person does goes to `Chat` in the same words or forms
as in the terminal. A turn runs on the server (`agent.web.turns`): the page only follows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from markupsafe import Markup

from agent.chat import Chat, open_chat
from agent.chat_store import ChatStore
from agent.desk import MakeTools, make_tools
from agent.events import DepthFinished, Event, NodeStarted, Planned, Proposed
from agent.run import MakeServices
from agent.settings import PlannerSettings
from agent.web import approval_panel, plan_panel, report_panel, settings_panel
from agent.web.access import Access, Owner
from agent.web.cases import Shelf, panel_value
from agent.web.chat_panel import Transcript
from agent.web.layout import Watch
from agent.web.plan_panel import part, problem
from agent.web.server import LOOPBACK, make_server
from agent.web.shown import Shown, Updates, look, plan_at_work
from agent.web.turns import Begin, Conversation, Conversations, in_turn, services_in_turn
from agent.web.viewer import scene
from agent.web.volumes import OpenWorkspace, case_of, default_workspace
from models.errors import InputError, MewmError, RunError
from tools.registry import RegisteredTool

TITLE = "MeWM workbench"
# A reload keeps the name, but not the next person at this machine: it is the tab's, not the browser's.
_KEEP_NAME = "(name) => sessionStorage.setItem('mewm-name', name)"
_KNOWN_NAME = "() => sessionStorage.getItem('mewm-name') || ''"
HEAD = """<meta name="color-scheme" content="light">
<script>
  // The page has one look: grey values and colours mean something on it. Gradio would follow the system's dark mode.
  document.addEventListener('DOMContentLoaded', () => {
    const light = () => document.body.classList.remove('dark');
    new MutationObserver(light).observe(document.body, { attributes: true, attributeFilter: ['class'] });
    light();
  });
</script>"""
HOLD_S = 20.0  # after a page is left, its `_hold` goes on for this long at most
_KEEP_URL = "(id) => history.replaceState(null, '', id ? '?thread=' + encodeURIComponent(id) : location.pathname)"


def make_workbench(
    access: Access,
    shelf: Shelf,
    settings: PlannerSettings,
    *,
    hosts: Sequence[str] = LOOPBACK,
    make_services: MakeServices | None = None,
    make_tools: MakeTools = make_tools,
    open_workspace: OpenWorkspace = default_workspace,
) -> FastAPI:
    """The workbench as an application for a web server.

    Args:
        access: Tells whose a request is.
        shelf: The cases.
        settings: Of the plans of new conversations.
        hosts: Names under which the page is served; none: any.
        make_services: Builds what a run of the planner works with; None is the real thing.
        make_tools: Builds the registered tools.
        open_workspace: How simulated outcomes are read.

    Raises:
        DownloadError: the viewer's script was not fetched.
    """
    if make_services is None:
        from agent.services import make_services as real_services

        make_services = real_services
    services = services_in_turn(make_services)

    def tools(
        case: Path, changes: Mapping[str, Any], artifacts: Path, of: PlannerSettings
    ) -> dict[str, RegisteredTool]:
        return in_turn(make_tools(case, changes, artifacts, of))

    def opened(owner: Owner, thread_id: str) -> Chat:
        store = ChatStore(owner.chats)
        return open_chat(store, thread_id, owner.cases, by=owner.name, make_services=services, make_tools=tools)

    page = Workbench(access, shelf, Conversations(opened), settings).build()
    css = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    return make_server(
        page, access, shelf=shelf, open_workspace=open_workspace, hosts=hosts, theme=theme(), css=css, head=HEAD
    )


def theme() -> Any:
    """Colours and system fonts: nothing is fetched from elsewhere."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        font=["Inter", "Segoe UI", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"],
        radius_size=gr.themes.sizes.radius_md,
        text_size=gr.themes.sizes.text_sm,
        spacing_size=gr.themes.sizes.spacing_sm,
    ).set(button_primary_background_fill="#00619c", button_primary_background_fill_hover="#004f80")


async def _hold() -> AsyncIterator[None]:
    """Hold the page's stream of events open, by never ending.

    Gradio ends the stream when nothing is under way, and an event that the page sends in that moment is never answered:
    a click is lost, and every later one of its kind is taken for a repetition.
    """
    while True:
        await asyncio.sleep(HOLD_S)
        yield


class Workbench(Shown):
    """The page and what its controls do."""

    def __init__(self, access: Access, shelf: Shelf, conversations: Conversations, settings: PlannerSettings) -> None:
        """Args:
        access: Tells whose a request is.
        shelf: The cases.
        conversations: The open conversations.
        settings: Of the plans of new conversations.
        """
        super().__init__(shelf, conversations)
        self.access, self.settings = access, settings

    def build(self) -> gr.Blocks:
        """The page."""
        page: gr.Blocks = gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, fill_height=True)
        with page:
            self._columns()
            self._wire(page)
        page.queue(default_concurrency_limit=None, api_open=False)
        return page

    def _wire(self, page: gr.Blocks) -> None:
        every = self._outputs()
        quiet: dict[str, Any] = {"show_progress": "hidden"}
        follow: dict[str, Any] = {
            "fn": self._follow, "inputs": [self.thread, self.plans, self.watch, self.at_rest], "outputs": every, **quiet
        }  # fmt: skip

        def turn(event: Any, fn: Any, inputs: list[Any]) -> None:
            event(fn, inputs, every, **quiet).then(**follow)

        page.load(_hold, **quiet)
        turn(page.load, self._load, [])
        turn(self.send.click, self._say, [self.words, self.thread, self.name])
        turn(self.words.submit, self._say, [self.words, self.thread, self.name])
        turn(self.chat.example_select, self._say_example, [self.thread, self.name])
        turn(self.resume.click, self._resume, [self.thread, self.name])
        turn(self.approvals.submit, self._answer, [self.thread, self.name])
        turn(self.cases.select, self._open_case, [self.thread, self.watch])
        turn(self.threads.select, self._open_thread, [self.watch])
        turn(self.new.click, self._new_thread, [self.thread, self.case, self.watch])
        self.thread.change(None, [self.thread], None, js=_KEEP_URL)
        page.load(None, None, [self.name], js=_KNOWN_NAME)
        self.name.change(None, [self.name], None, js=_KEEP_NAME)
        self.stop.click(self._stop, [self.thread], [self.stop], **quiet)
        for panel in (self.overview, self.tree, self.outcome, self.report, self.approvals):
            panel.select(self._pick, [self.thread, self.plans], [self.view], **quiet)
        self.table.select(self._pick_row, [self.thread, self.plans], [self.view], **quiet)
        self.plans.input(self._show_plan, [self.thread, self.plans], every, **quiet)
        for control in (self.llm, self.prompts):
            control.input(self._choose, [self.thread, self.llm, self.prompts], every, **quiet)
        self.dicom.click(self._make_dicom, [self.thread, self.plans], [self.report, self.dicom, self.report_problem])

    def _open(self, request: gr.Request, thread: str) -> Conversation:
        return self.conversations.get(self.access.owner(request), thread)

    def _load(self, request: gr.Request) -> Updates:
        """The page as it is opened: the conversation of its address, else the one that was used last."""
        owner = self.access.owner(request)
        known = {thread.thread_id for thread in ChatStore(owner.chats).threads()}
        asked = dict(request.query_params).get("thread", "")
        latest = next((t.thread_id for t in ChatStore(owner.chats).threads()), "")
        thread = asked if asked in known else latest
        told = "" if not asked or asked in known else problem("That conversation is not among yours.")
        return {**self._page(owner, thread), self.chat_problem: told, self.name: owner.name or gr.skip()}

    def _open_case(self, thread: str, watch: Watch, event: gr.EventData, request: gr.Request) -> Updates:
        """Open a case: its latest conversation, or a new one."""
        owner, name = self.access.owner(request), str(event.case)
        watch.turn_to()
        try:
            path = str(case_of(owner, name).path.resolve())
        except MewmError as exc:
            return {self.chat_problem: problem(str(exc))}
        for found in ChatStore(owner.chats).threads():
            if found.case_path == path:
                return self._page(owner, found.thread_id)
        return self._begin(owner, thread, name)

    def _open_thread(self, watch: Watch, event: gr.EventData, request: gr.Request) -> Updates:
        watch.turn_to()
        return self._page(self.access.owner(request), str(event.thread))

    def _new_thread(self, thread: str, case: str, watch: Watch, request: gr.Request) -> Updates:
        owner = self.access.owner(request)
        try:
            if not case:
                raise InputError("Open a case first: a conversation is about a case.")
            case_of(owner, case)
        except MewmError as exc:
            return {self.chat_problem: problem(str(exc))}
        watch.turn_to()
        return self._begin(owner, thread, case)

    def _begin(self, owner: Owner, before: str, case: str) -> Updates:
        """A new conversation about a case, with what answers in the one before. One that nobody used is used again."""
        store = ChatStore(owner.chats)
        last = next((t for t in store.threads() if t.thread_id == before), None)
        if last is not None and not last.title and not last.case_path:
            made = last
        else:
            settings = self.settings if last is None else last.settings
            made = store.begin(settings, last.llm if last else None, last.prompts if last else settings.prompts)
        try:
            self.conversations.get(owner, made.thread_id).chat.desk.open_case(case)
        except MewmError as exc:  # it can be looked at, but not planned
            self.conversations.forget(owner, made.thread_id)
            updates = self._page(owner, made.thread_id)
            path = owner.cases / case
            shown = {self.view: scene(owner, path), self.case: case, self.overview: problem(str(exc))}
            return {**updates, **shown, self.cases: panel_value(owner, self.shelf, case)}
        self.conversations.forget(owner, made.thread_id)
        return self._page(owner, made.thread_id)

    def _say(self, words: str, thread: str, name: str, request: gr.Request) -> Updates:
        typed = words.strip()
        if not typed:
            return {self.chat_problem: problem("Nothing was said: type a request, or help.")}
        return self._start(request, thread, name, lambda chat, stop: chat.say(typed, stop), typed)

    def _say_example(self, thread: str, name: str, event: gr.SelectData, request: gr.Request) -> Updates:
        return self._say(str(event.value["text"]), thread, name, request)

    def _resume(self, thread: str, name: str, request: gr.Request) -> Updates:
        def go_on(chat: Chat, stop: Any) -> Iterator[Event]:
            return chat.resume(stop) if chat.unfinished else chat.say("continue", stop)

        return self._start(request, thread, name, go_on, "continue")

    def _answer(self, thread: str, name: str, event: gr.EventData, request: gr.Request) -> Updates:
        """What a person decided, from the card of its question."""
        answer = approval_panel.Answer(**{field: getattr(event, field) for field in approval_panel.Answer.model_fields})
        try:
            conversation = self._open(request, thread)
            if conversation.at_work:
                raise RunError("This conversation is at work: decide when it has stopped.")
        except MewmError as exc:
            return {self.chat_problem: problem(str(exc))}
        chat = conversation.chat
        waiting = next((w for w in chat.waiting() if w.interrupt_id == answer.interrupt), None)
        if waiting is None:
            told = problem("This question does not wait any more; what does is shown above.")
            return {self.approvals: approval_panel.panel_value(chat), self.chat_problem: told}
        try:
            made = approval_panel.made_answer(waiting, answer, name)
        except MewmError as exc:
            return {self.approvals: approval_panel.panel_value(chat, waiting.interrupt_id, problem(str(exc)))}
        words = " ".join(filter(None, [made.decision, waiting.plan_id, f"as {made.by}", made.reason]))
        return self._start(request, thread, name, lambda chat, stop: chat.answer(made, stop), words)

    def _start(self, request: gr.Request, thread: str, name: str, begin: Begin, typed: str) -> Updates:
        owner = self.access.owner(request)
        try:
            if not thread:
                raise InputError("No case is open: open one on the left first.")
            conversation = self.conversations.get(owner, thread)
            conversation.chat.by = name.strip()
            conversation.start(begin, typed)
        except MewmError as exc:
            return {self.chat_problem: problem(str(exc))}
        return {
            self.words: "", self.chat_problem: "", self.approvals: approval_panel.panel_value(), self.at_rest: False
        }  # fmt: skip

    def _stop(self, thread: str, request: gr.Request) -> Any:
        self._open(request, thread).stop.set()
        return gr.update(value="Stopping", interactive=False)

    def _follow(
        self, thread: str, shown: str | None, watch: Watch, at_rest: bool, request: gr.Request
    ) -> Iterator[Updates]:
        """Show a turn as it goes, and the conversation as it stands when the turn has ended, be it before this call."""
        owner = self.access.owner(request)
        nothing_new: Updates = {self.words: gr.skip()}  # Gradio shows the last word of a generator again; none empties
        conversation = self.conversations.get(owner, thread) if thread else None
        if conversation is None or (at_rest and not conversation.at_work):
            yield nothing_new
            return
        here, chat = watch.turn_to(), conversation.chat
        before = chat.desk.plans()
        yield {
            self.send: gr.update(visible=False),
            self.resume: gr.update(visible=False),
            self.stop: gr.update(visible=True, value="Stop", interactive=True),
            self.working: gr.update(visible=True, value=plan_panel.progress_html(("", 0, 0), (0, 0))),
        }
        transcript, heard, planned, grown = Transcript(), 0, False, True
        for count in conversation.follow():
            if watch.number != here:  # the page looks at something else, or another follows
                yield nothing_new
                return
            new = conversation.heard[heard:count]
            heard = count
            transcript.hear(new)
            progress = plan_panel.progress_html(transcript.progress, transcript.simulations)
            updates: Updates = {
                self.chat: list(transcript.messages),
                self.working: gr.update(value=progress, visible=True),
            }
            planned |= any(isinstance(event, Proposed | Planned) for event in new)
            grown |= any(isinstance(event, DepthFinished) for event in new)
            if grown and any(isinstance(event, NodeStarted) for event in new):  # the depth is in the checkpoint now
                grown = False
                updates |= self._growing(conversation)
            yield updates
        rows = chat.desk.plans()
        latest = shown or ""
        if planned or len(rows) > len(before):
            latest = plan_at_work(conversation.heard) or rows[-1].plan_id
        yield self._page(owner, thread, latest, pictures=planned)

    def _show_plan(self, thread: str, plan_id: str, request: gr.Request) -> Updates:
        owner = self.access.owner(request)
        chat = self.conversations.get(owner, thread).chat
        looked = look(chat, plan_id)
        shown = scene(owner, chat.desk.case_path(), looked.plan, keys=looked.keys)
        return {**self._plan_parts(owner, chat, looked), self.view: shown}

    def _pick(self, thread: str, plan_id: str | None, event: gr.EventData, request: gr.Request) -> Any:
        return self._show_protocol(thread, plan_id, str(event.protocol), request)

    def _pick_row(self, thread: str, plan_id: str | None, event: gr.SelectData, request: gr.Request) -> Any:
        return self._show_protocol(thread, plan_id, str(event.row_value[0]), request)

    def _show_protocol(self, thread: str, plan_id: str | None, key: str, request: gr.Request) -> Any:
        owner = self.access.owner(request)
        try:
            chat = self.conversations.get(owner, thread).chat
            looked = look(chat, plan_id or "")
            path = chat.desk.case_path()
        except MewmError as exc:
            return scene(owner, None, message=str(exc))
        return scene(owner, path, looked.plan, right=f"simulated:{key}", keys=looked.keys)

    def _choose(self, thread: str, llm: str, prompts: str, request: gr.Request) -> Updates:
        """Another backend or prompt set; where it can't be used, why, and the choice that holds."""
        owner = self.access.owner(request)
        if not thread:
            return {self.settings_problem: problem("Open a case first: the choice belongs to a conversation.")}
        store = ChatStore(owner.chats)
        try:
            if self.conversations.get(owner, thread).at_work:
                raise InputError("This conversation is at work: choose when it has stopped.")
            settings_panel.choose(store, thread, llm, prompts)
        except MewmError as exc:
            return {**self._choices(store.thread(thread)), self.settings_problem: problem(str(exc))}
        self.conversations.forget(owner, thread)
        chat = self.conversations.get(owner, thread).chat
        case = Path(chat.desk.thread.case_path or "").name
        head = part("head", case=case, who=Markup(settings_panel.who_html(chat.who)))
        return {**self._choices(store.thread(thread)), self.settings_problem: "", self.head: head}

    def _make_dicom(self, thread: str, plan_id: str, request: gr.Request) -> Updates:
        owner = self.access.owner(request)
        chat = self.conversations.get(owner, thread).chat
        row = chat.desk.row(plan_id)
        folder = chat.desk.store.plan_folder(row)
        try:
            report_panel.make_dicom(folder)
        except MewmError as exc:
            return {self.report_problem: problem(str(exc))}
        html = report_panel.report_html(owner, folder, plan_id, chat.desk.look(row))
        return {self.report: html, self.report_problem: ""}
