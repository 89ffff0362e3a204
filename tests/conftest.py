from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real development data, which is not part of the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "hcc_tace_seg"
    if not folder.is_dir():
        pytest.skip(f"real data is not here: {folder}")
    return folder
