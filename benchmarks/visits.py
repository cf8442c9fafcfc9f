"""Loads a site over connections that stay open, at little cost of its own."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Thread
from urllib.parse import urlsplit

_TIMEOUT = 30.0
_ATTEMPTS = 200


class VisitError(Exception):
    """The site has not answered as it should."""


@dataclass(slots=True)
class Visit:
    """What one visit has found.

    Args:
        seconds: how long it took.
        latencies: seconds of each request.
        cpu_seconds: what the visitor itself has used.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.seconds


class Connection:
    """One HTTP/1.1 connection, used for the same request again and again."""

    def __init__(self, url: str, path: str, session: str | None) -> None:
        address = urlsplit(url)
        cookie = f"Cookie: sessionid={session}\r\n" if session else ""
        self._request = f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\n{cookie}\r\n".encode()
        self._socket = socket.create_connection(
            (address.hostname or "", address.port or 80), _TIMEOUT
        )
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def get(self) -> bytes:
        """Send the request, and return the head of the response when all of it is there."""
        self._socket.sendall(self._request)
        data = self._socket.recv(65536)
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more()
        head = data[:end]
        length = end + 4 + int(_header(head, b"content-length"))
        while len(data) < length:
            data += self._more()
        if not head.startswith(b"HTTP/1.1 200"):
            raise VisitError(data[:300].decode(errors="replace"))
        return head

    def _more(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            message = "The site has closed a connection in the middle of an answer."
            raise VisitError(message)
        return data


def _header(head: bytes, name: bytes) -> bytes:
    at = head.lower().find(b"\r\n" + name + b":")
    if at < 0:
        raise VisitError(head.decode(errors="replace"))
    return head[at + len(name) + 3 :].split(b"\r\n", 1)[0].strip()


@contextmanager
def balanced(
    url: str, path: str, session: str | None, *, workers: int, each: int
) -> Iterator[list[Connection]]:
    """Open the same number of connections to every worker of the site.

    The kernel hands a connection to any worker, and there it stays: by chance one worker would
    get most of the load.
    """
    with ExitStack() as stack:
        kept: list[Connection] = []
        by_worker: Counter[bytes] = Counter()
        for _ in range(_ATTEMPTS):
            connection = Connection(url, path, session)
            worker = _header(connection.get(), b"x-worker")
            if by_worker[worker] == each:
                connection.close()
                continue
            by_worker[worker] += 1
            stack.callback(connection.close)
            kept.append(connection)
            if len(kept) == workers * each:
                yield kept
                return
    message = f"Of the workers of {url}, only {len(by_worker)} have taken connections."
    raise VisitError(message)


def visit(
    url: str,
    path: str,
    session: str | None = None,
    *,
    seconds: float,
    workers: int = 2,
    each: int = 2,
) -> Visit:
    """Ask for a page again and again over each connection, one request at a time on each.

    Raises:
        VisitError: an answer was not 200, or a worker took no connection.
    """
    result = Visit()
    failures: list[Exception] = []
    with balanced(url, path, session, workers=workers, each=each) as connections:
        began, cpu = time.perf_counter(), time.process_time()
        threads = [
            Thread(target=_run, args=(connection, began + seconds, result, failures))
            for connection in connections
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        result.seconds = time.perf_counter() - began
        result.cpu_seconds = time.process_time() - cpu
    for failure in failures:
        raise failure
    return result


def _run(connection: Connection, deadline: float, result: Visit, failures: list[Exception]) -> None:
    latencies = []
    now = time.perf_counter()
    try:
        while now < deadline:
            connection.get()
            then, now = now, time.perf_counter()
            latencies.append(now - then)
    except (OSError, VisitError) as error:
        failures.append(error)
    result.latencies += latencies
