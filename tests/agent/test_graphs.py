"""What a LangGraph server loads."""

from __future__ import annotations

import importlib.util
import json
import threading
from pathlib import Path

import pytest
from langgraph.graph.state import CompiledStateGraph

from agent import graphs
from agent.state import PlannerState
from models.errors import CaseError, InputError
from tests.agent.fake_tools import make_case

ROOT = Path(__file__).resolve().parents[2]


def test_every_graph_of_langgraph_json_is_there():
    named = json.loads((ROOT / "langgraph.json").read_text())["graphs"]
    assert "planner" in named
    for target in named.values():
        path, name = target.split(":")
        spec = importlib.util.spec_from_file_location("served", ROOT / path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert isinstance(getattr(module, name), CompiledStateGraph)


def test_the_input_is_json_only():
    schema = graphs.planner.get_input_jsonschema()
    assert set(schema["properties"]) == {"case_id", "goal", "options"}
    assert schema["required"] == ["case_id"]


def test_a_served_case_lies_below_the_cases_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEWM_CASES", str(tmp_path / "cases"))
    monkeypatch.setenv("MEWM_RUNS", str(tmp_path / "runs"))
    make_case(tmp_path / "outside")
    make_case(tmp_path / "cases" / "inside", "inside")
    services = graphs.services_of(PlannerState(case_id="inside"))
    assert services.case("inside").case_id == "inside"
    assert graphs.services_of(PlannerState(case_id="inside")) is services
    for name in ("../outside", str(tmp_path / "outside"), ".", ""):
        with pytest.raises(CaseError, match="There is no case"):
            graphs.services_of(PlannerState(case_id=name))


def test_plain_dicts_over_the_wire_become_typed_state(tmp_path):
    from agent.planner import build_planner
    from agent.run import case_facts
    from tests.agent.fake_tools import FakeWorld, fake_services

    facts = case_facts(make_case(tmp_path / "case"))
    services = fake_services(FakeWorld(tmp_path / "log"))(None, facts, threading.Event())
    given = json.loads(json.dumps({"case_id": "tiny", "options": {"actions": "hcc_tace_seg", "drug_horizon": 1}}))
    result = build_planner(lambda state: services).invoke(given)
    assert result["plan"].chosen is not None


def test_the_served_chat_makes_its_conversation_and_answers_without_a_language_model(tmp_path, monkeypatch):
    monkeypatch.setenv("MEWM_CHATS", str(tmp_path / "chats"))
    monkeypatch.setenv("MEWM_CASES", str(tmp_path / "cases"))
    make_case(tmp_path / "cases" / "inside", "inside")
    config = {"configurable": {"thread_id": "3f0c-1"}}
    given = {"messages": [{"role": "user", "content": "load inside"}]}
    said = graphs.chat.invoke(given, config)["messages"]
    assert said[-1].text.startswith("The case is open. 1 tumour")
    assert graphs.desk_of("3f0c-1") is graphs.desk_of("3f0c-1")
    assert graphs.desk_of("3f0c-1").settings.approve_plan
    with pytest.raises(InputError, match="can't be called"):
        graphs.desk_of("../outside")
