"""The MCP server against a real client: over standard input and output, over HTTP, and in the process."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from langchain_core.utils.function_calling import convert_to_openai_tool
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp_types import CallToolResult, TextContent, Tool

from models.case import ImageMeta, write_case
from models.clinical_record import ClinicalRecord
from models.errors import CaseError, InputError
from tests.tools.conftest import phantom
from tools.check_rules import check_rules
from tools.mcp_server import build_server, find_cases, main
from tools.registry import as_langchain, build_tools
from tools.rulebook import CheckRulesResult
from tools.workspace import Workspace

QUESTION = {"case_id": "two", "protocols": ["Cisplatin + Oxaliplatin | Lipiodol"]}
REPORT = {"report": "Cisplatin 50 mg was infused; no lipiodol was used."}


def text_of(result: CallToolResult) -> str:
    return "".join(block.text for block in result.content if isinstance(block, TextContent))


async def talk(server: Any, *calls: tuple[str, dict[str, Any]]) -> tuple[list[Tool], list[CallToolResult]]:
    async with Client(server) as client:
        tools = (await client.list_tools()).tools
        return tools, [await client.call_tool(name, arguments) for name, arguments in calls]


def over_stdio(cases: Path, folder: Path) -> StdioServerParameters:
    options = ["--cases", str(cases), "--artifacts", str(folder / "artifacts"), "--device", "cpu"]
    return StdioServerParameters(
        command=sys.executable, args=["-m", "tools.mcp_server", *options], cwd=Path(__file__).resolve().parents[2]
    )


def check_schemas(tools: list[Tool], workspace: Workspace) -> None:
    registered = build_tools(workspace)
    seen_by_agent = {tool.name: tool for tool in as_langchain(registered)}
    assert [tool.name for tool in tools] == list(registered)
    for tool in tools:
        agent = seen_by_agent[tool.name]
        assert isinstance(agent.args_schema, type)
        assert tool.input_schema == agent.args_schema.model_json_schema()
        assert tool.description == agent.description
        assert tool.output_schema == registered[tool.name].result_type.model_json_schema(mode="validation")
        sent = convert_to_openai_tool(agent)["function"]["parameters"]  # what a language model is sent
        assert set(sent["properties"]) == set(tool.input_schema["properties"])
        assert sent.get("required") == tool.input_schema.get("required")


def test_a_client_over_standard_input_sees_the_agents_schemas_and_gets_the_tools_results(
    case_folder: Path, workspace: Workspace, tmp_path: Path
) -> None:
    calls = (("check_rules", QUESTION), ("extract_report", REPORT), ("describe_case", {"case_id": "../two"}))
    tools, (rules, report, refused) = asyncio.run(talk(over_stdio(case_folder.parent, tmp_path), *calls))
    check_schemas(tools, workspace)
    assert CheckRulesResult.model_validate(rules.structured_content) == check_rules(**QUESTION, workspace=workspace)
    assert report.structured_content is not None
    assert report.structured_content["protocol"] == "Cisplatin 50 mg | -"
    assert json.loads(text_of(report)) == report.structured_content
    assert refused.is_error
    assert "There is no case '../two'; the known cases are: two." in text_of(refused)


def test_in_the_process_every_tool_runs_and_errors_are_sentences(workspace: Workspace) -> None:
    calls = (
        ("describe_case", {"case_id": "two"}),
        ("simulate_tumor", {"case_id": "two", "protocols": ["Cisplatin; Lipiodol"], "seeds": [0]}),
        ("check_rules", {"case_id": "two", "protocols": ["Aspirin"]}),
        ("check_rules", {**QUESTION, "profile": "jp"}),
        ("check_rules", {**QUESTION, "path": "/etc/passwd"}),
        ("check_rules", {**QUESTION, "workspace": 1}),
        ("check_rules", {"case_id": "/etc/passwd", "protocols": []}),
        ("describe_case", {"case_id": 5}),
        ("describe_case", {}),
        ("simulate_tumor", {"case_id": "two", "protocols": ["Cisplatin | Lipiodol"], "seeds": list(range(1000))}),
        ("simulate_tumor", {"case_id": "two", "protocols": ["Cisplatin | Lipiodol"], "seeds": 3}),
    )
    server = build_server(workspace)
    tools, (described, simulated, *refused) = asyncio.run(talk(server, *calls))
    check_schemas(tools, workspace)
    assert described.structured_content is not None
    assert described.structured_content["lesion_count"] == 2
    assert simulated.structured_content is not None
    assert len(simulated.structured_content["outcomes"]) == 1
    assert all(result.is_error for result in refused)
    said = (
        "Aspirin",
        "profile",
        "path",
        "workspace",
        "known cases are: two",
        "case_id: Input should be a valid string",
        "case_id: Field required",
        "1000 simulations (protocols times seeds) are too many",
        "seeds: Input should be a valid list",
    )
    for result, words in zip(refused, said, strict=True):
        assert words in text_of(result)
        assert "pydantic" not in text_of(result)
        assert "Traceback" not in text_of(result)


def test_http_listens_on_this_machine_only(case_folder: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    params = over_stdio(case_folder.parent, tmp_path)
    process = subprocess.Popen([params.command, *params.args, "--http", str(port)], cwd=params.cwd)
    try:
        wait_for(port, process)
        _, (report,) = asyncio.run(talk(f"http://127.0.0.1:{port}/mcp", ("extract_report", REPORT)))
        listening = listening_addresses(port)
    finally:
        process.terminate()
        process.wait(timeout=20)
    assert report.structured_content is not None
    assert report.structured_content["protocol"] == "Cisplatin 50 mg | -"
    assert listening == {"0100007F"}


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "the server has stopped"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the server does not answer")


def listening_addresses(port: int) -> set[str]:
    """Local addresses (hexadecimal, as the kernel lists them) that listen on a port."""
    found = set()
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net") / table
        if not path.exists():
            pytest.skip("the kernel's table of sockets is not here")
        for line in path.read_text().splitlines()[1:]:
            _, local, _, state = line.split()[:4]
            address, hexadecimal = local.split(":")
            if state == "0A" and int(hexadecimal, 16) == port:
                found.add(address)
    return found


def test_the_cases_folder(case_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_cases(case_folder.parent) == {"two": case_folder}
    with pytest.raises(InputError, match="no folder"):
        find_cases(tmp_path / "none")
    with pytest.raises(CaseError, match="no case in"):
        find_cases(tmp_path)
    volume, labels = phantom()
    for name in ("a", "b"):
        images = {ImageMeta("pre_arterial", phase="arterial"): volume}
        write_case(tmp_path / name, "same", "synthetic", "two balls", images, labels, ClinicalRecord())
    with pytest.raises(
        InputError, match=r"a and b in .* have the same id same: import one of them again with another --id"
    ):
        find_cases(tmp_path)
    assert main(["--cases", str(tmp_path / "none")]) == InputError.exit_code
    assert capsys.readouterr().err.startswith("mewm: There is no folder")


def test_without_the_extra_there_is_a_sentence(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp.server.mcpserver", None)
    with pytest.raises(InputError, match=r"mewm\[mcp\]"):
        build_server(workspace)
