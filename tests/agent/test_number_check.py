"""The fact check of a written rationale: right texts pass, every invented or wrong number, name or source is told."""

from __future__ import annotations

import random
import re

import pytest

from agent.fact_check import explanation_faults, reason_faults
from agent.guideline import GuidelinePolicy
from agent.name_check import agents_in, foreign_drugs_in
from agent.number_check import KnownNumbers
from agent.quantities import Quantity, case_quantities
from agent.written_numbers import numbers_in
from tests.agent.llm_facts import CASE, facts

NAMED = "Doxorubicin with Lipiodol and gelatin sponge"

RIGHT = [
    "has the lowest objective, -0.525 (standard error 0.031, n = 8 simulations).",
    "has an objective of −0.52, and of minus 0.5249.",
    "leads the runner-up, Epirubicin | Lipiodol at -0.413, by 0.112; it wins 92 % or 92.3 percent of the resamples.",
    "is better by 0.11. A share of 0.92 of the resamples says so.",
    "lets viable tumour fall from 52.7 to 20.3 ml, which is a reduction by 61 %.",
    "gives an mRECIST change of -38 % (PR), that is, the diameter shrinks by 38.4 %.",
    "has a toxicity term of 0.285 against a tumour part of -0.810.",
    "goes with a median survival of the model of 26.3 months, or 2.2 years.",
    "fits a tumour of 54 mm (5.4 cm) and 61 ml in a liver of 1,387 ml, 1.4 litres.",
    "fits two lesions that are 38 HU brighter than the liver and take 4.4 % of it.",
    "suits a 67-year-old with bilirubin 1.4 mg/dL, platelets of 140 x10^9/L and ECOG 1.",
    "was chosen from five finalists after 412 simulations; two agents were removed, two rules could not be judged.",
    "is what it is: toxicity weighs twice as much (2) in the objective.",
    "is kept although rule L02 warns that at most 10 mL of Lipiodol suit Child-Pugh B; this patient is Child-Pugh A.",
    "comes without cisplatin, which rule D09 removes at a creatinine clearance below 60 mL/min.",
    "is for a BCLC B patient with Child-Pugh class A disease.\n1. First.\n2. Second.",
    "has one drug and two embolic agents; three agents in all. The other has two agents.",
    "can't be judged by D10 and P14.",
    "is loadable, and takes 13 % of hypodense tumour into account.",
]

WRONG = {
    "has an objective of 0.525.": "0.525",  # lost its sign
    "has an objective of +0.52.": "+0.52",
    "has an objective of -0.53 to -0.9.": "-0.9",
    "has an objective of -0.5300.": "-0.5300",  # finer than the fact
    "wins 93 % of the resamples.": "93 %",
    "wins 0.93 of the resamples.": "0.93",
    "leads by 0.5 to 0.7.": "0.7",
    "lets viable tumour fall from 52.7 to 20.3 mm.": "20.3 mm",
    "leaves 0 ml of viable tumour.": "0 ml",
    "leaves 20.9 ml.": "20.9 ml",
    "gives an mRECIST change of 38 %.": "38 %",
    "makes the tumour grow by 38 %.": "38 %",
    "gives +38 %.": "+38 %",
    "goes with a median survival of 30 months.": "30 months",
    "goes with a median survival of three years.": "three years",
    "goes with 26.3 years.": "26.3 years",
    "fits a tumour of 54 cm.": "54 cm",
    "fits a tumour of 6 cm.": "6 cm",
    "fits three lesions.": "three",
    "was chosen from two finalists.": "two",
    "was chosen from 5 finalists after 500 simulations.": "500",
    "halves the tumour, by half.": "half",
    "has a hazard of 1.": "'1'",
    "needs 50 mg of it.": "50 mg",
    "needs 10 mg.": "10 mg",  # 10 mL is in the facts, 10 mg is not
    "gives 99 months, as the person wrote.": "99 months",
    "is for a patient of 76 years.": "76 years",
    "has bilirubin 1.4 g/dL.": "1.4 g/dL",
    "is removed by rule C01.": "C01",
    "is better than sorafenib.": "sorafenib",
    "is better than Oxaliplatin.": "Oxaliplatin",
    "beats THP and polyvinyl alcohol.": "Pirarubicin",
    "beats carboplatin.": "Carboplatin",
    "beats Y-90.": "Y-90",
    "is what the BCLC guideline says.": "guideline",
    "was shown by Llovet et al.": "et al",
    "follows Lencioni 2010.": "Lencioni 2010",
    "follows EASL [3].": "EASL",
    "is standard (https://example.org).": "https://",
    "is for Child-Pugh B.": "Child-Pugh B",
    "is for BCLC stage C.": "BCLC C",
    "gives mRECIST CR.": "mRECIST CR",
}


@pytest.mark.parametrize("text", RIGHT)
def test_a_right_text_passes(text):
    assert explanation_faults(f"{NAMED} {text}", facts()) == []


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_text_is_told_what_is_wrong(text):
    faults = explanation_faults(f"{NAMED} {text}", facts())
    assert len(faults) >= 1
    assert any(WRONG[text] in fault for fault in faults), faults


def test_every_agent_of_the_chosen_protocol_has_to_be_named():
    faults = explanation_faults("Doxorubicin is best.", facts())
    assert faults == [
        "Gelatin sponge is part of the chosen protocol and is not named.",
        "Lipiodol is part of the chosen protocol and is not named.",
    ]


def test_the_embedded_policy_s_rationale_passes_and_every_changed_number_in_it_is_found():
    """The text comes from a template that knows nothing of the check."""
    known = facts()
    text = GuidelinePolicy().explain(known).text.partition("\n\nThis text was written by")[0]
    assert explanation_faults(text, known) == []
    rng = random.Random(5)
    numbers = list(re.finditer(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\d)", text))
    rule_ids = [m for m in numbers if text[m.start() - 1].isalpha()]
    changed = 0
    for match in numbers:
        if match in rule_ids:
            continue
        digits = len(match.group().partition(".")[2])
        wrong = f"{float(match.group()) * 7 + rng.randint(1000, 9000):.{digits}f}"
        altered = text[: match.start()] + wrong + text[match.end() :]
        assert any(wrong in fault for fault in explanation_faults(altered, known)), (match.group(), wrong)
        changed += 1
    assert changed >= 20


@pytest.mark.parametrize("decimals", [0, 1, 2, 3])
def test_rounding_to_the_written_digits_is_right_and_nothing_else_is(decimals):
    rng = random.Random(decimals)
    for _ in range(300):
        value = round(rng.uniform(1, 90), 4)
        known = KnownNumbers([Quantity("length", value, "mm")])
        step = 10**-decimals
        written = round(value, decimals)
        assert known.faults(f"{written:.{decimals}f} mm") == []
        off = written + rng.choice((-2, 2)) * max(step, 0.05)
        assert known.faults(f"{off:.{decimals}f} mm") != [], (value, off)


def test_units_are_converted_by_their_factor():
    quantities = [Quantity("volume", 1387, "ml"), Quantity("length", 54.3, "mm"), Quantity("time", 26, "months")]
    known = KnownNumbers(quantities)
    assert known.faults("1.387 l, 1.4 litres, 1,387 cm3, 5.43 cm, 54 mm, 2.17 years") == []
    assert len(known.faults("1.387 ml, 5.43 mm, 26 years, 54 ml")) == 4


def test_numbers_are_found_with_sign_digits_and_unit():
    found = numbers_in("From 11.0 to 4.2 ml (−38 %), n = 8; two lesions, a 67-year-old, 1,400 ml, 5-8 mm, half.")
    shown = [(n.value, n.decimals, (n.unit or n.shared) and (n.unit or n.shared).unit) for n in found]
    assert shown == [
        (11.0, 1, "ml"), (4.2, 1, "ml"), (-38.0, 0, "%"), (8.0, 0, None), (2.0, 0, None), (67.0, 0, "years"),
        (1400.0, 0, "ml"), (5.0, 0, "mm"), (8.0, 0, "mm"), (50.0, 0, "%"),
    ]  # fmt: skip


def test_agents_are_found_by_every_spelling_and_nothing_else_is_one():
    text = "DOX and THP, LC Beads, polyvinyl alcohol, absolute ethanol, gelatine sponges, Glubran 2, 顺铂 with oil"
    assert agents_in(text) == (
        "Doxorubicin", "Pirarubicin", "Drug-eluting beads", "PVA", "Absolute alcohol", "Gelatin sponge", "NBCA",
        "Cisplatin",
    )  # fmt: skip
    assert agents_in("The platinum and the anthracycline; dox, epi, a glued bead of alcohol-free oil") == ()
    assert foreign_drugs_in("lenvatinib, durvalumab, docetaxel; kinetics, platinum, statistics") == (
        "lenvatinib", "durvalumab", "docetaxel",
    )  # fmt: skip


def test_reasons_may_use_the_case_and_what_was_shown_and_nothing_more():
    quantities = case_quantities(CASE)
    good = [("Cisplatin", "clearance of 55 mL/min, below 60 mL/min"), ("Lipiodol", "54 mm and hypervascular; C01")]
    assert reason_faults(good, quantities, ["Cisplatin"], ["avoid below 60 mL/min", "C01"]) == []
    bad = [("Cisplatin", "response in 73 % (Lo 2002)"), ("Lipiodol", "better than sorafenib by D02")]
    faults = " ".join(reason_faults(bad, quantities, ["Cisplatin"], ["C01"]))
    for words in ("Reason for Cisplatin", "73 %", "Lo 2002", "sorafenib", "D02"):
        assert words in faults
