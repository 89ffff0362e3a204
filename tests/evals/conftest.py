from __future__ import annotations

import gc
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "evaluation"
