"""Cache of model answers: the same question to the same model under the same options is asked once, whatever the run.

It is LangChain's cache over one SQLite file. A key is a hash over the whole conversation, the model with its options
and the epoch: repeated epochs ask again, which is what they are for. Answers are kept as text; questions are not kept.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.globals import get_llm_cache, set_llm_cache
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration

from models.errors import RunError

_epoch: ContextVar[int] = ContextVar("epoch", default=1)


@contextmanager
def in_epoch(epoch: int) -> Iterator[None]:
    """Answers of this thread belong to an epoch."""
    token = _epoch.set(epoch)
    try:
        yield
    finally:
        _epoch.reset(token)


class AnswerCache(BaseCache):
    """Answers of chat models in one SQLite file, for any number of threads and processes."""

    def __init__(self, path: Path) -> None:
        """Opens or makes the file.

        Raises:
            RunError: it can't be written, or is no such file.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as connection, connection:
                connection.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as exc:
            msg = f"The cache of model answers {path} can't be used ({exc}): name another, or give --no-cache."
            raise RunError(msg) from exc

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """The kept answer, or None."""
        with closing(self._open()) as connection:
            row = connection.execute("SELECT answer FROM answers WHERE key = ?", (_key(prompt, llm_string),)).fetchone()
        if row is None:
            return None
        return [
            ChatGeneration(message=AIMessage.model_validate(kept["message"]), generation_info=kept["info"])
            for kept in json.loads(row[0])
        ]

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Keep an answer."""
        kept = [
            {"message": generation.message.model_dump(mode="json"), "info": generation.generation_info}
            for generation in return_val
            if isinstance(generation, ChatGeneration)
        ]
        with closing(self._open()) as connection, connection:
            text = json.dumps(kept, ensure_ascii=False)
            connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (_key(prompt, llm_string), text))

    def clear(self, **_: Any) -> None:
        """Forget all answers."""
        with closing(self._open()) as connection, connection:
            connection.execute("DELETE FROM answers")

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60.0)


def _key(prompt: str, llm_string: str) -> str:
    return hashlib.sha256(json.dumps([prompt, llm_string, _epoch.get()]).encode()).hexdigest()


@contextmanager
def cached_answers(path: Path | None) -> Iterator[None]:
    """Use the cache for every chat model of this process; None changes nothing.

    Raises:
        RunError: the file can't be used.
    """
    if path is None:
        yield
        return
    before = get_llm_cache()
    set_llm_cache(AnswerCache(path))
    try:
        yield
    finally:
        set_llm_cache(before)
