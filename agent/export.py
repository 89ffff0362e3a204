"""The simulated volumes of a plan's finalists: written as NIfTI on the case's own grid, read back for DICOM."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from agent.plan import Finalist, Plan, read_plan
from models.errors import RunError
from models.volume import load_exact, load_exact_labels, write_label_nifti, write_nifti
from tools.compose_outcome import compose_outcome
from tools.workspace import Workspace

if TYPE_CHECKING:
    from models.case import Case
    from models.dicom_export import SimulatedScan

FINALISTS = "finalists"
SEGMENTATION_LABELS = {0: "background", 1: "liver", 2: "viable tumour", 3: "necrotic tumour", 4: "Lipiodol (oil)"}


def slug(key: str, limit: int = 60) -> str:
    """A protocol key as part of a folder name: ``"Cisplatin 50 mg | Lipiodol"`` gives ``cisplatin-50-mg-lipiodol``."""
    return re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")[:limit].rstrip("-") or "protocol"


def finalist_folder(finalist: Finalist) -> str:
    """Folder of a finalist, relative to the run folder."""
    return f"{FINALISTS}/{finalist.place}_{slug(finalist.assessed.key)}"


def export_finalists(plan: Plan, workspace: Workspace, run_dir: Path) -> dict[str, str]:
    """Write each finalist's simulated CT and its segmentation.

    The replica that is written is the one whose objective is nearest to the mean, the same that the report draws. Each
    finalist gets ``finalists/<place>_<protocol>/`` with `simulated.nii.gz` (HU, the case's type, shape and affine),
    `segmentation.nii.gz` (uint8) and `about.json`, which says what they are. The folder `finalists` appears complete
    or not at all, and replaces one that an interrupted run left.

    Args:
        plan: The plan; a blocked one has no finalists and nothing is written.
        workspace: Holds the case and the outcomes.
        run_dir: The run folder; it must exist.

    Returns:
        Paths relative to the run folder, by what they are, for `Plan.artifacts`.

    Raises:
        RunError: The run folder can't be written.
        ToolError: An outcome of the plan is not in the run's artifacts.
    """
    if not plan.finalists:
        return {}
    run_dir = Path(run_dir)
    written: dict[str, str] = {}
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{FINALISTS}.", dir=run_dir))
    except OSError as exc:
        raise RunError(_sentence(run_dir, exc)) from exc
    try:
        partial.chmod(0o755)
        for finalist in plan.finalists:
            folder = finalist_folder(finalist)
            inside = partial / Path(folder).name
            inside.mkdir()
            _write_finalist(plan, finalist, workspace, inside)
            for name in ("simulated", "segmentation"):
                written[f"{name} {finalist.place}"] = f"{folder}/{name}.nii.gz"
        _replace_folder(partial, run_dir / FINALISTS)
    except OSError as exc:
        raise RunError(_sentence(run_dir, exc)) from exc
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return written


def simulated_scans(case: Case, folder: Path, every: bool) -> list[SimulatedScan]:
    """The simulated scans that a run left, the chosen protocol first, for a DICOM export.

    Args:
        case: The case that the run planned.
        folder: The run folder.
        every: All finalists, not the chosen one alone.

    Raises:
        RunError: No plan there, a plan on another case, without a protocol, or whose volumes are gone.
    """
    # A run is opened, and DICOM loaded, only where somebody exports.
    from agent.run import open_run
    from models.dicom_export import SimulatedScan

    record, plan = open_run(folder).record, read_plan(folder / "plan.json")
    if record.case_hash != case.with_changes(record.changes).content_hash:
        raise RunError(f"The run in {folder} is of another case than {case.path}; give the run of this case.")
    if plan.chosen is None:
        raise RunError(f"The plan in {folder} is blocked and chose no protocol, so there is nothing to export of it.")
    found = []
    for finalist in plan.finalists if every else (plan.chosen,):
        place = folder / finalist_folder(finalist)
        try:
            about = json.loads((place / "about.json").read_text(encoding="utf-8"))
            protocol, weights, trained = (str(about[key]) for key in ("protocol", "weights_hash", "models_trained_on"))
        except (OSError, ValueError, KeyError, TypeError) as error:  # missing, no JSON, or JSON without these
            raise RunError(f"The simulated scan in {place} can't be read; run `mewm plan` again.") from error
        found.append(
            SimulatedScan(
                name=f"simulated_{finalist.place}",
                volume=load_exact(place / "simulated.nii.gz"),
                tissue=load_exact_labels(place / "segmentation.nii.gz")[0],
                protocol=protocol,
                weights_hash=weights,
                trained_on=trained,
            )
        )
    return found


def _replace_folder(new: Path, target: Path) -> None:
    """Put a complete folder in place. One that is there can't be replaced in one step, so it is set aside first."""
    if not target.exists():
        new.replace(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    try:
        target.replace(aside / target.name)
        new.replace(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_finalist(plan: Plan, finalist: Finalist, workspace: Workspace, folder: Path) -> None:
    replica = finalist.assessed.shown_replica
    volume, segmentation = compose_outcome(replica.outcome_id, workspace=workspace)
    write_nifti(volume, folder / "simulated.nii.gz")
    write_label_nifti(segmentation, volume.affine, folder / "segmentation.nii.gz")
    about = {
        "what": "simulated CT after treatment and its segmentation; not an observation, for research only",
        "case_id": plan.case_id,
        "protocol": finalist.assessed.key,
        "place": finalist.place,
        "outcome_id": replica.outcome_id,
        "seed": replica.seed,
        "models_trained_on": plan.origin.model_origin,
        "weights_hash": plan.origin.weights_hash,
        "segmentation_labels": {str(value): name for value, name in SEGMENTATION_LABELS.items()},
    }
    (folder / "about.json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sentence(run_dir: Path, exc: OSError) -> str:
    return f"{run_dir} can't be written ({exc.strerror or exc}): choose another run folder with --run."
