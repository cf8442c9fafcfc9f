"""Clients that ask as fast as they are answered, or at a steady pace, from a process of their own."""

from __future__ import annotations

import itertools
import random
import threading
import time
from typing import Any, NamedTuple, Self

from benchmarks.load.browsers import AnswerError, Http, Jar
from benchmarks.load.processes import PipedProcess

ERROR = "error"


class Loop(NamedTuple):
    """What clients do.

    Args:
        url: the site.
        clients: how many ask at the same time.
        pause: seconds that each rests after an answer.
        users: how many users there are; each request is of one drawn anew.
        write_share: the part of the requests that write.
        read_path: what is read; the user's number is appended.
        write_path: what is written to; the user's number is appended.
        seed: what lots are drawn from.
    """

    url: str
    clients: int
    pause: float
    users: int
    write_share: float
    read_path: str
    write_path: str
    seed: int = 1


class Request(NamedTuple):
    """One request. Moments are those of the machine's monotonic clock."""

    began: float
    ended: float
    alias: str
    is_read: bool
    error: str = ""


class Clients(PipedProcess):
    """Clients that are at it for the length of a block."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(_run, loop)

    def __enter__(self) -> Self:
        super().__enter__()
        self._pipe.recv()  # they have begun
        return self

    def requests(self) -> list[Request]:
        """Return all requests that were answered so far."""
        self._pipe.send("requests")
        return [Request(*item) for item in self._pipe.recv()]


def _run(pipe: Any, loop: Loop) -> None:
    done: list[tuple[Any, ...]] = []
    http = Http(loop.url)
    jars = [Jar(user) for user in range(loop.users)]
    numbers = itertools.count()
    for _ in range(loop.clients):
        draw = random.Random(f"{loop.seed} {next(numbers)}")
        threading.Thread(target=_ask, args=(loop, http, jars, draw, done), daemon=True).start()
    pipe.send("begun")
    while True:
        try:
            pipe.recv()
            pipe.send([tuple(item) for item in list(done)])
        except (EOFError, OSError, KeyboardInterrupt):
            return


def _ask(
    loop: Loop, http: Http, jars: list[Jar], draw: random.Random, done: list[tuple[Any, ...]]
) -> None:
    time.sleep(draw.uniform(0.0, loop.pause))
    while True:
        user = draw.randrange(loop.users)
        is_read = draw.random() >= loop.write_share
        done.append(_request(loop, http, jars[user], user, is_read=is_read))
        if loop.pause:
            time.sleep(loop.pause * draw.uniform(0.8, 1.2))


def _request(loop: Loop, http: Http, jar: Jar, user: int, *, is_read: bool) -> Request:
    method, path = ("GET", loop.read_path) if is_read else ("POST", loop.write_path)
    began = time.monotonic()
    try:
        alias = http.send(jar, method, f"{path}{user}")["alias"]
    except (OSError, AnswerError) as error:
        return Request(began, time.monotonic(), ERROR, is_read, f"{error}"[:300])
    return Request(began, time.monotonic(), alias, is_read)
