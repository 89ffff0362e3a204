"""A served workbench and a Chromium that talks to nobody else: what the page tests share."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
CHROMIUM = shutil.which("chromium")
LOADED = '#viewer [data-side="{}"] canvas[data-loaded="true"]'
SHORT_S, LONG_S = 120, 240
"""Longest waits for the page and for a search: far above what an idle machine takes, since tests share theirs."""
HARMLESS = ("GPU stall", "Autofocus processing")
"""Console messages of the software renderer and of Gradio itself that are no errors."""
_PRESS = """selector => {
  const control = document.querySelector(selector);
  const there = control !== null && control.offsetParent !== null && !control.disabled;
  if (there) control.click();
  return there;
}"""
BROKEN_OFF = ("AbortError", "errored out")
"""What Gradio's client logs of a stream when the page that listens is loaded again."""


@contextmanager
def served(command: Sequence[str], folder: Path) -> Iterator[str]:
    """Run a server until the block ends; yields its address.

    Args:
        command: What `python` runs; it prints the address.
        folder: Working directory.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert server.stdout is not None
            address = ""
            for line in server.stdout:
                if found := re.search(r"http://\S+:\d+", line):
                    address = found[0]
                    break
            assert address, (folder / "server.log").read_text()[-3000:]
            yield address
        finally:
            server.terminate()
            server.wait(timeout=20)
            assert server.stdout is not None
            server.stdout.close()
    logged = (folder / "server.log").read_text()
    assert "Traceback" not in logged, logged[-3000:]


class Browser:
    """Chromium; its contexts are people."""

    def __init__(self) -> None:
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        self.browser = self._playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

    def leave(self) -> None:
        """Close every page: a picture that is still drawn takes time from the next test."""
        for context in self.browser.contexts:
            context.close()

    def close(self) -> None:
        self.browser.close()
        self._playwright.stop()

    def person(self, address: str, width: int = 1280, height: int = 800) -> Person:
        """A browser of its own, as another person would have it."""
        context = self.browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        context.set_default_timeout(SHORT_S * 1000)
        return Person(context.new_page(), address)


class Person:
    """One page and what went wrong in it."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.faults: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("request", self._request)
        page.on("response", lambda r: self.faults.append(f"{r.status} {r.url}") if r.status >= 400 else None)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning") and not any(text in message.text for text in HARMLESS):
            self.faults.append(f"console: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.faults.append(f"external request: {request.url}")

    def open_case(self, name: str = "demo") -> None:
        """Open a case and wait until it is drawn."""
        self.page.goto(self.address)
        self.page.click(f'#cases [data-case="{name}"] button')
        self.page.wait_for_url("**thread=**")
        self.drawn("left")

    def reload(self, address: str = "") -> None:
        """Load the page again, or another one; what Gradio says of the streams that this breaks off is no fault."""
        before = len(self.faults)
        self.page.goto(address or self.page.url)
        kept = [fault for fault in self.faults[before:] if not any(text in fault for text in BROKEN_OFF)]
        self.faults[before:] = kept

    def drawn(self, side: str) -> None:
        """Wait until one side of the viewer has its picture."""
        self.page.wait_for_selector(LOADED.format(side), state="attached")

    def say(self, words: str) -> None:
        """Type something and send it."""
        self.page.fill("#words textarea", words)
        self.page.press("#words textarea", "Enter")

    def tab(self, name: str) -> None:
        """Open a tab of the plan."""
        self.page.click(f'#plan-tabs button[role=tab]:text-is("{name}")')

    def press_if_there(self, selector: str) -> bool:
        """Click a control that is shown only while something goes on, which may end at any moment."""
        return bool(self.page.evaluate(_PRESS, selector))

    def waiting(self, gate: str, plan: str = "plan-1", timeout_s: float = LONG_S) -> Any:
        """The card of a question, once it waits."""
        words = {"actions": "the action space waits", "plan": "the plan waits"}[gate]
        card = self.page.locator(".card", has=self.page.locator(f'.mw-waiting[data-plan="{plan}"]', has_text=words))
        card.wait_for(timeout=timeout_s * 1000)
        return card

    def idle(self) -> None:
        """Wait until nothing is at work."""
        self.page.wait_for_selector("#send", state="visible", timeout=LONG_S * 1000)


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
