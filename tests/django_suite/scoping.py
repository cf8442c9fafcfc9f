"""Run each test of the suite in a routing scope, as a request opens one."""

from __future__ import annotations

import time
import unittest
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

from django.db import router
from django.test import AsyncClient, Client, SimpleTestCase, TestCase, TransactionTestCase
from django.test.utils import iter_test_cases  # type: ignore[attr-defined]

from tests.django_suite.modes import PRIMARY, REPLICA

# Whoever runs the tests where the replica is a real one.
_USER = "the test"

# Seconds. Where a router of the test's own decides there is nothing to wait for.
_PATIENCE = 5.0

# Attribute of a test that has run: how many of its reads went where, and why.
_READS = "_django_suite_reads"


def open_scopes(*, is_replicated: bool) -> None:
    """Open a scope around the body of every test.

    The body and not ``setUp``: what a request reads was mostly written before it. With the set-up
    inside, nearly every test would have written and read from the primary only.

    Args:
        is_replicated: the replica is a standby that lags, and the test a user who has to see
            all that was written before. Else a mirror is taken for a replica without lag.
    """
    # Imported here: the baseline and the control run where the package is not installed.
    from django_replica_router import scope
    from django_replica_router.testing import treat_mirrors_as_replicas

    if is_replicated:
        _note_writes_of_clients()
    else:
        treat_mirrors_as_replicas()
    call: Callable[[Any, Callable[[], object]], None] = vars(unittest.TestCase)["_callTestMethod"]

    def call_in_scope(self: SimpleTestCase, method: Callable[[], object]) -> None:
        users = [_USER] if is_replicated and PRIMARY in self.databases else []
        if PRIMARY in self.databases:
            _come_before(users)
        with scope(users=users) as opened:
            opened.decisions = []
            try:
                call(self, method)
            finally:
                setattr(self, _READS, Counter(map(" ".join, opened.decisions)))

    SimpleTestCase._callTestMethod = call_in_scope  # type: ignore[attr-defined]


def _come_before(users: list[str]) -> None:
    """Do what earlier requests have done, of the same user and of others."""
    # Imported here: a model can be imported only once the apps are loaded.
    from django.contrib.contenttypes.models import ContentType

    from django_replica_router import note_write, scope

    if users:
        _wait_for_monitor()
    with scope(users=users):
        # Who meets an empty token store is sent to the primary, and begins to fill it.
        router.db_for_read(ContentType)
        # What the test finds is what its user has written.
        if users:
            note_write()


@cache
def _wait_for_monitor() -> None:
    """Wait, once in a process, until the package has looked at the standby."""
    from django.contrib.contenttypes.models import ContentType

    from django_replica_router import scope

    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        with scope():
            if router.db_for_read(ContentType) == REPLICA:
                return
        time.sleep(0.01)


def _note_writes_of_clients() -> None:
    """Have a test know of what the requests have written that it makes with the test client.

    They are requests of somebody else, of whose writes the package does not tell the test's user.
    """
    from django_replica_router import note_write

    request, async_request = Client.request, AsyncClient.request

    def noted(self: Client, **environ: Any) -> Any:
        try:
            return request(self, **environ)
        finally:
            note_write()

    async def async_noted(self: AsyncClient, **environ: Any) -> Any:
        try:
            return await async_request(self, **environ)
        finally:
            note_write()

    Client.request = noted  # type: ignore[method-assign]
    AsyncClient.request = async_noted  # type: ignore[method-assign]


def reads_of(test: Any) -> Counter[str]:
    """Return how many reads of a test went to which alias, and for which reason."""
    reads: Counter[str] = getattr(test, _READS, None) or Counter()
    return reads


def allow_replica(suite: unittest.TestSuite, *, in_transactions: bool) -> None:
    """Name the replica among the databases of the tests that may read from it.

    Django forbids a test the aliases that it does not name.

    Args:
        suite: the tests.
        in_transactions: name it for each ``TestCase`` as well. As long as that is one transaction
            the package must not leave the primary.
    """
    for case in {type(test) for test in iter_test_cases(suite)}:
        if (
            issubclass(case, TransactionTestCase)
            and (in_transactions or not issubclass(case, TestCase))
            and case.databases != "__all__"
            and PRIMARY in case.databases
        ):
            case.databases = {*case.databases, REPLICA}
