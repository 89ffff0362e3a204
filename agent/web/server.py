"""Server: the page with its own routes and the guard around it, as one ASGI application.

/                    the page (Gradio)
/login, /logout      where people log in by name and password
/mewm/assets/...     scripts of the page, NiiVue among them
/mewm/volume/...     image files of the viewer, made when they are asked for
/mewm/file/...       a person's own files: reports, plans, exports
/mewm/cases/...      the list of cases, uploads and imports
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from markupsafe import escape
from starlette.concurrency import run_in_threadpool

from agent.web import niivue
from agent.web.access import Access, NotLoggedInError, access_rules
from agent.web.cases import Shelf, add_case_routes
from agent.web.guard import Guard
from agent.web.viewer import ASSETS, SCRIPTS
from agent.web.volumes import OpenWorkspace, Volumes, case_of, default_workspace
from models.errors import InputError, MewmError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_KEEP = {"cache-control": "private, max-age=31536000, immutable"}
_FRESH = {"cache-control": "private, no-store"}
_LOGIN_BYTES = 4096
_REPORT_POLICY = (
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; frame-ancestors 'self'"
)
"""A report is one file that loads nothing; what stands in it has no rights over the page."""


def make_server(
    page: gr.Blocks,
    access: Access,
    *,
    shelf: Shelf,
    open_workspace: OpenWorkspace = default_workspace,
    hosts: Sequence[str] = LOOPBACK,
    theme: Any = None,
    css: str = "",
    head: str = "",
) -> FastAPI:
    """The application that a web server runs.

    Args:
        page: the page; its events are queued already.
        access: tells whose a request is.
        shelf: the cases.
        open_workspace: how simulated outcomes are read.
        hosts: names under which the page is served; none: any.
        theme: of the page, as Gradio takes it.
        css: of the page.
        head: what else stands in the page's head.

    Raises:
        DownloadError: the viewer's script was not fetched.
    """
    niivue.script()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_assets(app)
    _add_login(app, access)
    _add_files(app, access, Volumes(open_workspace))
    add_case_routes(app, access, shelf)
    gr.mount_gradio_app(
        app, page, path="/", auth_dependency=access.key, allowed_paths=[], show_error=False, ssr_mode=False,
        run_history=False, footer_links=[], enable_monitoring=False, pwa=False, mcp_server=False, theme=theme, css=css,
        head=head,
    )  # fmt: skip
    app.add_middleware(Guard, access=access, hosts=hosts)
    return app


def _add_assets(app: FastAPI) -> None:
    for name, kind in SCRIPTS.items():
        content = resources.files("agent.web").joinpath(name).read_bytes()
        app.add_api_route(f"{ASSETS}{name}", _asset(content, kind), methods=["GET"])

    @app.get(ASSETS + "niivue.js")
    def viewer_library() -> Response:
        return FileResponse(niivue.SCRIPT, media_type="text/javascript", headers=_KEEP)


def _asset(content: bytes, kind: str) -> Callable[[], Response]:
    """A route that answers with a script or style; its address carries a hash, so that browsers may keep it."""

    def answer() -> Response:
        return Response(content, media_type=kind, headers=_KEEP)

    return answer


def _add_login(app: FastAPI, access: Access) -> None:
    """The login page; wrong passwords wait their turn, so that guessing is slow however many guess at once."""
    one_at_a_time = asyncio.Lock()

    @app.get("/login")
    def login_page() -> Response:
        return HTMLResponse(_login_page("")) if access.by_login else RedirectResponse("/", status_code=303)

    @app.post("/login")
    async def login(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _LOGIN_BYTES:
                raise HTTPException(413)
        given = dict(parse_qsl(body.decode("utf-8", "replace")))
        cookie = access.log_in(given.get("name", ""), given.get("password", ""))
        if cookie is None:
            async with one_at_a_time:
                await asyncio.sleep(access_rules().wrong_password_pause_s)
            return HTMLResponse(_login_page("Name and password do not belong together."), status_code=401)
        answer = RedirectResponse("/", status_code=303)
        answer.headers.append("set-cookie", access.set_cookie(cookie, request.url.scheme == "https"))
        return answer

    @app.get("/logout")
    def logout() -> Response:
        answer = RedirectResponse("/login" if access.by_login else "/", status_code=303)
        if access.by_login:  # without names the cookie is all that tells whose the cases are
            answer.delete_cookie(access.cookie)
        return answer


def _login_page(problem: str) -> str:
    text = resources.files("agent.web").joinpath("login.html").read_text(encoding="utf-8")
    return text.replace("<!-- problem -->", f'<p role="alert">{escape(problem)}</p>' if problem else "")


def _add_files(app: FastAPI, access: Access, volumes: Volumes) -> None:
    @app.get("/mewm/volume/{case}/{_version}/{what}.nii")
    async def volume(request: Request, case: str, _version: str, what: str, of: str, minus: str = "") -> Response:
        owner = access.owner(request)

        def make() -> Path:
            opened = case_of(owner, case)
            if what == "ct":
                return volumes.ct(owner, opened, of)
            if what == "labels":
                return volumes.labels(owner, opened, of)
            if what == "difference":
                return volumes.difference(owner, opened, of, minus)
            if what == "spread":
                return volumes.spread(owner, opened, of.split(","))
            raise InputError("There is no such picture.")

        path = await run_in_threadpool(make)
        return FileResponse(path, media_type="application/octet-stream", headers=_KEEP)

    @app.get("/mewm/file/{inside:path}")
    def file(request: Request, inside: str) -> Response:
        path, kind = access.owner(request).file(inside)
        if "view" in request.query_params:
            sandbox = "sandbox allow-scripts allow-popups allow-downloads; default-src 'none'; " + _REPORT_POLICY
            return FileResponse(path, media_type=kind, headers={**_FRESH, "content-security-policy": sandbox})
        return FileResponse(path, media_type=kind, filename=path.name, headers=_FRESH)

    @app.exception_handler(MewmError)
    def told(_request: Request, error: Exception) -> Response:
        """Errors of ours are sentences for the person; paths of this machine are none of a browser's business."""
        sentence = str(error).replace(str(access.folder.resolve()), "").replace(str(access.folder), "")
        status = 401 if isinstance(error, NotLoggedInError) else 422
        return JSONResponse({"error": sentence}, status_code=status, headers=_FRESH)
