"""Files are whole or not there, also after a kill."""

from __future__ import annotations

import pytest

from agent.files import is_empty, write_text
from models.errors import RunError
from tests.agent.cut_off import killed_while_writing


def test_a_killed_write_leaves_no_file_and_an_empty_folder(tmp_path):
    killed_while_writing(tmp_path / "run.json")
    assert is_empty(tmp_path)
    write_text(tmp_path / "run.json", "whole")
    assert (tmp_path / "run.json").read_text() == "whole"
    assert not is_empty(tmp_path)


def test_a_folder_with_a_file_of_somebody_is_not_empty(tmp_path):
    assert is_empty(tmp_path)
    (tmp_path / ".hidden").write_text("mine")
    assert not is_empty(tmp_path)


def test_a_folder_that_can_not_be_read_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match=r"file can't be read \(Not a directory\): choose another\."):
        is_empty(tmp_path / "file")


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(RunError, match="can't be written"):
        write_text(tmp_path / "run.json", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
