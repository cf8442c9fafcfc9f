"""Watches the servers: where each is in the WAL, and how old the data of each replica is."""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from threading import Condition, Event, Thread
from typing import Any

import psycopg

from testproject.cluster import Cluster, PostgresServer
from testproject.cluster.postgres import fetch_rows

LOOK_SECONDS = 0.1
REMEMBERED_SECONDS = 600.0
CONNECT_SECONDS = 2
"""The least that libpq knows."""

# The current LSN of a standby is refused, and so is whether a primary is paused.
STATE = """
SELECT r.recovers,
       CASE WHEN r.recovers THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END
           - '0/0'::pg_lsn,
       CASE WHEN r.recovers THEN pg_get_wal_replay_pause_state() ELSE '' END,
       (SELECT setting::int FROM pg_settings WHERE name = 'recovery_min_apply_delay'),
       EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'),
       current_setting('primary_conninfo') = ''
  FROM (SELECT pg_is_in_recovery() AS recovers) AS r
"""

# A commit, which a delayed replica holds back as it does any other, and which fills no table.
COMMIT = "SELECT pg_logical_emit_message(true, 'shop window', '')"


@dataclass(frozen=True, slots=True)
class Look:
    """One server as it was found.

    Args:
        name: of the server.
        state: "primary", "replica", "paused", "cut", "waiting" (for the primary), "promoted" or "down".
        lsn: where it is in the WAL; "" if it does not tell.
        lag: seconds by which its data is old; None for a primary, and where nobody knows.
        behind: the same in bytes.
        delay_ms: how late it is told to replay commits.
        is_paused: whether it is told to replay nothing.
        is_cut: whether it is told to receive nothing.
    """

    name: str
    state: str
    lsn: str = ""
    lag: float | None = None
    behind: int | None = None
    delay_ms: int = 0
    is_paused: bool = False
    is_cut: bool = False


class Progress:
    """When the primary was first seen behind which position."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque(maxlen=int(REMEMBERED_SECONDS / LOOK_SECONDS))

    def note(self, now: float, position: int) -> None:
        """Remember where the primary is now."""
        self._marks.append((now, position))

    def position(self) -> int:
        """Return where the primary was last."""
        return self._marks[-1][1] if self._marks else 0

    def age(self, now: float, position: int) -> float:
        """Return for how long the primary has been past a position; 0 if it is not.

        It went past at some time between two looks; the middle is taken.
        """
        before: float | None = None
        for seen, passed in self._marks:
            if passed > position:
                return now - (seen if before is None else (seen + before) / 2)
            before = seen
        return 0.0


class Line:
    """A connection to one server, made anew whenever that has ended."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._connection: psycopg.Connection[Any] | None = None

    def ask(self, query: str) -> tuple[Any, ...] | None:
        """Return the one row of a query, or None where the server does not answer."""
        if not self.server.is_running:
            self.close()
            return None
        try:
            if self._connection is None:
                self._connection = self.server.connect(
                    connect_timeout=CONNECT_SECONDS, options="-c statement_timeout=1000"
                )
            [row] = fetch_rows(self._connection, query)
        except psycopg.Error:
            self.close()
            return None
        return row

    def close(self) -> None:
        """Close it; it may be used again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Watcher:
    """Looks at all servers ten times a second, and commits as often, so that there is something to see.

    Args:
        cluster: the servers.
        note: what is being done to each server now, by its name.
    """

    def __init__(self, cluster: Cluster, note: Callable[[], dict[str, str]]) -> None:
        self._cluster = cluster
        self._note = note
        self._progress = Progress()
        self._looks: Sequence[Look] = ()
        self._number = 0
        self._looked = Condition()
        self._ended = Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for the length of the block."""
        thread = Thread(target=self._watch, name="window-watcher", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            with self._looked:
                self._looked.notify_all()
            thread.join()

    @property
    def has_ended(self) -> bool:
        """Return whether there will be no more looks."""
        return self._ended.is_set()

    def wait(self, number: int, timeout: float) -> tuple[int, str]:
        """Return the look after that with a number, with its own number; the same where there is none."""
        with self._looked:
            self._looked.wait_for(lambda: self._number > number or self.has_ended, timeout)
            return self._number, self.described()

    def described(self) -> str:
        """Return the last look as JSON."""
        return json.dumps(
            {"servers": [asdict(look) for look in self._looks], "doing": self._note()}
        )

    def _watch(self) -> None:
        lines = [Line(server) for server in (self._cluster.primary, *self._cluster.replicas)]
        try:
            while not self._ended.wait(LOOK_SECONDS):
                lines[0].ask(COMMIT)
                looks = [self._look(line) for line in lines]
                with self._looked:
                    self._looks = looks
                    self._number += 1
                    self._looked.notify_all()
        finally:
            for line in lines:
                with contextlib.suppress(psycopg.Error):
                    line.close()

    def _look(self, line: Line) -> Look:
        name = line.server.name
        found = line.ask(STATE)
        if found is None:
            return Look(name, "down")
        recovers, lsn, pause, delay_ms, receives, is_cut = found
        position, now = int(lsn), time.monotonic()
        if line.server is self._cluster.primary:
            self._progress.note(now, position)
            return Look(name, "primary", text_of(position))
        if not recovers:
            return Look(name, "promoted", text_of(position))
        is_paused = pause == "paused"
        return Look(
            name,
            "paused" if is_paused else "cut" if is_cut else "replica" if receives else "waiting",
            text_of(position),
            lag=round(self._progress.age(now, position), 2),
            behind=max(0, self._progress.position() - position),
            delay_ms=delay_ms,
            is_paused=is_paused,
            is_cut=is_cut,
        )


def text_of(position: int) -> str:
    """Return an LSN as PostgreSQL writes it."""
    return f"{position >> 32:X}/{position & 0xFFFF_FFFF:08X}"
