"""What a kill leaves: a folder after every single write of a checkpoint database, or a file that was half written."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.sqlite import SqliteSaver

_KILLED = """
import os, sys
from pathlib import Path
from agent.files import write_text
Path.replace = lambda *_: os._exit(9)
write_text(Path(sys.argv[1]), "half")
"""


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


def killed_while_writing(path: Path) -> None:
    """Write a file in a process that dies before the file is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False).returncode == 9
    assert not path.exists()
    assert any(path.parent.iterdir())
