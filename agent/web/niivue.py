"""NiiVue, the viewer's script: fetched once by version and hash, kept beside this module, never from a browser.

`python -m agent.web.niivue` is the set-up step; it needs no npm. The registry is `npm_config_registry` where that is
set, as npm itself takes it, else npm's own.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from importlib import resources
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from models.errors import DownloadError

SCRIPT = Path(__file__).with_name("niivue.js")
"""Where the script lies; not in git."""
REGISTRY = "https://registry.npmjs.org"
_ATTEMPTS = 3
_TIMEOUT_S = 60.0


class Package(BaseModel):
    """Which file of which package; the content of `niivue.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    tarball: str
    integrity: str
    member: str
    sha256: str
    max_mib: int


def package() -> Package:
    """The package that this program is written for."""
    text = resources.files("agent.web").joinpath("niivue.yaml").read_text(encoding="utf-8")
    return Package.model_validate(yaml.safe_load(text))


def script() -> Path:
    """The script, as it was fetched.

    Raises:
        DownloadError: it is not there, or not the one that belongs here.
    """
    if not is_there():
        raise DownloadError(
            f"The viewer's script {SCRIPT} is missing or changed; fetch it with: python -m agent.web.niivue"
        )
    return SCRIPT


def is_there(target: Path = SCRIPT) -> bool:
    """Whether the script is there, whole."""
    return target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == package().sha256


def fetch(target: Path = SCRIPT, pause_s: float = 2.0) -> bool:
    """Fetch the script where it is not there yet; it appears whole or not at all.

    Args:
        target: Where it is kept.
        pause_s: Seconds between attempts.

    Returns:
        False where it was there already.

    Raises:
        DownloadError: the registry was not reached, it has another file than the one that was checked, or the folder
            can't be written.
    """
    if is_there(target):
        return False
    wanted = package()
    content = _member(_download(_address(wanted), wanted, pause_s), wanted)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            partial.chmod(0o644)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as exc:
        raise DownloadError(f"The viewer's script can't be written to {target}: {exc.strerror}.") from exc
    return True


def _address(wanted: Package) -> str:
    """URL of the tarball at the registry of the environment; npm reads the name in any case."""
    given = next((value for name, value in os.environ.items() if name.lower() == "npm_config_registry" and value), "")
    return f"{(given or REGISTRY).rstrip('/')}/{wanted.tarball}"


def _download(url: str, wanted: Package, pause_s: float) -> bytes:
    """The tarball, its integrity checked."""
    if not url.startswith(("https://", "http://")):
        raise DownloadError(f"The npm registry {url} is no web address; set npm_config_registry to one, or unset it.")
    limit = wanted.max_mib << 20
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
                content: bytes = answer.read(limit + 1)
            break
        except (urllib.error.URLError, OSError, ValueError) as exc:
            told = getattr(exc, "reason", None) or exc
            refused = isinstance(exc, urllib.error.HTTPError) and exc.code < 500
            if attempt == _ATTEMPTS or refused or isinstance(exc, ValueError):
                raise DownloadError(
                    f"NiiVue {wanted.version} can't be fetched from {url} ({told}); check the network, or set "
                    "npm_config_registry to a registry that can be reached, and run: python -m agent.web.niivue"
                ) from exc
            time.sleep(pause_s)
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode("ascii")
    if len(content) > limit or f"sha512-{digest}" != wanted.integrity:
        raise DownloadError(f"What {url} answered is not NiiVue {wanted.version} (its hash differs); nothing was kept.")
    return content


def _member(tarball: bytes, wanted: Package) -> bytes:
    """The one file of the tarball, its hash checked."""
    try:
        with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as archive:
            file = archive.extractfile(wanted.member)
            content = file.read() if file is not None else b""
    except (tarfile.TarError, KeyError, OSError, EOFError, zlib.error) as exc:
        raise DownloadError(f"The package of NiiVue {wanted.version} has no {wanted.member} that can be read.") from exc
    if hashlib.sha256(content).hexdigest() != wanted.sha256:
        raise DownloadError(f"{wanted.member} of NiiVue {wanted.version} is not the file that was checked.")
    return content


def main() -> int:
    """The set-up step; returns the exit code."""
    try:
        new = fetch()
    except DownloadError as exc:
        sys.stderr.write(f"mewm: {exc}\n")
        return exc.exit_code
    sys.stdout.write(f"NiiVue {package().version} {'fetched' if new else 'is there'}: {SCRIPT}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
