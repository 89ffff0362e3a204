"""Prompt sets: folders of prompt files with a `set.yaml` that says what the set is and what it takes from another one.

A set is named, for a shipped one (``mewm``), or given as the folder that holds it (``./my-prompts``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import InputError
from models.strict_yaml import StrictLoader, yaml_fault
from prompts.loader import ROLES, Prompt, Role, first_fault, load_prompt, prompt_root, prompt_sets

DEFAULT_SET = "mewm"
SET_FILE = "set.yaml"


class SetHead(BaseModel):
    """Content of `set.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(min_length=1)
    source: str = Field(min_length=1)
    for_llm: bool = Field(default=True, description="False: texts of the embedded policy, no language model reads them")
    actions: str | None = Field(
        default=None, description="Action set whose agents the texts list; None where the texts name those of the run"
    )
    takes_from: dict[Role, str] = Field(
        default_factory=dict, description="Shipped set that gives the prompt of a role which this set lacks"
    )


@dataclass(frozen=True)
class PromptSet:
    """A loaded set. Every prompt in it is valid; `own` are the roles that it has a file for."""

    name: str
    head: SetHead
    prompts: dict[Role, Prompt] = field(repr=False)
    own: tuple[Role, ...]

    def prompt(self, role: Role) -> Prompt:
        """The prompt of a role.

        Raises:
            InputError: neither the set nor one that it takes from has it.
        """
        if role not in self.prompts:
            raise InputError(
                f"The prompt set {self.name} has no prompt for '{role}'; it has {', '.join(self.prompts)}. Add "
                f"{role}.md to it, or name the set to take it from under takes_from in its {SET_FILE}."
            )
        return self.prompts[role]

    @property
    def content_hash(self) -> str:
        """SHA-256 over every prompt of the set with its role: two sets that say the same are equal."""
        lines = [f"{role} {self.prompts[role].content_hash}\n" for role in ROLES if role in self.prompts]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def absolute(name: str) -> str:
    """The name of a set as it is kept with a run: a path in full, so that the run goes on from any folder."""
    return str(Path(name).resolve()) if _is_path(name) else name


def _is_path(name: str) -> bool:
    return "/" in name or "\\" in name


def load_prompt_set(name: str) -> PromptSet:
    """Load a set with all its prompts.

    Args:
        name: A shipped set, or the path of a folder with prompt files and a `set.yaml`; a path holds a slash.

    Raises:
        InputError: there is no such set, or one of its files is not valid.
    """
    is_path = _is_path(name)
    root = Path(name).parent if is_path else prompt_root()
    folder = Path(name) if is_path else root / name
    if not is_path and name not in prompt_sets():
        known = ", ".join(prompt_sets())
        raise InputError(
            f"There is no prompt set '{name}'; known sets are {known}. A set of your own is given as a path, such as "
            f"./{name}."
        )
    if not folder.is_dir():
        raise InputError(f"There is no prompt set at {folder}; give a folder with prompt files and a {SET_FILE}.")
    head = _head(folder / SET_FILE)
    own = tuple(role for role in ROLES if (folder / f"{role}.md").is_file())
    if twice := [role for role in own if role in head.takes_from]:
        raise InputError(f"The prompt set {name} has a file for {', '.join(twice)} and takes it from another set too.")
    prompts = {role: load_prompt(folder.name, role, root) for role in own}
    for role, other in head.takes_from.items():
        prompts[role] = load_prompt(other, role)
    return PromptSet(name, head, {role: prompts[role] for role in ROLES if role in prompts}, own)


def _head(path: Path) -> SetHead:
    try:
        return SetHead.model_validate(yaml.load(path.read_text(encoding="utf-8"), Loader=StrictLoader))  # a SafeLoader
    except OSError as error:
        raise InputError(f"The file {path} can't be read ({error.strerror}); every prompt set has one.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The file {path} is not UTF-8 text; save it as UTF-8.") from error
    except yaml.YAMLError as error:
        raise InputError(f"The file {path} is not valid YAML: {yaml_fault(error)}; correct it.") from error
    except ValidationError as error:
        raise InputError(f"The file {path} is not valid ({first_fault(error)}); correct it.") from error
