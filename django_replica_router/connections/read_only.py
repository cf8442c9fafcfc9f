"""What runs around a statement in a ``query``: one that writes is refused, before it is sent or by its server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
from django.apps import apps
from django.db import Error
from psycopg import pq
from psycopg.sql import Composable

from django_replica_router.conf import session_model
from django_replica_router.connections.rerouting import is_refused_write, is_server_side
from django_replica_router.errors import WriteInQuery
from django_replica_router.replicas.attributes import Around, Execute
from django_replica_router.replicas.sights import is_pooled
from django_replica_router.scopes.scope import Frame, get_frame
from django_replica_router.sql import states
from django_replica_router.stats import count
from django_replica_router.values.effects import Effect, EffectKind, effect_of, written_table
from django_replica_router.values.statements import text_of

# What only sets up a session or a transaction runs nothing of a site's own.
_RUNS = frozenset(["SELECT", "TABLE", "VALUES", "WITH", "EXPLAIN", "COPY", "FETCH", "MOVE"])

_SAVEPOINT = "replica_router_query"
_READ_ONLY = "SET LOCAL transaction_read_only = on"
_ADVICE = "Do it in a @command, outside of the query."


class Unrouted(Around):
    """What runs around the statements of a connection that is in no cluster."""

    def run(
        self, cursor: Any, execute: Execute, sql: Any, params: Any, many: bool, executor: Any
    ) -> Any:
        """Run a statement. Of a query it only reads."""
        frame = get_frame()
        if frame.query:
            execute = guard(frame, cursor, execute, sql)[1]
        return execute(sql, params, many, executor)


def guard(frame: Frame, cursor: Any, execute: Execute, sql: Any) -> tuple[Frame, Execute]:
    """Return the frame that a statement of a query counts in, and what runs it read-only.

    Args:
        frame: of the query.
        cursor: Django's cursor.
        execute: runs a statement.
        sql: the statement.

    Raises:
        WriteInQuery: its text says that it writes, or locks.
    """
    text = _text(sql, cursor.db)
    effect = effect_of(text)
    if effect.kind > EffectKind.MIGHT_WRITE:
        if not _is_of_session(effect):
            raise _refusal(frame.query, effect, text)
        return Frame(frame.scope, frame.override, ignores=frame.ignores), execute
    if effect.kind is EffectKind.READS and effect.command not in _RUNS:
        return frame, execute
    return frame, partial(_execute_read_only, frame.query, cursor, execute)


@contextmanager
def reading_only(frame: Frame, cursor: Any, sql: Any) -> Iterator[None]:
    """Have what runs past the statements of a cursor, as ``copy`` does, only read.

    Raises:
        WriteInQuery: it was about to write.
    """
    text = _text(sql, cursor.db)
    effect = effect_of(text)
    if effect.kind > EffectKind.MIGHT_WRITE:
        raise _refusal(frame.query, effect, text)
    with _telling(frame.query, text), _block(cursor.db):
        yield


def _text(sql: Any, connection: Any) -> str:
    if isinstance(sql, Composable):
        return sql.as_string(connection.connection)
    return text_of(sql)


def _execute_read_only(
    query: str, cursor: Any, execute: Execute, sql: Any, params: Any, many: bool, executor: Any
) -> Any:
    """Run a statement, and have its server refuse what it writes.

    Where its values are in the text, all of it is one message and no round trip more.
    """
    connection = cursor.db
    with _telling(query, sql):
        if not _can_write(connection):
            return execute(sql, params, many, executor)
        is_inside = _is_inside(connection.connection)
        if is_inside and is_server_side(cursor):
            # What the server would run with each fetch, when the block is over, it runs at once.
            cursor.close()
            cursor.cursor = connection.create_cursor()
        if many or not _speaks_simply(connection.connection, cursor.cursor, sql):
            with _closing(cursor), _block(connection):
                return execute(sql, params, many, executor)
        # The last of the wrappers: those of the site are shown the statement as it is.
        with connection.execute_wrapper(_send_inside if is_inside else _send_alone):
            return execute(sql, params, many, executor)


def _send_alone(execute: Execute, sql: str, params: Any, many: bool, context: Any) -> Any:
    result = execute(f"{_READ_ONLY};\n{sql}", params, many, context)
    context["cursor"].cursor.nextset()
    return result


def _send_inside(execute: Execute, sql: str, params: Any, many: bool, context: Any) -> Any:
    message = f"SAVEPOINT {_SAVEPOINT};{_READ_ONLY};\n{sql}\n;RELEASE SAVEPOINT {_SAVEPOINT}"
    with _rolling_back(context["connection"].connection):
        result = execute(message, params, many, context)
    driver = context["cursor"].cursor
    driver.nextset()
    driver.nextset()
    return result


def _can_write(connection: Any) -> bool:
    """Tell whether the server may take writes, as libpq knows without a question: no standby does.

    Of what a pooler leads to it only knows what that was once.
    """
    raw = connection.connection
    if not isinstance(raw, psycopg.Connection):
        return False  # nobody knows how to ask: the text has been judged
    is_standby = raw.pgconn.parameter_status(b"in_hot_standby") == b"on"
    return not is_standby or is_pooled(connection)


def _is_inside(raw: psycopg.Connection[Any]) -> bool:
    """Tell whether a statement would be a part of a transaction, and not one of its own."""
    return not (raw.autocommit and raw.pgconn.transaction_status == pq.TransactionStatus.IDLE)


def _speaks_simply(raw: psycopg.Connection[Any], driver: Any, sql: Any) -> bool:
    """Tell whether a statement can be one of several in a message: see ``can_ask_along``."""
    return (
        isinstance(sql, str)
        and isinstance(driver, psycopg.ClientCursor)
        and raw.pgconn.pipeline_status == pq.PipelineStatus.OFF
        and driver.format == pq.Format.TEXT
    )


@contextmanager
def _block(connection: Any) -> Iterator[None]:
    """Have the server refuse writes inside: in a transaction of its own, or in a part of the open one."""
    raw = connection.connection
    if not _can_write(connection) or states.has_failed(raw):
        yield
        return
    with connection.wrap_database_errors:
        if _is_inside(raw):
            raw.execute(f"SAVEPOINT {_SAVEPOINT};{_READ_ONLY}")
            with _rolling_back(raw):
                yield
            raw.execute(f"RELEASE SAVEPOINT {_SAVEPOINT}")
            return
        raw.execute("BEGIN READ ONLY")
        try:
            yield
        except BaseException:
            if not raw.closed:
                raw.execute("ROLLBACK")
            raise
        raw.execute("COMMIT")


@contextmanager
def _closing(cursor: Any) -> Iterator[None]:
    """Tell the driver that a cursor of the server's went with the transaction that was refused."""
    try:
        yield
    except BaseException:
        if is_server_side(cursor):
            psycopg.Cursor.close(cursor.cursor)
        raise


@contextmanager
def _rolling_back(raw: psycopg.Connection[Any]) -> Iterator[None]:
    """Leave the transaction as it was before a write was refused in it. Other errors are the code's own."""
    try:
        yield
    except (Error, psycopg.Error) as error:
        if is_refused_write(error) and states.has_failed(raw):
            raw.execute(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT};RELEASE SAVEPOINT {_SAVEPOINT}")
        raise


@contextmanager
def _telling(query: str, sql: Any) -> Iterator[None]:
    """Make of a server's refusal what the query is to be told."""
    try:
        yield
    except (Error, psycopg.Error) as error:
        if not is_refused_write(error):
            raise
        cause = error.__cause__ or error
        context = getattr(getattr(cause, "diag", None), "context", None) or ""
        count("writes_in_queries")
        table = written_table(context)
        said = str(cause).splitlines()[0]
        where = f" ({_named(table)})" if table else ""
        message = f"The query {query} may not write, and its server refused {sql!s:.200}: {said}{where}. {_ADVICE}"
        raise WriteInQuery(message, table) from cause


def _is_of_session(effect: Effect) -> bool:
    """Tell whether Django itself saves or ends the session of the request: that is nothing of the query's."""
    model = session_model() if effect.kind is EffectKind.WRITES and effect.table else None
    return model is not None and effect.table == model._meta.db_table


def _refusal(query: str, effect: Effect, text: str) -> WriteInQuery:
    count("writes_in_queries")
    named = _named(effect.table)
    if effect.kind is EffectKind.LOCKS:
        what = f"may not lock, and was about to lock {named or 'rows'}"
        advice = "Read without select_for_update(), or do it in a @command."
    elif effect.kind is EffectKind.SEVERAL:
        what = f"was about to run several statements that cannot be kept from writing: {text:.200}"
        advice = "Run them one by one."
    else:
        what = f"may not write, and was about to {effect.command}"
        what += f" {named}" if named else f": {text:.200}"
        advice = _ADVICE
    return WriteInQuery(f"The query {query} {what}. {advice}", effect.table)


def _named(table: str) -> str:
    """Return the name of a table, with that of its model."""
    for model in apps.get_models(include_auto_created=True):
        if model._meta.db_table.replace('"', "") == table:
            return f"{table} ({model._meta.label})"
    return table
