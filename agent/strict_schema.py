"""A pydantic model as the JSON schema of OpenAI's strict mode, which local servers' grammars take as well.

The rules (OpenAI, "Structured Outputs: supported schemas"): every object closed, every property required, `anyOf` but
no `oneOf`, no defaults, no lengths of texts. What strict mode can't say (lengths, checks between fields) is checked
when the answer is parsed into the model.
"""

from __future__ import annotations

from typing import Any

import openai
from pydantic import BaseModel

_NOT_SAID = ("title", "default", "minLength", "maxLength", "uniqueItems", "discriminator")


def strict_schema(model: type[BaseModel]) -> dict[str, Any]:
    """JSON schema of `model` for strict mode.

    Fields that are hidden with `SkipJsonSchema` are left out; optional ones are required, and may be null where their
    type allows it.

    Raises:
        TypeError: the model has a mapping with free keys or a tuple of fixed places, which strict mode can't express.
    """
    # The OpenAI package closes objects, requires every property and resolves references that have neighbours.
    schema = openai.pydantic_function_tool(model)["function"]["parameters"]
    return _clean(dict(schema), model.__name__)


def _clean(schema: dict[str, Any], place: str) -> dict[str, Any]:
    if isinstance(schema.get("additionalProperties"), dict) or (
        schema.get("type") == "object" and "properties" not in schema
    ):
        raise TypeError(f"{place} is a mapping with free keys, which strict mode can't express: use a list of pairs")
    if "prefixItems" in schema:
        raise TypeError(f"{place} is a tuple of fixed places, which strict mode can't express: use a model")
    cleaned: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NOT_SAID:
            continue
        if key in ("properties", "$defs"):
            cleaned[key] = {name: _clean(inner, f"{place}.{name}") for name, inner in value.items()}
        elif key == "items":
            cleaned[key] = _clean(value, f"{place}[]")
        elif key in ("anyOf", "oneOf", "allOf"):
            kind = "anyOf" if key == "oneOf" else key
            cleaned[kind] = [_clean(inner, place) for inner in value]
        else:
            cleaned[key] = value
    return cleaned
