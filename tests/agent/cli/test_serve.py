"""`mewm serve`: who may be let in, and what is refused before anything is served."""

from __future__ import annotations

import socket

import pytest
from typer.testing import CliRunner

from agent.cli.main import app
from agent.cli.serve import listen, read_passwords
from models.errors import InputError


def refused(*options: str) -> str:
    done = CliRunner().invoke(app, ["serve", *options], terminal_width=200)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    return " ".join(done.stderr.split())


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "::"])
def test_other_machines_need_names(host, tmp_path):
    assert "--auth USER:PASSWORD" in refused("--host", host, "--folder", str(tmp_path / "work"))
    assert not (tmp_path / "work").exists()


def test_people_from_the_command_line_and_from_a_file(tmp_path):
    assert read_passwords(["anna:a:b", "bert:c"], None) == {"anna": "a:b", "bert": "c"}
    assert read_passwords((), None) == {}
    file = tmp_path / "people"
    file.write_text("# who may enter\nanna:secret\n\nbert:other\n")
    assert read_passwords((), file) == {"anna": "secret", "bert": "other"}


@pytest.mark.parametrize(("given", "sentence"), [(["anna"], "Entry 1"), ([":x"], "Entry 1"), (["a:b", "a:c"], "twice")])
def test_entries_that_are_none_do_not_repeat_a_password(given, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        read_passwords(given, None)
    assert "b" not in str(error.value).split()


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="can't be read"):
        read_passwords((), tmp_path / "none")
    (tmp_path / "empty").write_text("# nobody\n")
    with pytest.raises(InputError, match="names nobody"):
        read_passwords((), tmp_path / "empty")
    with pytest.raises(InputError, match="not by both"):
        read_passwords(["a:b"], tmp_path / "empty")


def test_a_port_that_is_taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match="choose another --port"):
            listen("127.0.0.1", port)
