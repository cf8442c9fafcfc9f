"""Writes that bind nobody to the primary: sessions, and what the ORM makes for the models of the setting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.db import DatabaseError, connection, transaction
from django.db.models import F
from django.http import HttpRequest
from django.test import Client

from django_replica_router import get_stats, pop_stats, scope
from django_replica_router.connections import on_primary
from django_replica_router.scopes.cluster import ClusterScope
from django_replica_router.scopes.scope import current_frame
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.backend import execute, wire
from tests.conftest import PATIENT, learn_nothing, stand_still
from tests.controls import fail_without
from tests.helpers import Served
from tests.ignoring import (  # noqa: F401 - fixtures
    Patch,
    _router,
    backend,
    browser,
    by_another_model,
    by_common_table_expression,
    by_mixed_transaction,
    by_raw_sql,
    by_several_statements,
    by_telling,
    by_unknown_function,
    forget_the_rule,
    is_bound,
    where,
)
from tests.site import PASSWORD, sign_in, visit
from tests.written import record_of

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("test_site")


# Sessions ------------------------------------------------------------------------------------------


def test_a_session_that_is_saved_in_every_request_keeps_nobody_from_the_replicas(
    browser: Client, settings: Any, served: Served
) -> None:
    """The session costs the primary a query to read it and a transaction to write it; the rest is free."""
    settings.SESSION_SAVE_EVERY_REQUEST = True
    for _ in range(3):
        served.clear()
        assert not is_bound(browser)
        assert served.only_primary("django_session")
        assert served.only_replicas("auth_user")
        assert served.only_replicas("notes_note")


def test_without_the_rule_it_keeps_them(request: pytest.FixtureRequest) -> None:
    """Control: the test above fails."""
    test: Any = test_a_session_that_is_saved_in_every_request_keeps_nobody_from_the_replicas
    fail_without(forget_the_rule, test, {}, request)


@pytest.mark.not_pooled("what is sent to the pooler is not what it sends on")
def test_such_a_request_asks_for_no_position(browser: Client, settings: Any, ann: User) -> None:
    """Nor is there a new token: the primary gets four messages."""
    settings.SESSION_SAVE_EVERY_REQUEST = True
    before = record_of(ann)
    with wire() as sent:
        visit(browser, where)
    assert len(sent.sent) == 4, sent.sent  # SELECT, BEGIN, UPDATE, COMMIT
    assert record_of(ann) == before


def test_the_session_itself_is_right_at_once(browser: Client) -> None:
    """It is read where it was written."""

    def count(request: HttpRequest) -> int:
        request.session["visits"] = request.session.get("visits", 0) + 1
        assert where(request) != "default"
        return int(request.session["visits"])

    assert [visit(browser, count) for _ in range(3)] == [1, 2, 3]


def test_signing_in_and_out_is_right_at_once(
    ann: User, note: Note, cluster: Cluster, settings: Any
) -> None:
    """While the replicas show neither the session nor its end."""
    settings.SESSION_SAVE_EVERY_REQUEST = True
    stand_still(cluster)
    client = sign_in(ann)

    def who(request: HttpRequest) -> str:
        return request.user.get_username() or "nobody"

    assert [visit(client, who) for _ in range(2)] == ["ann", "ann"]
    key = client.cookies["sessionid"].value
    client.post("/logout/")
    stolen = Client()
    stolen.cookies["sessionid"] = key
    assert [visit(client, who), visit(stolen, who)] == ["nobody", "nobody"]


def test_a_new_user_is_signed_in_at_once(cluster: Cluster, settings: Any) -> None:
    """The row of the user is an ordinary one: its write goes with the session that it was made in."""
    settings.SESSION_SAVE_EVERY_REQUEST = True
    stand_still(cluster)
    client = Client()

    def register(request: HttpRequest) -> None:
        from django.contrib.auth import authenticate, login

        User.objects.create_user("new", password=PASSWORD)
        login(request, authenticate(username="new", password=PASSWORD))

    visit(client, register, "post")
    assert visit(client, lambda request: request.user.username) == "new"


@pytest.mark.parametrize("saves_every_request", [False, True])
def test_cached_sessions_need_no_setting(
    ann: User,
    note: Note,
    cluster: Cluster,
    settings: Any,
    saves_every_request: bool,
    served: Served,
) -> None:
    """Under ``cached_db`` the primary alone is asked for sessions anyhow."""
    settings.REPLICA_ROUTER = {**PATIENT}
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"
    settings.SESSION_SAVE_EVERY_REQUEST = saves_every_request
    client = sign_in(ann)
    stand_still(cluster)
    for _ in range(2):
        served.clear()
        assert not is_bound(client)
        assert served.aliases("UPDATE") == ({"default"} if saves_every_request else set())


# What counts, and what does not ----------------------------------------------------------------------


def by_save() -> None:
    tag = Tag.objects.using("default").get(name="red")
    tag.save()


def by_atomic_save() -> None:
    with transaction.atomic():
        Tag(name="blue").save()


def by_update() -> None:
    Tag.objects.filter(name="red").update(name=F("name"))


def by_update_that_matches_nothing() -> None:
    Tag.objects.filter(name="none").update(name="new")


def by_bulk_create() -> None:
    Tag.objects.bulk_create([Tag(name="blue"), Tag(name="green")], ignore_conflicts=True)


def by_bulk_update() -> None:
    Tag.objects.bulk_update(Tag.objects.using("default").all(), ["name"])


def by_delete() -> None:
    Tag.objects.create(name="blue")
    Tag.objects.filter(name="blue")._raw_delete("default")


def by_get_or_create() -> None:
    Tag.objects.get_or_create(name="blue")


def by_update_or_create() -> None:
    Tag.objects.update_or_create(name="red", defaults={"name": "blue"})


def by_the_alias_of_an_object() -> None:
    tag = Tag.objects.get(name="red")
    assert Tag.objects.using(tag._state.db).update(name="blue")


def by_failing() -> None:
    with pytest.raises(DatabaseError):
        Tag.objects.create(name="red")


FREE = [
    by_save,
    by_atomic_save,
    by_update,
    by_update_that_matches_nothing,
    by_bulk_create,
    by_bulk_update,
    by_delete,
    by_get_or_create,
    by_update_or_create,
    by_the_alias_of_an_object,
    by_failing,
]
EVERY_FREE_WAY = pytest.mark.parametrize("way", FREE, ids=lambda way: way.__name__)


@EVERY_FREE_WAY
def test_what_the_orm_makes_for_an_ignored_model_binds_nobody(
    browser: Client, ann: User, way: Callable[[], None]
) -> None:
    """Neither the rest of the request nor the next one, and there is no token of it."""
    before = record_of(ann)

    def act(request: HttpRequest) -> list[str]:
        first = where(request)
        way()
        return [first, where(request)]

    assert "default" not in visit(browser, act)
    assert record_of(ann) == before
    assert not is_bound(browser)


@EVERY_FREE_WAY
def test_without_the_rule_it_binds(
    request: pytest.FixtureRequest, backend: str, way: Callable[[], None]
) -> None:
    """Control: the test above fails, but where nothing was written, and that shows."""
    test: Any = test_what_the_orm_makes_for_an_ignored_model_binds_nobody
    if way is by_failing:
        pytest.skip("an INSERT that fails outside a transaction has never bound anybody")
    fail_without(forget_the_rule, test, {"way": way}, request)


def by_raw_query() -> None:
    list(Tag.objects.raw("UPDATE notes_tag SET name = 'blue' RETURNING id, name"))


def by_the_table_between() -> None:
    Note.objects.get().tags.add(Tag.objects.get(name="red"))


def by_a_wrapper_of_somebody_else() -> None:
    """Its statement runs while the one of the ORM does."""

    def audit(run: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        result = run(sql, params, many, context)
        if "notes_tag" in sql:
            execute("UPDATE notes_note SET version = 7")
        return result

    with connection.execute_wrapper(audit):
        Tag.objects.create(name="blue")


def by_savepoint_rolled_back() -> None:
    """Nothing tells which part of the transaction its number is of."""
    with transaction.atomic():
        Tag.objects.create(name="blue")
        with transaction.atomic():
            Note.objects.update(version=7)
            transaction.set_rollback(True)


BINDING = [
    by_raw_sql,
    by_common_table_expression,
    by_several_statements,
    by_raw_query,
    by_unknown_function,
    by_another_model,
    by_the_table_between,
    by_a_wrapper_of_somebody_else,
    by_mixed_transaction,
    by_savepoint_rolled_back,
    by_telling,
]
EVERY_BINDING_WAY = pytest.mark.parametrize("way", BINDING, ids=lambda way: way.__name__)


@EVERY_BINDING_WAY
def test_anything_less_clear_counts(browser: Client, ann: User, way: Callable[[], None]) -> None:
    """The rest of the request reads it, and the next one does."""
    before = record_of(ann)

    def act(request: HttpRequest) -> list[str]:
        first = where(request)
        way()
        return [first, where(request)]

    first, second = visit(browser, act)
    assert first != "default"
    assert second == "default"
    assert record_of(ann) != before
    assert is_bound(browser)


@EVERY_BINDING_WAY
def test_where_all_is_ignored_nothing_binds(
    request: pytest.FixtureRequest, way: Callable[[], None]
) -> None:
    """Control: the test above fails."""

    def take_out(patch: Patch) -> None:
        patch.setattr(on_primary, "is_ignored", lambda sql: True)
        patch.setattr(on_primary, "_mark_written", lambda *args: None)
        patch.setattr(ClusterScope, "add_write", lambda self, mark: None)
        patch.setattr(ClusterScope, "has_noticed", lambda self, raw: False)

    fail_without(take_out, test_anything_less_clear_counts, {"way": way}, request)


def test_a_nested_scope_does_not_hide_what_was_ignored(browser: Client) -> None:
    """A transaction ends outside of the scope that a write of it was made in."""

    def act(request: HttpRequest) -> list[str]:
        first = where(request)
        with transaction.atomic(), scope():
            Tag.objects.create(name="blue")
        return [first, where(request)]

    assert "default" not in visit(browser, act)


def test_a_view_that_saves_what_it_read_is_still_learned(browser: Client) -> None:
    """An ignored write can be a lost update as well."""
    pop_stats()

    def rename(request: HttpRequest) -> None:
        tag = Tag.objects.get(name="red")
        tag.name = "blue"
        tag.save()

    try:
        visit(browser, rename)
        assert get_stats()["saved_from_replica"] == 1
        assert is_bound(browser)
    finally:
        learn_nothing()


def test_saving_what_only_the_primary_shows_renews_nothing_learned(
    browser: Client, monkeypatch: Patch
) -> None:
    """It says nothing of what the view does with objects of replicas."""
    renewed: list[Any] = []
    monkeypatch.setattr(
        "django_replica_router.recording.stale_saves.learn", lambda *args: renewed.append(args)
    )

    def save(request: HttpRequest, model: Any) -> None:
        current_frame.get().scope.learned = True  # type: ignore[union-attr]
        model.objects.using("default").all()[0].save()

    visit(browser, lambda request: save(request, Session))
    assert not renewed
    visit(browser, lambda request: save(request, Note))
    assert renewed
