"""The data card: hardness against brute force, the real side against a hand-made table, what is shipped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evals import phantom_card, phantom_hardness
from evals.phantom_card import measure_card, read_shipped, write_card
from evals.phantom_hardness import as_seen, policy_space, record_only, risks
from evals.phantom_real import _survival, phantom_cohort, real_cohort, regimen_of
from models.errors import InputError
from models.phantom.patient import draw_patient
from models.phantom.response import respond
from models.phantom.version import parameters, phantom_hash
from models.protocol import Protocol


def test_all_risks_at_once_are_those_of_the_response_model() -> None:
    space = policy_space()
    rng = np.random.default_rng(0)
    for seed in (1, 2, 700_003):
        patient = draw_patient(seed)
        table = risks(patient, space)
        for index in rng.choice(len(table), 25, replace=False):
            expected = respond(patient, space.protocols[index]).log_hazard
            assert table[index] == pytest.approx(expected, abs=1e-9)


def test_beads_are_loaded_in_the_vectorised_risks_too() -> None:
    loaded = Protocol(drugs=("Doxorubicin", "Mitomycin"), embolics=("Drug-eluting beads",))
    plain = Protocol(drugs=("Cisplatin", "Mitomycin"), embolics=("Drug-eluting beads",))
    patient = draw_patient(8)
    table = risks(patient, phantom_hardness.Space((loaded, plain)))
    assert table == pytest.approx([respond(patient, p).log_hazard for p in (loaded, plain)], abs=1e-9)


def test_the_record_only_oracle_never_sees_the_patient_behind_the_record() -> None:
    space = phantom_hardness.Space(policy_space().protocols[:40])
    library = [draw_patient(seed) for seed in range(60)]
    one, other = draw_patient(100), draw_patient(101)
    swapped = replace(other, record=one.record)
    np.testing.assert_array_equal(record_only(one, library, space), record_only(swapped, library, space))
    assert not np.allclose(risks(as_seen(one), space), risks(as_seen(swapped), space))


def test_the_cohort_is_hard(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a small n, what the card shows at a large one."""
    monkeypatch.setattr(phantom_hardness, "LIBRARY", 80)
    figures = phantom_hardness.measure_hardness(24)
    assert all(figures["met"].values())
    assert figures["best_constant_held_out"]["mean"] >= figures["best_constant"]["mean"] - 0.02
    assert figures["image_and_record"]["mean"] < 0.06 < figures["record_only"]["mean"] < figures["random"]["mean"]


def test_survival_quantiles_by_hand() -> None:
    """Ten deaths at 1..10 months: one in ten is dead at month 1, half at 5; nobody reaches what nobody died of."""
    assert _survival(list(range(1, 11)), [True] * 10)["quantiles"] == [1.0, 3.0, 5.0, 8.0, 9.0]
    assert _survival([1, 2, 3, 4], [True, False, False, False])["quantiles"] == [1.0, 1.0]


def test_a_regimen_by_its_embolic() -> None:
    assert regimen_of(Protocol(drugs=("Doxorubicin",), embolics=("Drug-eluting beads",))) == "beads"
    assert regimen_of(Protocol(drugs=("Cisplatin",))) == "conventional"
    assert regimen_of(None) is None


def test_the_shipped_card_is_that_of_the_shipped_phantom() -> None:
    shipped = read_shipped()
    assert shipped is not None
    assert (shipped["version"], shipped["phantom_hash"]) == (parameters()["version"], phantom_hash())
    assert all(shipped["hardness"]["met"].values())
    assert shipped["hardness"]["n"] >= 200
    text = json.dumps(shipped)
    assert "HCC_" not in text  # aggregates only, nobody's row
    assert shipped["real"]["n"] == 70


def test_the_real_side_of_the_shipped_card_follows_from_the_table(real_data: Path) -> None:
    shipped = read_shipped()
    assert shipped is not None
    table = next((real_data / "clinical").glob("*.xlsx"))
    assert real_cohort(table) == shipped["real"]


def test_phantom_and_real_diameters_agree_as_the_card_says() -> None:
    """A fit, not a test of truth: quartiles of the change of diameters stay near the collection's."""
    shipped = read_shipped()
    assert shipped is not None
    drawn = phantom_cohort(60)
    for name, near in (("RECIST change, all (%)", 5), ("mRECIST change, all (%)", 10)):
        real, made = (side["quantiles"][name]["quantiles"] for side in (shipped["real"], drawn))
        assert np.abs(np.array(real[1:4]) - np.array(made[1:4])).max() < near


def test_a_card_is_written_and_too_small_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--hardness-n 20"):
        measure_card(40, 5, 20, None, None, "x")
    shipped = read_shipped()
    assert shipped is not None
    write_card(shipped, tmp_path / "card")
    names = sorted(path.name for path in (tmp_path / "card").iterdir())
    assert names == ["DATA_CARD.md", "data_card.html", "data_card.json", "distributions.png"]
    assert json.loads((tmp_path / "card" / "data_card.json").read_text()) == shipped
    shown = (tmp_path / "card" / "DATA_CARD.md").read_text()
    assert shown == (Path(phantom_card.__file__).parents[1] / "models" / "phantom" / "DATA_CARD.md").read_text()
    assert (tmp_path / "card" / "distributions.png").read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="can't be written"):
        write_card(shipped, tmp_path / "file" / "card")
