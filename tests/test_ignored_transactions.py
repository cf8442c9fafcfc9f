"""Ignored writes and transactions, as the package's backend sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError, connection, transaction
from django.http import HttpRequest
from django.test import Client

from django_replica_router.backends.mixin import TokenMixin
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.backend import OWN, execute, is_pinned, touching_view  # noqa: F401 - fixtures
from tests.controls import fail_without
from tests.ignoring import Patch, _router, backend, browser, is_bound, where  # noqa: F401 - fixtures
from tests.site import visit

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("test_site")


# Transactions, as the package's backend sees them ----------------------------------------------------


def commit_a_tag() -> None:
    with transaction.atomic():
        Tag.objects.create(name="blue")


def roll_a_tag_back() -> None:
    with transaction.atomic():
        Tag.objects.create(name="blue")
        transaction.set_rollback(True)


def save_a_tag_outside() -> None:
    Tag.objects.create(name="blue")


def commit_a_tag_by_hand() -> None:
    transaction.set_autocommit(False)
    try:
        Tag.objects.create(name="blue")
        execute("COMMIT")
    finally:
        # The next one begins in the same manner.
        execute("SELECT 1")
        transaction.rollback()
        transaction.set_autocommit(True)


def lose_a_tag() -> None:
    @transaction.atomic
    def write() -> None:
        Tag.objects.create(name="blue")
        connection.connection.close()

    with pytest.raises(DatabaseError):
        write()


@pytest.mark.parametrize("backend", [OWN], indirect=True)
@pytest.mark.parametrize(
    "before", [commit_a_tag, roll_a_tag_back, save_a_tag_outside, commit_a_tag_by_hand, lose_a_tag]
)
def test_what_was_ignored_before_hides_nothing_of_a_transaction(
    touching_view: str,
    browser: Client,
    before: Callable[[], None],
) -> None:
    """Its number tells of a write that no statement does."""

    def act(request: HttpRequest) -> list[str]:
        first = where(request)
        before()
        with transaction.atomic():
            execute(touching_view)
        return [first, where(request)]

    first, second = visit(browser, act)
    assert first != "default"
    assert second == "default"


@pytest.mark.parametrize("backend", [OWN], indirect=True)
def test_without_its_number_such_a_write_is_missed(
    request: pytest.FixtureRequest, monkeypatch: Patch
) -> None:
    """Control: with what was ignored kept in mind for ever, the test above fails."""

    class Sticky:
        def __get__(self, wrapper: Any, owner: Any) -> Any:
            return wrapper.connection if wrapper is not None else None

        def __set__(self, wrapper: Any, value: Any) -> None:
            pass

    def take_out(patch: Patch) -> None:
        patch.setattr(TokenMixin, "ignored_on", Sticky())

    test: Any = test_what_was_ignored_before_hides_nothing_of_a_transaction
    fail_without(take_out, test, {"before": commit_a_tag}, request)


@pytest.mark.parametrize("is_mixed", [False, True])
def test_a_connection_lost_at_commit_pins_nobody_for_what_is_ignored(
    browser: Client, ann: User, cluster: Cluster, is_mixed: bool
) -> None:
    """Where another write ran in the transaction, nobody knows whether it was committed."""

    @transaction.atomic
    def write() -> None:
        Tag.objects.create(name="blue")
        if is_mixed:
            Note.objects.update(version=7)
        ((pid,),) = execute("SELECT pg_backend_pid()")
        cluster.primary.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    def action(request: HttpRequest) -> None:
        with pytest.raises(DatabaseError):
            write()

    visit(browser, action)
    assert is_pinned(ann) == is_mixed


def test_a_position_that_a_later_commit_brings_is_used(browser: Client, backend: str) -> None:
    """A session that is saved after a write costs the token no question, with the package's backend."""

    def write(request: HttpRequest) -> None:
        with transaction.atomic():
            Note.objects.update(version=7)
        request.session["seen"] = True

    visit(browser, write, "post")
    assert is_bound(browser)
