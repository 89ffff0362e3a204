"""The transcripts in the documentation are what the program says today, and long enough."""

from __future__ import annotations

from tests.agent.chat_transcript import EMBEDDED, PAGE, SCRIPTED, page


def test_the_page_is_up_to_date():
    """Where it is not: ``python -m tests.agent.chat_transcript``."""
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text
    for said in (EMBEDDED, SCRIPTED):
        assert sum(not words.startswith("(") for words in said) >= 12
