"""`mewm case register`: lay a follow-up scan over the scan before treatment, and judge the result."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.errors import CaseError, InputError, MewmError

if TYPE_CHECKING:
    from models.case import Case, Image
    from models.registration import Registration
    from models.registration_check import Report


def case_register(
    directories: Annotated[list[Path], typer.Argument(metavar="CASE...", help="Case folders.")],
    follow_up: Annotated[
        str | None, typer.Option(help="Image to register; by default the first follow-up, in the same phase.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="NIfTI labels of the follow-up (1 liver), where the case has none.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write the registered scan and a checkerboard picture here.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, for several cases.")] = 1,
    again: Annotated[bool, typer.Option("--again", help="Of several cases, also those that are registered.")] = False,
) -> None:
    """Register a follow-up to the scan before treatment; the transform is kept in CASE/registration."""
    if len(directories) == 1:
        _register_one(directories[0], follow_up, labels, out, Console())
        return
    if labels is not None:
        raise InputError("--labels belongs to one follow-up; register that case alone.")
    _register_many(directories, follow_up, out, jobs, again, Console())


def _register_one(
    directory: Path, follow_up: str | None, labels: Path | None, out: Path | None, console: Console
) -> None:
    from models.case import Case
    from models.registration_file import FOLDER, choose_follow_up, read_follow_up_labels, register_case

    case = Case.load(directory)
    image = choose_follow_up(case, follow_up)
    marked = None if labels is None else read_follow_up_labels(labels, case.volume(image.name))
    if out is not None:
        _make(out)
    with console.status(f"Registering {image.name} to {case.default_image().name}"):
        _, found = register_case(case, image.name, marked)
    console.print(_table(found.report))
    told = found.report.problems
    verdict = "[green]The pair may be used.[/]" if not told else "[red]The pair is marked and will not be used.[/] "
    console.print(verdict + escape(" ".join(told)))
    console.print(f"Transform and figures: {escape(str(case.path / FOLDER / image.name))}.tfm, .json", soft_wrap=True)
    if out is not None:
        _write(case, image, found, out)
        console.print(f"Registered scan and checkerboard: {escape(str(out))}", soft_wrap=True)


def _register_many(
    directories: list[Path], follow_up: str | None, out: Path | None, jobs: int, again: bool, console: Console
) -> None:
    """One line per case; a case that can't be registered does not stop the others, and makes the command fail."""
    from rich.progress import Progress

    failed = 0
    with ProcessPoolExecutor(jobs) as executor, Progress(console=Console(stderr=True)) as bar:
        line = bar.add_task("cases", total=len(directories))
        work = [executor.submit(_quietly, one, follow_up, out, again) for one in directories]
        for directory, job in zip(directories, work, strict=True):
            try:
                told = job.result()
            except MewmError as error:
                told, failed = f"can't be registered: {error}", failed + 1
            bar.update(line, advance=1)
            console.print(f"{escape(directory.name)}: {escape(told)}", soft_wrap=True, highlight=False)
    if failed:
        raise CaseError(f"{failed} of {len(directories)} cases can't be registered; see the lines above.")


def _quietly(directory: Path, follow_up: str | None, out: Path | None, again: bool) -> str:
    """Register a case, or find that it is registered; what came of it."""
    from models.case import Case
    from models.registration_file import choose_follow_up, load_registration, register_case

    case = Case.load(directory)
    kept = None if again else load_registration(case, follow_up)
    image, found = kept or register_case(case, choose_follow_up(case, follow_up).name)
    if out is not None:
        _make(out / case.case_id)
        _write(case, image, found, out / case.case_id)
    report = found.report
    verdict = "may be used" if report.usable else f"is marked and will not be used: {' '.join(report.problems)}"
    state = "registered before" if kept else "registered"
    return f"{image.name} {state}, likeness {report.deformed.similarity:.2f}, {verdict}"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaseError(f"The folder {folder} can't be written: {error.strerror}.") from error


def _write(case: Case, image: Image, found: Registration, folder: Path) -> None:
    """The registered scan and the checkerboard."""
    from models.registration_picture import write_registration_picture
    from models.volume import write_nifti

    write_nifti(found.apply(case.volume(image.name), case.volume()), folder / f"{image.name}_registered.nii.gz")
    write_registration_picture(case, image, found, folder / f"{image.name}_checkerboard.png")


def _table(report: Report) -> Table:
    table = Table("", "as scanned", "rigid", "deformable", title="Follow-up on the scan before treatment")
    stages = (report.as_scanned, report.rigid, report.deformed)
    rows = (
        ("likeness near the liver (correlation)", "similarity", ".3f"),
        ("oil inside the tumour, ml", "oil_in_tumour_ml", ".1f"),
        ("oil inside the liver, ml", "oil_in_liver_ml", ".1f"),
        ("Dice of the livers", "liver_dice", ".3f"),
    )
    for title, name, form in rows:
        values = [getattr(stage, name) for stage in stages]
        if any(value is not None for value in values):
            table.add_row(title, *("-" if value is None else format(value, form) for value in values))
    table.add_section()
    table.add_row("share of the liver seen", "", "", f"{report.seen_share:.1%}")
    table.add_row("turned by, degrees", "", f"{report.rotation_degrees:.1f}", "")
    table.add_row("deformation, 95th percentile, mm", "", "", f"{report.deformation_p95_mm:.1f}")
    table.add_row("folding share of the liver", "", "", f"{report.folding_share:.3%}")
    low, high = report.jacobian_range
    table.add_row("local volume, least and most", "", "", f"{low:.2f} to {high:.2f}")
    return table


def register(app: typer.Typer) -> None:
    """Mount `register` on `mewm case`."""
    app.command("register")(case_register)
