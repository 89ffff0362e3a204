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
    Text with {{ facts.goal.note }}

Templates are Jinja2 in its sandbox. Declared variables and those in the text have to be the same; rendering without
one of them, with one more, or with an attribute that does not exist is an error. The content hash covers the whole
file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import InputError

Role = Literal["system", "observe", "propose", "refine", "nominate", "explain"]

_FENCE = "---"
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True
)


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
    """A loaded prompt. `content_hash` is the SHA-256 of the file."""

    head: FrontMatter
    template: str = field(repr=False)
    content_hash: str

    @property
    def id(self) -> str:
        """Identifier with version, as it goes into the trace, for example ``guideline-explain@1``."""
        return f"{self.head.id}@{self.head.version}"

    def render(self, **values: Any) -> str:
        """Fill in the template.

        Args:
            **values: Exactly the declared variables.

        Returns:
            The text, without white space at its ends.

        Raises:
            InputError: A variable is unset or unknown, or the text asks for something that a value does not have.
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
        try:
            return _ENVIRONMENT.from_string(self.template).render(**values).strip()
        except TemplateError as error:
            raise InputError(f"The prompt {self.id} can't be rendered: {error.message}; correct its text.") from error


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
    text = raw.decode("utf-8")
    lines = text.splitlines()
    if not lines or lines[0].strip() != _FENCE or _FENCE not in (line.strip() for line in lines[1:]):
        raise InputError(
            f"The prompt file {path} has no front matter; it has to start with a block between '---' lines."
        )
    end = next(i for i, line in enumerate(lines[1:], start=1) if line.strip() == _FENCE)
    body = "\n".join(lines[end + 1 :])
    try:
        head = FrontMatter.model_validate(yaml.safe_load("\n".join(lines[1:end])))
        used = meta.find_undeclared_variables(_ENVIRONMENT.parse(body))
    except (yaml.YAMLError, ValidationError, TemplateError) as error:
        reason = "; ".join(str(error).split("\n")[:3])
        raise InputError(f"The prompt file {path} is not valid: {reason}; correct it.") from error
    if used != set(head.variables):
        raise InputError(
            f"The prompt file {path} declares the variables {', '.join(sorted(head.variables)) or 'none'} "
            f"but uses {', '.join(sorted(used)) or 'none'}; make them the same."
        )
    return Prompt(head=head, template=body, content_hash=hashlib.sha256(raw).hexdigest())


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
