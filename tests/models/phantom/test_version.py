"""The cohort is frozen: its tables by their hash, what the code makes of them by figures."""

from __future__ import annotations

import copy
import hashlib

import numpy as np
import pytest

from models.phantom import version
from models.phantom.patient import draw_patient
from models.phantom.render import render
from models.phantom.response import clinician_protocol, respond

# A change of the phantom is a new version: count up `version` in parameters.yaml, make pool, weights and data card
# anew, and only then pin the new figures here.
VERSION, HASH = 2, "eb269fbc509a9b09"


def test_the_tables_are_the_frozen_ones() -> None:
    assert version.parameters()["version"] == VERSION
    assert version.phantom_hash() == HASH


@pytest.mark.parametrize(
    ("table", "path"),
    [
        ("phantom/parameters.yaml", ("response", "gain")),
        ("phantom/appearance.yaml", ("oil", "low")),
        ("toxicity.yaml", ("base", "oil", "value")),
    ],
)
def test_changing_a_parameter_changes_the_hash(
    table: str, path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = version._table

    def changed(name: str) -> dict[str, object]:
        content = copy.deepcopy(read(name))
        if name == table:
            row = content
            for key in path[:-1]:
                row = row[key]
            row[path[-1]] *= 1.001
        return content

    monkeypatch.setattr(version, "_table", changed)
    assert version.phantom_hash.__wrapped__() != HASH


def test_the_code_makes_of_them_what_it_made_when_they_were_frozen() -> None:
    """Loose enough for another processor or another version of NumPy, tight enough for any change of the model."""
    figures = []
    for seed in (11, 12, 13):
        patient = draw_patient(seed)
        response = respond(patient, clinician_protocol(patient))
        affine = np.diag([4.0, 4.0, 4.0, 1.0])
        affine[:3, 3] = np.array(patient.lesions[0].centre_mm) - 4.0 * 11.5
        scan = render(patient, affine, (24, 24, 24), response=response, scan_seed=1)
        figures.append(
            [patient.tumour_ml, patient.liver_ml, response.viable_ml, response.log_hazard, float(scan.hu.mean())]
        )
    np.testing.assert_allclose(figures, FROZEN, rtol=2e-4)


def test_the_records_are_those_that_were_drawn_when_they_were_frozen() -> None:
    """Their distributions stand in code, so the hash of the tables does not cover them."""
    records = [draw_patient(seed).record.model_dump_json(exclude_none=True) for seed in range(11, 31)]
    assert hashlib.sha256("\n".join(records).encode()).hexdigest()[:16] == RECORDS


RECORDS = "fb3a4295c0386791"
FROZEN = [
    [11.4025, 1308.96, 1.83121, -0.765555, -115.794],
    [570.955, 1867.54, 108.565, 1.54367, -26.402],
    [122.075, 1864.3, 0.623962, -0.45862, 45.7858],
]
