"""The command of this process as weights and cards record it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def recorded_command() -> str:
    """`mewm` and its words, with files and folders by name only."""
    return "mewm " + shlex.join(_short(word) for word in sys.argv[1:])


def _short(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + (Path(value).name if "/" in value else value)
