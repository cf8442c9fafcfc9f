"""What tests of decorators and blocks have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.test import RequestFactory

from django_replica_router import current_scope, use_primary, use_replica
from django_replica_router.routing.balancers import least_in_flight
from django_replica_router.scopes.scope import Override, current_frame

PRIMARY = Override(primary=True)
REPLICA = Override(primary=False)
REPORT = Override(primary=False, max_lag=300.0)
ROUTES: list[tuple[Callable[[], Any], Override]] = [
    (use_primary, PRIMARY),
    (use_replica, REPLICA),
    (lambda: use_replica(max_lag=300.0), REPORT),
]
routes = pytest.mark.parametrize(
    ("route", "expected"), ROUTES, ids=["primary", "replica", "report"]
)


def seen() -> Override | None:
    """Return what the calling code is routed by."""
    return current_frame.get().override


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """After each test the routing is what it was before."""
    before = current_frame.get()
    yield
    assert current_frame.get() is before


@pytest.fixture
def _counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count scopes in flight from nought."""
    monkeypatch.setattr(least_in_flight, "counts", {})


def enter_a_replica() -> None:
    """Have the present scope counted as one that works with replica1."""
    current = current_scope()
    assert current is not None
    least_in_flight.enter("replica1")
    current.cluster("default").route.entered += ("replica1",)


@pytest.fixture
def request_() -> Any:
    """Return a request."""
    return RequestFactory().get("/")
