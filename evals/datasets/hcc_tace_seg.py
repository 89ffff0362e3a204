"""Dataset `hcc-tace-seg`: the real collection, gold from the regimen column of its clinical table.

The column names drugs, and beads where they were used; it names no oil and no other embolic. What stands for gold is
therefore a choice, and every score depends on it. Three variants, all scored:

- ``raw``: the agents that the column names, and no others.
- ``ctace_lipiodol``: Lipiodol added where no beads are named, since conventional TACE is defined by it (CIRSE Standards
  of Practice 2021).
- ``paper_style``: Lipiodol added to every regimen, beads or not, as the MeWM paper's Table 4 shows.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from evals.datasets.cards import render_card
from evals.datasets.eval_case import Dataset, FollowUp, LeftOut, SearchSpace, content_hash
from evals.datasets.stored_case import StoredCase, plannable
from models.case import Case
from models.collection.clinical_table import WEEKS_PER_MONTH, TablePatient, read_clinical_table
from models.collection.splits import folds
from models.errors import InputError
from models.protocol import Protocol
from tools.rulebook import Profile

VERSION = "1"
VARIANTS = ("paper_style", "ctace_lipiodol", "raw")
SPACE = SearchSpace("hcc_tace_seg")
FOLDS = 5
BEADS, OIL = "Drug-eluting beads", "Lipiodol"


def gold_variants(regimen: Protocol) -> dict[str, Protocol]:
    """The three readings of a regimen, see the module's docstring."""
    with_oil = regimen.with_item("embolic", OIL)
    return {
        "paper_style": with_oil,
        "ctace_lipiodol": regimen if BEADS in regimen.embolics else with_oil,
        "raw": regimen,
    }


def load_hcc_tace_seg(
    clinical: Path, data: Path | None = None, limit: int | None = None, strict: bool = False, profile: Profile = "eu"
) -> Dataset:
    """Read the table and, where they are there, the imported cases.

    Args:
        clinical: The clinical table as the archive publishes it (XLSX).
        data: Folder that holds an imported case per patient, under the patient's id; None scores records only.
        limit: Most cases; baselines still learn from all.
        strict: See `SearchSpace`.
        profile: See `SearchSpace`.

    Raises:
        InputError: The table or a case can't be read, the folder of cases does not exist, or no row has a regimen.
    """
    if data is not None and not data.is_dir():
        raise InputError(f"The folder of imported cases {data} does not exist; make it with `mewm data hcc-tace-seg`.")
    table, space = read_clinical_table(clinical), replace(SPACE, strict=strict, profile=profile)
    pool: list[StoredCase] = []
    left_out: list[LeftOut] = []
    images: dict[str, str] = {}
    for patient in table.patients:
        reason = _without_gold(patient)
        if reason is not None or patient.regimen is None:
            left_out.append(LeftOut(patient.patient_id, reason or "no regimen"))
            continue
        imported = None if data is None else _imported(data, patient)
        if imported is not None:
            images[patient.patient_id] = imported.content_hash
        gold, given, after = gold_variants(patient.regimen), patient.regimen, _follow_up(patient)
        pool.append(StoredCase(patient.patient_id, patient.record, gold, space, imported, given, after))
    if not pool:
        raise InputError(f"No row of {clinical} has a regimen that can be read, so there is no gold to score against.")
    dealt = folds([case.case_id for case in pool], min(FOLDS, len(pool)))
    golds = {case.case_id: {name: protocol.key for name, protocol in case.gold.items()} for case in pool}
    digest = content_hash(
        {
            "dataset": "hcc-tace-seg",
            "version": VERSION,
            "table": table.content_hash,
            "gold": golds,
            "images": images,
            "formulary": SPACE.formulary.content_hash,
            "folds": dealt,
        }
    )
    facts = {
        "version": VERSION,
        "content_hash": digest,
        "table_hash": table.content_hash,
        "rows": len(table.patients),
        "cases": len(pool),
        "images": len(images),
        "folds": min(FOLDS, len(pool)),
        "regimens": "\n".join(_regimen_lines(pool)),
    }
    return Dataset(
        name="hcc-tace-seg",
        version=VERSION,
        content_hash=digest,
        card=render_card("hcc_tace_seg", facts),
        cases=tuple(pool[:limit]),
        variants=VARIANTS,
        origin="real",
        space=space,
        rows=len(table.patients),
        left_out=tuple(left_out),
        pool=tuple(pool),
        folds=dealt,
    )


def _imported(data: Path, patient: TablePatient) -> Case | None:
    """The imported case of a row.

    Raises:
        InputError: the folder holds another patient, or another record than the table's.
    """
    if Path(patient.patient_id).name != patient.patient_id or patient.patient_id.startswith("."):
        raise InputError(f"The table names a patient {patient.patient_id!r}, which can't be the name of a case folder.")
    case = plannable(data / patient.patient_id)
    if case is None:
        return None
    if case.case_id != patient.patient_id:
        raise InputError(
            f"The folder {case.path} holds the case {case.case_id}, not {patient.patient_id}; import it again."
        )
    if case.record.known() != patient.record.known():
        raise InputError(
            f"The clinical record in {case.path}, which an agent reads, is not that of the table; import the case "
            "again with this table."
        )
    return case


def _without_gold(patient: TablePatient) -> str | None:
    """Why a row is no case; None where its regimen can be gold."""
    if patient.regimen_text is None:
        return "the table gives no regimen (NA)"
    if patient.regimen is None or not patient.regimen.items:
        return f"the regimen {patient.regimen_text!r} can't be read"
    formulary = SPACE.formulary
    if strangers := [name for name in patient.regimen.items if name not in formulary]:
        return f"{', '.join(strangers)} is outside the action set {SPACE.actions}"
    return None


def _follow_up(patient: TablePatient) -> FollowUp | None:
    if patient.os_weeks is None or patient.death is None:
        return None
    return FollowUp(patient.os_weeks / WEEKS_PER_MONTH, patient.death)


def _regimen_lines(pool: list[StoredCase]) -> list[str]:
    counts: dict[str, int] = {}
    for case in pool:
        raw = case.gold["raw"]
        words = f"{', '.join(raw.drugs)}{' on ' if raw.embolics else ''}{', '.join(raw.embolics)}"
        counts[words] = counts.get(words, 0) + 1
    return [f"| {words} | {n} |" for words, n in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
