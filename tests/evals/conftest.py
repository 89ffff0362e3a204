from __future__ import annotations

import gc
import ipaddress
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def inspect_data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """inspect_ai keeps files of its own in the user's data folder: not those of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data-home")))
        yield


@pytest.fixture(autouse=True)
def inspect_leftovers() -> Iterator[None]:
    """inspect_ai leaves streams open, whose warning would fall on whatever test collects them."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def network() -> Iterator[list[str]]:
    """Connections to other machines are refused, and kept here: code may well swallow the refusal."""
    tried: list[str] = []

    def guarded(name: str):  # type: ignore[no-untyped-def]
        connect = getattr(socket.socket, name)

        def only_here(self: socket.socket, address: object) -> object:
            host = address[0] if isinstance(address, tuple) else ""
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _here(host):
                tried.append(str(host))
                raise ConnectionRefusedError(f"a test reached out to {host}")
            return connect(self, address)

        return only_here

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, guarded(name))
        yield tried


def _here(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


@pytest.fixture(autouse=True)
def no_network(network: list[str]) -> Iterator[None]:
    """Runs, reports, bundles and studies work without a network."""
    yield
    assert network == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "evaluation"
