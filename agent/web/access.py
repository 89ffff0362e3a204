"""Access: whose request it is, and where that person's cases, conversations and files lie.

With passwords the person is who logged in; without, each browser is one person: a random token in a cookie that no
script can read. Both cookies are signed with a key in the work folder, so that a reload, and a restart of the server,
find the same person, and no browser can choose a name. A person's folder is named by a hash of the name or the token.

    <folder>/server.key           signs the cookies
    <folder>/users/<key>/cases    cases          .../chats     conversations, their plans and artifacts
                        /viewer   image files    .../incoming  uploads that are not imported yet
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import yaml
from pydantic import BaseModel, ConfigDict

from models.errors import InputError, RunError

FILES = "/mewm/file/"
"""Where a person's own files are fetched, by their path below the person's folder."""
_SHARED = ("cases", "chats", "viewer")


class AccessRules(BaseModel):
    """Content of `access.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gradio: dict[str, tuple[str, ...]]
    max_call_bytes: int
    max_sessions: int
    cookie_days: int
    login_hours: int
    wrong_password_pause_s: float
    served: dict[str, str]


@cache
def access_rules() -> AccessRules:
    """The rules of `access.yaml`."""
    text = resources.files("agent.web").joinpath("access.yaml").read_text(encoding="utf-8")
    return AccessRules.model_validate(yaml.safe_load(text))


class HasCookies(Protocol):
    """A request: FastAPI's, or Gradio's around it."""

    @property
    def cookies(self) -> Any:
        """Cookies by name."""


class NotLoggedInError(InputError):
    """A request of nobody: no cookie, one that was not signed here, or a login that has run out."""


@dataclass(frozen=True)
class Owner:
    """A person who uses the page.

    Attributes:
        key: name of the person's folder.
        name: login name; empty where the browser is the person.
        folder: everything of this person, and of nobody else.
    """

    key: str
    name: str
    folder: Path

    @property
    def cases(self) -> Path:
        """The person's cases."""
        return self.folder / "cases"

    @property
    def chats(self) -> Path:
        """The person's conversations."""
        return self.folder / "chats"

    @property
    def viewer(self) -> Path:
        """Image files that were made for the viewer; they can be made again."""
        return self.folder / "viewer"

    @property
    def incoming(self) -> Path:
        """Uploads that are not imported yet."""
        return self.folder / "incoming"

    def url(self, path: Path, inline: bool = False) -> str:
        """Where this person's browser, and no other, fetches a file.

        Args:
            path: a file below the person's folder.
            inline: shown in the browser, without rights over the page, instead of downloaded.

        Raises:
            InputError: the file lies elsewhere, or is not of a kind that is handed out.
        """
        try:
            inside = path.resolve().relative_to(self.folder.resolve()).as_posix()
        except ValueError:
            raise InputError(f"The file {path.name} is not one of this person's files.") from None
        self.file(inside)
        return FILES + quote(inside) + ("?view" if inline else "")

    def file(self, inside: str) -> tuple[Path, str]:
        """A file by its path below the person's folder, and its media type.

        Raises:
            InputError: it is not one that is handed out: outside, hidden, of another kind, or not there.
        """
        refused = InputError("There is no such file.")
        parts = inside.split("/")
        kind = next((kind for suffix, kind in access_rules().served.items() if inside.endswith(suffix)), None)
        if kind is None or parts[0] not in _SHARED or "\\" in inside or "\0" in inside:
            raise refused
        if any(not part or part.startswith(".") for part in parts):
            raise refused
        path, root = self.folder.joinpath(*parts), self.folder.resolve()
        # a link, at any place of the path, leads elsewhere
        if path.resolve() != root.joinpath(*parts) or not path.is_file():
            raise refused
        return path, kind


class Access:
    """Tells whose a request is."""

    def __init__(self, folder: Path, passwords: Mapping[str, str] | None = None) -> None:
        """Args:
            folder: the work folder; made when the page is served.
            passwords: by login name; None makes each browser one person.

        Raises:
            RunError: the folder can't be written.
        """
        self.folder = Path(folder)
        self._passwords = dict(passwords) if passwords is not None else None
        self._secret = _secret(self.folder)
        private_folder(self.folder / "users")
        # cookies are not told apart by port: another server on this machine has another name
        self.cookie = "mewm_" + hashlib.sha256(self._secret).hexdigest()[:8]

    @property
    def by_login(self) -> bool:
        """Whether people log in by name and password."""
        return self._passwords is not None

    def owner(self, request: HasCookies) -> Owner:
        """Whose request it is.

        Raises:
            NotLoggedInError: nobody's.
        """
        value = request.cookies.get(self.cookie)
        found = self.owner_of(value) if value else None
        if found is None:
            raise NotLoggedInError("This page was left open too long or its cookie is gone: load it again.")
        return found

    def key(self, request: HasCookies) -> str | None:
        """Key of the person whose request it is, or None: what Gradio asks before it serves anything."""
        value = request.cookies.get(self.cookie)
        found = self.owner_of(value) if value else None
        return None if found is None else found.key

    def owner_of(self, cookie: str) -> Owner | None:
        """The person of a cookie; None where it was not signed here, or has run out."""
        kind, _, rest = cookie.partition(".")
        if kind == "b" and self._passwords is None:
            token, _, signature = rest.rpartition(".")
            if not hmac.compare_digest(signature.encode(), self._sign(f"b.{token}").encode()):
                return None
            return self._owner("browser-" + hashlib.sha256(token.encode()).hexdigest()[:24], "")
        if kind == "u" and self._passwords is not None:
            told, _, signature = rest.rpartition(".")
            name, _, until = _decoded(told).rpartition("\n")
            password = self._passwords.get(name)
            if password is None or not until.isdecimal() or int(until) < time.time():
                return None
            if not hmac.compare_digest(signature.encode(), self._sign(f"u.{told}", password).encode()):
                return None
            return self.named(name)
        return None

    def named(self, name: str) -> Owner:
        """The person of a login name."""
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:24]
        return self._owner(f"user-{plain}-{hashlib.sha256(name.encode()).hexdigest()[:12]}", name)

    def new_browser(self) -> str:
        """Cookie of a browser that was not here before."""
        token = secrets.token_urlsafe(32)
        return f"b.{token}.{self._sign(f'b.{token}')}"

    def log_in(self, name: str, password: str) -> str | None:
        """Cookie of a login; None where name and password do not belong together."""
        right = (self._passwords or {}).get(name)
        # as much work for a name that nobody has
        given, kept = (hashlib.sha256(text.encode()).digest() for text in (password, right or ""))
        if not hmac.compare_digest(given, kept) or not right:
            return None
        until = int(time.time()) + access_rules().login_hours * 3600
        told = base64.urlsafe_b64encode(f"{name}\n{until}".encode()).decode().rstrip("=")
        return f"u.{told}.{self._sign(f'u.{told}', right)}"

    def set_cookie(self, value: str, secure: bool) -> str:
        """The header that gives a browser its cookie; lax: a link from elsewhere opens the page, but sends nothing."""
        days = access_rules().cookie_days
        ends = "" if self.by_login else f"; Max-Age={days * 86400}"
        return f"{self.cookie}={value}; Path=/; HttpOnly; SameSite=Lax{ends}{'; Secure' if secure else ''}"

    def _owner(self, key: str, name: str) -> Owner:
        return Owner(key, name, self.folder / "users" / key)

    def _sign(self, text: str, password: str = "") -> str:
        """Signature; a changed password ends its logins."""
        key = hmac.digest(self._secret, password.encode(), "sha256")
        return hmac.digest(key, text.encode(), "sha256").hex()


def private_folder(path: Path) -> Path:
    """Make a folder that no other account of this machine can look into, where it is not there.

    Raises:
        RunError: it can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise RunError(f"The folder {path} can't be written ({exc.strerror}): choose another work folder.") from exc
    return path


def _decoded(text: str) -> str:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except ValueError:  # not base64, not UTF-8
        return ""


def _secret(folder: Path) -> bytes:
    """The key that signs cookies: made once, readable by this account only."""
    path = folder / "server.key"
    try:
        private_folder(folder)
        if not path.exists():
            partial = folder / f".server.key.{secrets.token_hex(4)}"
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
            try:
                os.link(partial, path)  # unlike a rename, never over a key that another process made meanwhile
            except FileExistsError:
                pass
            finally:
                partial.unlink()
        found = path.read_bytes()
    except OSError as exc:
        raise RunError(f"The work folder {folder} can't be used ({exc.strerror}): choose another.") from exc
    if len(found) < 32:
        raise RunError(f"The key {path} is damaged: remove it; people of this page then begin anew.")
    return found
