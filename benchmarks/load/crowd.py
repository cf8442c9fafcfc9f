"""Users who click through pages, write now and then, and know what they must see.

As in the demonstration: people click through a few pages, and then read one of them; after a write
the browser is sent on at once to a page that shows it. A visitor of a large population leaves after
a page that was read, and somebody else comes; of a small one, the same people come back again and
again.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from concurrent.futures import Executor, wait
from dataclasses import dataclass, field
from threading import Condition
from typing import NamedTuple

from benchmarks.load.browsers import Jar, Sender
from benchmarks.oracle import Read, Write

THINK_SECONDS = (0.02, 0.08)
READING_SHARE = 0.15
READING_SECONDS = (1.3, 2.2)
LEAVING_SHARE = 0.5
MAX_EXAMPLES = 3


class Habits(NamedTuple):
    """How the users of one case behave.

    Args:
        first: the lowest number of a user; it is the number of the user's row, too.
        users: how many users there are.
        visitors: how many of them are there at any time.
        write_share: the part of the requests that write.
        seed: what lots are drawn from.
        clicking: seconds between two acts of a user who clicks through pages.
        reading_share: the part of the pages that are read for longer.
    """

    first: int
    users: int
    visitors: int
    write_share: float
    seed: int = 1
    clicking: tuple[float, float] = THINK_SECONDS
    reading_share: float = READING_SHARE

    def act_share(self) -> float:
        """Return how many of the acts are writes: each write is followed by a read."""
        return self.write_share / (1 - self.write_share)


@dataclass(slots=True)
class Log:
    """What was done, and what users saw.

    Args:
        events: reads and writes, for the oracle.
        seconds: how long each read took from its arrival at the site to its answer.
        stale_own: reads that lacked something that the user had written.
        stale_seen: reads that lacked something that the user had been shown.
        log_outs: pages that took a user who was signed in for nobody.
        examples: of those, and of errors.
    """

    events: list[Read | Write] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    stale_own: int = 0
    stale_seen: int = 0
    log_outs: int = 0
    errors: int = 0
    examples: list[str] = field(default_factory=list)

    def note(self, example: str) -> None:
        """Keep the first few sentences, for whoever looks for the cause."""
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(example)

    def add(self, other: Log) -> None:
        """Add another log."""
        self.events += other.events
        self.seconds += other.seconds
        self.stale_own += other.stale_own
        self.stale_seen += other.stale_seen
        self.log_outs += other.log_outs
        self.errors += other.errors
        for example in other.examples:
            self.note(example)


class User:
    """One user: a cookie jar, and what they know."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.jar = Jar(number)
        self.written = 1
        self.seen: dict[int, int] = {}


class Crowd:
    """All users of one case; they remember from one call of ``live`` to the next."""

    def __init__(self, sender: Sender, habits: Habits) -> None:
        self._sender = sender
        self._habits = habits
        self._users: dict[int, User] = {}
        self._random = random.Random(habits.seed)
        self._present: set[int] = set()
        self._due: list[tuple[float, int, User]] = []
        self._numbers = itertools.count()
        self._changed = Condition()

    def live(self, seconds: float, threads: int, pool: Executor) -> Log:
        """Let the visitors act for some seconds.

        Args:
            seconds: how long.
            threads: how many requests can be under way.
            pool: so many threads at least. They keep their connections to servers for the next time.
        """
        began = time.monotonic()
        ends = began + seconds
        self._due, self._present = [], set()
        for _ in range(min(self._habits.visitors, self._habits.users)):
            self._schedule(self._newcomer(), began + self._random.uniform(0, 0.3))
        logs = [Log() for _ in range(threads)]
        wait([pool.submit(self._work, ends, log) for log in logs])
        total = Log()
        for log in logs:
            total.add(log)
        return total

    def _newcomer(self) -> User:
        habits = self._habits
        while True:
            number = habits.first + self._random.randrange(habits.users)
            if number not in self._present:
                self._present.add(number)
                return self._users.setdefault(number, User(number))

    def _schedule(self, user: User, moment: float) -> None:
        with self._changed:
            heapq.heappush(self._due, (moment, next(self._numbers), user))
            self._changed.notify()

    def _work(self, ends: float, log: Log) -> None:
        while True:
            user = self._next(ends)
            if user is None:
                return
            try:
                self._act(user, log)
            except Exception as error:  # a visitor is no less curious for it
                log.errors += 1
                log.note(f"{type(error).__name__}: {error}")
            self._rest(user)

    def _next(self, ends: float) -> User | None:
        """Return who is due, after waiting for that; None when the time is over."""
        with self._changed:
            while True:
                now = time.monotonic()
                if now >= ends:
                    return None
                if self._due and self._due[0][0] <= now:
                    return heapq.heappop(self._due)[2]
                until = min(self._due[0][0], ends) if self._due else ends
                self._changed.wait(until - now)

    def _rest(self, user: User) -> None:
        draw = self._random
        if draw.random() >= self._habits.reading_share:
            pause = draw.uniform(*self._habits.clicking)
        else:
            pause = draw.uniform(*READING_SECONDS)
            if draw.random() < LEAVING_SHARE:
                with self._changed:
                    self._present.discard(user.number)
                    user = self._newcomer()
        self._schedule(user, time.monotonic() + pause)

    def _act(self, user: User, log: Log) -> None:
        if self._random.random() < self._habits.act_share():
            self._write(user, log)
        self._read(user, log)

    def _write(self, user: User, log: Log) -> None:
        answer = self._sender.send(user.jar, "POST", f"/write/?row={user.number}")
        # Whatever stands at the position or before it has only what came before the commit.
        position, transaction = answer["position"] + 1, answer["transaction"]
        log.events.append(Write(user.number, time.monotonic(), position, transaction))
        user.written += 1

    def _read(self, user: User, log: Log) -> None:
        habits = self._habits
        other = habits.first + self._random.randrange(habits.users)
        path = f"/read/?rows={user.number},{other}"
        answer = self._sender.send(user.jar, "GET", path)
        log.events.append(Read(user.number, answer["asked"], answer["alias"], answer["reason"]))
        log.seconds.append(answer["answered"] - answer["asked"])
        versions = {int(row): version for row, version in answer["versions"].items()}
        _check(user, versions, answer, log)


def _check(user: User, versions: dict[int, int], answer: dict[str, object], log: Log) -> None:
    shown = versions.get(user.number, 0)
    if shown < user.written:
        log.stale_own += 1
        log.note(f"version {shown} of own row, after {user.written} was acknowledged: {answer}")
    elif any(version < user.seen.get(row, 0) for row, version in versions.items()):
        log.stale_seen += 1
        log.note(f"{versions} after { ({row: user.seen.get(row) for row in versions}) }: {answer}")
    for row, version in versions.items():
        user.seen[row] = max(version, user.seen.get(row, 0))
