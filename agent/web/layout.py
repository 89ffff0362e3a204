"""Layout: what stands on the page, and where; `agent.web.shown` says what it shows, `agent.web.app` what it does."""

from __future__ import annotations

from typing import Any

import gradio as gr

from agent.web import plan_panel
from agent.web.approval_panel import approval_panel
from agent.web.cases import case_panel
from agent.web.plan_panel import PICK, empty, part
from agent.web.viewer import viewer

ASK = "Ask for a plan: type plan, or press one of the requests in the conversation."
WELCOME = (
    "**Talk about the open case.** Ask for a plan, why it was chosen, what if the record were different, or how two "
    "protocols compare. What you decide is always asked of you first."
)
REQUESTS = (
    ("Show the case", "show the case"),
    ("Plan a treatment", "plan"),
    ("What can I ask?", "help"),
)
_THREAD_PICK = """
element.addEventListener('click', event => {
  const found = event.target.closest('[data-thread]');
  if (found && element.contains(found)) trigger('select', { thread: found.dataset.thread });
});
"""


class Watch:
    """What a page looks at now. One who follows a turn stops when the page looks at something else."""

    def __init__(self) -> None:
        self.number = 0

    def turn_to(self) -> int:
        """Look at something else, or anew; returns what tells it from before."""
        self.number += 1
        return self.number


class Layout:
    """The controls of one page, made in the order in which they stand."""

    def _columns(self) -> None:
        self.head = gr.HTML(part("head", case="", who=""), elem_id="head", padding=False)
        self.thread = gr.Textbox(visible="hidden", elem_id="thread-id")
        self.case = gr.Textbox(visible="hidden", elem_id="case-name")
        self.watch = gr.State(Watch())
        self.at_rest = gr.State(True)  # whether the page shows all that was said, up to the end of a turn
        with gr.Row(elem_id="bench", equal_height=False):
            with gr.Column(elem_id="nav", scale=0, min_width=216):
                self._nav()
            with gr.Column(elem_id="stage", scale=3, min_width=560):
                self.view = viewer()
                self._plan()
            with gr.Column(elem_id="talk", scale=2, min_width=372):
                self._talk()

    def _nav(self) -> None:
        gr.HTML("<h2>Cases</h2>", padding=False)
        self.cases = case_panel()
        with gr.Row(elem_classes="heading"):
            gr.HTML("<h2>Conversations</h2>", padding=False)
            self.new = gr.Button("New", size="sm", scale=0, min_width=56, elem_id="new-thread")
        self.threads = gr.HTML(
            part("threads", found=[], opened=""), js_on_load=_THREAD_PICK, elem_id="threads", padding=False
        )

    def _plan(self) -> None:
        def panel(name: str) -> gr.HTML:
            return gr.HTML(empty(ASK), js_on_load=PICK, elem_id=name, elem_classes="panel", padding=False)

        self.plans = gr.Radio([], label="Plans of this conversation", visible=False, elem_id="plans", show_label=False)
        self.working = gr.HTML("", elem_id="working", visible=False, padding=False)
        with gr.Tabs(elem_id="plan-tabs"):
            with gr.Tab("Plan", id="plan", render_children=True):
                self.overview = panel("overview")
            with gr.Tab("Search tree", id="tree", render_children=True):
                self.tree = panel("tree")
            with gr.Tab("Protocols", id="protocols", render_children=True):
                self.table_hint = gr.HTML(empty(ASK), padding=False)
                self.table = gr.Dataframe(
                    headers=list(plan_panel.TABLE_HEADS), datatype=plan_panel.TABLE_TYPES, interactive=False,
                    show_search="search", wrap=True, elem_id="protocol-table", visible=False, max_height=520,
                    column_widths=["230px", *["86px"] * 9, "96px"], buttons=["fullscreen"], label="Assessed protocols",
                    show_label=False,
                )  # fmt: skip
            with gr.Tab("Outcome", id="outcome", render_children=True):
                self.outcome = panel("outcome")
            with gr.Tab("Rules", id="rules", render_children=True):
                self.rules = panel("rules")
            with gr.Tab("Report", id="report", render_children=True):
                self.dicom = gr.Button("Make the DICOM export", size="sm", visible=False, scale=0, elem_id="dicom")
                self.report_problem = gr.HTML("", padding=False)
                self.report = panel("report")

    def _talk(self) -> None:
        with gr.Accordion("Who answers", open=False, elem_id="settings"):
            with gr.Row():
                self.llm = gr.Dropdown([], label="Backend", elem_id="backend", scale=3, min_width=160)
                self.prompts = gr.Dropdown([], label="Prompt set", elem_id="prompts", scale=2, min_width=110)
            self.settings_problem = gr.HTML("", padding=False)
        self.chat = gr.Chatbot(
            [], show_label=False, elem_id="chat", height=None, layout="panel", placeholder=WELCOME, buttons=[],
            examples=[{"text": text, "display_text": shown} for shown, text in REQUESTS], latex_delimiters=[],
            allow_tags=False, allow_file_downloads=False, feedback_options=None, scale=1,
        )  # fmt: skip
        self.approvals = approval_panel()
        self.chat_problem = gr.HTML("", elem_id="chat-problem", padding=False)
        with gr.Row(elem_id="compose", equal_height=True):
            self.words = gr.Textbox(
                show_label=False, label="Message", placeholder="Ask about this case", lines=1, max_lines=6, scale=5,
                elem_id="words", autofocus=True, container=False, min_width=160,
            )  # fmt: skip
            self.send = gr.Button("Send", variant="primary", scale=0, min_width=72, elem_id="send")
            self.stop = gr.Button("Stop", variant="stop", scale=0, min_width=72, visible=False, elem_id="stop")
            self.resume = gr.Button("Resume", scale=0, min_width=84, visible=False, elem_id="resume")
        self.name = gr.Textbox(
            label="Your name", max_length=120, elem_id="name", elem_classes="line", scale=0,
            placeholder="stands under what you decide",
        )  # fmt: skip

    def _outputs(self) -> list[Any]:
        """Everything that a change of the conversation may change."""
        return [
            self.head, self.thread, self.case, self.approvals, self.cases, self.threads, self.view, self.plans,
            self.working, self.overview, self.tree, self.table_hint, self.table, self.outcome, self.rules, self.report,
            self.dicom, self.report_problem, self.llm, self.prompts, self.settings_problem, self.chat,
            self.chat_problem, self.words, self.send, self.stop, self.resume, self.name, self.at_rest,
        ]  # fmt: skip

    def _panels(self) -> list[Any]:
        return [self.overview, self.tree, self.table_hint, self.outcome, self.rules, self.report]
