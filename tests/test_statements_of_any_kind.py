"""Any statement: what is hidden in it, and what it leaves in its transaction."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from django_replica_router.values.statements import (
    might_commit,
    might_commit_part,
    might_write,
    only_reads,
    reads_rows,
)
from tests.statement_kinds import is_write_command

# Any statement


STRINGS = [
    "'text'",
    "''",
    "'it''s'",
    "'f()'",
    "E'\\''",
    "e'\\\\'",
    "'\"'",
    "'--'",
    "'/*'",
    '"name"',
    '"f""("',
    '"\'"',
    '"--"',
]
SPACES = [" ", "\n", "\t", " /* it's */ ", '/*"*/', " -- '\n", ' --"\r', "\n--$$\n"]
HARMLESS = [
    "1", "a", "a.b", "%s", "$1", "count(*)", "lower('x')", "(SELECT 1)", "CASE WHEN a THEN b END",
    "a IN (1, 2)", "sum(a) OVER (PARTITION BY b)", "a::varchar(3)", "NULL", "NOT (a)",
]  # fmt: skip
spaces = st.sampled_from(SPACES)
terms = st.lists(st.sampled_from(HARMLESS + STRINGS), max_size=4).flatmap(
    lambda items: st.lists(spaces, min_size=len(items), max_size=len(items)).map(
        lambda gaps: "".join(item + gap + "," for item, gap in zip(items, gaps, strict=True))
    )
)
names = st.text(
    st.sampled_from("abcxyzABCXYZ_0189$") | st.characters(min_codepoint=0x80, codec="utf-8"),
    max_size=8,
).map("zz_".__add__)
calls = st.builds(
    "{}{}{}({}".format,
    st.sampled_from(["", "a.", "a . ", '"a".', '"a"."b" . ', "pg_catalog."]),
    names | names.map('"{}"'.format),
    st.just("") | spaces,
    st.sampled_from([")", "1)", "'x')", " )", "a, b)", "(SELECT 1))"]),
)
frames = st.sampled_from(
    [
        "SELECT{}",
        "SELECT a FROM t WHERE 1 IN ({})",
        "WITH x AS (SELECT{}) TABLE x",
        "VALUES ({})",
        "SELECT lower({})",
        "(SELECT 1) UNION (SELECT{})",
        "EXPLAIN ANALYZE SELECT{}",
        "SELECT 1;SELECT{}",
    ]
)


@given(frames, spaces, terms, calls, terms)
def test_call_of_an_unknown_function_is_always_seen(
    frame: str, space: str, before: str, call: str, after: str
) -> None:
    """Strings, comments and quoted names around a call of an unknown function do not hide it."""
    statement = frame.format(f"{space}{before}{space}{call}{space},{after}1")
    assert might_write(statement)


@given(spaces, terms)
def test_harmless_parts_stay_harmless_together(space: str, parts: str) -> None:
    """What the test above puts around the call is no write without it."""
    assert not might_write(f"SELECT{space}{parts}1")


@given(st.text() | st.text("'\"$\\-/*;()\n\r eEfU& ") | st.binary())
def test_any_text_gets_an_answer(statement: str | bytes) -> None:
    """No text makes the judgement fail, and what is a write command might write."""
    assert might_write(statement) or not is_write_command(statement)


@given(st.text("'\"$\\-/*;(). \n\reEfUab", max_size=30))
def test_what_is_hidden_can_only_make_a_statement_a_write(noise: str) -> None:
    """Behind a string or comment that is closed, a second statement is seen, whatever is in it."""
    quoted = noise.replace("'", "''").replace("\\", "")
    assert might_write(f"SELECT '{quoted}'; DELETE FROM t")
    assert might_write(f"SELECT '{quoted}', f()")
    name = noise.replace('"', '""')
    assert might_write(f'SELECT "a{name}", f()')
    assert might_write(f'SELECT "a{name}"; DELETE FROM t')


@pytest.mark.parametrize(
    "statement",
    [
        "COMMIT",
        "commit and chain",
        "END",
        " /* now */ Commit",
        "PREPARE TRANSACTION 'a'",
        "INSERT INTO t VALUES (1); COMMIT",
        "DO $$ BEGIN COMMIT; END $$",
        sql.SQL("COMMIT"),
        "",
    ],
)
def test_what_might_end_a_transaction_and_keep_its_writes(statement: Any) -> None:
    """A COMMIT is known as such, and so is what cannot be read."""
    assert might_commit(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1",
        "INSERT INTO t (name) VALUES ('COMMIT; it')",
        'UPDATE "commit" SET a = 1',
        "ROLLBACK",
        "SAVEPOINT a",
        'RELEASE SAVEPOINT "s1";',
    ],
)
def test_what_ends_no_transaction(statement: str) -> None:
    """Ordinary statements are none, whatever their strings and names say."""
    assert not might_commit(statement)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("CALL purge()", True),
        ("do $$ begin end $$", True),
        ("UPDATE t SET a = 1; COMMIT; SELECT 1 / 0", True),
        (sql.SQL("CALL purge()"), True),
        ("INSERT INTO t (name) VALUES ('CALL; it')", False),
        ('UPDATE "call" SET a = 1;', False),
        ("SELECT 1", False),
    ],
    ids=str,
)
def test_what_might_commit_before_it_fails(statement: Any, expected: bool) -> None:
    """A procedure may, and several statements, and what cannot be read."""
    assert might_commit_part(statement) is expected


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT * FROM notes_note", True),
        ("select title\nfrom notes_note", True),
        ("WITH new AS (SELECT 1) TABLE new", True),
        ("FETCH 10 IN mine", True),
        ("SELECT 1", False),
        ("SELECT 'from', now() AS \"from\"", False),
        ("SAVEPOINT table_1", False),
        ("SET search_path TO mine", False),
    ],
)
def test_what_shows_rows(statement: str, expected: bool) -> None:
    """A statement that names a table to read, and none that asks whether the server is there."""
    assert reads_rows(statement) is expected


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT " + "a" * 100_000,
        "SELECT " + "a." * 50_000 + "b",
        "SELECT a" + " " * 100_000 + "b",
        "SELECT '" + "''" * 50_000,
        "SELECT '" + "''" * 50_000 + "\\",
        'SELECT "' + '""' * 50_000,
        "SELECT 1 " + "/*" * 50_000,
        "SELECT " + "(" * 50_000,
        "SELECT " + "f(a," * 20_000,
        "SELECT " + "E'\\" * 20_000,
    ],
    ids=lambda statement: f"{statement[7:12]}...{statement[-1:]}",
)
def test_long_statement_takes_time_in_proportion(statement: str) -> None:
    """No statement of 100 kB is judged in more than a second, which a quadratic search would take."""
    began = time.process_time()
    might_write(statement)
    assert time.process_time() - began < 1.0


READING = [
    "SELECT a FROM t",
    "select count(*) from t where a = 'FOR UPDATE'",
    "WITH x AS (SELECT 1) SELECT * FROM x",
    "VALUES (1)",
    "TABLE t",
    'SAVEPOINT "s1"',
    'RELEASE SAVEPOINT "s1"',
    'ROLLBACK TO SAVEPOINT "s1"',
]
TAKING = [
    "SELECT a FROM t FOR UPDATE",
    "SELECT a FROM t FOR NO KEY UPDATE OF t SKIP LOCKED",
    "SELECT a FROM t for share",
    "SELECT a FROM t FOR KEY SHARE NOWAIT",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT set_config('a.b', 'c', true)",
    "SELECT unknown(a) FROM t",
    "SELECT 1; SELECT 2",
    "UPDATE t SET a = 1",
    "LOCK TABLE t",
    "SET LOCAL a.b = 'c'",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "ROLLBACK",
    "COMMIT",
    "EXPLAIN SELECT 1",
    "",
    sql.SQL("SELECT 1"),
]


@pytest.mark.parametrize("statement", READING)
def test_what_only_reads_leaves_nothing_in_its_transaction(statement: str) -> None:
    """Nor does a savepoint."""
    assert only_reads(statement)
    assert only_reads(statement.encode())


@pytest.mark.parametrize("statement", TAKING)
def test_what_writes_locks_or_sets_leaves_something(statement: object) -> None:
    """So does whatever is not understood."""
    assert not only_reads(statement)
