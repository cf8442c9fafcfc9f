"""Routers written for the comparison: the least there can be, and asking the replica every time."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextvars import ContextVar

from django.db import connections
from django.db.models import Model
from django.http import HttpRequest, HttpResponse

from testproject.routing.random import PRIMARY, RandomReplicaRouter, replica_aliases

COOKIE = "naive_lsn"
_wanted: ContextVar[int] = ContextVar("benchmarks_naive_lsn", default=0)


class ConstantRouter:
    """Sends every read to one replica: what Django and a method call cost, and nothing else."""

    def db_for_read(self, model: type[Model], **hints: object) -> str:
        """Return that replica."""
        return "replica1"

    def db_for_write(self, model: type[Model], **hints: object) -> str:
        """Return the primary."""
        return PRIMARY


class NaiveLsnRouter(RandomReplicaRouter):
    """Reads from a random replica if that has replayed what the browser's cookie says.

    This is what a team writes first on learning of LSNs.
    It costs one more round trip for every read. It has no bound on lag, no monotonic reads, and
    nothing for other devices of the same user.
    """

    def db_for_read(self, model: type[Model], **hints: object) -> str:
        """Return a replica that has replayed the position, else the primary."""
        alias = random.choice(replica_aliases())
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT pg_last_wal_replay_lsn() - '0/0'::pg_lsn")
            [replayed] = cursor.fetchone()
        return alias if replayed is not None and replayed >= _wanted.get() else PRIMARY


class NaiveLsnMiddleware:
    """Puts the primary's position into a cookie after a request that may have written."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Serve the request under the cookie that it carries."""
        carried = request.COOKIES.get(COOKIE, "0")
        token = _wanted.set(int(carried) if carried.isdecimal() else 0)
        try:
            response = self.get_response(request)
        finally:
            _wanted.reset(token)
        if request.method not in {"GET", "HEAD", "OPTIONS", "TRACE"}:
            with connections[PRIMARY].cursor() as cursor:
                cursor.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
                [position] = cursor.fetchone()
            response.set_cookie(COOKIE, str(position), httponly=True)
        return response
