"""Loader: reads versioned prompt files and renders them strictly.

A prompt file is Markdown with YAML front matter between two lines of three dashes::

    ---
    id: guideline-explain
    version: 1
    role: explain
    variables: [policy, facts]
    output_schema: null
    changelog:
      - {version: 1, text: first version}
    ---
    Instructions for the model.
    <!-- user -->
    Text with {{ facts|fenced("facts") }}

What stands above the line ``<!-- user -->`` is the system message, what stands below it the user message; without that
line all of it is one message. Templates are Jinja2 in its sandbox. Declared variables and those in the text have to be
the same; rendering without one of them, with one more, or with an attribute that does not exist is an error. The filter
``fenced(name)`` writes a value as JSON between ``<data name="...">`` and ``</data>``; no value can close the fence,
because ``<`` is escaped inside it. The content hash covers the whole file.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, Undefined, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import InputError
from models.strict_yaml import StrictLoader, yaml_fault

Role = Literal["observe", "propose", "refine", "nominate", "explain", "chat", "extract_report"]
ROLES: tuple[Role, ...] = ("observe", "propose", "refine", "nominate", "explain", "chat", "extract_report")

_FENCE = "---"
_USER = "<!-- user -->"
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True
)


def fenced(value: object, name: str) -> str:
    """A value as data for a language model: JSON between two tags that nothing inside it can imitate.

    Args:
        value: Text, numbers, mappings, sequences or pydantic models.
        name: What the data is, in the opening tag.

    Returns:
        Opening tag, JSON and closing tag; the entries of the outermost list or object stand on lines of their own.
    """
    plain = _plain(value)
    if isinstance(plain, dict) and plain:
        rows = [f"{_json(key)}: {_json(inner)}" for key, inner in plain.items()]
        text = "{\n" + ",\n".join(rows) + "\n}"
    elif isinstance(plain, list) and plain:
        text = "[\n" + ",\n".join(map(_json, plain)) + "\n]"
    else:
        text = _json(plain)
    for mark, code in (("<", "\\u003c"), (">", "\\u003e")):
        text = text.replace(mark, code)
    return f'<data name="{name}">\n{text}\n</data>'


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, Undefined):
        str(value)  # raises, and says what is not defined
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value


_ENVIRONMENT.filters["fenced"] = fenced


class Change(BaseModel):
    """One line of a prompt's history."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=1)
    text: str = Field(min_length=1)


class FrontMatter(BaseModel):
    """The head of a prompt file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    version: int = Field(ge=1)
    role: Role
    variables: tuple[str, ...]
    output_schema: str | None = Field(description="Name of the pydantic model that answers it; null for plain text")
    changelog: tuple[Change, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _current_version_is_logged(self) -> Self:
        if max(change.version for change in self.changelog) != self.version:
            raise ValueError(f"the changelog does not end with version {self.version}")
        return self


@dataclass(frozen=True)
class Prompt:
    """A loaded prompt. `text` is the whole file, `content_hash` its SHA-256."""

    head: FrontMatter
    template: str = field(repr=False)
    content_hash: str
    text: str = field(default="", repr=False)

    @property
    def id(self) -> str:
        """Identifier with version, as it goes into the trace, for example ``guideline-explain@1``."""
        return f"{self.head.id}@{self.head.version}"

    def render(self, **values: Any) -> str:
        """Fill in the template, as one text.

        Args:
            **values: Exactly the declared variables.

        Returns:
            The text, without white space at its ends; the line between system and user message is left out.

        Raises:
            InputError: A variable is unset or unknown, or the text asks for something that a value does not have.
        """
        return "\n\n".join(text for _, text in self.messages(**values))

    def messages(self, **values: Any) -> tuple[tuple[Literal["system", "user"], str], ...]:
        """Fill in the template, as the messages of a conversation.

        Args:
            **values: Exactly the declared variables.

        Returns:
            System and user message, or one message where the file has no ``<!-- user -->`` line: a system message for
            the role ``chat``, else a user message.

        Raises:
            InputError: As for `render`.
        """
        declared = set(self.head.variables)
        if unset := sorted(declared - set(values)):
            raise InputError(
                f"The prompt {self.id} needs {', '.join(unset)}, which is not set; set every declared variable."
            )
        if unknown := sorted(set(values) - declared):
            raise InputError(
                f"The prompt {self.id} declares no variable {', '.join(unknown)}; declare it or leave it out."
            )
        system, line, user = self.template.partition(f"\n{_USER}\n")
        # The template is split before it is filled in: no value can open a message of its own.
        if line:
            return (("system", self._filled(system, values)), ("user", self._filled(user, values)))
        return (("system" if self.head.role == "chat" else "user", self._filled(system, values)),)

    def _filled(self, template: str, values: Mapping[str, Any]) -> str:
        try:
            return _ENVIRONMENT.from_string(template).render(**values).strip()
        # a template is somebody's program: these are what its expressions can raise
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            what = _said(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
            inner = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "<template>"]
            line = template.split("\n")[inner[-1] - 1].strip() if inner and inner[-1] else ""
            place = f" at '{line}'" if line else ""
            raise InputError(f"The prompt {self.id} can't be rendered{place}: {what}; correct its text.") from error


def _said(error: TemplateError) -> str:
    return (error.message or type(error).__name__).rstrip(".")


def read_prompt(path: Path) -> Prompt:
    """Read one prompt file.

    Args:
        path: The file.

    Returns:
        The prompt, checked.

    Raises:
        InputError: The file is missing, has no valid front matter, or its variables are not those that it declares.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"The prompt file {path} can't be read ({error.strerror}); check the prompt set.") from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"The prompt file {path} is not UTF-8 text; save it as UTF-8.") from error
    lines = text.splitlines()
    if not lines or lines[0].strip() != _FENCE or _FENCE not in (line.strip() for line in lines[1:]):
        raise InputError(
            f"The prompt file {path} has no front matter; it has to start with a block between '---' lines."
        )
    end = next(i for i, line in enumerate(lines[1:], start=1) if line.strip() == _FENCE)
    body = "\n".join(lines[end + 1 :])
    try:
        head = FrontMatter.model_validate(yaml.load("\n".join(lines[1:end]), Loader=StrictLoader))  # a SafeLoader
        used = meta.find_undeclared_variables(_ENVIRONMENT.parse(body))
    except yaml.YAMLError as error:
        what = yaml_fault(error, above=1)
        raise InputError(f"The head of the prompt file {path} is not valid YAML: {what}; correct it.") from error
    except ValidationError as error:
        raise InputError(f"The prompt file {path} is not valid ({first_fault(error)}); correct it.") from error
    except TemplateError as error:
        line = f" in line {error.lineno + end + 1}" if isinstance(error, TemplateSyntaxError) else ""
        raise InputError(f"The text of the prompt file {path} is no valid template{line}: {_said(error)}; "
                         "correct it.") from error  # fmt: skip
    if used != set(head.variables):
        raise InputError(
            f"The prompt file {path} declares the variables {', '.join(sorted(head.variables)) or 'none'} "
            f"but uses {', '.join(sorted(used)) or 'none'}; make them the same."
        )
    return Prompt(head=head, template=body, content_hash=hashlib.sha256(raw).hexdigest(), text=text)


def first_fault(error: ValidationError) -> str:
    """The first field that does not fit, and why."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or "its content"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


def prompt_root() -> Path:
    """Folder of the shipped prompt sets: one folder per set, one file per role."""
    return Path(str(files("prompts")))


def prompt_sets(root: Path | None = None) -> tuple[str, ...]:
    """Names of the prompt sets in a folder (default: the shipped ones), sorted."""
    folder = root if root is not None else prompt_root()
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and any(path.glob("*.md"))))


def load_prompt(set_name: str, role: Role, root: Path | None = None) -> Prompt:
    """The prompt of one role in a set.

    Args:
        set_name: Folder name of the set, for example ``guideline``.
        role: What the prompt is for; the file is ``<role>.md``.
        root: Folder of sets; default: the shipped ones.

    Returns:
        The prompt.

    Raises:
        InputError: There is no such set or file, the file is not valid, or its role is another one.
    """
    known = prompt_sets(root)
    if set_name not in known:
        raise InputError(f"There is no prompt set '{set_name}'; known sets are {', '.join(known)}.")
    prompt = read_prompt((root if root is not None else prompt_root()) / set_name / f"{role}.md")
    if prompt.head.role != role:
        raise InputError(
            f"The prompt {prompt.id} has the role {prompt.head.role}, but stands as '{role}' in {set_name}."
        )
    return prompt
