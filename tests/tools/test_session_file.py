from __future__ import annotations

from pathlib import Path

import pytest

from models.clinical_record import ClinicalRecord
from models.errors import InputError
from models.protocol import Protocol
from tools.check_rules import judge_protocols
from tools.rule_facts import Facts, SessionFacts
from tools.rulebook import load_rulebook
from tools.session_file import load_session


def read(folder: Path, text: str, name: str = "session.yaml") -> SessionFacts:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return load_session(path)


def test_quantities_with_their_unit_in_the_name_or_beside_the_number(tmp_path: Path) -> None:
    for text in (
        "prior_oxaliplatin_mg_m2: 240\nlife_expectancy_months: 4.5",
        "prior_oxaliplatin: 240 mg/m2\nlife_expectancy: {value: 4.5, unit: months}",
        "prior_oxaliplatin_mg_m2: 240 MG / m2\nlife_expectancy_months: 4.5 months",
    ):
        facts = read(tmp_path, text)
        assert facts.model_dump(exclude_none=True) == {"prior_oxaliplatin_mg_m2": 240.0, "life_expectancy_months": 4.5}


def test_json_an_empty_file_and_a_field_left_unknown(tmp_path: Path) -> None:
    assert read(tmp_path, '{"technique": "deb_tace", "hypersplenism": null}', "s.json") == SessionFacts(
        technique="deb_tace"
    )
    assert read(tmp_path, "") == SessionFacts()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tecnique: ctace", "'tecnique' that is not known; near it are technique"),
        ("technique: open", "technique is 'open'"),
        ("superselective: 'yes please'", "superselective is 'yes please'"),
        ("superselective: 1", "superselective is 1"),
        ("prior_mitomycin: 20", "without a unit; write it with mg"),
        ("prior_mitomycin: 20 g", "is in 'g', which is not known for it; use mg"),
        ("prior_mitomycin_mg: a lot", "not a number with a unit"),
        ("prior_mitomycin_mg: -3", "prior_mitomycin_mg is -3"),
        ("prior_mitomycin_mg: .nan", "finite number"),
        ("prior_mitomycin_mg: true", "prior_mitomycin_mg is True"),
        ("prior_mitomycin: 20 mg\nprior_mitomycin_mg: 30", "gives prior_mitomycin_mg twice"),
        ("technique: ctace\ntechnique: ctace", "stands twice"),
        ("- ctace", "not a mapping"),
        ("technique: [", "is not valid YAML or JSON: expected the node content, but found '<stream end>' (line 1)."),
    ],
)
def test_what_is_refused_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        read(tmp_path, text)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read: No such file"):
        load_session(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="neither YAML nor JSON"):
        read(tmp_path, "technique: ctace", "session.txt")


def test_a_stated_fact_decides_a_rule_that_was_not_evaluable(tmp_path: Path) -> None:
    protocol = Protocol(drugs=("Oxaliplatin",), embolics=("Lipiodol",))

    def status(session: SessionFacts) -> tuple[bool, list[str]]:
        facts = Facts(record=ClinicalRecord(), session=session)
        result = judge_protocols("case", facts, [protocol], "eu", strict=False, stage="complete")
        findings = result.verdicts[0].findings
        about = [f.status for f in findings if "session.chloride_diluent" in load_rulebook().rule(f.rule_id).inputs]
        return result.verdicts[0].allowed, about

    assert status(SessionFacts()) == (True, ["not_evaluable"])
    assert status(read(tmp_path, "chloride_diluent: true")) == (False, ["fired"])
    assert status(read(tmp_path, "chloride_diluent: false")) == (True, ["passed"])
