"""What a replica shows that lags, with one database: the state at a moment of the past."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
from django.db import connections
from django.db.utils import InternalError
from psycopg import sql as composing
from psycopg.pq import TransactionStatus

from django_replica_router.replicas.attributes import Around, Execute
from django_replica_router.sql import transacting, wal
from django_replica_router.values.statements import OF_SESSION, is_query, kind_of, might_write

_SCHEMA = "replica_router_lagging"


class Snapshot:
    """What was committed by a moment: a snapshot that a connection holds, and that all threads read by.

    No transaction stays open on the connections of replicas, and no lock is kept: each statement has its own.

    Args:
        primary: alias of the primary.
    """

    def __init__(self, primary: str) -> None:
        self._primary = primary
        self._lock = threading.Lock()
        self._holder: Any = None
        self._name = ""
        self.renew()

    def renew(self) -> None:
        """Show what is committed by now."""
        holder = connections.create_connection(self._primary)
        holder.ensure_connection()
        raw = holder.connection
        raw.autocommit = True
        with self._lock:  # nobody reads by the old one's name when that ends
            position = wal.mark_moment(raw)
            name = transacting.hold_snapshot(raw)
            self.end()
            self.position, self._name, self._holder = position, name, holder

    def end(self) -> None:
        """End the transaction that holds the snapshot."""
        if self._holder is not None:
            self._holder.close()
            self._holder = None

    def run(
        self, connection: Any, execute: Execute, sql: Any, params: Any, many: bool, executor: Any
    ) -> Any:
        """Run a statement by the snapshot, in a transaction of its own or in the block that the code has opened."""
        raw = connection.connection
        is_in_block = raw.info.transaction_status is not TransactionStatus.IDLE
        if is_in_block or (raw.autocommit and kind_of(sql) in OF_SESSION):
            return execute(sql, params, many, executor)
        with self._lock:
            transacting.begin_by_snapshot(raw, self._name)
        if not raw.autocommit:
            return execute(sql, params, many, executor)
        try:
            result = execute(sql, params, many, executor)
        except BaseException:
            raw.execute("ROLLBACK")
            raise
        raw.execute("COMMIT")
        return result


class Copies:
    """What the transaction of a ``TestCase`` has written by a moment: copies of all tables, in a schema.

    A statement of a replica finds them by its ``search_path``, so what names a schema, or is hidden in a view or a
    function, is read as it is now. The schema is undone with the test's transaction.

    Args:
        primary: alias of the primary.
    """

    def __init__(self, primary: str) -> None:
        self._raw: psycopg.Connection[Any] = connections[primary].connection
        self.renew()

    def renew(self) -> None:
        """Copy the tables as they are now."""
        self.end()
        self.position = wal.mark_moment(self._raw)
        found = self._raw.execute(_COPY_SQL, {"schema": _SCHEMA}).fetchall()
        schema = composing.Identifier(_SCHEMA)
        self._raw.execute(composing.SQL("CREATE SCHEMA {}").format(schema))
        for (statement,) in found:
            self._raw.execute(statement)

    def end(self) -> None:
        """Drop the copies, where the transaction has not failed: else they are undone with it."""
        if self._raw.info.transaction_status is TransactionStatus.INTRANS:
            (exists,) = self._ask("SELECT to_regnamespace(%s) IS NOT NULL", _SCHEMA)
            if exists:
                drop = composing.SQL("DROP SCHEMA {} CASCADE")
                self._raw.execute(drop.format(composing.Identifier(_SCHEMA)))

    def run(
        self, connection: Any, execute: Execute, sql: Any, params: Any, many: bool, executor: Any
    ) -> Any:
        """Run a statement on the copies.

        Raises:
            InternalError: it would write, which a replica refuses.
        """
        if kind_of(sql) in OF_SESSION:
            return execute(sql, params, many, executor)
        if might_write(sql) and not is_query(sql):
            message = f"A replica cannot execute this, in a read-only transaction: {sql}"
            raise InternalError(message)
        (path,) = self._ask("SELECT current_setting('search_path')")
        self._ask("SELECT set_config('search_path', %s, true)", f"{_SCHEMA}, {path or 'public'}")
        result = execute(sql, params, many, executor)
        # Where it has failed, it is undone with the savepoint.
        self._ask("SELECT set_config('search_path', %s, true)", path)
        return result

    def _ask(self, sql: str, *params: str) -> Any:
        return self._raw.execute(sql, params).fetchone()


_COPY_SQL = """
SELECT format('CREATE TABLE %%I.%%I AS TABLE %%I.%%I', %(schema)s::text, relname, nspname, relname)
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind IN ('r', 'p') AND nspname = ANY (current_schemas(false)) AND pg_table_is_visible(pg_class.oid)
"""


Moment = Snapshot | Copies
"""A moment of the past of a primary, whose state its replicas show.

Its ``position`` tells which: what was committed at or before it is shown, and nothing that is committed behind it.
"""


class Behind(Around):
    """What runs around the statements of a replica that lags.

    Args:
        inner: what runs around them else.
        moment: what they are to see.
    """

    is_of_replica = True

    def __init__(self, inner: Around, moment: Moment) -> None:
        super().__init__(inner.alias, inner.primary, inner.config, inner.edition)
        self._inner, self._moment = inner, moment

    def run(
        self, cursor: Any, execute: Execute, sql: Any, params: Any, many: bool, executor: Any
    ) -> Any:
        """Run a statement, as it would be, at the moment."""
        connection = cursor.db

        def execute_behind(*statement: Any) -> Any:
            return self._moment.run(connection, execute, *statement)

        return self._inner.run(cursor, execute_behind, sql, params, many, executor)
