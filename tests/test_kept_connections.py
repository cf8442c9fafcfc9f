"""The connections that the monitor of one test leaves to that of the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from django_replica_router.replicas.registry import get_monitor, stop_monitors
from testproject.cluster import Cluster
from tests.conftest import wait_until, wait_until_known
from tests.kept_connections import monitors_keep_connections

pytestmark = pytest.mark.not_pooled("which server's process answers is the pooler's affair")


def processes() -> Iterator[int]:
    """Return the process of each server that serves the monitor."""
    for poller in get_monitor("default")._threads():
        assert poller._connection is not None
        yield poller._connection.info.backend_pid


def renew(cluster: Cluster, meanwhile: Callable[[], None] = lambda: None) -> list[int]:
    """Stop the monitor, do something, and start the next one; return the processes that serve it."""
    with monitors_keep_connections():
        stop_monitors()
        meanwhile()
        wait_until_known(cluster)
    return list(processes())


def test_the_next_monitor_takes_them(cluster: Cluster) -> None:
    """All three, unless the machine is busy: a thread that ends too late keeps its own."""
    wait_until(lambda: renew(cluster) == renew(cluster), "the same processes to serve the next one")


def test_outside_the_block_it_opens_its_own(cluster: Cluster) -> None:
    """As in a test that is about how it begins."""
    first = renew(cluster)
    stop_monitors()
    wait_until_known(cluster)
    assert set(processes()).isdisjoint(first)


def test_one_whose_server_was_started_anew_is_not_taken(healed: Cluster) -> None:
    """The others are."""

    def are_the_others_taken() -> bool:
        primary, one, other = renew(healed)
        again = renew(healed, healed.replicas[0].restart)
        assert again[1] != one
        return (again[0], again[2]) == (primary, other)

    wait_until(are_the_others_taken, "the same processes of the others to serve the next one")
