"""ArtifactStore: what was computed once, on disk, named by what it was computed from.

An artifact is one safetensors file whose name is the hash of its inputs, so the same question finds the same file. A
file appears whole or not at all (written beside, then renamed). Each file carries the hash of its own contents: a
damaged one raises `ArtifactDamagedError`, which `simulate_tumor` and `segment` answer by computing it again under the
same name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from models.errors import RunError, ToolError

Array = NDArray[np.generic]
ArtifactKind = Literal["outcome", "segmentation"]
Value = str | int | float | bool | None

FORMAT_VERSION = 1
_HEADER = "mewm"
_ID = re.compile(r"(outcome|segmentation)-[0-9a-f]{20}")


class ArtifactDamagedError(ToolError):
    """An artifact whose contents do not match its hash."""


@dataclass(frozen=True, eq=False)
class Artifact:
    """Arrays by name, and what they were computed from."""

    artifact_id: str
    key: dict[str, Value]
    arrays: dict[str, Array]


def artifact_id(kind: ArtifactKind, key: Mapping[str, Value]) -> str:
    """The name of an artifact: its kind and the first 80 bits of the hash of its inputs."""
    text = json.dumps(
        {"format": FORMAT_VERSION, "kind": kind, **key}, sort_keys=True, ensure_ascii=True, allow_nan=False
    )
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


class ArtifactStore:
    """A folder of artifacts. Several processes may share it: equal names mean equal contents."""

    def __init__(self, root: Path) -> None:
        """Args: root: the folder; made when the first artifact is written."""
        self.root = root

    def path(self, name: str) -> Path:
        """Where an artifact lies.

        Raises:
            ToolError: the name is not an artifact id (ids come from tool results; a path is never accepted).
        """
        if not _ID.fullmatch(name):
            raise ToolError(f"'{name[:80]}' is not an artifact id: use an id that simulate_tumor or segment returned.")
        kind, digest = name.rsplit("-", 1)
        return self.root / f"{kind}s" / digest[:2] / f"{name}.safetensors"

    def put(self, kind: ArtifactKind, key: Mapping[str, Value], arrays: Mapping[str, Array]) -> str:
        """Writes an artifact atomically and returns its id. What was there under the same id is replaced.

        Raises:
            RunError: the folder can't be written.
        """
        name = artifact_id(kind, key)
        path = self.path(name)
        ordered = {title: np.ascontiguousarray(arrays[title]) for title in sorted(arrays)}
        text = json.dumps(dict(key), sort_keys=True)
        # One entry only: safetensors writes several in a random order, and equal artifacts should be equal files.
        header = json.dumps({"id": name, "key": text, "sha256": _digest(name, text, ordered)})
        temporary: str | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(save(ordered, {_HEADER: header}))
            Path(temporary).replace(path)
            temporary = None
        except OSError as exc:
            raise RunError(
                f"The artifact folder {self.root} can't be written ({exc.strerror}): "
                "free space or choose another run folder."
            ) from exc
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
        return name

    def get(self, name: str) -> Artifact | None:
        """The artifact of that id, or None where there is none.

        Raises:
            ArtifactDamagedError: the file is truncated or changed.
            ToolError: the name is not an artifact id.
        """
        path = self.path(name)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
                arrays = {title: file.get_tensor(title) for title in sorted(file.keys())}
        except (SafetensorError, OSError, ValueError) as exc:
            raise ArtifactDamagedError(f"The artifact {name} can't be read ({exc}): {_cure(name)}.") from exc
        text = metadata.get("key", "")
        if metadata.get("id") != name or metadata.get("sha256") != _digest(name, text, arrays):
            raise ArtifactDamagedError(f"The artifact {name} is damaged (its hash does not match): {_cure(name)}.")
        return Artifact(name, json.loads(text), arrays)

    def find(self, name: str) -> Artifact | None:
        """As `get`, but a damaged artifact counts as absent: for callers that can compute it again."""
        try:
            return self.get(name)
        except ArtifactDamagedError:
            return None


def _cure(name: str) -> str:
    return "call simulate_tumor again" if name.startswith("outcome-") else "call segment again"


def _digest(name: str, key: str, arrays: Mapping[str, Array]) -> str:
    total = hashlib.sha256(f"{FORMAT_VERSION}\n{name}\n{key}\n".encode())
    for title in sorted(arrays):
        array = np.ascontiguousarray(arrays[title])
        total.update(f"{title} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()
