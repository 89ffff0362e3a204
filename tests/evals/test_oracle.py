from __future__ import annotations

import numpy as np
import pytest

from evals.oracle import allowed_protocols, true_risks
from models.formulary import Formulary
from models.phantom.cohort import write_phantom_case
from models.phantom.patient import draw_patient
from models.phantom.response import respond
from models.protocol import Protocol
from tools.workspace import Workspace


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory):
    patient = draw_patient(900_001)
    folder = tmp_path_factory.mktemp("oracle")
    write_phantom_case(patient, folder / "case")
    workspace = Workspace({patient.patient_id: folder / "case"}, folder / "artifacts")
    return patient, true_risks(patient, allowed_protocols(patient.patient_id, workspace, "policy", 2, 1))


def test_no_allowed_protocol_breaks_a_blocking_class_rule(table) -> None:
    _, risks = table
    classes = {item.name: item.item_class for item in Formulary.load("policy").items}
    for protocol in risks.protocols:
        used = [classes[name] for name in protocol.drugs]
        assert used.count("platinum") <= 1
        assert used.count("anthracycline") <= 1
    # 10 drugs: 10 single + 45 pairs - 6 platinum pairs - 3 anthracycline pairs; 6 embolics
    assert len(risks.protocols) == (10 + 45 - 6 - 3) * 6


def test_regret_is_zero_for_the_best_and_one_for_the_worst_by_brute_force(table) -> None:
    patient, risks = table
    values = {p.key: respond(patient, p).log_hazard for p in risks.protocols}
    assert risks.best.key == min(values, key=values.__getitem__)
    assert risks.regret(risks.best) == 0.0
    assert risks.regret(risks.protocols[int(risks.log_hazard.argmax())]) == 1.0
    assert 0.0 < float(np.mean(risks.regrets)) < 1.0


def test_a_protocol_outside_the_table_is_refused(table) -> None:
    with pytest.raises(KeyError):
        table[1].regret(Protocol(drugs=("Cisplatin", "Oxaliplatin"), embolics=("Lipiodol",)))
