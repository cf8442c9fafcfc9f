"""What a process that is forked begins anew."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system forks no process")

PARENT = """
import os, threading
from django_replica_router.forking import after_fork, make_lock

called = []

@after_fork
def note() -> None:
    called.append(os.getpid())

ours, plain = make_lock(), threading.Lock()
with ours, plain:
    child = os.fork()
    if child == 0:
        is_right = ours.acquire(blocking=False) and not plain.acquire(blocking=False)
        os._exit(0 if is_right and called == [os.getpid()] else 1)
    _, status = os.waitpid(child, 0)
    assert not ours.acquire(blocking=False)
assert status == 0
assert called == []
"""


def test_a_lock_that_is_held_at_the_fork_is_free_in_the_child() -> None:
    """Whoever holds it goes on holding it in the parent; a lock of Python's own is held in the child, and for ever."""
    subprocess.run([sys.executable, "-c", PARENT], check=True, timeout=60)
