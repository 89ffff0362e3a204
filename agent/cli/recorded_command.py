"""The command of this process, and the commit of the program, as weights and cards record them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path


def recorded_command(program: str = "mewm") -> str:
    """The program and its words, with files and folders by name only."""
    return f"{program} " + shlex.join(_short(word) for word in sys.argv[1:])


def source_commit() -> str:
    """The commit that this program runs from, with `+` after it where files were changed since; "unknown" where the
    program is no checkout, as after an installation from a wheel."""
    root = Path(__file__).parents[2]

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root:  # the repository of somebody else's project
            return "unknown"
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _short(word: str) -> str:
    option, equals, value = word.partition("=")
    if not equals or "/" in option:  # neither --option=PATH nor NAME=PATH
        option, equals, value = "", "", word
    return option + equals + (Path(value).name if "/" in value else value)
