"""Volumes: the image files that the viewer loads: CT, labels, simulated CT, difference, spread over replicas.

A file is asked for by what it shows of a case (`image-pre_arterial`, `registered-post_portal`, `outcome-...`), made
when it is asked for first, and kept under a hash of everything that it depends on. Nothing is simulated here: an
outcome that the tools did not leave in the person's artifacts can't be shown.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open

from agent.deidentify import NEUTRAL_ID
from agent.web.access import Owner, private_folder
from models.case import Case, safe_name
from models.errors import InputError, RunError
from models.patch import paste
from models.volume import Affine, Volume, same_grid, write_label_nifti, write_nifti
from tools.compose_outcome import compose_outcome
from tools.workspace import Workspace

OpenWorkspace = Callable[[Path, Path], Workspace]
"""Case folder and artifacts folder -> what outcomes of that case are read with; the case is called "case"."""
IMAGE, REGISTERED, OUTCOME = "image-", "registered-", "outcome-"
_FORMAT = 1
_OPEN_CASES = 4
_keys: dict[Path, dict[str, object]] = {}


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WindowPreset(_Data):
    """Grey scale: HU from `low` (black) to `high` (white)."""

    key: str
    name: str
    low: float
    high: float


class MapRange(_Data):
    """Colours of a map over the CT, HU."""

    low: float
    high: float
    colours: str
    below_zero: str | None = None


class LabelColour(_Data):
    """How a label is drawn."""

    name: str
    colour: str


class ViewerSettings(_Data):
    """Content of `viewer.yaml`."""

    windows: tuple[WindowPreset, ...]
    difference: MapRange
    spread: MapRange
    before: dict[int, LabelColour]
    after: dict[int, LabelColour]
    cache_mib: int
    spread_replicas: int


@cache
def viewer_settings() -> ViewerSettings:
    """The settings of `viewer.yaml`."""
    text = resources.files("agent.web").joinpath("viewer.yaml").read_text(encoding="utf-8")
    return ViewerSettings.model_validate(yaml.safe_load(text))


def default_workspace(case: Path, artifacts: Path) -> Workspace:
    """The shipped engine on whatever device there is."""
    return Workspace({NEUTRAL_ID: case}, artifacts)


class Volumes:
    """Makes the viewer's files. One for the process; what it makes lies in the owner's folder."""

    def __init__(self, open_workspace: OpenWorkspace = default_workspace) -> None:
        """Args: open_workspace: how outcomes are read; tests give a small engine."""
        self._open = open_workspace
        self._workspaces: OrderedDict[tuple[str, str], Workspace] = OrderedDict()
        self._work = threading.Lock()  # composing takes memory, and the engine is shared

    def ct(self, owner: Owner, case: Case, ref: str) -> Path:
        """A CT: an image of the case, its registered follow-up, or a simulated outcome.

        Raises:
            MewmError: there is none, or it can't be read.
        """
        return self._kept(owner, case, ("ct", ref), lambda path: write_nifti(self._volume(owner, case, ref), path))

    def labels(self, owner: Owner, case: Case, ref: str) -> Path:
        """The labels that belong to a CT: those of the case, or the segmentation of an outcome.

        Raises:
            InputError: it has none.
            MewmError: they can't be read.
        """

        def make(path: Path) -> None:
            found, affine = self._label_array(owner, case, ref)
            write_label_nifti(found, affine, path)

        return self._kept(owner, case, ("labels", ref), make)

    def difference(self, owner: Owner, case: Case, of: str, minus: str) -> Path:
        """One CT minus another on the same grid, HU.

        Raises:
            InputError: the grids differ.
            MewmError: one of them can't be read.
        """

        def make(path: Path) -> None:
            one, two = self._volume(owner, case, of), self._volume(owner, case, minus)
            if not same_grid(one.shape, one.affine, two.shape, two.affine):
                raise InputError(
                    "The two images lie on different grids, so that there is no difference of them: a follow-up has to "
                    "be registered first, and phases have to be of one reconstruction."
                )
            change = one.data.astype(np.float32) - two.data.astype(np.float32)
            whole = one.data.dtype == two.data.dtype == np.dtype(np.int16) and np.abs(change).max() < 32000
            write_nifti(Volume(change.astype(np.int16) if whole else change, one.affine), path)

        return self._kept(owner, case, ("difference", of, minus), make)

    def spread(self, owner: Owner, case: Case, outcomes: Sequence[str]) -> Path:
        """Standard deviation over replicas of one protocol, voxel by voxel, HU (n - 1 in the denominator).

        Raises:
            InputError: fewer than two replicas.
            MewmError: an outcome can't be read.
        """
        chosen = list(dict.fromkeys(outcomes))[: viewer_settings().spread_replicas]
        if len(chosen) < 2 or not all(ref.startswith(OUTCOME) for ref in chosen):
            raise InputError("This protocol has one replica only, so that there is no spread to show.")

        def make(path: Path) -> None:
            workspace = self._workspace(owner, case)
            before, _ = workspace.image(NEUTRAL_ID)
            mean = np.zeros(before.shape, dtype=np.float32)
            squares = np.zeros(before.shape, dtype=np.float32)
            for n, ref in enumerate(chosen, start=1):  # Welford's recurrence: one volume in memory at a time
                stored = workspace.outcome(ref)
                lesions, patches = stored.prepared.lesions, stored.prepared.patches
                # the CT of `compose_outcome`, without the segmentation that takes most of its time
                replica = paste(before, lesions.index > 0, patches, list(stored.difference), lesions=lesions)
                step = replica.data - mean
                mean += step / n
                squares += step * (replica.data - mean)
            write_nifti(Volume(np.sqrt(squares / (len(chosen) - 1)), before.affine), path)

        return self._kept(owner, case, ("spread", *chosen), make)

    def _volume(self, owner: Owner, case: Case, ref: str) -> Volume:
        if ref.startswith(OUTCOME):
            return compose_outcome(ref, workspace=self._workspace(owner, case))[0]
        if ref.startswith(REGISTERED):
            return _registered(case, ref.removeprefix(REGISTERED))
        if ref.startswith(IMAGE):
            return case.volume(ref.removeprefix(IMAGE))
        raise InputError("There is no such image.")

    def _label_array(self, owner: Owner, case: Case, ref: str) -> tuple[NDArray[np.uint8], Affine]:
        if ref.startswith(OUTCOME):
            volume, tissue = compose_outcome(ref, workspace=self._workspace(owner, case))
            return tissue, volume.affine
        default = case.default_image()
        if ref.startswith(IMAGE):
            image = case.image(ref.removeprefix(IMAGE))
            if image.role == "follow_up":
                found = case.follow_up_label_array(image.name)
                if found is None:
                    raise InputError(f"The follow-up {image.name} has no labels.")
                return found, case.volume(image.name).affine
            if not case.shares_grid(image, default):
                raise InputError(f"The labels of this case lie on another grid than {image.name}.")
        elif not ref.startswith(REGISTERED):
            raise InputError("There is no such image.")
        # A registered follow-up lies on the grid before treatment: the outline of the original tumour is shown in it.
        return case.label_array(), case.volume(default.name).affine

    def _workspace(self, owner: Owner, case: Case) -> Workspace:
        key = (owner.key, case.image_key)
        if key not in self._workspaces:
            self._workspaces[key] = self._open(case.path, owner.chats / "artifacts")
        self._workspaces.move_to_end(key)
        while len(self._workspaces) > _OPEN_CASES:
            self._workspaces.popitem(last=False)
        return self._workspaces[key]

    def _kept(self, owner: Owner, case: Case, what: tuple[str, ...], make: Callable[[Path], None]) -> Path:
        """The file under the hash of what it shows, made where it is not there."""
        entry = [_FORMAT, case.image_key, *what]
        if any(part.startswith(REGISTERED) for part in what):
            entry.append(_registration_hash(case, next(p for p in what if p.startswith(REGISTERED))))
        name = hashlib.sha256(json.dumps(entry).encode()).hexdigest()[:40]
        path = owner.viewer / f"{name}.nii"
        composed = any(part.startswith(OUTCOME) for part in what)
        with self._work if composed else nullcontext():
            if path.is_file():
                with suppress(OSError):
                    path.touch()  # the oldest goes first
                return path
            private_folder(owner.viewer)
            make(path)
            _prune(owner.viewer, viewer_settings().cache_mib << 20, path)
        return path


def case_of(owner: Owner, name: str) -> Case:
    """A person's case by the name of its folder; its files are not read.

    Raises:
        InputError: there is none.
        CaseError: it is damaged.
    """
    path = owner.cases / name
    if safe_name(name) != name or path.is_symlink() or not (path / "case.json").is_file():
        raise InputError(f"There is no case '{name[:80]}'.")
    return Case.load(path, verify=False)


def simulated(artifacts: Path, image_key: str) -> dict[str, tuple[str, ...]]:
    """What was simulated and segmented of a case so far: outcome ids by protocol key, newest weights first, by seed.

    Args:
        artifacts: the folder of the artifacts.
        image_key: `Case.image_key`.
    """
    found: dict[str, list[tuple[float, int, str]]] = {}
    for path in _files(artifacts / "segmentations"):
        outcome = str(_key(path).get("outcome", ""))
        digest = outcome.rpartition("-")[2]
        place = artifacts / "outcomes" / digest[:2] / f"{outcome}.safetensors"
        key = _key(place) if digest and place.is_file() else {}
        if key.get("case") == image_key:
            made = place.stat().st_mtime
            found.setdefault(str(key["protocol"]), []).append((made, int(str(key.get("seed") or 0)), outcome))
    told: dict[str, tuple[str, ...]] = {}
    for protocol, outcomes in found.items():
        newest = str(_key_of(artifacts, max(outcomes)[2]).get("weights"))
        same = [o for o in outcomes if _key_of(artifacts, o[2]).get("weights") == newest]
        told[protocol] = tuple(dict.fromkeys(name for _, _, name in sorted(same, key=lambda o: o[1:])))
    return told


def _files(folder: Path) -> Iterator[Path]:
    yield from folder.glob("*/*.safetensors")


def _key_of(artifacts: Path, outcome: str) -> dict[str, object]:
    return _key(artifacts / "outcomes" / outcome.rpartition("-")[2][:2] / f"{outcome}.safetensors")


def _key(path: Path) -> dict[str, object]:
    """What an artifact was computed from. A name means the same content for ever, so it is read once."""
    if path in _keys:
        return _keys[path]
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("mewm", "{}"))
        found = json.loads(header.get("key", "{}"))
    except (SafetensorError, OSError, ValueError):  # damaged: the tools compute it again
        return {}
    if isinstance(found, dict):
        _keys[path] = found
    return _keys.get(path, {})


def has_registration(case: Case, name: str) -> bool:
    """Whether a follow-up was registered to the scan before treatment."""
    return (case.path / "registration" / f"{name}.json").is_file()


def _registration_hash(case: Case, ref: str) -> str:
    path = case.path / "registration" / f"{ref.removeprefix(REGISTERED)}.json"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        raise InputError("This follow-up is not registered.") from None


def _registered(case: Case, name: str) -> Volume:
    """A follow-up on the grid before treatment.

    Raises:
        InputError: it is not registered.
        CaseError: the registration is damaged, or of other images.
    """
    from models.registration_file import load_registration  # SimpleITK, an extra

    kept = load_registration(case, name)
    if kept is None:
        raise InputError(f"The follow-up {name} is not registered: run `mewm case register` on the case.")
    image, registration = kept
    return registration.apply(case.volume(image.name), case.volume())


def _prune(folder: Path, limit: int, keep: Path) -> None:
    """Remove the files that were shown longest ago, down to the limit in bytes."""
    found = []
    try:
        for path in folder.glob("*.nii"):
            with suppress(FileNotFoundError):  # another request tidies too
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        files, total = sorted(found, reverse=True), 0
        for _, size, path in files:
            total += size
            if total > limit and path != keep:
                path.unlink(missing_ok=True)
    except OSError as exc:
        raise RunError(f"The folder {folder} can't be tidied ({exc.strerror}): free space on its disk.") from exc
