"""Counts round trips on the way between a site and a PostgreSQL server, and makes them longer."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from threading import Lock, Thread
from typing import Self

_TERMINATE = b"X\0\0\0\x04"
MONITOR = "django-replica-router"
"""The ``application_name`` of the connections on which the package looks at servers."""


class TurnCounter:
    """Counts how often a client speaks after its server has: each time it has waited for an answer.

    However many statements it sends at once, and however they are cut into parts. The first message of a
    connection counts, too; the last one, which nobody waits for, does not.
    """

    def __init__(self) -> None:
        self.count = 0
        self._was_answered = True
        self._lock = Lock()  # either direction has a thread of its own

    def sent(self, data: bytes) -> bool:
        """Take into account what the client sends; tell whether that is a turn."""
        with self._lock:
            is_turn = self._was_answered and data != _TERMINATE
            self._was_answered = False
            self.count += is_turn
            return is_turn

    def answered(self) -> None:
        """Take into account that the server has sent something."""
        with self._lock:
            self._was_answered = True


class CountingProxy:
    """Stands before a server, and counts round trips by the connection's ``application_name``.

    Connections must not ask for encryption: ``sslmode`` and ``gssencmode`` have to be "disable".
    """

    delay = 0.0
    """Seconds that each round trip takes longer."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._counters: list[tuple[str, TurnCounter]] = []
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = Thread(target=self._accept, name="counting-proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close everything."""
        for item in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
            item.close()
        self._thread.join(5.0)

    def round_trips(self) -> Counter[str]:
        """Return how many there were so far, by ``application_name``."""
        counts: Counter[str] = Counter()
        for name, counter in list(self._counters):
            counts[name] += counter.count
        return counts

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):
                self._join(client)

    def _join(self, client: socket.socket) -> None:
        self._sockets.append(client)
        server = socket.create_connection(self._server)
        self._sockets.append(server)
        for item in (client, server):
            item.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        hello = client.recv(65536)
        counter = TurnCounter()
        self._counters.append((application_name(hello), counter))
        self._send(hello, server, counter)
        Thread(target=self._pump, args=(client, server, counter, True), daemon=True).start()
        Thread(target=self._pump, args=(server, client, counter, False), daemon=True).start()

    def _send(self, data: bytes, server: socket.socket, counter: TurnCounter) -> None:
        if counter.sent(data) and self.delay:
            time.sleep(self.delay)
        server.sendall(data)

    def _pump(
        self, source: socket.socket, target: socket.socket, counter: TurnCounter, is_client: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if is_client:
                    self._send(data, target, counter)
                else:
                    counter.answered()
                    target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


def application_name(hello: bytes) -> str:
    """Return the name that a connection gives itself in its first message, or ""."""
    parts = hello[8:].split(b"\0")
    pairs = dict(zip(parts[::2], parts[1::2], strict=False))
    return pairs.get(b"application_name", b"").decode(errors="replace")
