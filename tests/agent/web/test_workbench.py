"""The workbench in Chromium, offline: from the open case to the downloaded report."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path

import pytest

from tests.agent.web.browser import LONG_S, ROOT, Browser, needs_chromium, served

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def chromium():
    pytest.importorskip("playwright")
    made = Browser()
    yield made
    made.close()


@pytest.fixture
def browser(chromium):
    yield chromium
    chromium.leave()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A server on small cases and untrained networks."""
    folder = tmp_path_factory.mktemp("small")
    with served(["-m", "tests.agent.web.small_server", str(folder)], folder) as address:
        yield address


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """`mewm serve` itself, with the shipped weights and a small budget."""
    folder = tmp_path_factory.mktemp("shipped")
    with served(["-m", "agent", "serve", "--port", "0", "--budget", "40"], folder) as address:
        yield address


def planned(person, name="Dr Chen"):
    """Ask for a plan and approve its action space; the plan waits at the end."""
    person.page.fill("#name textarea", name)
    person.say("plan")
    person.waiting("actions").get_by_role("button", name="Approve").click()
    return person.waiting("plan")


def picture(page, name):
    """Keep a screenshot to look at, outside of what is committed."""
    folder = ROOT / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    page.locator("#viewer").scroll_into_view_if_needed()
    page.screenshot(path=folder / f"{name}.png")


def picks(person, where):
    return [e.get_attribute("data-protocol") for e in person.page.query_selector_all(f"{where} [data-protocol]")]


def test_from_the_demo_case_to_the_report(browser, shipped, tmp_path):
    person = browser.person(shipped)
    page = person.page
    began = time.monotonic()
    page.goto(person.address)
    page.wait_for_selector("#bench")
    print(f"first useful paint after {time.monotonic() - began:.1f} s")
    page.click('#cases [data-case="demo"] button', timeout=LONG_S * 1000)
    page.wait_for_url("**thread=**")
    person.drawn("left")
    shown = page.locator('#viewer [data-side="left"] canvas').screenshot()
    assert len(set(shown)) > 100  # not one colour
    assert "no LLM: embedded policy" in page.inner_text("#head")

    person.tab("Search tree")
    page.fill("#name textarea", "Dr Chen")
    person.say("plan")
    person.waiting("actions").get_by_role("button", name="Approve").click()
    sizes = set()
    card = page.locator('.card:has(.mw-waiting[data-plan="plan-1"]:has-text("the plan waits"))')
    until = time.monotonic() + LONG_S
    while not card.is_visible() and time.monotonic() < until:
        sizes.add(len(picks(person, "#tree")))
        page.wait_for_timeout(400)
    assert len(sizes - {0}) >= 2, f"the tree did not grow: {sizes}"
    person.idle()

    person.tab("Plan")
    runner_up = page.locator("#overview .others .mw-pick").first
    key = runner_up.get_attribute("data-protocol")
    runner_up.click()
    page.wait_for_function(
        "key => document.querySelector('#viewer [data-side=\"right\"] select').value === key", arg=f"simulated:{key}"
    )
    person.drawn("right")
    page.set_viewport_size({"width": 1920, "height": 1080})
    picture(page, "demo")

    person.say("what if renal failure")
    page.wait_for_selector('#plans label:has-text("what-if-2")')
    person.idle()
    assert "P09" in page.inner_text("#overview")

    card = person.waiting("plan")
    card.get_by_text("Edit", exact=True).click()
    card.get_by_label("Protocol to put in its place").fill(key)
    card.get_by_label("Protocol to put in its place").press("Enter")
    card.get_by_label("Reason", exact=True).fill("gentler")
    card.get_by_role("button", name="Save the edit").click()
    page.wait_for_selector(f'.mw-plan h2 [data-protocol="{key}"]', timeout=LONG_S * 1000)
    person.idle()
    person.waiting("plan").get_by_role("button", name="Approve").click()
    page.wait_for_selector('.mw-record li.approve:has-text("the plan by Dr Chen")', timeout=LONG_S * 1000)
    person.idle()
    assert "gentler" in page.inner_text(".mw-record")

    person.tab("Report")
    for name in ("report.html", "plan.json", "simulated.nii.gz"):
        with page.expect_download() as download:
            page.click(f'#report a[download="{name}"] >> nth=0')
        download.value.save_as(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["chosen"]["assessed"]["key"] == key
    assert [a["decision"] for a in plan["approvals"]] == ["approve", "edit", "approve"]
    assert key.split(" | ")[0] in (tmp_path / "report.html").read_text()
    page.click("#dicom")
    with page.expect_download() as download:
        page.click('#report a[download="dicom.zip"]', timeout=LONG_S * 1000)
    download.value.save_as(tmp_path / "dicom.zip")
    assert any(name.endswith(".dcm") for name in zipfile.ZipFile(tmp_path / "dicom.zip").namelist())

    person.reload()
    page.wait_for_selector(f'.mw-plan h2 [data-protocol="{key}"]')
    assert "what if renal failure" in page.inner_text("#chat")
    person.drawn("right")
    assert person.faults == []


def test_two_people_at_once_decide_about_their_own_plans(browser, small):
    one, two = browser.person(small), browser.person(small)
    for person in (one, two):
        person.open_case()
        person.page.fill("#name textarea", f"Dr {'One' if person is one else 'Two'}")
        person.say("plan")
    cards = [person.waiting("actions") for person in (one, two)]
    ids = [card.locator(".mw-waiting").get_attribute("data-interrupt") for card in cards]
    assert ids[0] != ids[1]
    for card in cards:  # both search at the same time
        card.get_by_role("button", name="Approve").click()
    first, second = one.waiting("plan"), two.waiting("plan")
    first.get_by_label("Reason", exact=True).fill("not today")
    first.get_by_role("button", name="Reject").click()
    second.get_by_role("button", name="Approve").click()
    one.page.wait_for_selector('.mw-record li.reject:has-text("Dr One")', timeout=LONG_S * 1000)
    two.page.wait_for_selector('.mw-record li.approve:has-text("the plan by Dr Two")', timeout=LONG_S * 1000)
    assert "Dr Two" not in one.page.content()
    assert "Dr One" not in two.page.content()

    # the other one's conversation is nobody else's
    thread = one.page.url.partition("thread=")[2]
    two.reload(f"{small}/?thread={thread}")
    two.page.wait_for_selector("#chat-problem :text('not among yours')")
    assert thread not in two.page.url

    # the same again comes from the store
    two.idle()
    two.say("plan")
    two.waiting("actions", "plan-2").get_by_role("button", name="Approve").click()
    two.waiting("plan", "plan-2")
    two.idle()
    told = two.page.inner_text("#overview .mw-origin")
    made, kept = (int(text) for text in told.partition("not a language model); ")[2].split() if text.isdigit())
    assert made == kept > 0
    assert one.faults == two.faults == []


def test_two_plans_of_one_conversation_are_not_mixed_up(browser, small):
    person = browser.person(small)
    person.open_case()
    for plan in ("plan-1", "plan-2"):
        person.say("plan")
        person.waiting("actions", plan)
        person.idle()
    card = person.waiting("actions", "plan-2")
    card.get_by_role("button", name="Approve").click()
    card.get_by_text("Who decides?").wait_for()  # a name is needed, and is asked for at its place
    person.page.fill("#name textarea", "Dr Chen")
    card.get_by_label("Reason", exact=True).fill("the wrong day")
    card.get_by_role("button", name="Reject").click()
    person.page.wait_for_selector('#plans label:has-text("plan-2: rejected")')
    card = person.waiting("actions", "plan-1")
    assert person.page.locator(".card").count() == 1
    card.get_by_label("Reason", exact=True).fill("not in stock")
    person.say("help")
    person.page.wait_for_selector('#chat :text("what can be asked")')
    person.idle()
    assert card.get_by_label("Reason", exact=True).input_value() == "not in stock"  # a turn takes nothing typed away
    card.get_by_text("Edit", exact=True).click()
    card.get_by_label("Doxorubicin").uncheck()
    card.get_by_role("button", name="Save the edit").click()
    assert "Doxorubicin" not in person.waiting("plan", "plan-1").inner_text()
    person.idle()
    assert "not in stock" in person.page.inner_text(".mw-record")
    assert person.faults == []


def test_the_stream_of_events_stays_open_while_nothing_is_under_way(browser, small):
    """Gradio would close it, and an event that comes just then is never answered."""
    person = browser.person(small)
    streams = []
    person.page.on("request", lambda request: streams.append(request) if "/queue/data" in request.url else None)
    for ended in ("requestfinished", "requestfailed"):
        person.page.on(ended, lambda request: streams.remove(request) if request in streams else None)
    person.open_case()
    person.page.wait_for_timeout(2000)
    assert streams
    assert person.faults == []


def test_stop_resume_reload_and_the_keyboard(browser, small):
    person = browser.person(small, 1920, 1080)
    page = person.page
    person.open_case()
    page.fill("#name textarea", "Dr Chen")
    person.say("plan")
    person.waiting("actions").get_by_role("button", name="Approve").click()
    page.wait_for_selector("#stop", state="visible")
    person.reload()  # the turn goes on, and the page finds it
    page.wait_for_selector('#chat :text("approve plan-1 as Dr Chen")')
    began = time.monotonic()
    if person.press_if_there("#stop"):
        person.idle()
        assert time.monotonic() - began < 5
    person.press_if_there("#resume")
    person.waiting("plan")
    person.idle()

    person.tab("Search tree")
    box = page.locator("#tree g[data-protocol]").nth(1)
    key = box.get_attribute("data-protocol")
    box.focus()
    page.keyboard.press("Enter")
    page.wait_for_function(
        "key => document.querySelector('#viewer [data-side=\"right\"] select').value === key", arg=f"simulated:{key}"
    )
    person.tab("Protocols")
    name = page.locator(".card .or [data-protocol]").first.get_attribute("data-protocol")
    page.locator("#protocol-table").get_by_text(name, exact=True).locator("visible=true").first.click()
    page.wait_for_function(
        "key => document.querySelector('#viewer [data-side=\"right\"] select').value === key", arg=f"simulated:{name}"
    )
    page.focus("#words textarea")
    page.keyboard.type("will it rain tomorrow?")
    page.keyboard.press("Enter")
    page.wait_for_selector('#chat :text("I did not understand")')
    person.idle()
    assert person.faults == []


def test_an_answer_that_is_there_before_the_page_asks_for_it_is_shown(browser, small):
    person = browser.person(small)
    page = person.page
    person.open_case()
    person.say("help")
    page.wait_for_selector('#chat :text("what can be asked")')
    person.idle()

    def late(route):
        time.sleep(2)
        route.continue_()

    page.route("**/queue/join*", late)
    person.say("will it rain tomorrow?")
    page.wait_for_selector('#chat :text("I did not understand")', timeout=30_000)
    person.idle()
    assert person.faults == []


def test_a_search_goes_on_while_the_page_shows_another_conversation(browser, small):
    person = browser.person(small)
    page = person.page
    person.open_case()
    first = page.url
    page.fill("#name textarea", "Dr Chen")
    person.say("plan")
    person.waiting("actions").get_by_role("button", name="Approve").click()
    page.wait_for_selector("#stop", state="visible")
    page.click("#new-thread")
    page.wait_for_function("first => location.href !== first", arg=first)
    person.say("help")
    page.wait_for_selector('#chat :text("what can be asked")')
    page.wait_for_timeout(3000)  # what the other conversation says must not come here
    assert "approve plan-1" not in page.inner_text("#chat")
    assert page.url != first
    page.click('#threads button:has-text("plan")')
    page.wait_for_url(first)
    person.waiting("plan")
    assert "approve plan-1 as Dr Chen" in page.inner_text("#chat")
    assert person.faults == []


def test_what_can_not_be_done_is_said_at_its_place(browser, small):
    person = browser.person(small)
    page = person.page
    page.emulate_media(color_scheme="dark")
    page.goto(person.address)
    page.wait_for_selector('#cases [data-case="demo"]')
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(233, 238, 242)"
    person.say("plan")
    page.wait_for_selector('#chat-problem :text("No case is open")')
    page.click('#cases [data-case="demo"] button')
    page.wait_for_url("**thread=**")
    page.click("#settings button")
    page.click("#backend input")
    page.get_by_role("option", name="openai").first.click()
    page.wait_for_selector('#settings :text("needs an API key")')
    assert "no LLM" in page.inner_text("#head")
    assert "Nothing was simulated" in page.inner_text("#viewer")
    for tab in ("Plan", "Search tree", "Protocols", "Outcome", "Rules", "Report"):
        person.tab(tab)
        page.wait_for_selector("#plan-tabs .mw-empty:visible")
    assert person.faults == []


def test_the_patient_hcc_009(browser, shipped, real_data: Path, tmp_path):
    source = real_data / "hcc009-2.5mm"
    person = browser.person(shipped, 1920, 1080)
    page = person.page
    page.goto(person.address)
    page.wait_for_selector('#cases [data-case="demo"]')
    page.set_input_files("#cases input[type=file]", [source / "pre_arterial.nii.gz", source / "pre_labels.nii.gz"])
    page.click("#cases button.mc-go")
    page.wait_for_url("**thread=**")
    began = time.monotonic()
    person.drawn("left")
    print(f"HCC_009 shown {time.monotonic() - began:.1f} s after it was opened")
    planned(person)
    person.idle()
    person.drawn("right")
    page.click('#viewer button:text-is("Spread")')
    person.drawn("right")
    picture(page, "hcc_009")
    assert "real" in page.inner_text("#overview .mw-origin")
    assert person.faults == []
