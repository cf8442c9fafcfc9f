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


COUNTING = """
import os
from django_replica_router.routing.balancers import least_in_flight

least_in_flight.enter("replica1")
child = os.fork()
if child == 0:
    is_empty = not least_in_flight.counts
    least_in_flight.leave("replica1")  # of a scope that both have
    os._exit(0 if is_empty and least_in_flight.counts == {"replica1": 0} else 1)
_, status = os.waitpid(child, 0)
assert status == 0
assert least_in_flight.counts == {"replica1": 1}
"""


def test_the_scopes_of_the_parent_are_not_counted_in_the_child() -> None:
    """Else they would count for ever: they end in the parent."""
    subprocess.run([sys.executable, "-c", COUNTING], check=True, timeout=60)
