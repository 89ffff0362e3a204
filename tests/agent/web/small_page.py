"""The case panel and the viewer as a page of their own, served over real HTTP on loopback."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import httpx2 as httpx
import uvicorn

from agent.web.access import Access
from agent.web.cases import Shelf, case_panel, panel_value
from agent.web.server import make_server
from agent.web.viewer import scene, viewer
from agent.web.volumes import OpenWorkspace, default_workspace
from models.case import ImageMeta, write_case
from models.volume import Volume
from tests.models.synthetic_ct import labels_of, trunk

SHAPE = (64, 56, 32)


def write_small_demo(folder: Path) -> None:
    """A demo case that is written in no time: two phases with labels."""
    import numpy as np

    affine = np.diag([2.0, 2.5, 5.0, 1.0])
    images = {
        ImageMeta("pre_arterial", phase="arterial"): Volume(trunk(SHAPE), affine),
        ImageMeta("pre_portal", phase="portal"): Volume((trunk(SHAPE) + 10).astype(np.int16), affine),
    }
    write_case(folder, "phantom-7", "synthetic", "made for a test", images, labels_of(SHAPE))


class SmallPage:
    """Use as a context manager; `url` has no slash at its end."""

    def __init__(
        self,
        work: Path,
        passwords: Mapping[str, str] | None = None,
        open_workspace: OpenWorkspace = default_workspace,
        right: str | None = None,
    ) -> None:
        self.access = Access(work, passwords)
        self.shelf = Shelf(write_small_demo)
        self.url = ""
        self._right, self._open_workspace = right, open_workspace
        self._browsers: list[httpx.Client] = []
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    async def _serve(self) -> None:
        """Gradio makes event loops that it never closes wherever it finds none that runs: the page is made in one."""
        with gr.Blocks(analytics_enabled=False) as page, gr.Row():
            with gr.Column(scale=1):
                panel = case_panel()
            with gr.Column(scale=3):
                view = viewer()
            page.load(self._load, None, panel)
            panel.select(self._open, None, [panel, view])
        page.queue()
        fonts: Any = gr.themes.Base(font=["sans-serif"], font_mono=["monospace"])
        app = make_server(page, self.access, shelf=self.shelf, open_workspace=self._open_workspace, theme=fonts)
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", access_log=False)
        self._server = uvicorn.Server(config)
        await self._server.serve()

    def _load(self, request: gr.Request) -> dict[str, Any]:
        return panel_value(self.access.owner(request), self.shelf, None)

    def _open(self, request: gr.Request, event: gr.EventData) -> tuple[dict[str, Any], dict[str, Any]]:
        owner = self.access.owner(request)
        name = event.case
        return panel_value(owner, self.shelf, name), scene(owner, owner.cases / name, right=self._right)

    def __enter__(self) -> SmallPage:
        self._thread.start()
        until = time.monotonic() + 120
        while self._server is None or not self._server.started:
            assert time.monotonic() < until, "the server did not start"
            assert self._thread.is_alive(), "the server ended"
            time.sleep(0.05)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._browsers:
            client.close()
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join(30)

    def browser(self) -> httpx.Client:
        """An HTTP client that keeps its cookies, as one browser does, after it has loaded the page."""
        client = httpx.Client(base_url=self.url, timeout=60)
        self._browsers.append(client)
        assert client.get("/").status_code == 200
        return client
