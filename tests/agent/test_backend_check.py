from __future__ import annotations

import base64
import io
import itertools
import json

import pytest
from PIL import Image

from agent.backend_check import CHECKS, Check, check_backend
from tests.agent.loopback import Answer, LoopbackServer, Request, call, error, hang, html, refuse


def capable(request: Request) -> Answer:
    """A model that can do everything."""
    if request.tool_names:
        return call("Add", a=19, b=23)
    if request.schema_name:
        return {"drug": "Doxorubicin", "dose_mg": 50}
    if request.images:
        return "Left: Blue. Right: Yellow."
    return "ready at once" if request.stream else "ready"


def test_a_capable_model(tmp_path: object) -> None:
    told: list[Check] = []
    with LoopbackServer(capable) as server:
        report = check_backend(server.backend(), told.append)
    assert [(check.name, check.status) for check in report.checks] == [(name, "works") for name in CHECKS]
    assert tuple(told) == report.checks
    assert report.usable
    assert len(server.requests) == 5
    assert [request.stream for request in server.requests] == [False, True, False, False, False]
    assert "said 'ready at once', in 3 pieces" in {check.detail for check in report.checks}
    (url,) = server.requests[2].images
    picture = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    assert [picture.getpixel((x, 100)) for x in (0, 111, 112, 223)] == [(0, 0, 255)] * 2 + [(255, 255, 0)] * 2


def test_a_text_model_is_usable_without_images() -> None:
    with LoopbackServer(capable) as server:
        report = check_backend(server.backend(vision=False))
    assert report.status("image") == "not tried"
    assert report.usable
    assert not any(request.images for request in server.requests)


CANNOT = [
    ("image", lambda r: "Two colours: red and green." if r.images else capable(r), "but the model said 'Two", False),
    ("image", lambda r: error(400, "no images here") if r.images else capable(r), "400: no images here", False),
    ("structured", lambda r: "Doxorubicin, 50 mg" if r.schema_name and not r.tool_names else capable(r), "JSON", False),
    ("structured", lambda r: {"drug": "Cisplatin", "dose_mg": 5} if r.schema_name else capable(r), "content", False),
    ("tools", lambda r: "42" if r.tool_names else capable(r), "no tool was called; the model said '42'", True),
    ("tools", lambda r: call("Add", a=1, b=2) if r.tool_names else capable(r), "the wrong call: Add{'a': 1", True),
    ("tools", lambda r: call("Add", "{a: 19") if r.tool_names else capable(r), "arguments that are no JSON", True),
    ("stream", lambda r: error(400, "no streams") if r.stream else capable(r), "400: no streams", True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "script", "detail", "usable"), CANNOT)
def test_one_thing_does_not_work(name: str, script: object, detail: str, usable: bool) -> None:
    with LoopbackServer(script) as server:  # type: ignore[arg-type]
        report = check_backend(server.backend())
    assert {check.name for check in report.checks if check.status == "fails"} == {name}
    assert detail in next(check.detail for check in report.checks if check.name == name)
    assert report.usable is usable


TEXT_FAULTS = [
    (error(401), "refused access"),
    (error(404), "knows no model"),
    (html(), "no chat completion"),
    (refuse(), "empty"),
]


@pytest.mark.parametrize(("fault", "detail"), TEXT_FAULTS)
def test_without_text_nothing_else_is_tried(fault: Answer, detail: str) -> None:
    with LoopbackServer(itertools.repeat(fault)) as server:
        report = check_backend(server.backend())
    assert [check.status for check in report.checks] == ["works", "fails", *["not tried"] * 4]
    assert detail in report.checks[1].detail
    assert len(server.requests) == 1
    assert not report.usable


def test_an_endpoint_that_is_not_reached_or_not_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with LoopbackServer(itertools.repeat(hang())) as server:
        silent = check_backend(server.backend(timeout_s=0.05))
        locked = check_backend(server.backend(api_key_env="NO_SUCH_KEY"))
    for report, detail in ((silent, "did not answer within"), (locked, "NO_SUCH_KEY")):
        assert [check.status for check in report.checks] == ["fails", *["not tried"] * 5]
        assert detail in report.checks[0].detail
        assert not report.usable
    assert len(server.requests) == 3
    assert json.loads(silent.model_dump_json())["checks"][5]["name"] == "tools"
