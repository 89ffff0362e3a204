"""Artifacts: named by their inputs, whole or absent, never silently wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models.errors import RunError, ToolError
from tools.artifacts import ArtifactDamagedError, ArtifactStore, artifact_id

KEY = {"case": "abc", "seed": 3, "protocol": "Cisplatin | Lipiodol"}
ARRAYS = {"difference": np.arange(-50, 50, dtype=np.int16), "tissue": np.array([[1, 2], [3, 4]], dtype=np.uint8)}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def test_what_is_written_is_read(store: ArtifactStore):
    name = store.put("outcome", KEY, ARRAYS)
    found = store.get(name)
    assert found is not None
    assert (found.artifact_id, found.key) == (name, KEY)
    for title, array in ARRAYS.items():
        np.testing.assert_array_equal(found.arrays[title], array)
        assert found.arrays[title].dtype == array.dtype


def test_the_name_depends_on_every_input_and_on_nothing_else():
    name = artifact_id("outcome", KEY)
    assert artifact_id("outcome", dict(reversed(KEY.items()))) == name
    others = {
        artifact_id("segmentation", KEY),
        *(artifact_id("outcome", {**KEY, title: "other"}) for title in KEY),
        artifact_id("outcome", {**KEY, "steps": 1}),
    }
    assert name not in others
    assert len(others) == 5


def test_equal_inputs_give_equal_bytes(store: ArtifactStore, tmp_path: Path):
    other = ArtifactStore(tmp_path / "other")
    name = store.put("outcome", KEY, ARRAYS)
    other.put("outcome", KEY, dict(reversed(ARRAYS.items())))
    assert store.path(name).read_bytes() == other.path(name).read_bytes()


def test_an_absent_artifact_is_none(store: ArtifactStore):
    assert store.get(artifact_id("outcome", KEY)) is None


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "outcome-..", "outcome-" + "0" * 19, "other-" + "0" * 20])
def test_a_name_is_never_a_path(store: ArtifactStore, name: str):
    with pytest.raises(ToolError, match="not an artifact id"):
        store.get(name)


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "rename", "key"])
def test_damage_is_noticed(store: ArtifactStore, damage: str):
    name = store.put("outcome", KEY, ARRAYS)
    path = store.path(name)
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        content = content[:-7]
    elif damage == "flip":
        content[-1] ^= 1
    elif damage == "empty":
        content = bytearray()
    elif damage == "key":
        content = content.replace(b"Cisplatin", b"Epirubici")
    elif damage == "rename":
        content = bytearray(store.path(store.put("outcome", {**KEY, "seed": 4}, ARRAYS)).read_bytes())
    path.write_bytes(content)
    with pytest.raises(ArtifactDamagedError, match="call simulate_tumor again"):
        store.get(name)
    assert store.find(name) is None
    store.put("outcome", KEY, ARRAYS)
    assert store.get(name) is not None


def test_a_killed_writer_leaves_no_half_artifact(tmp_path: Path):
    # The child rewrites artifacts of 4 MB without end and is killed at some moment.
    script = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from tools.artifacts import ArtifactStore\n"
        "store = ArtifactStore(Path(sys.argv[1]))\n"
        "print('ready', flush=True)\n"
        "n = 0\n"
        "while True:\n"
        "    store.put('outcome', {'n': n % 5}, {'a': np.full(2_000_000, n % 5, np.int16)})\n"
        "    n += 1\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path.cwd())
    assert child.stdout is not None
    child.stdout.readline()
    store = ArtifactStore(tmp_path)
    last = artifact_id("outcome", {"n": 4})
    while store.get(last) is None:
        assert child.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    for n in range(5):
        found = store.get(artifact_id("outcome", {"n": n}))
        assert found is not None
        assert (found.arrays["a"] == n).all()


def test_an_unwritable_folder_is_one_sentence(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(RunError, match="can't be written"):
        ArtifactStore(blocked).put("outcome", KEY, ARRAYS)


def test_a_failed_write_leaves_nothing(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match="No space left"):
        store.put("outcome", KEY, ARRAYS)
    assert [path for path in store.root.rglob("*") if path.is_file()] == []
