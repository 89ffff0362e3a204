"""Strict YAML: the reader of files that people write, and where such a file is broken, in words."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from models.errors import MewmError


class StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, which plain YAML would silently overwrite.

    Everything that it refuses is a `yaml.YAMLError`, also where PyYAML lets other errors through because a value is not
    what its form or tag says (a 30th of February, ``!!bool 7``) or is nested without end.
    """

    def get_single_data(self) -> Any:
        """The one document of the stream as plain values.

        Raises:
            yaml.YAMLError: It is not valid, or a value is not what it claims to be.
        """
        try:
            return super().get_single_data()
        except RecursionError:
            raise yaml.constructor.ConstructorError(None, None, "it is nested too deeply") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise yaml.constructor.ConstructorError(None, None, f"a value is not what it claims ({error})") from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping of a node; raises ConstructorError where a key stands twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path, what: str, refuse: type[MewmError]) -> dict[Hashable, Any]:
    """Read a file of field names and values that a person wrote.

    Args:
        path: ``.yaml``, ``.yml`` or ``.json``; an empty file has no fields.
        what: what the file is, for messages: ``clinical record``.
        refuse: the error of such a file.

    Raises:
        MewmError: of the type `refuse`: another kind of file, unreadable, not valid, or no mapping.
    """
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise refuse(f"The {what} {path} is neither YAML nor JSON; give a .yaml, .yml or .json file.")
    try:
        data = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=StrictLoader)  # a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise refuse(f"The {what} {path} can't be read: {reason}.") from error
    except yaml.YAMLError as error:
        raise refuse(f"The {what} {path} is not valid YAML or JSON: {yaml_fault(error)}.") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise refuse(f"The {what} {path} is not a mapping of field names to values.")
    return data


def yaml_fault(error: yaml.YAMLError, above: int = 0) -> str:
    """What is wrong with a YAML text and in which line, without the reader's own picture of it.

    Args:
        error: What the reader said.
        above: Lines of the file above that text.
    """
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        return error.problem + yaml_place(error, above)
    return " ".join(str(error).split())


def yaml_place(error: yaml.YAMLError, above: int = 0) -> str:
    """In which line a YAML text is broken, as words for a message; empty where that is not known.

    It says nothing of what stands there: for files that hold secrets.

    Args:
        error: What the reader said.
        above: Lines of the file above that text.
    """
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return f" (line {mark.line + 1 + above})" if mark is not None else ""
