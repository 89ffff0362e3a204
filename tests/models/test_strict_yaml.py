"""Strict YAML: what it refuses, and where, beside plain safe YAML."""

from __future__ import annotations

import pytest
import yaml

from models.strict_yaml import StrictLoader, yaml_fault, yaml_place


@pytest.mark.parametrize("text", ["a: 1\nb: [x, {c: 2.5}]\n", "", "- yes\n- 2020-02-03\n", '{"a": null}'])
def test_what_is_valid_reads_as_with_the_safe_loader(text: str) -> None:
    assert yaml.load(text, Loader=StrictLoader) == yaml.safe_load(text)  # a SafeLoader


@pytest.mark.parametrize(
    ("text", "what", "place"),
    [
        ("a: 1\nb:\n  c: 2\n  c: 3\n", "the key 'c' stands twice", " (line 3)"),
        ("a: 1\nb: [1\n", "expected ',' or ']', but got '<stream end>'", " (line 3)"),
        ("a: 2020-02-30\n", "a value is not what it claims (day is out of range for month)", ""),
        ("[" * 5000, "it is nested too deeply", ""),
    ],
)
def test_a_fault_is_one_line_that_names_the_line(text: str, what: str, place: str) -> None:
    with pytest.raises(yaml.YAMLError) as caught:
        yaml.load(text, Loader=StrictLoader)  # a SafeLoader
    assert yaml_fault(caught.value) == what + place
    assert yaml_place(caught.value) == place
    if place:
        later = yaml_place(caught.value, above=4)
        assert later == " (line 7)"
        assert yaml_fault(caught.value, above=4) == what + later
