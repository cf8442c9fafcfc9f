"""Counts round trips on the way between a site and a PostgreSQL server."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from threading import Thread
from typing import Self

_READY = ord("Z")
_HEADER = 5
MONITOR = "django-replica-router"
"""The ``application_name`` of the connections on which the package looks at servers."""


class ReadyCounter:
    """Counts the messages ReadyForQuery in what a server sends, however it is cut into parts.

    A server sends one at the end of each exchange, be it of one statement or of several.
    """

    def __init__(self) -> None:
        self.count = 0
        self._header = b""
        self._to_skip = 0

    def feed(self, data: bytes) -> None:
        """Take the next part into account."""
        at = 0
        while at < len(data):
            if self._to_skip:
                step = min(self._to_skip, len(data) - at)
                self._to_skip -= step
                at += step
                continue
            step = _HEADER - len(self._header)
            self._header += data[at : at + step]
            at += step
            if len(self._header) == _HEADER:
                self.count += self._header[0] == _READY
                self._to_skip = int.from_bytes(self._header[1:], "big") - 4
                self._header = b""


class CountingProxy:
    """Stands before a server, and counts round trips by the connection's ``application_name``.

    Connections must not ask for encryption: ``sslmode`` and ``gssencmode`` have to be "disable".
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._counters: list[tuple[str, ReadyCounter]] = []
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
        """Return how many exchanges there were so far, by ``application_name``."""
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
        server.sendall(hello)
        counter = ReadyCounter()
        self._counters.append((application_name(hello), counter))
        Thread(target=_pump, args=(client, server, None), daemon=True).start()
        Thread(target=_pump, args=(server, client, counter), daemon=True).start()


def application_name(hello: bytes) -> str:
    """Return the name that a connection gives itself in its first message, or ""."""
    parts = hello[8:].split(b"\0")
    pairs = dict(zip(parts[::2], parts[1::2], strict=False))
    return pairs.get(b"application_name", b"").decode(errors="replace")


def _pump(source: socket.socket, target: socket.socket, counter: ReadyCounter | None) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            if counter is not None:
                counter.feed(data)
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
