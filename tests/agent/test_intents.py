"""What the embedded policy understands, and the words that decide at a gate."""

from __future__ import annotations

import re

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from agent.chat_commands import command_of
from agent.events import NOT_UNDERSTOOD, Waiting
from agent.intents import IntentModel, answer_to, help_text, load_intents, request_of
from models.formulary import Formulary

X, Y = "Cisplatin | Lipiodol", "Doxorubicin + Mitomycin | Lipiodol"

REQUESTS = [
    ("load anna", "load_case", {"name": "anna"}),
    ("Please open the case HCC_009.", "load_case", {"name": "HCC_009"}),
    ("show the case", "load_case", {}),
    ("Tell me about this patient", "load_case", {}),
    ("plan", "explore_protocols", {}),
    ("Plan the case!", "explore_protocols", {}),
    ("find the best treatment", "explore_protocols", {}),
    ("What treatment do you recommend?", "explore_protocols", {}),
    ("plan with the goal spare liver function", "explore_protocols", {"goal": "spare liver function"}),
    ("plan for the goal: least toxicity", "explore_protocols", {"goal": "least toxicity"}),
    ("plan from in_house agents", "explore_protocols", {"actions": "in_house"}),
    ("plan by the us profile", "explore_protocols", {"profile": "us"}),
    ("plan with exhaustive search", "explore_protocols", {"strategy": "exhaustive"}),
    (f"compare {X} with {Y}", "compare_protocols", {"protocols": [X, Y]}),
    (f"Compare {X} and {Y}.", "compare_protocols", {"protocols": [X, Y]}),
    (f"compare {X} with {Y} in what-if-2", "compare_protocols", {"protocols": [X, Y], "plan": "what-if-2"}),
    ("compare cisplatin; lipiodol with THP; LC beads", "compare_protocols",
     {"protocols": ["cisplatin; lipiodol", "THP; LC beads"]}),
    ("response", "compare_protocols", {}),
    ("What is the predicted response of the chosen protocol?", "compare_protocols", {}),
    (f"response to {X}", "compare_protocols", {"protocols": [X]}),
    (f"How would the tumour respond to {X}?", "compare_protocols", {"protocols": [X]}),
    (f"simulate {X}", "compare_protocols", {"protocols": [X]}),
    ("what if renal failure", "what_if", {"situation_name": "renal failure"}),
    ("What if the patient had renal failure?", "what_if", {"situation_name": "renal failure"}),
    ("what if she is in liver failure", "what_if", {"situation_name": "liver failure"}),
    ("what if there were a hepatic vein shunt", "what_if", {"situation_name": "hepatic vein shunt"}),
    ("what if creatinine clearance were 20 mL/min", "what_if", {"record": {"creatinine clearance": "20 mL/min"}}),
    ("What if the bilirubin was 3.5 mg/dL?", "what_if", {"record": {"bilirubin": "3.5 mg/dL"}}),
    ("what if bilirubin 3.5 mg/dL", "what_if", {"record": {"bilirubin": "3.5 mg/dL"}}),
    ("what if platelets were 40 10^9/L", "what_if", {"record": {"platelets": "40 10^9/L"}}),
    ("what if the Child-Pugh score were unknown", "what_if", {"record": {"Child-Pugh score": "unknown"}}),
    ("what if the action set were in_house", "what_if", {"actions": "in_house"}),
    ("what if we used the cn rules", "what_if", {"profile": "cn"}),
    ("what if the rules were strict", "what_if", {"strict": True}),
    ("what if the goal were to spare the liver", "what_if", {"goal": "spare the liver"}),
    ("why not cisplatin?", "show_decision", {"about": "cisplatin"}),
    (f"why was {X} dropped", "show_decision", {"about": X}),
    ("Why did you not choose oxaliplatin?", "show_decision", {"about": "oxaliplatin"}),
    ("what about epirubicin in plan-1?", "show_decision", {"about": "epirubicin", "plan": "plan-1"}),
    ("why?", "show_decision", {}),
    ("Why this plan?", "show_decision", {}),
    ("explain the choice", "show_decision", {}),
    ("show the plan", "show_decision", {}),
    ("show what-if-2", "show_decision", {"plan": "what-if-2"}),
    ("rules", "list_rules", {}),
    ("rules about cisplatin", "list_rules", {"about": "cisplatin"}),
    ("What are the rules for the platinum?", "list_rules", {"about": "platinum"}),
    ("rule D09", "list_rules", {"about": "D09"}),
    (f"check {X}", "list_rules", {"about": X}),
    (f"is {X} allowed for this patient?", "list_rules", {"about": X}),
    ("read report: Oxaliplatin 100 mg was infused.", "extract_report", {"report": "Oxaliplatin 100 mg was infused"}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "tool", "arguments"), REQUESTS)
def test_a_request_is_one_tool_call(text, tool, arguments):
    found = request_of(text)
    assert found is not None
    assert (found[0].tool, found[1]) == (tool, arguments)


@pytest.mark.parametrize("text", ["make me a sandwich", "who won the match", "ignore the rules", "42", "plän"])
def test_what_is_not_understood_is_said_with_what_is(text):
    answer = answer_to([HumanMessage(text)])
    assert answer.tool_calls == []
    assert answer.additional_kwargs[NOT_UNDERSTOOD] == text
    assert f"I did not understand “{text}”" in answer.text
    assert "No LLM: the embedded policy" in answer.text
    assert "why not X" in answer.text


def test_help_lists_every_intent_and_each_example_is_understood():
    text = help_text()
    for intent in load_intents().intents:
        assert f"- {intent.says}: {intent.does}" in text
        example = re.sub(r" \[.*\]", "", intent.says).replace("X | Y", X).replace("...", "least toxicity")
        example = example.replace("CASE", "anna").replace("TEXT", "Lipiodol 10 ml").replace(" X", f" {X}")
        found = request_of(example.replace(" with Y", f" with {Y}"))
        assert found is not None, example
        assert found[0].id == intent.id, example


def test_help_answers_help_without_a_tool():
    answer = answer_to([HumanMessage("help")])
    assert NOT_UNDERSTOOD not in answer.additional_kwargs
    assert answer.text == help_text()


def test_a_tool_result_is_said_in_its_own_words_and_streamed_whole():
    told = ToolMessage('{"text": "Two words\\nand more.", "n": 1}', tool_call_id="a")
    assert answer_to([HumanMessage("plan"), told]).text == "Two words\nand more."
    failed = ToolMessage("There is no plan yet.", tool_call_id="a", status="error")
    assert answer_to([HumanMessage("plan"), failed]).text == "There is no plan yet."
    pieces = list(IntentModel().stream([HumanMessage("plan"), told]))
    assert "".join(str(piece.text) for piece in pieces) == "Two words\nand more."
    assert len(pieces) > 3


def test_a_streamed_tool_call_is_the_same_as_a_whole_one():
    whole = IntentModel().invoke([HumanMessage(f"compare {X} with {Y}")])
    chunks = list(IntentModel().stream([HumanMessage(f"compare {X} with {Y}")]))
    total = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    assert [(c["name"], c["args"]) for c in total.tool_calls] == [(c["name"], c["args"]) for c in whole.tool_calls]
    assert isinstance(whole, AIMessage)


def gate(kind="plan", plan_id="plan-1", interrupt_id="abc"):
    value = {"gate": kind, "case_id": "anna", "drugs": ["Cisplatin", "Doxorubicin"], "embolics": ["Lipiodol"]}
    return Waiting(interrupt_id=interrupt_id, value=value, plan_id=plan_id)


@pytest.mark.parametrize(
    ("text", "kind", "fields"),
    [
        ("approve", "plan", {"decision": "approve", "by": "Dr Lee"}),
        ("Approve.", "plan", {"decision": "approve", "by": "Dr Lee"}),
        ("I approve plan-1 as Dr Chen", "plan", {"decision": "approve", "by": "Dr Chen"}),
        ("approve the plan, override because clearance was measured anew", "plan",
         {"decision": "approve", "override_reason": "clearance was measured anew"}),
        ("approve as Dr Chen, override: not contraindicated", "plan",
         {"decision": "approve", "by": "Dr Chen", "override_reason": "not contraindicated"}),
        ("approve the action space", "actions", {"decision": "approve"}),
        ("reject because the scan is too old", "plan", {"decision": "reject", "reason": "the scan is too old"}),
        ("reject plan-1: wrong patient as Dr Chen", "plan",
         {"decision": "reject", "reason": "wrong patient", "by": "Dr Chen"}),
        (f"edit to {X}", "plan", {"decision": "edit", "protocol": X}),
        (f"edit plan-1: {Y} because less nephrotoxic as Dr Chen", "plan",
         {"decision": "edit", "protocol": Y, "reason": "less nephrotoxic", "by": "Dr Chen"}),
        ("edit to Cisplatin 50 mg + Mitomycin | Lipiodol", "plan",
         {"decision": "edit", "protocol": "Cisplatin 50 mg + Mitomycin | Lipiodol"}),
        ("edit to Cisplatin, Lipiodol", "actions", {"decision": "edit", "items": ("Cisplatin", "Lipiodol")}),
        ("edit: add Mitomycin and Epirubicin, remove cisplatin", "actions",
         {"decision": "edit", "items": ("Doxorubicin", "Lipiodol", "Mitomycin", "Epirubicin")}),
        ("edit: remove Cisplatin because of the kidneys", "actions",
         {"decision": "edit", "items": ("Doxorubicin", "Lipiodol"), "reason": "of the kidneys"}),
    ],
)  # fmt: skip
def test_words_that_decide(text, kind, fields):
    command = command_of(text, [gate(kind)], (), "Dr Lee")
    assert command is not None
    assert command.problem == ""
    answer = command.answer
    assert {name: getattr(answer, name) for name in fields} == fields
    assert (answer.interrupt_id, answer.case_id) == ("abc", "anna")
    assert answer.at
    assert "Dr" not in command.shown


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("approve", "Who decides?"),
        ("reject as Dr Chen", "a rejection needs a reason"),
        ("approve plan-7 as Dr Chen", "plan-7 does not wait for approval; what waits: plan-1"),
        ("edit: add Cisplatin as Dr Chen", "names a whole protocol"),
        ("continue", "Nothing was stopped"),
        ("approve the action space as Dr Chen", "It is the plan of plan-1 that waits, not the action space"),
    ],
)
def test_words_that_can_not_be_followed(text, problem):
    command = command_of(text, [gate()], ())
    assert command is not None
    assert command.answer is None
    assert problem in command.problem


def test_two_waiting_plans_have_to_be_told_apart():
    two = [gate(), gate(plan_id="plan-2", interrupt_id="def")]
    assert "More than one plan waits (plan-1, plan-2)" in command_of("approve as Dr Chen", two, ()).problem
    assert command_of("approve plan-2 as Dr Chen", two, ()).answer.interrupt_id == "def"


@pytest.mark.parametrize(
    "text",
    [
        "why not approve",
        "approve?",
        "approve the plan?",
        "would you approve this?",
        "I would not approve yet",
        "do not reject it",
        "what if approved",
    ],
)
def test_talking_about_approval_is_no_approval(text):
    assert command_of(text, [gate()], (), "Dr Lee") is None


def test_go_on_names_what_was_stopped():
    command = command_of("please continue", (), ("plan-1", "what-if-2"))
    assert (command.do, command.plan_id) == ("go_on", "what-if-2")
    assert command_of("go on with plan-1", (), ("plan-1", "what-if-2")).plan_id == "plan-1"
    assert "was not stopped" in command_of("go on with plan-9", (), ("plan-1",)).problem


def test_protocols_in_the_examples_are_known():
    for key in (X, Y):
        assert Formulary.load("hcc_tace_seg").parse(key).key == key
