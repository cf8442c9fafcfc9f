"""HTTP for the visitors: connections that are kept, one cookie jar a device, answers as operations."""

from __future__ import annotations

import http.client
import json
import math
import select
import threading
import time
from collections.abc import Iterable, Sequence
from http.cookies import SimpleCookie
from random import Random
from typing import Any, NamedTuple

from tests.torture.history import SlowRead

TIMEOUT_SECONDS = 30.0
"""With the cache away a response may be held back for 2 s, while four tabs wait for each thread of the site:
so a request may stand in line for long. How long reads take is measured where they are done."""
SESSION_COOKIE = "sessionid"
CONNECTIONS = 2


class Cookie(NamedTuple):
    """A cookie as an answer sets it.

    Args:
        name: its name.
        value: as it is to be sent back.
        expires: ``time.monotonic()`` from when it is sent no more.
    """

    name: str
    value: str
    expires: float = math.inf


class Answer(NamedTuple):
    """An answer, or status 0 and what went wrong in its place."""

    start: float
    end: float
    status: int
    values: dict[str, Any]
    aliases: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    worker: int = 0
    cookies: tuple[Cookie, ...] = ()
    slow_reads: tuple[SlowRead, ...] = ()
    problem: str = ""


class Jar:
    """The cookies of one device, shared by its tabs: the answer that comes last wins.

    The session cookie changes with a sign-in or sign-out alone. A browser would also let an answer
    that is late take the cookie of a newer session away; who then is signed in would say nothing
    about the site.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cookies: dict[str, Cookie] = {}
        self._session = ""

    @property
    def session(self) -> str:
        """Return the name of the present session, or nothing."""
        return self._session

    def open(self) -> tuple[str, str]:
        """Return the name of the present session, and the cookies as a request sends them."""
        now = time.monotonic()
        with self._lock:
            valid = [cookie for cookie in self._cookies.values() if cookie.expires > now]
            return self._session, "; ".join(f"{name}={value}" for name, value, _ in valid)

    def take(self, answer: Answer) -> None:
        """Keep what an answer has set, the session cookie apart."""
        with self._lock:
            self._take(cookie for cookie in answer.cookies if cookie.name != SESSION_COOKIE)

    def begin_session(self, answer: Answer, name: str) -> None:
        """Keep what the answer to a sign-in has set, and call its session by a name."""
        with self._lock:
            self._take(answer.cookies)
            self._session = name

    def end_session(self) -> None:
        """Be nobody."""
        with self._lock:
            self._cookies.pop(SESSION_COOKIE, None)
            self._session = ""

    def _take(self, cookies: Iterable[Cookie]) -> None:
        self._cookies.update((cookie.name, cookie) for cookie in cookies)


class Client:
    """One thread's connections to the site, kept open.

    It is ``http.client`` and not httpx: that takes three times the processor's time, of which the
    servers have none to spare. Several connections, each to whichever worker has taken it, so that
    one tab meets several processes.

    Args:
        port: of the site.
        random: chooses the connection.
    """

    def __init__(self, port: int, random: Random) -> None:
        self._port = port
        self._random = random
        self._connections: list[http.client.HTTPConnection | None] = [None] * CONNECTIONS

    def close(self) -> None:
        """Close the connections."""
        for place in range(CONNECTIONS):
            self._discard(place)

    def _discard(self, place: int) -> None:
        connection, self._connections[place] = self._connections[place], None
        if connection is not None:
            connection.close()

    def send(self, method: str, path: str, cookies: str) -> Answer:
        """Send a request, and never raise what the network or the site does wrong."""
        place = self._random.randrange(CONNECTIONS)
        start = time.monotonic()
        try:
            connection = self._connections[place]
            if connection is not None and _has_ended(connection):
                self._discard(place)
                connection = None
            if connection is None:
                connection = http.client.HTTPConnection(
                    "127.0.0.1", self._port, timeout=TIMEOUT_SECONDS
                )
                self._connections[place] = connection
            headers = {"Cookie": cookies} if cookies else {}
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            body = response.read()
            end = time.monotonic()
            if response.will_close:
                self._discard(place)
        except (OSError, http.client.HTTPException) as error:
            self._discard(place)
            return Answer(start, time.monotonic(), 0, {}, problem=repr(error))
        return _read(start, end, response, body)


def _has_ended(connection: http.client.HTTPConnection) -> bool:
    """Tell whether the server has closed a connection at rest, on which nothing is expected."""
    if connection.sock is None:
        return True
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _read(start: float, end: float, response: http.client.HTTPResponse, body: bytes) -> Answer:
    values: dict[str, Any] = {}
    problem = ""
    if response.getheader("Content-Type") == "application/json":
        values = json.loads(body)
    else:
        problem = body[:2000].decode(errors="replace")
    return Answer(
        start,
        end,
        response.status,
        values,
        _split(response.getheader("X-Aliases")),
        _split(response.getheader("X-Reasons")),
        int(response.getheader("X-Worker") or "0"),
        _cookies(response.headers.get_all("Set-Cookie") or ()),
        _slow_reads(response.getheader("X-Slow-Reads")),
        problem,
    )


def _split(header: str | None) -> tuple[str, ...]:
    return tuple(header.split(",")) if header else ()


def _slow_reads(header: str | None) -> tuple[SlowRead, ...]:
    found = json.loads(header or "[]")
    return tuple(SlowRead(start, end, tuple(map(tuple, stalls))) for start, end, stalls in found)


def _cookies(headers: Sequence[str]) -> tuple[Cookie, ...]:
    found: list[Cookie] = []
    for header in headers:
        parsed: SimpleCookie = SimpleCookie(header)
        for name, morsel in parsed.items():
            # A browser goes by Max-Age, which Django sends wherever a cookie ends; deleting one is
            # a Max-Age of 0.
            age = morsel["max-age"]
            expires = time.monotonic() + float(age) if age != "" else math.inf
            found.append(Cookie(name, morsel.coded_value, expires))
    return tuple(found)
