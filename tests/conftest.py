from __future__ import annotations

import signal
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """What a shell starts in the background ignores Ctrl-C, and its children too; tests send it to theirs."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real development data, which is not part of the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "hcc_tace_seg"
    if not folder.is_dir():
        pytest.skip(f"real data is not here: {folder}")
    return folder
