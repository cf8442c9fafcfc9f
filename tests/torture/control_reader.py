"""A reader that asks the primary alone, past the package: when could the primary not answer?"""

from __future__ import annotations

import math
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any

import psycopg

from testproject.cluster.managed import Managed
from testproject.cluster.server import LOOPBACK
from tests.torture.stalls import Span

PAUSE = 0.05
JOIN_SECONDS = 2.0
SOON = 0.15
"""Seconds within which a primary answers that nothing is in the way of."""

STATEMENT = "SELECT value FROM torture_register WHERE id = 0"


class ControlReader(Managed):
    """Reads what the site reads from the primary, the same way through the network, again and again.

    Nothing else excuses a read of the site that takes long: only a time during which this one, too,
    waited for the primary, be it down, unreachable, or holding a lock.

    Args:
        port: at which the site reaches the primary.
        dbname: the database.
    """

    def __init__(self, port: int, dbname: str) -> None:
        self._port = port
        self._dbname = dbname
        self._ended = threading.Event()
        self._outages: list[Span] = []
        self._asked_at = math.inf
        self.answers = 0
        self._thread = threading.Thread(
            target=self._run, name="torture-control-reader", daemon=True
        )

    def _open(self, stack: ExitStack) -> None:
        self._thread.start()
        # Where it waits for a server that is gone, it is left behind.
        stack.callback(self._thread.join, JOIN_SECONDS)
        stack.callback(self._ended.set)

    def outages(self) -> list[Span]:
        """Return when the primary could not answer; one that lasts still ends now."""
        asked_at, now = self._asked_at, time.monotonic()
        lasting = [(asked_at, now)] if now - asked_at > SOON else []
        return [*list(self._outages), *lasting]

    def _run(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        while not self._ended.wait(PAUSE):
            if self._asked_at == math.inf:  # else nobody has answered since
                self._asked_at = time.monotonic()
            try:
                if connection is None:
                    connection = self._connect()
                connection.execute(STATEMENT)
            except psycopg.Error:
                _close(connection)
                connection = None
                continue
            now = time.monotonic()
            self.answers += 1
            if now - self._asked_at > SOON:
                self._outages.append((self._asked_at, now))
            self._asked_at = math.inf
        _close(connection)

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=LOOPBACK,
            port=self._port,
            user="postgres",
            dbname=self._dbname,
            autocommit=True,
            prepare_threshold=None,  # through a pooler, the next statement may meet another server
        )


def _close(connection: psycopg.Connection[Any] | None) -> None:
    if connection is not None:
        with suppress(psycopg.Error):
            connection.close()
