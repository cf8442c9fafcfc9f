"""Commits that tell, by the same message, what was written and up to where the WAL reaches."""

from __future__ import annotations

import contextlib
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import psycopg
from psycopg import generators, pq
from psycopg.errors import error_from_result

from django_replica_router.errors import PositionError
from django_replica_router.logs import fields, logger
from django_replica_router.sql.wal import parse_position
from django_replica_router.values.tokens import Position

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

# Only inside the transaction is its number known, and only behind its COMMIT a position that covers
# it. One message holds several statements only in the simple protocol, so without parameters. They are
# run one by one: what an error comes from is told by how many results stand before it.
_WROTE = "SELECT pg_current_xact_id_if_assigned() IS NOT NULL"
_POSITION = (
    "SELECT pg_current_wal_insert_lsn()::text, pg_walfile_name(pg_current_wal_insert_lsn()), "
    "pg_size_bytes(current_setting('wal_segment_size'))"
)
_COMMIT = f"{_WROTE};COMMIT;{_POSITION}".encode()

# Behind a statement outside a transaction. The server makes a transaction of all that a message holds up
# to a COMMIT ("Multiple Statements in a Simple Query" in PostgreSQL's manual); the BEGIN takes that over,
# else the COMMIT would raise a warning. Without the two the position would stand before the commit. The
# new line ends a comment of the statement's own, and in front of nothing no place in an error is moved.
_BEHIND_CHANGE = f"\n;{_WROTE};BEGIN;COMMIT;{_POSITION}".encode()
_RESULTS_BEHIND_CHANGE = 4


class CommitAnswer(NamedTuple):
    """What the server says of a transaction that it has committed.

    Args:
        wrote: something was written in it, or None where that is not known.
        position: a position at or behind its commit, or None where the server told none.
    """

    wrote: bool | None
    position: Position | None


def can_commit(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether ``commit`` can be used: a transaction is open, intact, and not in a pipeline."""
    info = connection.info
    return (
        info.transaction_status == pq.TransactionStatus.INTRANS
        and info.pipeline_status == pq.PipelineStatus.OFF
    )


def commit(connection: psycopg.Connection[Any]) -> CommitAnswer:
    """Commit, and learn by the same message whether the transaction has written, and up to where.

    Use it where ``can_commit`` says so.

    Raises:
        psycopg.Error: the transaction is not committed, or its connection is lost.
    """
    # Past the cursors: a site may have the driver bind parameters on the server, which takes one
    # statement a message, or make rows of another kind.
    try:
        with connection.lock:
            connection.pgconn.send_query(_COMMIT)
            results = connection.wait(generators.execute(connection.pgconn))
    except BaseException:
        _leave_no_transaction(connection)
        raise
    if not _is_committed(results):
        for result in results:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise error_from_result(result, connection.info.encoding)
    return _read_answer(results[0], results[-1])


class CarryingCursor(psycopg.ClientCursor[Any]):
    """A cursor of a site whose changes outside a transaction bring the position along, where told to.

    Nothing else shows that: neither its results nor its errors, nor what it tells of its statement.
    """

    carries = ""
    """One INSERT, UPDATE, DELETE or MERGE that is to bring its position along when it is run, outside a
    transaction. Others may put comments around it."""

    answer: CommitAnswer | None = None
    """What came along with the last statement, if it did."""

    _is_asked = False

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        self.answer = None
        self._is_asked = bool(self.carries) and isinstance(query, str) and self.carries in query
        if not self._is_asked:
            return super().execute(query, params, **options)
        self.carries = ""  # what somebody's wrapper runs on this cursor afterwards is not behind it
        try:
            return super().execute(query, params, **options)
        except BaseException:
            _leave_no_transaction(self.connection)  # as between BEGIN and COMMIT
            raise
        finally:
            self._is_asked = False

    def _execute_send(self, query: Any, **options: Any) -> None:
        """Send more than what the cursor takes for its statement, and tells whoever logs it."""
        if self._is_asked:
            self._query = query
            self._pgconn.send_query(query.query + _BEHIND_CHANGE)
        else:
            super()._execute_send(query, **options)

    def _check_results(self, results: list[PGresult]) -> None:
        """Take what was asked along out of the results before anybody sees them.

        Also an error behind the COMMIT, as of a cancel request that comes late: the change stands, and
        its rows must not be lost.
        """
        if self._is_asked and _is_committed(results):
            own = results[-_RESULTS_BEHIND_CHANGE:]
            del results[-_RESULTS_BEHIND_CHANGE:]
            self.answer = _read_answer(own[0], own[-1])
        super()._check_results(results)


def let_carry(cursor: Any) -> CarryingCursor | None:
    """Return the driver's cursor as one that is also a ``CarryingCursor``; None where it cannot be one."""
    kind: Any = type(cursor)
    if not issubclass(kind, CarryingCursor):  # else it has done so before
        cursor.__class__ = _carrying(kind)
    return cursor if isinstance(cursor, CarryingCursor) else None


@cache
def _carrying(kind: type) -> type:
    """Return the class of cursors that is both.

    It sends, and is told of, more than the driver shows by public methods: of the results in front of
    an error it tells nobody. Where the two methods are not there a cursor stays as it is.
    """
    if not issubclass(kind, psycopg.ClientCursor) or not (
        hasattr(kind, "_execute_send") and hasattr(kind, "_check_results")
    ):
        return kind
    return type(f"Carrying{kind.__name__}", (CarryingCursor, kind), {})


def _leave_no_transaction(connection: psycopg.Connection[Any]) -> None:
    """End the transaction that an error, or an interruption, has left open."""
    with contextlib.suppress(psycopg.Error):
        connection.rollback()


def _is_committed(results: list[PGresult]) -> bool:
    """Tell whether the COMMIT was carried out, whatever has become of what stands behind it."""
    return len(results) > 1 and results[-2].command_status == b"COMMIT"


def _read_answer(wrote: PGresult, position: PGresult) -> CommitAnswer:
    has_written = {b"t": True, b"f": False}.get(wrote.get_value(0, 0) or b"")
    try:
        return CommitAnswer(has_written, _read_position(position))
    except PositionError as error:
        logger.warning(
            "The server told no position with a COMMIT: %s",
            error,
            extra=fields("commit_untold", error),
        )
        return CommitAnswer(has_written, None)


def _read_position(result: PGresult) -> Position:
    if result.status != pq.ExecStatus.TUPLES_OK:
        raise PositionError(result.error_message.decode(errors="replace").strip())
    lsn, wal_file, size = (result.get_value(0, column) for column in range(3))
    if lsn is None or wal_file is None or size is None or not size.isdigit():
        message = f"It answered {(lsn, wal_file, size)!r:.200}."
        raise PositionError(message)
    return parse_position(
        (lsn.decode("ascii", "replace"), wal_file.decode("ascii", "replace"), int(size))
    )
