"""What a process that is forked begins anew, where the system forks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[[], Any])


def after_fork(call: F) -> F:
    """Have something called in each process that is forked from this one, from now on. May decorate a function."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)
    return call


def make_lock() -> threading.Lock:
    """Return a lock that nobody holds in a process that is forked: whoever did does not exist there.

    It is known for as long as the process lives.
    """
    lock = threading.Lock()
    after_fork(lock._at_fork_reinit)  # type: ignore[attr-defined]
    return lock
