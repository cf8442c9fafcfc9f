"""A site's tests may say which server a block reads from; where it does not, all its statements are listed."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.core.cache.backends.dummy import DummyCache
from django.db import connections, transaction

from django_replica_router import scope
from django_replica_router.errors import ConfigurationError
from django_replica_router.observations import Observation, observers
from django_replica_router.policy import Reason
from django_replica_router.testing import (
    assert_queries,
    assert_reads_from,
    mirrors_are_replicas,
)
from django_replica_router.testing.watching import shorten
from testproject.notes.models import Note, Tag
from tests.mirrored import addresses, in_scope, mirrored, told

__all__ = ["addresses", "mirrored"]

pytestmark = pytest.mark.usefixtures("mirrored")

HERE = str(Path(__file__).relative_to(Path.cwd()))


def line_of(text: str) -> str:
    """Return the line of this file that ends with a text, as a report tells it."""
    lines = Path(__file__).read_text().splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if line.endswith(text)]
    return f"{HERE}:{number}"


def plain(message: str) -> str:
    """Return a report with each replica called the same: which one serves is a matter of names."""
    return re.sub(r"replica\d", "replicaN", message)


def test_reads_of_a_replica_and_of_the_primary() -> None:
    """The rules are at work by the block itself, and no longer."""
    with scope():
        with assert_reads_from("replica") as seen:
            list(Tag.objects.all())
        assert seen.queries[0].reason in ("CAUGHT_UP", "NO_TOKEN")
        Tag.objects.create(name="mine")
        with assert_reads_from("primary", reason="WROTE"):
            list(Tag.objects.all())
        with assert_reads_from("default", reason=Reason.WROTE):
            list(Tag.objects.all())
    assert not observers.present


def test_each_statement_of_a_long_block_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those behind what a block that is observed for hours would keep."""
    monkeypatch.setattr(Observation, "most", 2)

    @in_scope
    def read() -> None:
        for _ in range(3):
            list(Note.objects.all())
        Tag.objects.create(name="mine")
        list(Tag.objects.all())

    assert "1 of 4 reads did not come from a replica" in told(assert_reads_from("replica"), read)
    Tag.objects.all().delete()
    with assert_queries(primary=2, replica=3):
        read()


def test_a_read_from_elsewhere_is_listed_with_its_reason() -> None:
    """And those that are as they should be, after it."""

    @in_scope
    def read() -> None:
        list(Note.objects.all())  # the first
        Tag.objects.create(name="mine")
        list(Tag.objects.all())  # the second

    assert plain(told(assert_reads_from("replica"), read)) == (
        "1 of 2 reads did not come from a replica:\n\n"
        '  1. default: SELECT "notes_tag"."id", "notes_tag"."name" FROM "notes_tag" ORDER BY '
        '"notes_tag"."name" ASC\n'
        "     WROTE: this scope has written\n"
        f"     {line_of('# the second')}\n\n"
        "As expected came:\n\n"
        '  1. replicaN: SELECT ... FROM "notes_note" ORDER BY "notes_note"."id" DESC\n'
        "     CAUGHT_UP: the replica has replayed the token\n"
        f"     {line_of('# the first')}"
    )


def test_another_reason_is_no_better_than_another_server() -> None:
    """It is said which one was expected."""
    expected = "1 of 1 reads did not come from the primary for the reason WROTE:"
    with (
        scope(),
        pytest.raises(AssertionError, match=expected),
        assert_reads_from("primary", reason="WROTE"),
        transaction.atomic(),
    ):
        list(Tag.objects.all())


def test_only_the_named_models_count() -> None:
    """One, or several; a block that reads none of them fails."""
    with scope():
        with assert_reads_from("replica", of=Note):
            Tag.objects.create(name="mine")
            list(Tag.objects.all())
            list(Note.objects.using("replica1"))
        with (
            pytest.raises(AssertionError, match=r"reads of notes\.Tag, notes\.Note did not come"),
            assert_reads_from("replica", of=[Tag, Note]),
        ):
            list(Tag.objects.all())
        with (
            pytest.raises(AssertionError, match=r"Nothing was read of notes\.Note, .*\n\n  1\. "),
            assert_reads_from("primary", of=Note),
        ):
            list(Tag.objects.all())


def test_a_block_that_reads_nothing_fails() -> None:
    """It would else say nothing of the code."""
    expected = "Nothing was read, and it was to come from 'replica2'. What was run:\n\n  Nothing."
    with pytest.raises(AssertionError) as caught, assert_reads_from("replica2"):
        pass
    assert str(caught.value) == expected


def test_statements_are_counted() -> None:
    """Of each server, without savepoints, and without what was not asked for."""
    with scope():
        with assert_queries(primary=2, replica=1):
            list(Tag.objects.all())
            with transaction.atomic(), transaction.atomic():
                Tag.objects.create(name="mine")
            list(Tag.objects.all())
        with assert_queries(primary=1):
            list(Tag.objects.all())
            list(Tag.objects.using("replica1"))
        with (
            pytest.raises(AssertionError) as caught,
            assert_queries(primary=2, replica=3),
        ):
            list(Tag.objects.all())  # counted
    assert str(caught.value) == (
        "Statements: 1 on the primary, expected 2; 0 on the replica, expected 3.\n\n"
        '  1. default: SELECT "notes_tag"."id", "notes_tag"."name" FROM "notes_tag" ORDER BY '
        '"notes_tag"."name" ASC\n'
        "     WROTE: this scope has written\n"
        f"     {line_of('# counted')}"
    )


def test_what_makes_no_sense_is_refused() -> None:
    """By a sentence that tells what is expected."""
    refused: list[tuple[Any, str]] = [
        (assert_queries(), "checks nothing: pass primary=, replica= or both"),
        (assert_reads_from("replica9"), 'expected "primary", "replica" or one of the aliases'),
        (assert_reads_from("replica", reason="WRITTEN"), "expected one of DISABLED, "),
        (assert_reads_from("replica", reason="WRITE"), "There is no reason 'WRITE' for a read"),
    ]
    for block, message in refused:
        with pytest.raises(ConfigurationError, match=message):
            block.__enter__()
    with pytest.raises(ConfigurationError, match="Decorate its tests, or enter the block in setUp"):
        assert_queries(primary=1)(Note)


def test_an_error_of_the_code_comes_through() -> None:
    """And not what is missing because of it; all is as before afterwards."""
    with pytest.raises(KeyError), assert_reads_from("replica"):
        raise KeyError
    assert not observers.present


def test_a_cache_that_keeps_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No read could come from a replica."""
    monkeypatch.setattr(caches._connections, "default", DummyCache("", {}))  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="is a DummyCache, which keeps no tokens"):
        mirrors_are_replicas().__enter__()


def test_a_token_store_that_was_emptied_is_no_reason() -> None:
    """As a test does between two others."""
    list(Tag.objects.all())
    caches["default"].clear()
    with scope(), assert_reads_from("replica"):
        list(Tag.objects.all())


@assert_reads_from("replica", reason="NAMED")
def decorated(alias: str) -> int:
    """Count tags there."""
    return Tag.objects.using(alias).count()


@assert_reads_from("replica", reason="NAMED")
async def decorated_coroutine(alias: str) -> int:
    """Count tags there."""
    return await Tag.objects.using(alias).acount()


def test_a_block_decorates_functions() -> None:
    """Which may call themselves, as often as they like."""
    assert [decorated("replica1"), decorated("replica2")] == [0, 0]
    with pytest.raises(AssertionError, match="did not come from a replica"):
        decorated("default")
    assert inspect.iscoroutinefunction(decorated_coroutine)


def test_long_statements_are_short_in_a_report() -> None:
    """Without their columns, in one line."""
    assert shorten("SELECT 1\n  FROM x") == "SELECT 1 FROM x"
    long = f"SELECT DISTINCT {', '.join(['column'] * 30)} FROM x WHERE {'y' * 200}"
    assert shorten(long).startswith("SELECT DISTINCT ... FROM x WHERE yyy")
    assert len(shorten(long)) == 110


def test_real_replicas_are_left_to_be_what_they_are(addresses: None, cluster: Any) -> None:
    """Where an alias is a server of its own the rules are at work without any help."""
    connections["replica1"].settings_dict.update(PORT=cluster.replicas[0].port)
    with assert_reads_from("replica1", reason="NAMED"):
        list(Tag.objects.using("replica1"))
