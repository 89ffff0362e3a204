"""What leaves instead of identifiers and dates."""

from __future__ import annotations

import pytest

from agent.deidentify import NEUTRAL_ID, public_summary, public_text, public_words
from tests.agent.llm_facts import CASE


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("Seen 2024-03-12, TACE on 15 March 2024, again 20240401.", "Seen [day 0], TACE on [day 3], again [day 20]."),
        ("March 2, 2024 and 2 Mar 2024 and 2024/03/03", "[day 0] and [day 0] and [day 1]"),
        ("born 25.12.1950, seen 25/12/2020", "born [day 0], seen [day 25568]"),
        ("on 03/04/2024", "on [date]"),  # the 3rd of April or the 4th of March
        ("in March 2024", "in [date]"),
        ("2024年3月12日 and 2024年3月", "[day 0] and [date]"),
        ("45.13.2020 is no date", "45.13.2020 is no date"),
        ("Mr. John Smith, MRN: 12-3456", "[removed], [removed]"),
        ("patient name: Jane Roe; dr Müller", "[removed]; [removed]"),
        ("jane@example.org, +49 170 1234567, https://x.org/a", "[removed], [removed], [removed]"),
        ("accession no. AB123", "[removed]"),
        ("case HCC_017 and hcc_017x", "case [removed] and hcc_017x"),
        ("call 0171 2345678. Tel.030/1234567, (030) 123-4567", "call [removed]. Tel.[removed], ([removed]"),
        ("6123-4567; no. 1234567.", "[removed]; no. [removed]."),
        ("The patient John R. Smith; Patient: Smith, John (72)", "The patient [removed]; Patient: [removed] (72)"),
        ("performed by Müller-Lang, assisted by J. Doe", "performed by [removed], assisted by [removed]"),
        ("Operator: O'Neill", "Operator: [removed]"),
        ("1000-2000 um, 100-300/300-500 µm, 500 - 1200 microns, 1000-1200um, 1000-2000微米", None),
        ("AFP 121000 ng/mL, 1 000 000 IU, 110/70/120 mmHg", None),
        ("Patient: Age 61. The patient Child-Pugh A. Patient Cisplatin 50 mg", None),
        ("Final Angiography: Gelatin Sponge, Absolute Alcohol, DC Bead", None),
        ("AFP 400 ng/mL, 3.5 cm, 1,400 ml, 5-8 mm, 10^9/L, 1.1 mg/dL", None),
        ("spare liver function; at most 2 drugs by the 2022 rules", None),
        ("", None),
    ],
)  # fmt: skip
def test_free_text(text, public):
    """None: nothing is taken out."""
    assert public_text(text, ("HCC_017", "")) == (text if public is None else public)


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("Plan for Anna Müller: spare the liver", "Plan for [removed]: spare the liver"),
        ("long survival, the Smith family asked on 2024-03-12", "long survival, the [removed] family asked on [day 0]"),
        ("Jane Roe wants a long life", "[removed] wants a long life"),
        ("Spare liver function; Child-Pugh A, HCC within Milan, Lipiodol or Gelatin Sponge", None),
        ("John wants a long life", None),  # one word at the start may be any word
    ],
)
def test_a_goal_loses_every_word_that_begins_like_a_name(text, public):
    assert public_words(text) == (text if public is None else public)


def test_a_case_has_a_neutral_id_and_no_age_above_89():
    old = CASE.model_copy(update={"record": {**CASE.record, "age_years": 94.0}})
    shown = public_summary(old)
    assert shown.case_id == NEUTRAL_ID
    assert shown.record["age_years"] == 90.0
    assert old.record["age_years"] == 94.0
    assert public_summary(CASE).record == CASE.record
    assert public_summary(CASE.model_copy(update={"record": {}})).record == {}
