"""Prompt files: what is refused, what is rendered, what is hashed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from models.errors import InputError
from prompts.loader import load_prompt, prompt_root, prompt_sets, read_prompt

GOOD = """---
id: test-explain
version: 2
role: explain
variables: [name, facts]
output_schema: null
changelog:
  - {version: 1, text: first}
  - {version: 2, text: second}
---
Hello {{ name }}, {{ facts.a }}.
"""


def _write(folder: Path, text: str, name: str = "explain.md") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_renders_and_hashes(tmp_path: Path) -> None:
    path = _write(tmp_path, GOOD)
    prompt = read_prompt(path)
    assert prompt.render(name="Ann", facts={"a": 3}) == "Hello Ann, 3."
    assert prompt.id == "test-explain@2"
    assert prompt.content_hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_prompt(_write(tmp_path, GOOD.replace("Hello", "Hullo"))).content_hash != prompt.content_hash


def test_values_are_not_templates(tmp_path: Path) -> None:
    prompt = read_prompt(_write(tmp_path, GOOD))
    assert prompt.render(name="{{ facts }}", facts={"a": "<b>"}) == "Hello {{ facts }}, <b>."


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "Ann"}, "needs facts"),
        ({"name": "Ann", "facts": {"a": 1}, "age": 3}, "declares no variable age"),
        ({"name": "Ann", "facts": {}}, "can't be rendered"),
    ],
)
def test_unset_unknown_and_absent(tmp_path: Path, values: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_prompt(_write(tmp_path, GOOD)).render(**values)


def test_the_sandbox_holds(tmp_path: Path) -> None:
    prompt = read_prompt(_write(tmp_path, GOOD.replace("facts.a", "facts.__class__.__mro__")))
    with pytest.raises(InputError, match="can't be rendered"):
        prompt.render(name="Ann", facts={})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("---\nid", "id"),  # no front matter
        ("id: test-explain\n", ""),
        ("role: explain", "role: poet"),
        ("variables: [name, facts]", "variables: [name]"),  # used, not declared
        ("variables: [name, facts]", "variables: [name, facts, age]"),  # declared, not used
        ("version: 2\nrole", "version: 3\nrole"),  # not in the changelog
        ("output_schema: null", "output_schema: null\nauthor: me"),
        ("{{ name }}", "{{ name "),
        ("id: test-explain", "id: [1"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, old: str, new: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError, match="prompt file"):
        read_prompt(_write(tmp_path, GOOD.replace(old, new)))


def test_missing_file_set_and_role(tmp_path: Path) -> None:
    _write(tmp_path, GOOD, "mine/explain.md")
    _write(tmp_path, GOOD, "mine/observe.md")
    assert prompt_sets(tmp_path) == ("mine",)
    assert load_prompt("mine", "explain", tmp_path).head.version == 2
    with pytest.raises(InputError, match="known sets are mine"):
        load_prompt("yours", "explain", tmp_path)
    with pytest.raises(InputError, match="can't be read"):
        load_prompt("mine", "propose", tmp_path)
    with pytest.raises(InputError, match="has the role explain"):
        load_prompt("mine", "observe", tmp_path)


def test_every_shipped_prompt_is_valid() -> None:
    paths = sorted(prompt_root().glob("*/*.md"))
    assert paths
    assert "guideline" in prompt_sets()
    ids = [read_prompt(path).id for path in paths]
    assert len(set(ids)) == len(ids)
