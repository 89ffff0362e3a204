"""The reader study: form and key from finished plans, paired figures before and after, who changed what."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evals.datasets import load_dataset
from evals.metrics import score_protocol
from evals.reader import Answers, Key, ReaderCase, make_reader, read_form, read_key
from evals.reader_score import EVERYBODY, reader_markdown, score_reader
from evals.results import BaselineAnswers, EvalRun
from evals.runner import run_evaluation
from evals.solver import PlannerAgent, shared
from evals.study import KEY, READERS
from models.errors import InputError
from models.formulary import Formulary
from models.protocol import Protocol
from tests.agent.fake_tools import FakeWorld, fake_services, make_case
from tests.agent.web.browser import CHROMIUM, Browser
from tests.evals.fake_dataset import SETTINGS, protocol, spec

pytestmark = pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")
POLICY = Formulary.load("policy")
# Figure 7 of the paper: the radiologist's protocol, MeWM's plan, and the protocol after seeing it, which is gold.
BEFORE = protocol(["Raltitrexed", "Lobaplatin", "Idarubicin"], ["Lipiodol", "Gelatin sponge"])
PLAN = protocol(["Raltitrexed", "Lobaplatin"], ["Lipiodol"])
GOLD = protocol(["Raltitrexed", "Lobaplatin"], ["Lipiodol", "Gelatin sponge"])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> EvalRun:
    """Three cases of the dataset `own`, planned over a scripted world."""
    return planned(tmp_path_factory.mktemp("reader"), images=(True, True, True))


def planned(root: Path, images: tuple[bool, ...], limit: int | None = None) -> EvalRun:
    """An evaluation of the dataset `own`, a row for each of `images`, on the cases that have one."""
    lines = []
    for index, image in enumerate(images):
        lines.append({"case_id": f"patient-{index}", "gold": "Cisplatin | Lipiodol"})
        if image:
            make_case(root / f"case-{index}", f"patient-{index}")
            lines[-1]["case"] = f"case-{index}"
    file = root / "own.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    data = load_dataset("own", data=file)
    data = replace(data, cases=tuple(case for case in data.pool if case.has_image)[:limit])

    def make(run, facts, stop):
        return fake_services(FakeWorld(run.folder / "log"))(run, facts, stop)

    told = spec(data, dataset="own", data=str(file), actions=data.space.actions, limit=limit)
    agent = PlannerAgent(SETTINGS, shared(make))
    return run_evaluation(root / "run", told, data, agent, lambda _: BaselineAnswers(answers={}, not_run={}))


def test_the_form_shows_cases_without_names_and_the_key_stays_apart(run, tmp_path):
    key = make_reader(run.folder, tmp_path / "study", seed=1)
    readers = tmp_path / "study" / READERS
    assert sorted(p.name for p in readers.iterdir()) == ["form.csv", "form.html"]
    assert read_key(tmp_path / "study") == key
    assert sorted(c.case_id for c in key.cases) == ["patient-0", "patient-1", "patient-2"]
    html = (readers / "form.html").read_text()
    assert not re.search(r"patient-\d", html)
    assert html.count("data:image/png;base64,") == 9
    assert html.count('class="lock"') == 3
    assert not re.search(r"(?:https?:)?//(?!\s)[a-z0-9.-]+\.[a-z]{2,}", re.sub(r"base64,[^\"]+", "", html))
    for case in key.cases:
        row = next(r for r in run.rows if r.case_id == case.case_id)
        assert case.plan == row.own.protocol
        assert case.gold == row.gold
        assert f"The plan: {case.plan.key}" in html
    assert make_reader(run.folder, tmp_path / "two", limit=2, seed=1).cases == key.cases[:2]
    with pytest.raises(InputError, match="is no empty folder"):
        make_reader(run.folder, tmp_path / "study")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_next_reader_on_a_computer_starts_with_an_empty_form(run, tmp_path):
    pytest.importorskip("playwright")
    make_reader(run.folder, tmp_path / "study", limit=1)
    browser = Browser()
    try:
        person = browser.person("file:")
        page = person.page
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto((tmp_path / "study" / READERS / "form.html").as_uri())
        case = page.locator(".case")
        case.locator(".before input").first.check()
        case.locator(".lock").click()
        page.reload()
        assert "locked" in case.get_attribute("class")  # one's own answers are there again
        assert case.locator("input:checked").count() == 2
        with page.expect_navigation():
            page.click("#next")
        assert "locked" not in case.get_attribute("class")
        assert case.locator("input:checked").count() == 0
        assert case.locator(".before input").first.is_enabled()
        assert person.faults == []
    finally:
        browser.close()


def test_data_that_changed_since_the_plans_were_made_give_no_study(tmp_path):
    run = planned(tmp_path, images=(True, True))
    file = tmp_path / "own.jsonl"
    file.write_text(file.read_text().replace("Cisplatin", "Mitomycin"))
    with pytest.raises(InputError, match="have changed since it was evaluated"):
        make_reader(run.folder, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_limit_counts_the_cases_with_images_wherever_their_rows_stand(tmp_path):
    key = make_reader(planned(tmp_path, images=(False, True, True), limit=1).folder, tmp_path / "study")
    assert [case.case_id for case in key.cases] == ["patient-1"]


def test_an_evaluation_without_plans_gives_no_study(run, tmp_path):
    from evals.results import SPEC_FILE

    copied = tmp_path / "propose"
    copied.mkdir()
    (copied / "logs").symlink_to(run.folder / "logs")
    text = json.loads((run.folder / SPEC_FILE).read_text())
    (copied / SPEC_FILE).write_text(json.dumps({**text, "stage": "propose"}))
    with pytest.raises(InputError, match="has no finished plan"):
        make_reader(copied, tmp_path / "study")


def key_of(n: int, plan: Protocol = PLAN, gold: Protocol = GOLD) -> Key:
    cases = tuple(ReaderCase(case=f"{i:02d}", case_id=f"p{i}", plan=plan, gold={"raw": gold}) for i in range(1, n + 1))
    return Key(seed=0, planned_by="MeWM planner", data="test", actions="policy", offered="policy", cases=cases)


def test_figure_7_of_the_paper():
    """Idarubicin is removed as in the plan, Gelatin sponge kept against it: F1 rises from 8/9 to 1."""
    key = key_of(2)
    result = score_reader(key, {"r": {"01": Answers(BEFORE, GOLD), "02": Answers(GOLD, GOLD)}})
    first, second = result.changes
    assert (first.removed, first.added, first.kind) == (("Idarubicin",), (), "towards the plan")
    assert (first.f1_before, first.f1_after) == (pytest.approx(8 / 9), 1.0)
    assert second.kind == "unchanged"
    metrics = {m.metric: m for m in result.readers[0].metrics}
    assert metrics["f1"].difference.mean == pytest.approx((1 / 9) / 2)
    assert metrics["recall"].difference.mean == 0.0
    assert metrics["precision"].before.mean == pytest.approx((4 / 5 + 1) / 2)
    assert result.plan["f1"].mean == pytest.approx(6 / 7)
    assert result.readers[0].kinds == {"towards the plan": 1, "unchanged": 1}
    text = reader_markdown(result)
    assert "| r | 01 (p1) |" in text
    assert "Idarubicin" in text


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (BEFORE, BEFORE, "unchanged"),
        (BEFORE, PLAN, "took the plan over"),
        (PLAN, BEFORE, "away from the plan"),
        (protocol(["Cisplatin"], ["PVA"]), protocol(["Epirubicin"], ["PVA"]), "changed otherwise"),
    ],
)
def test_who_changed_what(before, after, kind):
    key = key_of(2)
    result = score_reader(key, {"r": {"01": Answers(before, after), "02": Answers(GOLD, GOLD)}})
    assert result.changes[0].kind == kind


def test_figures_are_paired_by_case_and_averaged_over_readers_by_case_first():
    rng = np.random.default_rng(5)
    items = [i.name for i in POLICY.items]
    key = key_of(6)

    def random_protocol():
        names = rng.choice(items, 3, replace=False)
        kind = {name: POLICY.item(name).kind for name in names}
        return protocol([n for n in names if kind[n] == "drug"], [n for n in names if kind[n] == "embolic"])

    forms = {
        reader: {c.case: Answers(random_protocol(), random_protocol()) for c in key.cases} for reader in ("ada", "eve")
    }
    del forms["eve"]["03"]
    for answers in forms.values():
        del answers["06"]
    result = score_reader(key, forms)
    names = [r.reader for r in result.readers]
    assert names == ["ada", "eve", EVERYBODY]

    def f1(p):
        return score_protocol(p, GOLD, POLICY).f1

    gains = {r: {c: f1(a.after) - f1(a.before) for c, a in found.items()} for r, found in forms.items()}
    for reader in ("ada", "eve"):
        found = next(r for r in result.readers if r.reader == reader)
        f1_row = next(m for m in found.metrics if m.metric == "f1")
        assert f1_row.difference.mean == pytest.approx(np.mean(list(gains[reader].values())))
        assert f1_row.p_holm >= f1_row.difference.p
    pooled = next(m for m in result.readers[-1].metrics if m.metric == "f1")
    by_case = [np.mean([g[c.case] for g in gains.values() if c.case in g]) for c in key.cases[:5]]
    assert pooled.difference.mean == pytest.approx(np.mean(by_case))
    assert result.readers[1].unanswered == ("03", "06")
    assert "not answered: 03, 06" in reader_markdown(result)
    assert result.n == result.plan["f1"].n == 5
    assert "The plan itself on the 5 cases that were answered: f1 " in reader_markdown(result)


def test_a_form_is_read_as_people_fill_it_in(tmp_path):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["case", "before", "after", "comment"])
    writer.writerow(["1", "cisplatin 50 mg + THP | lipiodol", "- | -", "why not"])
    writer.writerow(["02", "Cisplatin | Lipiodol", "", ""])
    path = tmp_path / "ada.csv"
    path.write_text("\ufeff" + text.getvalue(), encoding="utf-8")
    found = read_form(path, key_of(2))
    assert set(found) == {"01"}
    assert set(found["01"].before.items) == {"Cisplatin", "Pirarubicin", "Lipiodol"}
    assert found["01"].after == Protocol()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,before,after\n07,Cisplatin | Lipiodol,Cisplatin | Lipiodol\n", "names case '07' in line 2"),
        ("case,before,after\n01,Wonderdrug | Lipiodol,-\n", "can't be read in line 2: .*Wonderdrug"),
        ("case,before\n01,-\n", "needs the columns case, before and after"),
        ("case,before,after\n01,-,-\n1,-,-\n", "answers case 01 twice"),
        ("case,before,after\n01,,\n", "holds no complete answer"),
    ],
)
def test_a_form_that_can_not_be_read_is_refused_by_its_line(tmp_path, text, message):
    path = tmp_path / "form.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_form(path, key_of(2))


def test_too_few_answers_or_an_unknown_variant_are_refused():
    key = key_of(2)
    with pytest.raises(InputError, match="answered 1 case"):
        score_reader(key, {"r": {"01": Answers(GOLD, GOLD)}})
    with pytest.raises(InputError, match="no gold variant 'other'; the study has raw"):
        score_reader(key, {"r": {"01": Answers(GOLD, GOLD)}}, variant="other")
    with pytest.raises(InputError, match="No filled form"):
        score_reader(key, {})


def test_a_missing_key_is_refused(tmp_path):
    with pytest.raises(InputError, match=f"There is no key at {tmp_path / KEY}"):
        read_key(Path(tmp_path))
