"""Effects of protocols and agents: worked by hand, by scipy, and on simulations whose faults are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from evals.model_card.dynamics import (
    agent_pairs,
    control,
    redraw_hidden,
    summarise_agents,
    summarise_spread,
    wanted_protocols,
    within_patients,
)
from models.formulary import ITEM_ORDER
from models.phantom.patient import draw_patient
from models.protocol import Protocol


def cohort(patients: int = 60, protocols: int = 6, share: float = 1.0, noise: float = 0.0) -> tuple[Any, Any]:
    """True values, and simulated ones that keep `share` of every difference within a patient."""
    rng = np.random.default_rng(0)
    true = rng.normal(rng.normal(0, 2, (patients, 1)), 1.0, (patients, protocols))
    level = rng.normal(0, 1, (patients, 1))
    simulated = true.mean(1, keepdims=True) + level + share * (true - true.mean(1, keepdims=True))
    return true.tolist(), (simulated + noise * rng.normal(0, 1, simulated.shape)).tolist()


def test_half_of_every_effect_is_an_amplitude_of_one_half_and_perfect_order():
    found = within_patients(*cohort(share=0.5))
    assert found["within_patient_rank"]["value"] == pytest.approx(1.0)
    assert found["amplitude_ratio"]["value"] == pytest.approx(0.5)
    assert found["slope"]["value"] == pytest.approx(0.5)
    assert found["correlation"]["value"] < 0.95  # the patients' levels differ


def test_a_simulation_that_ignores_the_protocol_is_found_out_however_well_it_knows_the_patient():
    true, _ = cohort()
    rng = np.random.default_rng(3)
    blind = [(np.mean(row) + 0.3 * rng.normal(0, 1, len(row))).tolist() for row in true]
    found = within_patients(true, blind)
    assert found["correlation"]["value"] > 0.8  # which is why the figures within a patient are the ones that count
    assert abs(found["within_patient_rank"]["value"]) < 0.2
    assert abs(found["slope"]["value"]) < 0.1


def test_noise_adds_to_the_amplitude_but_not_to_the_slope():
    found = within_patients(*cohort(patients=300, noise=1.0))
    assert found["amplitude_ratio"]["value"] == pytest.approx(np.sqrt(2), abs=0.1)
    assert found["slope"]["value"] == pytest.approx(1.0, abs=0.1)


def test_ranks_of_rounded_shares_leave_out_what_no_scan_can_show():
    true, simulated = [[0.001, 0.004, 0.2, 0.3]], [[0.003, 0.0, 0.1, 0.5]]
    found = within_patients(true, simulated)
    assert found["within_patient_rank"]["value"] == pytest.approx(0.8)
    assert found["within_patient_rank_rounded"]["value"] == pytest.approx(1.0)
    nothing = within_patients([[0.001, 0.004, 0.002, 0.003], [0.1, 0.2, 0.3, 0.4]], [[0.0, 0.0, 0.0, 0.0]] * 2)
    assert nothing["within_patient_rank_rounded"] == {"value": 0.0, "low": None, "high": None, "n": 1}


def test_the_mean_rank_is_the_mean_of_scipys():
    true, simulated = cohort(noise=1.0)
    found = within_patients(true, simulated)["within_patient_rank"]
    expected = [stats.spearmanr(x, y).statistic for x, y in zip(true, simulated, strict=True)]
    assert found["value"] == pytest.approx(np.mean(expected))
    assert found["n"] == 60


def test_a_patient_without_oil_has_no_rank_and_does_not_count_as_zero():
    true, simulated = cohort(patients=4)
    found = within_patients([[0.0] * 6, *true[1:]], [[0.0] * 6, *simulated[1:]])
    assert found["within_patient_rank"]["n"] == 3
    assert found["within_patient_rank"]["value"] == pytest.approx(1.0)


def test_the_control_is_zero_for_a_perfect_simulation_but_not_for_a_leak():
    true, simulated = cohort(patients=400)
    assert abs(within_patients(true, simulated)["shuffled_control"]["value"]) < 0.08
    leak = [[*row[:3], *row[:3]] for row in true]  # protocol i + 3 shows the truth of protocol i
    assert within_patients(true, leak)["shuffled_control"]["value"] > 0.3


def test_the_control_pairs_no_protocol_with_itself_by_hand():
    found = control([1.0, 3.0, 10.0, 20.0], [5.0, 7.0, 1.0, 2.0])
    # first half's truth (-1, 1) with second half's simulation (-.5, .5), and the second's (-5, 5) with (-1, 1)
    np.testing.assert_allclose(found, [1.0 + 10.0, 2.0 + 50.0, 0.5 + 2.0])


def test_every_agent_is_paired_once_with_the_same_protocol_without_it():
    for seed in range(20):
        base, pairs = agent_pairs(seed)
        assert [name for name, _, _ in pairs] == list(ITEM_ORDER)
        assert len(base.drugs) == 2
        assert len(base.embolics) == 1
        for name, other, added in pairs:
            more, less = (other, base) if added else (base, other)
            assert set(more.items) - set(less.items) == {name}
            assert set(less.items) <= set(more.items)
            assert other.drugs
    assert agent_pairs(3) == agent_pairs(3)


def test_protocols_are_different_and_the_same_for_a_seed():
    first = wanted_protocols(5, 8)
    assert first == wanted_protocols(5, 8)
    assert len(set(first)) == len(first) >= 6
    assert all(isinstance(one, Protocol) for one in first)


def test_slopes_of_agents_by_hand():
    def entry(agent: str, oil: float, **viable: float) -> list[dict[str, Any]]:
        return [{"agent": agent, **{side: {"viable": value, "oil": oil} for side, value in viable.items()}}]

    rows = [
        entry("PVA", 0.0, true=-0.2, simulated=-0.1),
        entry("PVA", 0.0, true=-0.4, simulated=-0.3),
        entry("Lipiodol", 0.5, true=-0.1, simulated=0.1),
        entry("Lipiodol", 0.3, true=-0.1, simulated=0.1),
    ]
    found = summarise_agents(rows)
    assert set(found) == {"Lipiodol", "Lipiodol (oil)", "PVA"}
    assert found["PVA"]["slope"]["value"] == pytest.approx((0.02 + 0.12) / (0.04 + 0.16))
    assert found["PVA"]["patient_slope"]["value"] == pytest.approx(1.0)  # 0.2 more truly, 0.2 more simulated
    assert found["PVA"]["slope"]["n"] == 2
    assert found["Lipiodol"]["slope"]["value"] == pytest.approx(-1.0)  # the wrong sign shows
    assert found["Lipiodol (oil)"]["slope"]["value"] == pytest.approx(1.0)


def test_the_spread_is_a_root_mean_variance_over_seeds():
    def protocol(values: list[float], risks: list[float]) -> dict[str, Any]:
        return {"simulated": [{"viable": v} for v in values], "risk_on_simulated": risks}

    rows = [
        {"protocols": [protocol([0.1, 0.3], [1.0, 2.0])], "true_spread": {"viable": [0.01], "risk": [0.25]}},
        {"protocols": [protocol([0.2, 0.2], [1.0, 1.0])], "true_spread": {"viable": [0.03], "risk": [0.75]}},
    ]
    found = summarise_spread(rows)
    assert found["viable"]["over_seeds"]["value"] == pytest.approx(np.sqrt((0.02 + 0.0) / 2))
    assert found["viable"]["true"]["value"] == pytest.approx(np.sqrt(0.02))
    assert found["risk"]["ratio"]["value"] == pytest.approx(np.sqrt(0.5 / 1.0))


def test_a_redrawn_patient_looks_the_same_and_responds_differently():
    patient = draw_patient(950_000)
    alike = [redraw_hidden(patient, index) for index in range(3)]
    for one in alike:
        assert one.record == patient.record
        assert one.traits == patient.traits
        assert [lesion.radii_mm for lesion in one.lesions] == [lesion.radii_mm for lesion in patient.lesions]
        assert one.hidden != patient.hidden
    assert len({one.hidden for one in alike}) == 3
    assert redraw_hidden(patient, 1) == alike[1]
