"""`mewm data hcc-tace-seg`: what the public collection holds, its download, and its import as cases."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from models.errors import InputError

if TYPE_CHECKING:
    from models.collection.idc_index import CollectionIndex, IndexedPatient, IndexedSeries, IntervalCheck

app = typer.Typer(
    no_args_is_help=True,
    help="HCC-TACE-Seg, 105 public patients (CC BY 4.0): list it, download it, import it as cases.",
)

_Patients = Annotated[
    list[str] | None, typer.Option(help="Names such as HCC_009, repeated or with commas; `all` for every patient.")
]
_MADE_BY = {"experts": "experts", "corrected_ai": "AI corrected by a radiologist", "ai": "AI"}
_ROLES = {"baseline": "baseline", "follow_up": "follow-up", "other": "not used"}


@app.command()
def plan(
    patients: _Patients = None,
    clinical: Annotated[
        Path | None, typer.Option(help="Clinical table (XLSX): compares its follow-up intervals with the choice here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """List every patient's visits and series from the index inside idc-index, without a network."""
    from models.collection.clinical_table import read_clinical_table
    from models.collection.idc_index import compare_intervals, read_index

    index = read_index()
    table = read_clinical_table(clinical) if clinical is not None else None
    chosen = _choose(index, patients)
    check = compare_intervals(index, table) if table is not None else None
    without = (
        [one.patient_id for one in table.patients if one.regimen is None and _has(chosen, one.patient_id)]
        if table is not None
        else []
    )
    if as_json:
        content = {
            "collection": "HCC-TACE-Seg", "index_version": index.index_version, "totals": _totals(chosen),
            "patients": [_patient_json(one) for one in chosen.patients],
            "intervals": None if check is None else dataclasses.asdict(check),
            "without_regimen": without if table is not None else None,
        }  # fmt: skip
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
        return
    for patient in chosen.patients:
        _print_patient(patient)
    totals = _totals(chosen)
    typer.echo(
        f"{totals['patients']} patients, {totals['ct_series']} CT series ({totals['ct_gigabytes']:.1f} GB), "
        f"{totals['seg_series']} segmentation objects ({totals['seg_by_experts']} by the experts, "
        f"{totals['seg_by_ai']} by an AI, {totals['seg_by_corrected_ai']} by an AI and corrected), "
        f"{totals['gigabytes']:.1f} GB in all; "
        f"index {index.index_version}."
    )
    typer.echo(f"Not usable as a pair of before and after: {totals['not_usable']} patients.")
    if check is not None:
        _print_check(check)
        typer.echo(f"Without a regimen in the table, so without a gold protocol: {', '.join(without) or 'none'}.")


@app.command()
def download(
    patients: Annotated[list[str], typer.Option(help="Names such as HCC_009,HCC_010; `all` for every patient.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the download.")],
) -> None:
    """Fetch patients from the Imaging Data Commons; run it again to go on. About 0.3 GB a patient."""
    from models.collection import download as transfer
    from models.collection.idc_index import read_index

    chosen = _choose(read_index(), patients)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        line = bar.add_task("download", total=None)
        done = transfer.download(
            chosen,
            out,
            progress=lambda now, total, name: bar.update(line, completed=now, total=total, description=name),
        )
    typer.echo(
        f"{done.series} series are complete in {done.folder}: {done.fetched_bytes / 1e9:.2f} GB fetched, "
        f"{done.kept_bytes / 1e9:.2f} GB there before."
    )


@app.command("import")
def import_(
    src: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the download, of IDC or the TCIA downloader.")],
    clinical: Annotated[Path, typer.Option(help="Clinical table, HCC-TACE-Seg_clinical_data-V2.xlsx.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder that gets one case folder per patient.")],
    grid: Annotated[
        Literal["native", "paper", "isotropic"],
        typer.Option(help="Voxels: as scanned, 0.8 x 0.8 x 3.0 mm (the paper's), or 1 mm."),
    ] = "native",
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    patients: _Patients = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(help="PATIENT=FILE: NIfTI labels where the experts' segmentation object is missing; repeat it."),
    ] = None,
) -> None:
    """Make cases of downloaded patients, with a quality page each; run it again to go on."""
    from models.collection.clinical_table import read_clinical_table
    from models.collection.download import names_of
    from models.collection.import_collection import KEPT_APART, import_collection
    from models.collection.quality_page import FOLDER

    table = read_clinical_table(clinical)
    names = names_of(patients or [])
    with Progress(console=Console(stderr=True)) as bar:
        line = bar.add_task("patients", total=None)
        done = import_collection(
            src, table, out, grid=grid, jobs=jobs, patients=names if names and names != ["all"] else None,
            labels=_labels(labels or []),
            progress=lambda now, total, last: bar.update(
                line, completed=now, total=total, description=f"patients ({last.patient_id})"
            ),
        )  # fmt: skip
    for one in done:
        if not one.passed:
            where = f"{KEPT_APART}/{one.patient_id}" if one.case is not None else "no case"
            typer.echo(f"{one.patient_id} is kept apart ({where}): {one.reason}")
    passed = sum(one.passed for one in done)
    typer.echo(f"{passed} of {len(done)} patients passed and are in {out}; quality: {out / FOLDER / 'index.html'}")


def _choose(index: CollectionIndex, patients: list[str] | None) -> CollectionIndex:
    from models.collection.download import names_of

    names = names_of(patients or [])
    return index if not names or names == ["all"] else index.choose(names)


def _has(index: CollectionIndex, patient_id: str) -> bool:
    return any(one.patient_id == patient_id for one in index.patients)


def _labels(texts: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        if not separator or not name or not path:
            raise InputError(
                f"--labels {text!r} is not PATIENT=FILE; write for example --labels HCC_009=labels.nii.gz."
            )
        found[name] = Path(path)
    return found


def _totals(index: CollectionIndex) -> dict[str, int | float]:
    segs = index.series("SEG")
    return {
        "patients": len(index.patients),
        "ct_series": len(index.series("CT")),
        "seg_series": len(segs),
        **{f"seg_by_{who}": sum(one.made_by == who for one in segs) for who in ("experts", "ai", "corrected_ai")},
        "ct_gigabytes": round(sum(one.size_bytes for one in index.series("CT")) / 1e9, 3),
        "gigabytes": round(sum(one.size_bytes for one in index.patients) / 1e9, 3),
        "not_usable": sum(bool(one.problems) for one in index.patients),
    }


def _patient_json(patient: IndexedPatient) -> dict[str, object]:
    days = patient.follow_up_days
    return {
        **patient.model_dump(mode="json"),
        "size_bytes": patient.size_bytes,
        "follow_up_days": days,
        "follow_up_weeks": None if days is None else round(days / 7, 2),
    }


def _print_patient(patient: IndexedPatient) -> None:
    typer.echo(f"{patient.patient_id}, {patient.size_bytes / 1e9:.2f} GB")
    before = patient.visit("baseline")
    for visit in patient.visits:
        after = visit.day - before.day if before is not None else visit.day
        weeks = f" ({after / 7:.2f} weeks)" if visit.role == "follow_up" else ""
        typer.echo(f"  {_ROLES[visit.role]}, day {visit.day}{weeks}")
        for one in visit.series:
            typer.echo(f"    {_series_line(one)}")
    for text in patient.problems:
        typer.echo(f"  not usable: {text}")
    for text in patient.notes:
        typer.echo(f"  note: {text}")


def _series_line(one: IndexedSeries) -> str:
    # Header text of unknown origin: control characters could move the cursor of a terminal.
    description = "".join(c for c in one.description if c.isprintable()) or "no description"
    if one.modality == "SEG":
        return f"SEG by {_MADE_BY[one.made_by or 'experts']}, {one.size_bytes / 1e6:.0f} MB"
    phase = {"enhanced": "contrast, phase not said", "unknown": "phase not said"}.get(one.phase, one.phase)
    note = f" - {one.note}" if one.note else ""
    return f"CT {description!r}, {one.images} images, {phase}, {one.size_bytes / 1e6:.0f} MB{note}"


def _print_check(check: IntervalCheck) -> None:
    typer.echo(
        f"Follow-up intervals: {check.agree} of {check.given} in the table are those of the chosen visits, to the day; "
        f"{len(check.mismatches)} are not:"
    )
    for one in check.mismatches:
        why = "another visit would fit" if one.other_visit else "no visit of the patient fits"
        if one.fits_next:
            why += f", but it is exactly the interval of {one.fits_next}"
        typer.echo(
            f"  {one.patient_id}: table {one.table_weeks:.2f} weeks, archive {one.archive_days / 7:.2f} weeks "
            f"({one.archive_days} days); {why}"
        )
    if shifted := sum(bool(one.fits_next) for one in check.mismatches):
        typer.echo(
            f"  {shifted} of these {len(check.mismatches)} are the interval of the next patient: the column seems to "
            "be shifted by a row there. The choice of visits stays."
        )
