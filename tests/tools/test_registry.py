"""The registry: schemas from the functions, the workspace hidden, arguments checked."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest
from pydantic import BaseModel

from models.errors import ToolError
from tools.registry import TOOLS, as_langchain, build_tools
from tools.simulate_tumor import SimulateTumorResult
from tools.workspace import Workspace

NAMES = {
    "simulate_tumor",
    "segment",
    "survival_risk",
    "check_rules",
    "measure_response",
    "describe_case",
    "extract_report",
}


def test_all_tools_are_registered(workspace: Workspace):
    tools = build_tools(workspace)
    assert set(tools) == NAMES
    for name, tool in tools.items():
        assert tool.name == name
        assert issubclass(tool.result_type, BaseModel)
        assert tool.description
        assert "Raises" not in tool.description


def test_schemas_match_the_functions_and_hide_the_workspace(workspace: Workspace):
    for function, tool in zip(TOOLS, build_tools(workspace).values(), strict=True):
        parameters = inspect.signature(function).parameters
        schema = tool.args_schema.model_json_schema()
        assert set(schema["properties"]) == set(parameters) - {"workspace"}
        assert schema["additionalProperties"] is False
        required = {n for n, p in parameters.items() if p.default is inspect.Parameter.empty} - {"workspace"}
        assert set(schema["required"]) == required
        assert all("description" in entry for entry in schema["properties"].values())


def test_results_have_a_schema_and_survive_json(workspace: Workspace):
    tool = build_tools(workspace)["simulate_tumor"]
    result = tool.call(case_id="two", protocols=["Cisplatin; Lipiodol"], seeds=[0])
    assert isinstance(result, SimulateTumorResult)
    assert SimulateTumorResult.model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"case_id": "two", "protocols": ["Cisplatin"]}, "seeds: Field required"),
        ({"case_id": "two", "protocols": ["Cisplatin"], "seeds": ["x"]}, "seeds.0"),
        ({"case_id": "two", "protocols": "Cisplatin", "seeds": [0]}, "protocols"),
        ({"case_id": "two", "protocols": ["Cisplatin"], "seeds": [0], "workspace": 1}, "workspace"),
        ({"case_id": "two", "protocols": ["Cisplatin"], "seeds": [0], "path": "/etc"}, "path"),
        ({"case_id": "two", "protocols": [], "seeds": [0]}, "protocols"),
    ],
)
def test_wrong_arguments_are_tool_errors(workspace: Workspace, arguments: dict[str, object], message: str):
    with pytest.raises(ToolError, match=message):
        build_tools(workspace)["simulate_tumor"].call(**arguments)


def test_langchain_sees_json_and_keeps_the_result(workspace: Workspace):
    tools = {tool.name: tool for tool in as_langchain(build_tools(workspace))}
    assert set(tools) == NAMES
    arguments = {"case_id": "two", "protocols": ["Cisplatin; Lipiodol"], "seeds": [0]}
    call = {"type": "tool_call", "id": "1", "name": "simulate_tumor", "args": arguments}
    message = tools["simulate_tumor"].invoke(call)
    assert json.loads(message.content)["case_id"] == "two"
    assert isinstance(message.artifact, SimulateTumorResult)
    assert "workspace" not in tools["simulate_tumor"].args


def test_the_tools_load_neither_langchain_nor_the_phantom():
    script = (
        "import sys, tools.registry\n"
        "forbidden = ('langchain', 'langgraph', 'models.phantom', 'agent', 'evals')\n"
        "bad = [m for m in sys.modules if m.startswith(forbidden)]\n"
        "sys.exit(str(bad) if bad else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
