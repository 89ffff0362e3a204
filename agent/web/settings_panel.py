"""Settings panel: what answers in a conversation, a backend of the registry or the embedded policy, and its prompts."""

from __future__ import annotations

from pathlib import Path

from agent.backends import load_backends
from agent.chat import model_for
from agent.chat_store import ChatStore
from agent.intents import NO_LLM
from agent.web.plan_panel import part
from prompts.loader import prompt_sets

EMBEDDED = ""
"""Stands for the embedded policy in the list of backends."""


def backend_choices(user_file: str | None) -> list[tuple[str, str]]:
    """The embedded policy, then every backend, with what is missing of it.

    Raises:
        InputError: the user's backend file is not valid.
    """
    found = [(f"{NO_LLM[0].upper()}{NO_LLM[1:]}", EMBEDDED)]
    for backend in load_backends(None if user_file is None else Path(user_file)).values():
        missing = "" if backend.key_is_set else f", needs {backend.api_key_env}"
        found.append((f"{backend.name} ({backend.model}{missing})", backend.name))
    return found


def prompt_choices(now: str) -> list[str]:
    """The shipped prompt sets, and the one that is used now."""
    return list(dict.fromkeys((now, *prompt_sets())))


def choose(store: ChatStore, thread_id: str, llm: str, prompts: str) -> None:
    """Let another backend, or the embedded policy, answer in a conversation from now on.

    Raises:
        InputError: there is no such backend or prompt set.
        BackendError: a key or an address is not set; nothing is changed then.
    """
    thread = store.thread(thread_id)
    settings = thread.settings.model_copy(update={"policy_llm": llm or None, "prompts": prompts})
    model_for(llm or None, settings)
    store.change(thread_id, llm=llm or None, prompts=prompts)


def who_html(name: str) -> str:
    """What answers, plainly."""
    return part("who", name=name, is_llm=name != NO_LLM)
