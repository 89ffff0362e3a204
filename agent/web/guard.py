"""Guard: stands before every request of the page.

It knows whose request it is before anything else sees it, closes the parts of Gradio that know no owner, lets nobody
speak in another's session, and tells browsers to load nothing from elsewhere.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent.web.access import Access, Owner, access_rules

OPEN = ("/login",)
"""Paths that somebody who is not logged in needs."""
OWN = "/mewm/"
"""Everything below is this program's own: its routes ask for the owner themselves."""
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; media-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
"""Gradio and its HTML components need inline and evaluated scripts; none from another place."""
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """ASGI middleware around the whole page."""

    def __init__(self, app: ASGIApp, access: Access, hosts: Sequence[str] = ()) -> None:
        """Args:
        app: what is guarded.
        access: tells whose a request is.
        hosts: names under which the page may be asked for; none: any. A page on loopback names its own, so that no
            other page can reach it through a name of its own that leads here.
        """
        self._app, self._access, self._hosts = app, access, {host.lower() for host in hosts}
        rules = access_rules()
        self._allowed = {
            method: re.compile("|".join(f"(?:{p})" for p in paths)) for method, paths in rules.gradio.items()
        }
        self._sessions: OrderedDict[str, str] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if refused := self._foreign(scope, headers):
            await refused(scope, receive, send)
            return
        owner = self._owner(headers)
        cookie: str | None = None
        path: str = scope["path"]
        if owner is None and not self._access.by_login and path == "/" and scope["method"] == "GET":
            cookie = self._access.new_browser()
            owner = self._access.owner_of(cookie)
            others = [pair for pair in scope["headers"] if pair[0] != b"cookie"]
            scope = {**scope, "headers": [*others, (b"cookie", f"{self._access.cookie}={cookie}".encode())]}

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    given.setdefault(name, value)
                if cookie is not None:
                    given.append("set-cookie", self._access.set_cookie(cookie, scope["scheme"] == "https"))
            await send(message)

        if owner is None and not (path in OPEN and self._access.by_login):
            await self._nobody(path)(scope, receive, told)
            return
        if owner is not None and not path.startswith(OWN) and path not in (*OPEN, "/logout"):
            scope, receive, refused = await self._gradio(scope, receive, owner)
            if refused is not None:
                await refused(scope, receive, told)
                return
        await self._app(scope, receive, told)

    def _foreign(self, scope: Scope, headers: Headers) -> Response | None:
        """The refusal of a request that another page made, or that came under a name that is not the page's."""
        host = headers.get("host", "")
        name = re.sub(r":\d+$", "", host).strip("[]").lower()
        if self._hosts and name not in self._hosts:
            return _refusal(421, "This page is not served under that name.")
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD") and origin and urllib.parse.urlsplit(origin).netloc != host:
            return _refusal(403, "Another page asked for this.")
        return None

    def _owner(self, headers: Headers) -> Owner | None:
        given = cookie_parser(headers.get("cookie", "")).get(self._access.cookie)
        return None if given is None else self._access.owner_of(given)

    def _nobody(self, path: str) -> Response:
        if self._access.by_login and path == "/":
            return RedirectResponse("/login", status_code=303)
        return _refusal(401, "This page was left open too long or its cookie is gone: load it again.")

    async def _gradio(self, scope: Scope, receive: Receive, owner: Owner) -> tuple[Scope, Receive, Response | None]:
        """Let a request through to Gradio where it is one that the page makes, in a session of its own."""
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        allowed = self._allowed.get(method)
        path: str = scope["path"]
        if allowed is None or not allowed.fullmatch(path) or ".." in path:
            return scope, receive, _refusal(404, "There is nothing here.")
        query = urllib.parse.parse_qs(scope["query_string"].decode("latin-1"))
        if "deep_link" in query:
            return scope, receive, _refusal(404, "There is nothing here.")
        sessions = list(query.get("session_hash", []))
        if path.startswith("/gradio_api/heartbeat/"):
            sessions.append(path.rpartition("/")[2])
        if method == "POST":
            body = await _whole(receive, access_rules().max_call_bytes)
            if body is None:
                return scope, receive, _refusal(413, "That is more than one call may bring.")
            try:
                told = json.loads(body) if body else {}
            except (ValueError, RecursionError):
                return scope, receive, _refusal(400, "The call is not JSON.")
            if isinstance(told, dict) and told.get("session_hash") is not None:
                sessions.append(str(told["session_hash"]))
            receive = _again(body, receive)
        if not all(self._is_of(session, owner) for session in sessions):
            return scope, receive, _refusal(403, "This session is another person's.")
        return scope, receive, None

    def _is_of(self, session: str, owner: Owner) -> bool:
        """Whether a session of Gradio is this person's; who comes first has it."""
        whose = self._sessions.setdefault(session, owner.key)
        self._sessions.move_to_end(session)
        while len(self._sessions) > access_rules().max_sessions:
            self._sessions.popitem(last=False)
        return whose == owner.key


def _refusal(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence, "detail": sentence}, status_code=status, headers=_HEADERS)


async def _whole(receive: Receive, limit: int) -> bytes | None:
    """The body of a request; None where it is longer than the limit."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, to be read once more; after it the connection speaks."""
    left = [body]

    async def read() -> dict[str, Any]:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return dict(await receive())

    return read
