"""MCP server: the typed tools for any client of the Model Context Protocol, with the schemas that the agent sees.

``python -m tools.mcp_server --cases cases`` speaks over standard input and output; ``--http PORT`` listens on this
machine only (127.0.0.1). Extra ``mcp``.

Cases are reached by their id among those of the cases folder, outcomes and segmentations by theirs: no argument of a
tool is a path. One call runs at a time, because the tools share one engine.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.case import Case
from models.errors import CaseError, InputError, MewmError
from tools.registry import RegisteredTool, build_tools
from tools.workspace import Workspace

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.tools import Tool

NAME = "mewm"
MOST_AT_ONCE = 100
"""Simulations of one call: all calls wait for it, and nobody can stop it."""
_HOST = "127.0.0.1"


def find_cases(folder: Path) -> dict[str, Path]:
    """The cases of a folder by their id.

    Args:
        folder: Holds one folder for each case; what is no case is left out.

    Raises:
        InputError: there is no such folder, or two cases have one id.
        CaseError: there is no case in it, or one can't be read.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}: give the folder that holds the cases with --cases.")
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if (path / "case.json").is_file()):
        case_id = Case.load(path, verify=False).case_id
        if case_id in found:
            raise InputError(
                f"The cases {found[case_id].name} and {path.name} in {folder} have the same id {case_id}: import one "
                "of them again with another --id, or keep it elsewhere."
            )
        found[case_id] = path
    if not found:
        raise CaseError(f"There is no case in {folder}: import one with `mewm case import`.")
    return found


def build_server(workspace: Workspace) -> MCPServer:
    """A server with all registered tools on a workspace.

    Raises:
        InputError: the extra `mcp` is not installed.
    """
    try:
        from mcp.server.mcpserver import MCPServer
    except ImportError as exc:
        raise InputError("The MCP server needs the extra 'mcp': install it with pip install 'mewm[mcp]'.") from exc
    lock = threading.Lock()
    return MCPServer(
        NAME,
        instructions=(
            "Tools of a planner for transarterial chemoembolization (TACE), for research only. "
            f"Known cases: {', '.join(workspace.case_ids)}."
        ),
        tools=[_tool(tool, lock) for tool in build_tools(workspace).values()],
        log_level="WARNING",
    )


@dataclass(frozen=True)
class _Given:
    """Arguments as a client gave them, under the one method that the server asks its argument model for."""

    arguments: dict[str, Any]

    def model_dump_one_level(self) -> dict[str, Any]:
        return self.arguments


def _tool(registered: RegisteredTool, lock: threading.Lock) -> Tool:
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.server.mcpserver.tools import Tool
    from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata

    def call(**arguments: Any) -> Any:
        protocols, seeds = (arguments.get(name) for name in ("protocols", "seeds"))
        jobs = len(protocols) * len(seeds) if isinstance(protocols, list) and isinstance(seeds, list) else 0
        if jobs > MOST_AT_ONCE:
            raise ToolError(
                f"{jobs} simulations (protocols times seeds) are too many for one call: ask for {MOST_AT_ONCE} at most."
            )
        try:
            with lock:
                return registered.call(**arguments)
        except MewmError as exc:
            raise ToolError(str(exc)) from exc

    # what the server's own check would refuse in pydantic's words, `registered.call` refuses in a sentence
    arguments = type(
        registered.args_schema.__name__, (registered.args_schema, ArgModelBase),
        {"model_validate": classmethod(lambda _, given: _Given(given))},
    )  # fmt: skip
    return Tool(
        fn=call,
        name=registered.name,
        title=None,
        description=registered.description,
        parameters=registered.args_schema.model_json_schema(),
        fn_metadata=FuncMetadata(arg_model=arguments, output_model=registered.result_type),
        is_async=False,
        context_kwarg=None,
        annotations=None,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m tools.mcp_server``.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.mcp_server", description="Serve MeWM's tools over MCP.")
    parser.add_argument("--cases", type=Path, default=Path("cases"), help="folder that holds the cases")
    parser.add_argument(
        "--artifacts", type=Path, default=Path("runs/mcp/artifacts"), help="folder for what is simulated"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the networks run")
    parser.add_argument(
        "--http", type=int, metavar="PORT", help=f"serve over HTTP on {_HOST}, instead of standard input and output"
    )
    options = parser.parse_args(arguments)
    try:
        server = build_server(Workspace(find_cases(options.cases), options.artifacts, device=options.device))
    except MewmError as error:
        print(f"mewm: {error}", file=sys.stderr)
        return error.exit_code
    try:
        if options.http is None:
            server.run()
        else:
            server.run("streamable-http", host=_HOST, port=options.http)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
