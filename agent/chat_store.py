"""ChatStore: conversations on disk, in one folder that belongs to one person.

chats.sqlite   the conversations, their plans, and the checkpoints of the chat graph
artifacts/     what was simulated, shared by all plans: equal inputs are equal files
<thread>/      one run folder per plan: plan-1, what-if-2, ...
"""

from __future__ import annotations

import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from pydantic import BaseModel, ConfigDict

from agent.settings import PlannerSettings
from models.errors import InputError, RunError

FORMAT_VERSION = 1
THREAD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PlanKind = Literal["plan", "what_if"]
_NAMES: dict[str, str] = {"plan": "plan", "what_if": "what-if"}
_TABLES = """
CREATE TABLE IF NOT EXISTS threads (
    thread_id TEXT PRIMARY KEY, created TEXT NOT NULL, updated TEXT NOT NULL, title TEXT NOT NULL,
    case_path TEXT, llm TEXT, prompts TEXT NOT NULL, settings TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS plans (
    thread_id TEXT NOT NULL REFERENCES threads (thread_id), plan_id TEXT NOT NULL, kind TEXT NOT NULL,
    call_id TEXT NOT NULL, case_path TEXT NOT NULL, created TEXT NOT NULL,
    PRIMARY KEY (thread_id, plan_id), UNIQUE (thread_id, call_id)
);
"""


class Thread(BaseModel):
    """One conversation. `title` is how it began; `llm` is None for the embedded policy."""

    model_config = ConfigDict(frozen=True)

    thread_id: str
    created: str
    updated: str
    title: str
    case_path: str | None
    llm: str | None
    prompts: str
    settings: PlannerSettings


class PlanRow(BaseModel):
    """One run of the planner in a conversation. `call_id` is the tool call that asked for it."""

    model_config = ConfigDict(frozen=True)

    thread_id: str
    plan_id: str
    kind: PlanKind
    call_id: str
    case_path: str
    created: str


class ChatStore:
    """The conversations of one person. Every call opens the database anew, so threads may share a store."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: made when the first conversation begins."""
        self.folder = folder

    @property
    def artifacts(self) -> Path:
        """Where all plans keep what they simulate."""
        return self.folder / "artifacts"

    def plan_folder(self, row: PlanRow) -> Path:
        """The run folder of a plan."""
        return self.folder / row.thread_id / row.plan_id

    def threads(self) -> list[Thread]:
        """All conversations, the one that was used last first."""
        if not self._database.exists():
            return []
        with self._open() as database:
            rows = database.execute("SELECT * FROM threads ORDER BY updated DESC, thread_id").fetchall()
        return [_thread(row) for row in rows]

    def begin(self, settings: PlannerSettings, llm: str | None, prompts: str, thread_id: str | None = None) -> Thread:
        """A new conversation.

        Args:
            settings: Of its plans.
            llm: Backend; None is the embedded policy.
            prompts: Prompt set.
            thread_id: Its id where somebody else gives the ids (a server); None makes one.

        Raises:
            InputError: the id has characters that are not allowed.
            RunError: the folder can't be written.
        """
        if thread_id is not None and not THREAD_ID.fullmatch(thread_id):
            raise InputError(f"A conversation can't be called '{thread_id[:80]}': use letters, digits and dashes.")
        now = _now()
        thread = Thread(
            thread_id=thread_id or f"{now[:10]}-{secrets.token_hex(3)}", created=now, updated=now, title="",
            case_path=None, llm=llm, prompts=prompts, settings=settings,
        )  # fmt: skip
        values = {**thread.model_dump(exclude={"settings"}), "settings": settings.model_dump_json()}
        with self._open() as database:
            columns = ", ".join(values)
            marks = ", ".join(f":{name}" for name in values)
            database.execute(f"INSERT INTO threads ({columns}) VALUES ({marks})", values)
        return thread

    def thread(self, thread_id: str) -> Thread:
        """The conversation of that id.

        Raises:
            InputError: there is none.
        """
        if THREAD_ID.fullmatch(thread_id) and self._database.exists():
            with self._open() as database:
                row = database.execute("SELECT * FROM threads WHERE thread_id = ?", (thread_id,)).fetchone()
            if row is not None:
                return _thread(row)
        raise InputError(f"There is no conversation '{thread_id[:80]}' in {self.folder}: see `mewm chat --list`.")

    def change(self, thread_id: str, **values: str | None) -> None:
        """Set columns of a conversation (`title`, `case_path`, `llm`, `prompts`) and note that it was used."""
        if unknown := set(values) - {"title", "case_path", "llm", "prompts"}:
            msg = f"no such columns of a conversation: {sorted(unknown)}"
            raise ValueError(msg)
        with self._open() as database:
            names = ", ".join(f"{name} = :{name}" for name in ("updated", *values))
            given = {**values, "updated": _now(), "thread_id": thread_id}
            database.execute(f"UPDATE threads SET {names} WHERE thread_id = :thread_id", given)

    def plans(self, thread_id: str) -> list[PlanRow]:
        """The plans of a conversation, oldest first."""
        with self._open() as database:
            rows = database.execute("SELECT * FROM plans WHERE thread_id = ? ORDER BY rowid", (thread_id,)).fetchall()
        return [PlanRow.model_validate(dict(row)) for row in rows]

    def plan_for(self, thread_id: str, call_id: str, kind: PlanKind, case_path: Path) -> PlanRow:
        """The plan that a tool call asked for: the one that it began before it was killed, or a new one."""
        with self._open() as database:
            known = database.execute(
                "SELECT * FROM plans WHERE thread_id = ? AND call_id = ?", (thread_id, call_id)
            ).fetchone()
            if known is not None:
                return PlanRow.model_validate(dict(known))
            ids = database.execute("SELECT plan_id FROM plans WHERE thread_id = ?", (thread_id,)).fetchall()
            last = max((int(found["plan_id"].rpartition("-")[2]) for found in ids), default=0)
            row = PlanRow(
                thread_id=thread_id,
                plan_id=f"{_NAMES[kind]}-{last + 1}",
                kind=kind,
                call_id=call_id,
                case_path=str(case_path),
                created=_now(),
            )
            values = row.model_dump()
            marks = ", ".join(f":{name}" for name in values)
            database.execute(f"INSERT INTO plans ({', '.join(values)}) VALUES ({marks})", values)
        return row

    def forget_plan(self, row: PlanRow) -> None:
        """Take a plan back that never began."""
        with self._open() as database:
            database.execute("DELETE FROM plans WHERE thread_id = ? AND plan_id = ?", (row.thread_id, row.plan_id))

    @contextmanager
    def saver(self) -> Iterator[SqliteSaver]:
        """The checkpoints of the chat graph; they hold messages only.

        Raises:
            RunError: the database can't be used.
        """
        with closing(self._connect()) as connection:
            try:
                yield SqliteSaver(connection, serde=JsonPlusSerializer(allowed_msgpack_modules=[]))
            except sqlite3.DatabaseError as exc:
                raise RunError(self._unusable(exc)) from exc

    @property
    def _database(self) -> Path:
        return self.folder / "chats.sqlite"

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(self._connect()) as connection:
            connection.row_factory = sqlite3.Row
            try:
                with connection:
                    yield connection
            except sqlite3.DatabaseError as exc:
                raise RunError(self._unusable(exc)) from exc

    def _connect(self) -> sqlite3.Connection:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._database, check_same_thread=False, timeout=30)
        except (OSError, sqlite3.Error) as exc:
            raise RunError(
                f"The conversations in {self.folder} can't be opened ({exc}): choose another folder."
            ) from exc
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, FORMAT_VERSION):
                raise RunError(
                    f"The conversations in {self.folder} have format version {version}, this program reads "
                    f"{FORMAT_VERSION}: choose another folder."
                )
            if version == 0:
                connection.executescript(_TABLES)
                connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        except sqlite3.DatabaseError as exc:
            connection.close()
            raise RunError(self._unusable(exc)) from exc
        except RunError:
            connection.close()
            raise
        return connection

    def _unusable(self, exc: sqlite3.Error) -> str:
        return f"The conversations in {self.folder} can't be used ({exc}): move {self._database} away to begin anew."


def _thread(row: sqlite3.Row) -> Thread:
    values = dict(row)
    return Thread.model_validate({**values, "settings": PlannerSettings.model_validate_json(values["settings"])})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
