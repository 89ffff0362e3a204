from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InputError, UnknownItemError
from models.formulary import ACTION_SETS, ITEM_ORDER, Formulary
from models.protocol import Dose, Protocol

FIGURE_10 = (
    "Raltitrexed, Epirubicin, Oxaliplatin, Lobaplatin, Mitomycin, Idarubicin, Nedaplatin, Pirarubicin, Cisplatin, "
    "Idarubicin, THP, Hydroxycamptothecin, Lipiodol, Gelatin Sponge, PVA, Absolute Alcohol, NBCA, KMG"
)
FIGURE_11 = FIGURE_10.replace(", Hydroxycamptothecin", "").replace(", KMG", "")
FIGURE_12 = "Mitomycin, Doxorubicin, Cisplatin, Lipiodol, LC Beads"


@pytest.mark.parametrize(
    ("name", "printed", "drugs", "embolics"),
    [("policy", FIGURE_10, 10, 6), ("in_house", FIGURE_11, 9, 5), ("hcc_tace_seg", FIGURE_12, 3, 2)],
)
def test_action_sets_are_the_printed_figures_after_merging(name: str, printed: str, drugs: int, embolics: int) -> None:
    formulary = Formulary.load(name)
    assert (len(formulary.drugs), len(formulary.embolics)) == (drugs, embolics)
    known = Formulary.load("all")
    assert {item.name for item in formulary.items} == {known.canonical(word).name for word in printed.split(",")}


def test_all_is_the_union_in_canonical_order() -> None:
    names = [item.name for item in Formulary.load("all").items]
    union = {item.name for name in ACTION_SETS[:3] for item in Formulary.load(name).items}
    assert tuple(names) == ITEM_ORDER
    assert set(names) == union
    assert [i.kind for i in Formulary.load("all").items] == ["drug"] * 11 + ["embolic"] * 7
    assert names[:11] == sorted(names[:11])


def test_rules_know_agents_that_no_action_set_offers() -> None:
    extra = {item.name for item in Formulary.load("all_known").items} - set(ITEM_ORDER)
    assert extra == {"Carboplatin", "Fluorouracil", "Floxuridine", "Irinotecan", "Microspheres"}
    with pytest.raises(UnknownItemError, match="Carboplatin is known but not in the action set 'all'"):
        Formulary.load("all").parse("卡铂")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Cisplatin; THP; LC beads", "Cisplatin + Pirarubicin | Drug-eluting beads"),
        ("顺铂", "Cisplatin | -"),
        ("顺铂50毫克、碘化油 10 ml；明胶海绵", "Cisplatin 50 mg | Gelatin sponge + Lipiodol 10 ml"),
        ("polyvinyl alcohol", "- | PVA"),
        ("Polyvinyl-Alcohol particles, ethanol", "- | Absolute alcohol + PVA"),
        ("NBCA-Lipiodol", "- | Lipiodol + NBCA"),
        ("NBCA/Lipiodol", "- | Lipiodol + NBCA"),
        ("ＣＩＳＰＬＡＴＩＮ，l-ohp", "Cisplatin + Oxaliplatin | -"),
        ("Cisplastin + MMC\nGelfoam", "Cisplatin + Mitomycin | Gelatin sponge"),
        ("254-S 40mg", "Nedaplatin 40 mg | -"),
        ("10 mg THP and 10 cc Lipiodol", "Pirarubicin 10 mg | Lipiodol 10 ml"),
        ("Glubran 2", "- | NBCA"),
        ("THP; Pirarubicin", "Pirarubicin | -"),
        ("", "- | -"),
    ],
)
def test_parse(text: str, key: str) -> None:
    assert Formulary.load("all").parse(text).key == key


@given(
    st.sets(st.sampled_from(ITEM_ORDER)),
    st.dictionaries(st.sampled_from(ITEM_ORDER[:11]), st.floats(1e-6, 1e9).map(lambda v: float(f"{v:.6g}"))),
)
def test_a_protocol_key_reads_back_as_itself(names: set[str], doses: dict[str, float]) -> None:
    kinds = {item.name: item.kind for item in Formulary.load("all").items}
    protocol = Protocol(
        drugs=tuple(n for n in names if kinds[n] == "drug"),
        embolics=tuple(n for n in names if kinds[n] == "embolic"),
        doses=tuple((n, Dose(amount=v, unit="mg")) for n, v in doses.items() if n in names),
    )
    assert Formulary.load("all").parse(protocol.key) == protocol


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Cisplatni", "nearest known ones are Cisplatin"),
        ("polyvinyl alcool", "nearest known ones are PVA"),
        ("Epirubicine", "nearest known ones are Epirubicin"),
        ("zzzz", "known are Cisplatin, Doxorubicin"),
        ("antibiotics", "is not a known drug"),
    ],
)
def test_unknown_items_name_the_nearest(text: str, message: str) -> None:
    with pytest.raises(UnknownItemError, match=message):
        Formulary.load("all").parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("100 ml Oxaliplatin", "Oxaliplatin is counted in mg"),
        ("Lipiodol 10 mg", "Lipiodol is counted in ml"),
        ("Cisplatin 50", "has no unit"),
        ("Cisplatin 50 g", "is no dose"),
        ("Cisplatin 100 mg/m2", "depends on body size"),
        ("Cisplatin 100 mg/m²", "depends on body size"),
        ("50 mg", "without an agent"),
        ("LC beads 150 mg", "takes no dose"),
        ("Cisplatin 0 mg", "not above zero"),
        ("Cisplatin 50 mg; DDP 60 mg", "two doses"),
    ],
)
def test_doses_that_can_not_be_meant_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Formulary.load("all").parse(text)


def test_an_action_set_refuses_what_it_does_not_offer() -> None:
    with pytest.raises(UnknownItemError, match="Lobaplatin is known but not in the action set 'hcc_tace_seg'"):
        Formulary.load("hcc_tace_seg").parse("Lobaplatin")
    with pytest.raises(InputError, match="choose one of policy"):
        Formulary.load("figure 10")


def test_doses_are_sourced_and_unsure_items_ship_bare() -> None:
    for item in Formulary.load("all_known").items:
        assert item.sources
        if item.dose is not None:
            assert item.dose.low <= item.dose.reference <= item.dose.high
            assert all(re.search(r"\[[VB]\]$", text) for text in (*item.dose.sources, item.dose.reference_source))
    kmg = Formulary.load("all").item("KMG")
    assert (kmg.dose, kmg.unit, kmg.item_class, kmg.synonyms) == (None, None, "unclassified", ())
    text = (Path(__file__).parents[2] / "models" / "formulary.yaml").read_text(encoding="utf-8")
    assert "UNSURE" not in text
    assert "Adasone" not in text  # a brand whose meaning could not be confirmed


@pytest.mark.parametrize(
    ("name", "low", "high", "unit"),
    [
        ("Epirubicin", 20, 100, "mg"),
        ("Idarubicin", 5, 20, "mg"),
        ("Lipiodol", 1.5, 15, "ml"),
        ("Mitomycin", 5, 20, "mg"),
    ],
)
def test_dose_ranges(name: str, low: float, high: float, unit: str) -> None:
    dose = Formulary.load("all").item(name).dose
    assert dose is not None
    assert (dose.low, dose.high, dose.unit) == (low, high, unit)


def test_hash_depends_on_the_content_and_a_selection_keeps_the_order() -> None:
    all_items = Formulary.load("all")
    assert all_items.content_hash == Formulary.load("all").content_hash
    assert all_items.content_hash != Formulary.load("policy").content_hash
    picked = all_items.only(["Lipiodol", "MMC", "顺铂"])
    assert [item.name for item in picked.items] == ["Cisplatin", "Mitomycin", "Lipiodol"]
    with pytest.raises(InputError, match="action set is empty"):
        all_items.only([])
