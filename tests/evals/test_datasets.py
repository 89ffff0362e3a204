from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openpyxl
import pytest

from evals.baselines import LEARNED, RandomAllowed, RulesOnly, baselines_for
from evals.datasets import load_dataset
from evals.datasets.eval_case import FollowUp
from evals.datasets.hcc_tace_seg import _imported, gold_variants
from evals.datasets.phantom import PhantomCase, excluded, nominal_liver_percent, settings, training_cases
from evals.regret import allowed_protocols, patient_blocked
from models.case import ImageMeta, write_case
from models.clinical_record import ClinicalRecord
from models.errors import InputError
from models.formulary import Formulary
from models.phantom.patient import draw_patient
from models.phantom.response import respond
from models.protocol import Protocol
from models.volume import Volume
from tools.check_rules import check_rules, judge_protocols
from tools.workspace import Workspace

TABLE = "clinical/HCC-TACE-Seg_clinical_data-V2.dev.xlsx"


# ------------------------------------------------------------------------------------------------------------- phantom
def test_phantom_cases_are_the_same_for_the_same_seed_and_others_for_another() -> None:
    one, again, other = (load_dataset("phantom", seed=seed, limit=3) for seed in (0, 0, 1))
    assert [case.case_id for case in one.cases] == [case.case_id for case in again.cases]
    assert one.content_hash == again.content_hash
    assert not {case.case_id for case in one.cases} & {case.case_id for case in other.cases}
    assert one.content_hash != other.content_hash
    assert load_dataset("phantom", limit=2).content_hash != one.content_hash
    assert [case.case_id for case in load_dataset("phantom", limit=2).cases] == [c.case_id for c in one.cases[:2]]
    assert one.origin == "synthetic"
    assert one.rows == len(one.cases) + len(one.left_out)
    assert {case.tier for case in one.cases} == {"standard"}
    for text in ("Synthetic", one.content_hash, one.cases[0].case_id, "| cases | 3 "):
        assert text in one.card


def test_gold_is_the_allowed_protocol_of_lowest_true_risk_by_brute_force() -> None:
    case = load_dataset("phantom", limit=1).cases[0]
    assert isinstance(case, PhantomCase)
    assert case.truth is not None
    sample = random.Random(0).sample(case.allowed, 200)
    best = case.gold["best"]
    lowest = respond(case.patient, best).log_hazard
    assert all(respond(case.patient, protocol).log_hazard >= lowest for protocol in sample)
    assert case.truth.judge(best).of_range == 0.0
    assert case.gold["best"] in case.allowed
    assert case.given is not None
    assert case.truth.given_log_hazard == respond(case.patient, case.given).log_hazard
    assert case.survival is not None
    assert case.survival.months > 0


def test_strict_rules_are_those_of_gold_and_of_baselines_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hearing loss warns of Cisplatin, and blocks it under ``--strict``: nothing else is lost."""
    file = written(tmp_path / "mine.jsonl", [{"case_id": "a", "gold": "-", "record": {"hearing_loss": True}}])
    plain, strict = (load_dataset("own", data=file, strict=on).cases[0] for on in (False, True))
    assert (plain.space.strict, strict.space.strict) == (False, True)
    assert set(plain.allowed) - set(strict.allowed) == {p for p in plain.allowed if "Cisplatin" in p.drugs} != set()
    for seed in range(60):
        assert RandomAllowed(seed).propose(strict) in strict.allowed
    assert RulesOnly(0).propose(strict) in strict.allowed
    learned_from = []
    monkeypatch.setattr("evals.baselines.training_cases", lambda strict: learned_from.append(strict) or [])
    monkeypatch.setitem(LEARNED, "constant", lambda *_: RandomAllowed(0))
    phantom, other = (load_dataset("phantom", limit=1, strict=on) for on in (True, False))
    for data in (phantom, other):
        baselines_for(data, names=("constant",))
    assert learned_from == [True, False]
    assert phantom.content_hash != other.content_hash
    case = phantom.cases[0]
    assert case.truth is not None
    assert case.truth.protocols == case.allowed
    sample = random.Random(1).sample(list(case.space.protocols), 100)
    judged = judge_protocols(case.case_id, case.facts, sample, case.space.profile, True, "complete").verdicts
    assert {p for p, v in zip(sample, judged, strict=True) if v.allowed} == set(sample) & set(case.allowed)


def test_the_profile_of_the_rules_is_that_of_the_space(tmp_path: Path) -> None:
    """Child-Pugh B8 blocks in Europe and warns in China (rule P02)."""
    file = written(tmp_path / "mine.jsonl", [{"case_id": "a", "gold": "-", "record": {"child_pugh_score": 8}}])
    europe, china = (load_dataset("own", data=file, profile=name).cases[0] for name in ("eu", "cn"))
    assert (europe.space.profile, china.space.profile) == ("eu", "cn")
    assert not europe.allowed
    assert china.allowed
    assert RandomAllowed(0).propose(china) in china.allowed


def test_the_case_folder_holds_no_truth_and_its_rules_are_those_of_the_truth(tmp_path: Path) -> None:
    """What an agent reads: scans, labels and record. Rules on the measured case allow what the risk table holds."""
    case = load_dataset("phantom", limit=1).cases[0]
    assert isinstance(case, PhantomCase)
    folder = case.write(tmp_path)
    assert folder == tmp_path / case.case_id
    assert sorted(p.name for p in folder.iterdir()) == [
        "case.json", "labels.nii.gz", "pre_arterial.nii.gz", "pre_portal.nii.gz",
    ]  # fmt: skip
    written = (folder / "case.json").read_text()
    assert case.given is not None
    for secret in ("hidden", "traits", "hazard", "given", "protocol", "response", "survival", "tier"):
        assert secret not in written
    stamp = (folder / "case.json").stat().st_mtime_ns
    assert case.write(tmp_path) == folder
    assert (folder / "case.json").stat().st_mtime_ns == stamp
    assert case.summary.record == case.record.known()
    assert case.summary.tumour_ml == pytest.approx(case.patient.tumour_ml, rel=0.15)

    workspace = Workspace({case.case_id: folder}, tmp_path / "artifacts")
    measured = set(allowed_protocols(case.case_id, workspace, "policy", 1, 1))
    assert measured == {p for p in case.allowed if len(p.items) == 2}


def test_patients_near_the_burden_limit_are_left_out_before_the_rules_can_disagree(tmp_path: Path) -> None:
    """The largest burden that stays in: the rules judge it by its measured share and do not block it."""
    seeds = range(800_000, 800_400)
    patients = [p for p in map(draw_patient, seeds) if excluded(p) is None]
    largest = max(patients, key=nominal_liver_percent)
    assert nominal_liver_percent(largest) > 50
    case = PhantomCase(largest)
    workspace = Workspace({case.case_id: case.write(tmp_path)}, tmp_path / "artifacts")
    assert check_rules(case.case_id, [], workspace=workspace).patient_allowed
    assert not patient_blocked(case.facts)
    reasons = Counter(excluded(p) for p in map(draw_patient, seeds))
    assert reasons[None] > 250
    assert len(reasons) == 3  # burden, and the rules on the record


def test_tiers_hold_what_they_say() -> None:
    for tier in ("easy", "hard"):
        data = load_dataset("phantom", limit=1, tier=tier)
        limits = settings().tiers[tier]
        for case in data.cases:
            assert isinstance(case, PhantomCase)
            assert case.truth is not None
            spread = np.mean(case.truth.log_hazard) - np.min(case.truth.log_hazard)
            assert limits.holds(float(spread))
            assert case.tier == tier
        for row in data.left_out:
            if row.reason == f"not in the tier {tier}":
                assert not limits.holds(PhantomCase(draw_patient(int(row.case_id.split("-")[1]))).spread)
    easy, hard = settings().tiers["easy"], settings().tiers["hard"]
    assert easy.at_least is not None
    assert hard.below is not None
    assert easy.at_least > hard.below


def test_training_patients_are_never_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    training_cases.cache_clear()
    monkeypatch.setattr("evals.datasets.phantom.settings", lambda: chosen)
    chosen = settings.__wrapped__().model_copy(update={"training_cases": 4})  # type: ignore[attr-defined]
    train, strict = training_cases(), training_cases(True)
    training_cases.cache_clear()
    assert [case.space.strict for case in (*train, *strict)] == [False] * 4 + [True] * 4
    assert len(train) == 4
    assert all(case.patient.seed < 900_000 for case in train)
    assert chosen.first_seed > chosen.training_first_seed + 100 * chosen.training_cases


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "phantom", "tier": "absurd"}, "no tier 'absurd'; choose one of easy, standard, hard"),
        ({"name": "phantom", "limit": 0}, "limit of cases must be at least 1"),
        ({"name": "phantom", "seed": -1}, "seed of 0 or more"),
        ({"name": "phantom", "data": Path("x")}, "reads no files"),
        ({"name": "phantom", "profile": "cn"}, "rules of profile eu only; leave cn out"),
        ({"name": "hcc"}, "no dataset 'hcc'; choose one of phantom, hcc-tace-seg, own"),
        ({"name": "hcc-tace-seg"}, "needs its clinical table"),
        ({"name": "hcc-tace-seg", "tier": "hard"}, "Only the dataset phantom has tiers"),
        ({"name": "own"}, "needs its JSONL or CSV file"),
        ({"name": "own", "data": Path("nowhere.jsonl")}, "can't be read: No such file"),
        ({"name": "own", "data": Path("cases.txt")}, "neither JSONL nor CSV"),
        ({"name": "own", "data": Path("x.csv"), "clinical": Path("y")}, "leave y out for own"),
    ],
)
def test_what_can_not_be_loaded_says_why(arguments, words) -> None:
    with pytest.raises(InputError, match=words):
        load_dataset(**arguments)


# -------------------------------------------------------------------------------------------------------- hcc-tace-seg
def test_gold_variants_by_hand() -> None:
    beads = Protocol(drugs=("Doxorubicin",), embolics=("Drug-eluting beads",))
    plain = Protocol(drugs=("Cisplatin", "Mitomycin"))
    assert {k: v.embolics for k, v in gold_variants(beads).items()} == {
        "paper_style": ("Drug-eluting beads", "Lipiodol"), "ctace_lipiodol": ("Drug-eluting beads",),
        "raw": ("Drug-eluting beads",),
    }  # fmt: skip
    assert {k: v.embolics for k, v in gold_variants(plain).items()} == {
        "paper_style": ("Lipiodol",), "ctace_lipiodol": ("Lipiodol",), "raw": (),
    }  # fmt: skip


def read_regimens(path: Path) -> dict[str, str]:
    """Patient -> regimen text, without the program's reader."""
    rows = list(openpyxl.load_workbook(path, read_only=True)["data table"].values)
    column = rows[0].index("chemotherapy")
    return {str(row[0]): str(row[column]) for row in rows[1:] if row[0]}


def test_the_real_table_gives_the_cases_that_it_holds(real_data: Path) -> None:
    data = load_dataset("hcc-tace-seg", clinical=real_data / TABLE)
    texts = read_regimens(real_data / TABLE)
    assert len(texts) == data.rows == 70
    known = {name: text for name, text in texts.items() if text != "NA"}
    assert len(known) == len(data.cases) == 57
    assert [case.case_id for case in data.cases] == list(known)
    assert {row.case_id for row in data.left_out} == set(texts) - set(known)
    spelled = {"Cisplatin": "cispla", "Doxorubicin": "doxo", "Mitomycin": "mitomycin", "Drug-eluting beads": "beads"}
    spelled["Cisplatin"] = "cispl"  # one row says Cisplastin
    for case in data.cases:
        words = known[case.case_id].casefold()
        raw = {name for name, piece in spelled.items() if piece in words}
        assert set(case.gold["raw"].items) == raw
        assert set(case.gold["paper_style"].items) == raw | {"Lipiodol"}
        assert set(case.gold["ctace_lipiodol"].items) == (raw if "beads" in words else raw | {"Lipiodol"})
        assert not case.has_image
        assert case.truth is None
        assert case.summary.record == case.record.known()
    assert data.origin == "real"
    assert sorted(name for fold in data.folds for name in fold) == sorted(known)
    some = load_dataset("hcc-tace-seg", clinical=real_data / TABLE, limit=5)
    assert (len(some.cases), len(some.pool), some.content_hash) == (5, 57, data.content_hash)
    assert "| rows of the clinical table | 70 |" in data.card
    nine = next(case for case in data.cases if case.case_id == "HCC_009")
    assert nine.survival is not None
    assert nine.survival.months == pytest.approx(4.7, abs=0.05)  # as the paper prints it
    assert nine.survival.died


def tiny_case(folder: Path, case_id: str, record: ClinicalRecord | None = None, name: str | None = None) -> Path:
    """A small real case: a box of liver with a tumour in it."""
    hu = np.full((24, 24, 24), -1000, np.int16)
    hu[4:20, 4:20, 4:20] = 60
    hu[8:14, 8:14, 8:14] = 90
    labels = np.zeros(hu.shape, np.uint8)
    labels[4:20, 4:20, 4:20] = 1
    labels[8:14, 8:14, 8:14] = 2
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    write_case(
        folder / (name or case_id), case_id, "real", "a made-up box",
        {ImageMeta("pre", "pre", "arterial"): Volume(hu, affine)}, labels=labels,
        record=record or ClinicalRecord(child_pugh_class="A"),
    )  # fmt: skip
    return folder / (name or case_id)


@pytest.mark.parametrize("name", ["..", ".", "../elsewhere", "/etc", "a/b"])
def test_a_patient_of_the_table_never_leads_out_of_the_folder_of_cases(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be the name of a case folder"):
        _imported(tmp_path, SimpleNamespace(patient_id=name))


def test_images_are_found_where_they_are(real_data: Path, tmp_path: Path) -> None:
    records = {case.case_id: case.record for case in load_dataset("hcc-tace-seg", clinical=real_data / TABLE).cases}
    folder = tiny_case(tmp_path, "HCC_009", records["HCC_009"])
    data = load_dataset("hcc-tace-seg", clinical=real_data / TABLE, data=tmp_path)
    with_image = [case for case in data.cases if case.has_image]
    assert [case.case_id for case in with_image] == ["HCC_009"]
    assert with_image[0].write(tmp_path / "elsewhere") == folder
    assert with_image[0].summary.lesion_count == 1
    assert not (tmp_path / "elsewhere").exists()
    assert data.content_hash != load_dataset("hcc-tace-seg", clinical=real_data / TABLE).content_hash
    with pytest.raises(InputError, match="does not exist"):
        load_dataset("hcc-tace-seg", clinical=real_data / TABLE, data=tmp_path / "nowhere")
    other = next(name for name in records if name != "HCC_009")
    tiny_case(tmp_path / "swapped", other, records["HCC_009"], name="HCC_009")
    with pytest.raises(InputError, match=f"holds the case {other}, not HCC_009"):
        load_dataset("hcc-tace-seg", clinical=real_data / TABLE, data=tmp_path / "swapped")
    tiny_case(tmp_path / "without", "HCC_009")
    with pytest.raises(InputError, match="is not that of the table; import the case again"):
        load_dataset("hcc-tace-seg", clinical=real_data / TABLE, data=tmp_path / "without")


# ----------------------------------------------------------------------------------------------------------------- own
ROWS = [
    {"case_id": "a", "gold": "THP 30 mg; Lipiodol 10 ml", "record": {"bilirubin": "20 umol/L", "bclc": "B"}},
    {"case_id": "b", "gold": "顺铂、碘化油", "given": "Cisplatin + Lipiodol", "months": 14.5, "died": True},
    {"case_id": "c", "gold": "-"},
]


def written(path: Path, rows: list[object]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_own_cases_are_read_from_lines(tmp_path: Path) -> None:
    data = load_dataset("own", data=written(tmp_path / "mine.jsonl", ROWS))
    first, second, third = data.cases
    assert first.gold["gold"] == Formulary.load("all").parse("Pirarubicin 30 mg; Lipiodol 10 ml")
    assert first.record.bilirubin_mg_dl == pytest.approx(1.17, abs=0.01)
    assert second.given == second.gold["gold"] == Protocol(drugs=("Cisplatin",), embolics=("Lipiodol",))
    assert third.gold["gold"] == Protocol()  # nothing should be given
    assert second.survival == FollowUp(14.5, died=True)
    assert first.survival is None
    assert data.variants == ("gold",)
    assert sorted(name for fold in data.folds for name in fold) == ["a", "b", "c"]
    assert load_dataset("own", data=tmp_path / "mine.jsonl").content_hash == data.content_hash
    for change in ({"gold": "THP; Lipiodol"}, {"given": "Cisplatin; Lipiodol"}, {"record": {"bclc": "C"}}):
        changed = written(tmp_path / "mine.jsonl", [{**ROWS[0], **change}, *ROWS[1:]])
        assert load_dataset("own", data=changed).content_hash != data.content_hash, change


def test_own_cases_are_read_from_a_table_with_case_folders(tmp_path: Path) -> None:
    tiny_case(tmp_path / "cases", "p1")
    (tmp_path / "p2.yaml").write_text("creatinine: 1.1 mg/dL\n")
    table = tmp_path / "mine.csv"
    table.write_text(
        "case_id,gold,case,record,given,months,died\n"
        "p1,Epirubicin; PVA,cases/p1,,Epirubicin; PVA,14.5,true\np2,Lobaplatin; Lipiodol,,p2.yaml,,,\n"
    )
    data = load_dataset("own", data=table)
    assert [case.has_image for case in data.cases] == [True, False]
    assert data.cases[0].record.child_pugh_class == "A"
    assert data.cases[0].summary.lesion_count == 1
    assert data.cases[1].record.creatinine_mg_dl == 1.1
    assert [case.survival for case in data.cases] == [FollowUp(14.5, died=True), None]
    assert len(load_dataset("own", data=table, limit=1).cases) == 1


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "has no cases"),
        (["{not json"], "Line 1 of .* is not JSON"),
        (["[1, 2]"], "Line 1 of .* can't be used"),
        ([{"case_id": "a"}], "gold: field required"),
        ([{"case_id": "a", "gold": ""}], "gold: string should have at least 1 character"),
        ([{"case_id": "a", "gold": "Wondermycin"}], "Line 1 .*gold can't be read: 'Wondermycin' is not a known"),
        ([{"case_id": "a", "gold": "Cisplatin", "glod": "x"}], "glod: extra inputs are not permitted"),
        ([ROWS[1], ROWS[1]], "Line 2 .* gives the case b a second time"),
        ([{"case_id": "../a", "gold": "Cisplatin"}], "case_id: string should match pattern"),
        ([{"case_id": "a", "gold": "Cisplatin", "case": "../outside"}], "outside the folder of the dataset"),
        ([{"case_id": "a", "gold": "Cisplatin", "case": "/etc"}], "outside the folder of the dataset"),
        ([{"case_id": "a", "gold": "Cisplatin", "case": "nothing"}], "no case folder with labels"),
        ([{"case_id": "a", "gold": "Cisplatin", "record": {"bilirubin": 1.2}}], "Line 1 .*without a unit"),
        ([{"case_id": "a", "gold": "Cisplatin", "record": "../secret.yaml"}], "outside the folder of the dataset"),
        ([{"case_id": "a", "gold": "Cisplatin", "months": 3, "died": True}], "Line 1 .* without all of given, months"),
        ([{**ROWS[1], "died": None}], "Line 1 .* without all of given, months and died"),
        ([{**ROWS[1], "months": 0}], "months: input should be greater than 0"),
        (['{"case_id": "a", "gold": "-", "given": "-", "months": Infinity, "died": true}'], "months: .*finite number"),
    ],
)
def test_a_line_that_can_not_be_used_is_named(tmp_path: Path, rows: list[object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_dataset("own", data=written(tmp_path / "mine.jsonl", rows))


def test_a_case_folder_has_to_be_that_of_its_line(tmp_path: Path) -> None:
    tiny_case(tmp_path, "p1")
    row = {"case_id": "p2", "gold": "Cisplatin; Lipiodol", "case": "p1"}
    with pytest.raises(InputError, match="holds p1, not p2"):
        load_dataset("own", data=written(tmp_path / "mine.jsonl", [row]))
    row = {"case_id": "p1", "gold": "Cisplatin; Lipiodol", "case": "p1", "record": {"ecog": 1}}
    with pytest.raises(InputError, match="which has its own"):
        load_dataset("own", data=written(tmp_path / "mine.jsonl", [row]))
