"""The viewer's script: fetched by version and hash, whole or not at all, from the registry of the environment."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from agent.web import niivue
from models.errors import DownloadError
from tests.agent.web.loopback_files import FileServer

SCRIPT = b"export const Niivue = class {};\n"


def tarball(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small package in place of the real one: what the registry should answer."""
    content = tarball({"package/README.md": b"-", "package/dist/index.js": SCRIPT})
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    real = niivue.package()
    small = real.model_copy(
        update={"integrity": f"sha512-{digest}", "sha256": hashlib.sha256(SCRIPT).hexdigest(), "max_mib": 1}
    )
    monkeypatch.setattr(niivue, "package", lambda: small)
    return content


def test_the_script_of_the_registry_that_the_environment_names(
    wanted: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "niivue.js"
    with FileServer({f"/npm/{niivue.package().tarball}": wanted}) as server:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"{server.url}/npm/")
        assert niivue.fetch(target, pause_s=0) is True
        assert target.read_bytes() == SCRIPT
        assert niivue.fetch(target, pause_s=0) is False, "it is there: nothing is asked"
        assert len(server.asked) == 1
        target.write_bytes(SCRIPT + b"// changed")
        assert niivue.fetch(target, pause_s=0) is True, "a changed file is fetched anew"
    assert target.read_bytes() == SCRIPT
    assert [path.name for path in tmp_path.iterdir()] == ["niivue.js"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>log in to the hotel's network</html>", "its hash differs"),
        (tarball({"package/dist/index.js": b"something else"}), "its hash differs"),
        (b"0" * (2 << 20), "its hash differs"),
        (None, "can't be fetched from .* \\(Not Found\\)"),
    ],
)
def test_anything_else_is_refused_and_leaves_nothing(
    wanted: bytes, answer: bytes | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {} if answer is None else {f"/{niivue.package().tarball}": answer}
    with FileServer(files) as server:
        monkeypatch.setenv("npm_config_registry", server.url)
        with pytest.raises(DownloadError, match=message):
            niivue.fetch(tmp_path / "niivue.js", pause_s=0)
        assert len(server.asked) == 1, "an answer is an answer: it is not asked again"
    assert list(tmp_path.iterdir()) == []


def test_a_registry_that_does_not_answer_is_tried_again_and_named(
    wanted: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileServer({}, status=503) as server:
        monkeypatch.setenv("npm_config_registry", server.url)
        with pytest.raises(DownloadError, match=r"NiiVue 0\.69\.0 can't be fetched.*set npm_config_registry"):
            niivue.fetch(tmp_path / "niivue.js", pause_s=0)
        assert len(server.asked) == 3
    monkeypatch.setenv("npm_config_registry", "file:///etc/passwd")
    monkeypatch.setattr(niivue, "fetch", lambda: niivue._download("file:///etc/passwd", niivue.package(), 0))
    assert niivue.main() == DownloadError.exit_code
    assert "is no web address" in capsys.readouterr().err


def test_a_package_with_another_script_inside_is_refused(wanted: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError, match="is not the file that was checked"):
        niivue._member(tarball({"package/dist/index.js": b"something else"}), niivue.package())
    with pytest.raises(DownloadError, match=r"has no package/dist/index\.js"):
        niivue._member(tarball({"package/other.js": SCRIPT}), niivue.package())


def test_what_the_set_up_fetched_is_the_library() -> None:
    """`make` fetches it before the tests; a single module that imports nothing."""
    text = niivue.script().read_text(encoding="utf-8")
    assert "class Niivue" in text or "Niivue = class" in text
    assert not [line for line in text.splitlines() if line.startswith("import ")]
