"""Reads by what was decided before, in this thread and in others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from threading import Thread, get_ident
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections, router
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory

from django_replica_router import scope
from django_replica_router.middleware import ReplicaRouterMiddleware
from django_replica_router.routers import ReplicaRouter
from django_replica_router.stores.store import get_store
from testproject.cluster import Cluster
from testproject.notes.models import Tag
from tests.conftest import stand_still


def route(model: Any = Tag, **hints: Any) -> str:
    """Return the alias that Django would read from."""
    alias: str = router.db_for_read(model, **hints)
    return alias


def route_by_shortcut(model: Any = Tag) -> str:
    """Return the same, and make sure that the second time it comes from a shortcut."""
    first = route(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplicaRouter, "_route", refuse)
        assert route(model) == first
    return first


def refuse(*args: Any) -> str:
    """Take the place of the long way, which must not be gone."""
    pytest.fail("there was no shortcut")


def is_replica(alias: str) -> bool:
    return alias.startswith("replica")


def in_request(action: Callable[[HttpRequest], Any], **cookies: str) -> Any:
    """Run the action inside a request that passes the middleware alone."""
    found = []

    def view(request: HttpRequest) -> HttpResponse:
        found.append(action(request))
        return HttpResponse()

    request = RequestFactory().get("/")
    request.COOKIES.update(cookies)
    ReplicaRouterMiddleware(view)(request)
    return found[0]


def close_connections() -> None:
    """Close those of the present thread."""
    for alias in connections:
        connections[alias].close()
    get_store("default")._client.connection_pool.disconnect()  # type: ignore[attr-defined]


def in_thread(action: Callable[[], Any]) -> tuple[int, Any]:
    """Run the action in a thread that takes the scope along; return its number and the result."""

    def run() -> Any:
        try:
            return action()
        finally:
            close_connections()

    found: list[Any] = []
    number = []
    run_here = copy_context().run
    thread = Thread(target=lambda: (number.append(get_ident()), found.append(run_here(run))))
    thread.start()
    thread.join()
    return number[0], found[0]


@contextmanager
def paused(cluster: Cluster) -> Iterator[None]:
    """Let every replica show the present for ever."""
    stand_still(cluster)
    try:
        yield
    finally:
        for replica in cluster.replicas:
            replica.resume()


def write_as(user: User) -> None:
    """Let the user have written something that no replica has."""
    with scope(user=user):
        Tag.objects.create(name=f"of {user.username}")


def route_when_found(ann: User, cluster: Cluster, then: Callable[[], object]) -> str:
    """Return where a request reads on that has read by a shortcut before she stood on it.

    She has written what no replica has.

    Args:
        ann: the user.
        cluster: with the replicas.
        then: is called between the two reads, when she stands there.
    """

    def action(request: Any) -> str:
        assert is_replica(route_by_shortcut())
        request.user = ann
        then()
        return route()

    with paused(cluster):
        write_as(ann)
        return str(in_request(action))
