"""Prompt sets: what they take from each other, what is refused, one hash for what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import InputError
from prompts.loader import ROLES, prompt_root, prompt_sets
from prompts.sets import load_prompt_set

PROMPT = """---
id: mine-{role}
version: 1
role: {role}
variables: []
output_schema: null
changelog:
  - {{version: 1, text: first}}
---
Say {role}.
"""
HEAD = "title: mine\nsource: a test\n"


def made(folder: Path, *roles: str, head: str = HEAD) -> str:
    folder.mkdir()
    (folder / "set.yaml").write_text(head, encoding="utf-8")
    for role in roles:
        (folder / f"{role}.md").write_text(PROMPT.format(role=role), encoding="utf-8")
    return str(folder)


def test_the_shipped_sets() -> None:
    assert prompt_sets() == ("guideline", "mewm", "paper-policy", "paper-vlm-hcc-tace-seg", "paper-vlm-in-house")
    ours = load_prompt_set("mewm")
    assert ours.own == ROLES
    assert not load_prompt_set("guideline").head.for_llm
    for name in prompt_sets()[2:]:
        paper = load_prompt_set(name)
        assert paper.own == ("propose",)
        assert paper.prompt("propose").head.id == f"{name}-propose"
        for role in paper.prompts:
            if role != "propose":
                assert paper.prompt(role) == ours.prompt(role)
        assert "word for word" in paper.prompt("propose").head.changelog[0].text
        assert paper.content_hash != ours.content_hash


def test_every_own_prompt_is_named_after_its_set_and_role() -> None:
    for name in prompt_sets():
        one = load_prompt_set(name)
        for role in one.own:
            assert one.prompt(role).head.id == f"{name}-{role}".replace("_", "-")
            assert one.prompt(role).text == (prompt_root() / name / f"{role}.md").read_text(encoding="utf-8")


def test_a_set_of_one_s_own_takes_the_rest_from_a_shipped_one(tmp_path: Path) -> None:
    name = made(tmp_path / "mine", "explain", head=HEAD + "takes_from: {observe: mewm}\n")
    mine = load_prompt_set(name)
    assert mine.own == ("explain",)
    assert mine.prompt("observe") == load_prompt_set("mewm").prompt("observe")
    with pytest.raises(InputError, match=r"has no prompt for 'chat'; it has observe, explain. Add chat.md"):
        mine.prompt("chat")
    before = mine.content_hash
    (tmp_path / "mine" / "explain.md").write_text(PROMPT.format(role="explain") + "More.\n")
    assert load_prompt_set(name).content_hash != before


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("title: [", r"is not valid YAML: .+ \(line 1\); correct it"),
        ("title: mine\ntitle: ours\n", r"the key 'title' stands twice \(line 1\); correct"),
        ("title: mine\n", "source: Field required"),
        (HEAD + "author: me\n", "author"),
        (HEAD + "takes_from: {poem: mewm}\n", "takes_from.poem"),
        (HEAD + "takes_from: {observe: nothing}\n", "There is no prompt set 'nothing'"),
        (HEAD + "takes_from: {explain: mewm}\n", "has a file for explain and takes it from another set too"),
    ],
)
def test_a_broken_head_is_refused(tmp_path: Path, head: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_prompt_set(made(tmp_path / "mine", "explain", head=head))


def test_a_set_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"There is no prompt set 'ours'; known sets are guideline, mewm.* such as ./ours"
    ):
        load_prompt_set("ours")
    with pytest.raises(InputError, match="There is no prompt set at"):
        load_prompt_set(str(tmp_path / "nothing"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=r"set.yaml can't be read"):
        load_prompt_set(str(tmp_path / "bare"))
