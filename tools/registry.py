"""Registry: the tools as the agent sees them; names, descriptions and schemas come from the functions themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from models.errors import ToolError
from tools.check_rules import check_rules
from tools.describe_case import describe_case
from tools.extract_report import extract_report
from tools.measure_response import measure_response
from tools.segment import segment
from tools.simulate_tumor import simulate_tumor
from tools.survival_risk import survival_risk
from tools.workspace import Workspace

if TYPE_CHECKING:
    from langchain_core.tools import StructuredTool

TOOLS: tuple[Callable[..., BaseModel], ...] = (
    describe_case,
    check_rules,
    simulate_tumor,
    segment,
    measure_response,
    survival_risk,
    extract_report,
)
_HIDDEN = "workspace"


@dataclass(frozen=True)
class RegisteredTool:
    """One tool bound to a workspace.

    Attributes:
        name: the function's name.
        description: its docstring without the list of errors.
        args_schema: model of its arguments; the workspace is not among them.
        result_type: model of its result.
        function: the function itself.
        workspace: what it works on, where it asks for a workspace.
    """

    name: str
    description: str
    args_schema: type[BaseModel]
    result_type: type[BaseModel]
    function: Callable[..., BaseModel]
    workspace: Workspace

    def call(self, **arguments: Any) -> BaseModel:
        """Checks the arguments against the schema and calls the tool.

        Raises:
            ToolError: an argument is missing, unknown or of another type.
            MewmError: what the tool itself raises.
        """
        try:
            checked = self.args_schema.model_validate(arguments)
        except ValidationError as exc:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors(include_url=False))
            raise ToolError(f"{self.name} can't take these arguments ({problems}).") from exc
        values = {name: getattr(checked, name) for name in self.args_schema.model_fields}
        hidden = {_HIDDEN: self.workspace} if _HIDDEN in inspect.signature(self.function).parameters else {}
        return self.function(**values, **hidden)

    def as_langchain(self) -> StructuredTool:
        """The tool for a LangChain agent: the model reads the result as JSON, the artifact is the typed result."""
        from langchain_core.tools import StructuredTool

        def run(**arguments: Any) -> tuple[str, BaseModel]:
            result = self.call(**arguments)
            return result.model_dump_json(), result

        return StructuredTool.from_function(
            func=run,
            name=self.name,
            description=self.description,
            args_schema=self.args_schema,
            response_format="content_and_artifact",
        )


def build_tools(workspace: Workspace) -> dict[str, RegisteredTool]:
    """All tools by name, bound to a workspace."""
    return {function.__name__: _register(function, workspace) for function in TOOLS}


def as_langchain(tools: dict[str, RegisteredTool]) -> list[StructuredTool]:
    """The tools for a LangChain agent, in the order of `tools`."""
    return [tool.as_langchain() for tool in tools.values()]


def _register(function: Callable[..., BaseModel], workspace: Workspace) -> RegisteredTool:
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name != _HIDDEN:
            fields[name] = (hints[name], ... if parameter.default is inspect.Parameter.empty else parameter.default)
    title = "".join(word.capitalize() for word in function.__name__.split("_")) + "Arguments"
    schema: type[BaseModel] = create_model(title, __config__=ConfigDict(extra="forbid"), **fields)
    document = inspect.getdoc(function) or ""
    # Sections such as "Args:" and "Raises:" are for programmers; the schema describes the arguments.
    description = document.split("\n\nArgs:")[0].split("\n\nRaises:")[0].split("\n\nReturns:")[0].strip()
    return RegisteredTool(function.__name__, description, schema, hints["return"], function, workspace)
