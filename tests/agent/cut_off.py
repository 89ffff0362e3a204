"""What a kill leaves: copies of a folder as it was after every single write of a checkpoint database in it."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.sqlite import SqliteSaver


@contextmanager
def copied_after_every_write(folder: Path, to: Path) -> Iterator[list[Path]]:
    """Copies of `folder` in `to`, in their order; a name ends with the write that was the last."""
    copies: list[Path] = []
    one_at_a_time = threading.RLock()

    def copied(write: Callable[..., Any]) -> Callable[..., Any]:
        def wrote(saver: SqliteSaver, *arguments: Any, **options: Any) -> Any:
            with one_at_a_time:
                result = write(saver, *arguments, **options)
                copy = to / f"{len(copies)}-{write.__name__}"
                shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.sqlite*"))
                for path in folder.rglob("*.sqlite"):
                    other = copy / path.relative_to(folder)
                    with closing(sqlite3.connect(path)) as one, closing(sqlite3.connect(other)) as two:
                        one.backup(two)
                copies.append(copy)
            return result

        return wrote

    with pytest.MonkeyPatch.context() as patch:
        for name in ("put", "put_writes"):
            patch.setattr(SqliteSaver, name, copied(getattr(SqliteSaver, name)))
        yield copies
