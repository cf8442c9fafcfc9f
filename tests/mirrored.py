"""Replicas that are mirrors of the primary, as Django's test runner makes them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from django.db import connections

from django_replica_router import scope
from django_replica_router.replicas.registry import stop_monitors
from django_replica_router.testing import point_mirrors_to_primaries
from testproject.cluster import Cluster

T = TypeVar("T")

REPLICAS = ("replica1", "replica2")


@pytest.fixture
def addresses(cluster: Cluster) -> Iterator[None]:
    """Puts the addresses of the replicas back."""
    before = {alias: dict(connections[alias].settings_dict) for alias in REPLICAS}
    yield
    stop_monitors()
    for alias in REPLICAS:
        connections[alias].close()
        connections[alias].settings_dict.update(before[alias])


@pytest.fixture
def mirrored(addresses: None) -> None:
    """Makes both replicas mirrors of the primary."""
    stop_monitors()
    point_mirrors_to_primaries()


def told(block: Any, code: Callable[[], object]) -> str:
    """Run code in a block that fails by it; return what the failure tells."""
    with pytest.raises(AssertionError) as caught, block:
        code()
    return str(caught.value)


def in_scope(code: Callable[[], T]) -> Callable[[], T]:
    """Have code run in a scope of its own each time."""

    @functools.wraps(code)
    def run() -> T:
        with scope():
            return code()

    return run
