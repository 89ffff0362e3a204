"""Whose request it is, and that nobody reaches what is another's: asked over real HTTP."""

from __future__ import annotations

import base64
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.web.access import Access, Owner
from models.errors import InputError, RunError
from tests.agent.web.small_page import SmallPage

SECRET = "the report of one person"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallPage]:
    with SmallPage(tmp_path_factory.mktemp("by_browser") / "work") as served:
        yield served


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallPage]:
    passwords = {"Anna": "correct horse", "Bert": "battery staple"}
    with SmallPage(tmp_path_factory.mktemp("by_login") / "work", passwords) as served:
        yield served


def owner_of(page: SmallPage, client: object) -> Owner:
    found = page.access.owner_of(client.cookies[page.access.cookie])  # type: ignore[attr-defined]
    assert found is not None
    return found


def leave_report(owner: Owner) -> Path:
    path = owner.chats / "t" / "plan-1" / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SECRET, encoding="utf-8")
    return path


def test_a_reload_finds_the_same_person_and_another_browser_is_another(page: SmallPage) -> None:
    one, two = page.browser(), page.browser()
    cookie = one.cookies[page.access.cookie]
    assert one.get("/").headers.get("set-cookie") is None
    assert one.cookies[page.access.cookie] == cookie
    assert owner_of(page, one).key != owner_of(page, two).key
    again = Access(page.access.folder)  # as after a restart
    assert again.owner_of(cookie) == owner_of(page, one)


def test_the_cookie_is_hidden_from_scripts_and_from_other_pages(page: SmallPage) -> None:
    import httpx2

    told = httpx2.get(page.url + "/").headers["set-cookie"]
    assert "HttpOnly" in told
    assert "SameSite=Lax" in told
    text = httpx2.get(page.url + "/").text
    assert told.partition("=")[2].partition(";")[0] not in text


def test_a_file_is_for_its_owner_alone(page: SmallPage) -> None:
    one, two = page.browser(), page.browser()
    path = leave_report(owner_of(page, one))
    url = owner_of(page, one).url(path)
    assert one.get(url).text == SECRET
    assert "attachment" in one.get(url).headers["content-disposition"]
    assert two.get(url).status_code == 422
    shown = one.get(owner_of(page, one).url(path, inline=True))
    assert "content-disposition" not in shown.headers
    assert shown.headers["content-security-policy"].startswith("sandbox allow-scripts")
    assert "no-store" in shown.headers["cache-control"]


def test_gradio_serves_no_file_of_anybody(page: SmallPage) -> None:
    """Its own route goes by path: what it would serve to one, it would serve to all. It is closed."""
    one = page.browser()
    path = leave_report(owner_of(page, one))
    for where in ("/gradio_api/file=", "/gradio_api/file/", "/file=", "/gradio_api/proxy=http://127.0.0.1/"):
        answer = one.get(f"{where}{path}")
        assert answer.status_code == 404, where
        assert SECRET not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload", "/gradio_api/run/predict", "/gradio_api/api/predict", "/gradio_api/call/load",
        "/gradio_api/deep_link?session_hash=x", "/monitoring", "/monitoring/summary", "/gradio_api/runs",
        "/gradio_api/openapi.json", "/gradio_api/vibe-code/", "/gradio_api/token", "/gradio_api/user", "/docs",
        "/openapi.json",
        "/?deep_link=x", "/static/../../etc/passwd", "/gradio_api/stream/x", "/gradio_api/process_recording",
    ],
)  # fmt: skip
def test_the_parts_of_gradio_that_the_page_does_not_need_are_closed(path: str, page: SmallPage) -> None:
    client = page.browser()
    assert client.get(path).status_code in (404, 405)
    assert client.post(path, content=b"{}").status_code in (404, 405)


@pytest.mark.parametrize(
    "inside",
    [
        "../server.key", "../../server.key", "chats/../../../server.key", "chats/%2e%2e/%2e%2e/%2e%2e/server.key",
        "chats/..%2f..%2f..%2fserver.key", "/etc/passwd", "chats//etc/passwd.json", "incoming/x/ct.nii.gz",
        "chats/t/.hidden/report.html", "chats/t/chats.sqlite", "chats/link.html", "chats/folder/report.html", "chats/t",
        "chats/t%00/report.html", "chats\\t\\report.html",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_a_person_s_folder(inside: str, page: SmallPage) -> None:
    client = page.browser()
    owner = owner_of(page, client)
    leave_report(owner)
    for name in (".hidden/report.html", "chats.sqlite"):
        path = owner.chats / "t" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(SECRET, encoding="utf-8")
    outside = page.access.folder / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "report.html").write_text(SECRET, encoding="utf-8")
    (owner.chats / "link.html").symlink_to(outside / "report.html")
    (owner.chats / "folder").symlink_to(outside)
    answer = client.get(f"/mewm/file/{inside}")
    assert answer.status_code in (404, 422)
    assert SECRET not in answer.text


def test_an_url_is_made_for_own_files_only(page: SmallPage, tmp_path: Path) -> None:
    owner, other = (owner_of(page, page.browser()) for _ in range(2))
    foreign = leave_report(other)
    for path in (foreign, tmp_path / "x.json", owner.folder / "missing.json", owner.folder.parent):
        with pytest.raises(InputError):
            owner.url(path)


def test_cases_of_one_are_not_those_of_another(page: SmallPage) -> None:
    one, two = page.browser(), page.browser()
    assert [row["name"] for row in one.get("/mewm/cases/list").json()] == ["demo"]
    (owner_of(page, one).cases / "demo").rename(owner_of(page, one).cases / "mine")
    assert sorted(row["name"] for row in one.get("/mewm/cases/list").json()) == ["demo", "mine"]
    assert [row["name"] for row in two.get("/mewm/cases/list").json()] == ["demo"]
    volume = "/mewm/volume/mine/0/ct.nii?of=image-pre_arterial"
    assert one.get(volume).status_code == 200
    for path in (volume, "/mewm/cases/thumbnail/mine/0.png"):
        assert two.get(path).status_code == 422
    upload = one.post("/mewm/cases/upload?name=ct.nii.gz", content=b"1").json()["id"]
    assert two.request("DELETE", f"/mewm/cases/upload/{upload}").status_code == 422
    assert two.post("/mewm/cases/import", json={"image": upload}).json() == {
        "error": "This upload is gone: choose the file again."
    }
    assert one.request("DELETE", f"/mewm/cases/upload/{upload}").status_code == 204


def test_nobody_gets_nothing(page: SmallPage, guarded: SmallPage) -> None:
    import httpx2

    for served in (page, guarded):
        for path in (
            "/mewm/cases/list",
            "/gradio_api/queue/data?session_hash=abc",
            "/config",
            "/mewm/assets/viewer.js",
        ):
            assert httpx2.get(served.url + path).status_code == 401, path
        forged = {served.access.cookie: "b.invented." + "0" * 64}
        assert httpx2.get(served.url + "/mewm/cases/list", cookies=forged).status_code == 401


def test_nobody_speaks_in_another_s_session(page: SmallPage) -> None:
    one, two = page.browser(), page.browser()
    with one.stream("GET", "/gradio_api/queue/data?session_hash=ofone1") as events:
        assert events.status_code == 200
    for answer in (
        two.get("/gradio_api/queue/data?session_hash=ofone1"),
        two.get("/gradio_api/heartbeat/ofone1"),
        two.post("/gradio_api/queue/join", json={"session_hash": "ofone1", "fn_index": 0, "data": []}),
        two.post("/gradio_api/cancel", json={"session_hash": "ofone1", "fn_index": 0, "event_id": "x"}),
    ):
        assert answer.status_code == 403
        assert "another person's" in answer.json()["error"]
    long = two.post("/gradio_api/queue/join", content=b'{"data": "' + b"a" * (5 << 20) + b'"}')
    assert long.status_code == 413


def test_another_page_can_neither_ask_nor_frame(page: SmallPage) -> None:
    client = page.browser()
    assert client.get("/mewm/cases/list", headers={"host": "evil.example"}).status_code == 421
    for path in ("/mewm/cases/import", "/gradio_api/queue/join", "/mewm/cases/upload?name=a.nii"):
        assert client.post(path, json={}, headers={"origin": "http://evil.example"}).status_code == 403
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'self'" in policy
    assert "http" not in policy, "no other place is allowed"


def test_people_log_in_by_name_and_password(guarded: SmallPage) -> None:
    import httpx2

    with httpx2.Client(base_url=guarded.url, timeout=60) as client:
        assert client.get("/").headers["location"] == "/login"
        assert 'name="password"' in client.get("/login").text
        wrong = client.post("/login", data={"name": "Anna", "password": "battery staple"})
        assert wrong.status_code == 401
        assert "do not belong together" in wrong.text
        assert guarded.access.cookie not in client.cookies
        assert client.post("/login", data={"name": "<b>Nobody", "password": ""}).status_code == 401
        assert client.post("/login", data={"name": "Anna", "password": "correct horse"}).headers["location"] == "/"
        assert client.get("/").status_code == 200
        owner = owner_of(guarded, client)
        assert (owner.name, owner.key) == ("Anna", guarded.access.named("Anna").key)
        assert owner.key != guarded.access.named("Bert").key
        client.get("/logout")
        assert client.get("/").headers["location"] == "/login"


def test_a_login_ends_with_its_password_and_with_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    access = Access(tmp_path / "w", {"Anna": "one"})
    cookie = access.log_in("Anna", "one")
    assert cookie is not None
    assert access.owner_of(cookie) is not None
    assert Access(tmp_path / "w", {"Anna": "one"}).owner_of(cookie) is not None, "a restart keeps it"
    assert Access(tmp_path / "w", {"Anna": "two"}).owner_of(cookie) is None
    assert Access(tmp_path / "w", {}).owner_of(cookie) is None
    assert Access(tmp_path / "w").owner_of(cookie) is None
    assert access.log_in("Anna", "") is None
    assert access.log_in("", "") is None
    told = base64.urlsafe_b64encode(b"Bert\n99999999999").decode().rstrip("=")
    assert access.owner_of(f"u.{told}.{cookie.rpartition('.')[2]}") is None
    from agent.web import access as module

    now = module.time.time()
    monkeypatch.setattr(module.time, "time", lambda: now + 13 * 3600)
    assert access.owner_of(cookie) is None


@pytest.mark.parametrize("cookie", ["", "b", "b.", "b..", "u..", "u.%%.x", "x.y.z", "b.ü.ü", "u.AAAA." + "0" * 64])
def test_odd_cookies_are_nobody_s(cookie: str, tmp_path: Path) -> None:
    assert Access(tmp_path / "a").owner_of(cookie) is None
    assert Access(tmp_path / "b", {"Anna": "x"}).owner_of(cookie) is None


def test_the_work_folder_is_closed_to_other_accounts(tmp_path: Path) -> None:
    access = Access(tmp_path / "work")
    assert stat.S_IMODE((access.folder / "server.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((access.folder / "users").stat().st_mode) == 0o700
    (access.folder / "server.key").write_bytes(b"short")
    with pytest.raises(RunError, match="damaged"):
        Access(tmp_path / "work")


def test_names_that_look_alike_are_different_people(tmp_path: Path) -> None:
    access = Access(tmp_path / "work", {})
    keys = {access.named(name).key for name in ("anna", "Anna", "an na", "an-na", "../anna", "änna", "")}
    assert len(keys) == 7
    assert all("/" not in key and ".." not in key for key in keys)
