"""The thread in which a process runs its networks.

OpenMP keeps a team of threads for every thread that computes. Where they are more than the cores, a team no longer
waits actively for its next part, and every layer begins late: a plan, whose nodes LangGraph runs in threads of its own,
took a fifth longer on two cores. In one thread, two callers also never compute at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
_here = threading.local()


def in_engine_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Has a function run in the thread of the networks, whoever calls it; what it raises reaches the caller."""

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        _here.inside = True
        return function(*args, **kwargs)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if getattr(_here, "inside", False):
            return function(*args, **kwargs)
        return _executor.submit(run, *args, **kwargs).result()

    return call
