"""Who may import whom, read from the source; and that the planner never loads the truth."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BELOW = {
    "models": {"models"},
    "tools": {"tools", "models"},
    "prompts": {"prompts", "models"},
    "agent": {"agent", "tools", "prompts", "models"},
    "evals": {"evals", "agent", "tools", "prompts", "models"},
}
ENGINE_ROOM = ("models.engine", "models.networks", "models.training", "models.weights")


def imports(path: Path) -> set[str]:
    """Every module named in an import statement of a file, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", BELOW)
def test_a_package_imports_only_what_stands_below_it(package: str) -> None:
    files = sources(package)
    assert files
    for path in files:
        used = {name.split(".")[0] for name in imports(path)} & set(BELOW)
        if path.parent == ROOT / "agent" / "cli":
            used -= {"evals"}  # the command line mounts the harness
        assert used <= BELOW[package], f"{path.relative_to(ROOT)} imports {used - BELOW[package]}"


@pytest.mark.parametrize("package", ["models", "tools"])
def test_models_and_tools_know_no_graph(package: str) -> None:
    for path in sources(package):
        assert not any(name.startswith("langgraph") for name in imports(path)), path
    if package == "models":
        for path in sources(package):
            assert not any(name.startswith(("langchain", "openai")) for name in imports(path)), path


def test_the_truth_is_named_only_where_it_is_written_or_judged() -> None:
    """`models.phantom` is imported by the harness and by commands that write cases; by no tool, node or policy."""
    users = {
        str(path.relative_to(ROOT))
        for package in ("agent", "tools", "prompts", "models")
        for path in sources(package)
        if any(name.startswith("models.phantom") for name in imports(path)) and "models/phantom" not in str(path)
    }
    assert users <= {"agent/cli/data.py", "agent/cli/plan.py", "agent/cli/train.py"} | {
        str(p.relative_to(ROOT)) for p in (ROOT / "models" / "training").glob("*.py")
    }


def test_agent_never_imports_the_engine() -> None:
    """Nor does any command but those that train networks, fit the clinical model, measure weights or make a pool."""
    users = {
        str(path.relative_to(ROOT))
        for path in sources("agent")
        if any(name.startswith(ENGINE_ROOM) for name in imports(path))
    }
    assert users == {f"agent/cli/{name}.py" for name in ("train", "clinical", "evaluate", "data")}


def test_loading_the_graph_and_the_tools_does_not_load_the_truth() -> None:
    code = (
        "import sys, agent.planner, agent.guideline, tools.registry; print([m for m in sys.modules if 'phantom' in m])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
