from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from agent.policy import Explanation, Nomination, Observation, Proposal, Refinement
from agent.strict_schema import strict_schema

NOT_ALLOWED = {"default", "oneOf", "allOf", "not", "minLength", "maxLength", "uniqueItems", "prefixItems", "title"}


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: Annotated[int, Field(ge=1, le=9)] = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str = Field(min_length=1)


class Zoo(BaseModel):
    """Unions with a discriminator, optional fields, and a property that is called like a keyword."""

    animals: tuple[Annotated[Cat | Dog, Field(discriminator="kind")], ...] = ()
    title: str | None = None
    favourite: Cat | None = None


def schemas(node: object, names: bool = False) -> Iterator[dict[str, Any]]:
    """Every schema in a schema; `names`: the keys of this mapping are names, not keywords."""
    if isinstance(node, dict):
        if not names:
            yield node
        for key, value in node.items():
            yield from schemas(value, names=not names and key in ("properties", "$defs"))
    elif isinstance(node, list):
        for value in node:
            yield from schemas(value)


@pytest.mark.parametrize("model", [Observation, Proposal, Refinement, Nomination, Explanation, Zoo])
def test_rules_of_strict_mode(model: type[BaseModel]) -> None:
    schema = strict_schema(model)
    assert schema["type"] == "object"
    assert set(schema["properties"]) == set(model.model_json_schema()["properties"])
    assert "provenance" not in schema["properties"]
    for inner in schemas(schema):
        assert not NOT_ALLOWED & set(inner), inner
        if "properties" in inner:
            assert inner["additionalProperties"] is False
            assert sorted(inner["required"]) == sorted(inner["properties"])
        if "$ref" in inner:
            assert set(inner) == {"$ref"}
            assert inner["$ref"].removeprefix("#/$defs/") in schema["$defs"]


def test_what_strict_mode_can_say_is_kept() -> None:
    schema = strict_schema(Zoo)
    cat = schema["$defs"]["Cat"]
    assert cat["properties"]["lives"] == {"type": "integer", "minimum": 1, "maximum": 9}
    assert cat["properties"]["kind"]["const"] == "cat"
    assert {"type": "null"} in schema["properties"]["favourite"]["anyOf"]
    assert schema["properties"]["animals"]["items"] == {"anyOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]}
    confidence = strict_schema(Observation)["$defs"]["Feature"]["properties"]["confidence"]
    assert (confidence["minimum"], confidence["maximum"]) == (0, 1)


class Doses(BaseModel):
    by_drug: dict[str, float]


class Pair(BaseModel):
    model_config = ConfigDict(extra="forbid")

    place: tuple[int, str]


class Open(BaseModel):
    anything: dict[str, Any]


@pytest.mark.parametrize(("model", "place"), [(Doses, "by_drug"), (Pair, "place"), (Open, "anything")])
def test_what_strict_mode_cannot_say_is_refused(model: type[BaseModel], place: str) -> None:
    with pytest.raises(TypeError, match=f"{model.__name__}.{place} is a"):
        strict_schema(model)
