"""One process of clients. Each has connections of its own, and reads back what it has written."""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import django
from django.db import connections

django.setup()

from django_replica_router import get_stats, scope  # noqa: E402 - after Django's settings
from django_replica_router.policy import Reason  # noqa: E402
from testproject.notes.models import Tag  # noqa: E402

ALIASES = ("default", "replica1")
THREADS = 16


class Clients:
    """The clients of one thread, which acts for one after the other.

    Django keeps connections by thread, and ten thousand threads would measure the interpreter. So
    the thread puts the connections of the client in their place before it acts for it.

    Args:
        numbers: of the clients; each has the row of that number.
        counts: what has happened.
    """

    def __init__(self, numbers: Sequence[int], counts: Counter[str]) -> None:
        self._numbers = numbers
        self._counts = counts
        self._wrappers: dict[int, dict[str, Any]] = {}

    def each(self, act: Callable[[int], None]) -> None:
        """Act for every client, and count what goes wrong."""
        for number in self._numbers:
            wrappers = self._wrappers.get(number)
            if wrappers is None:
                wrappers = {alias: connections.create_connection(alias) for alias in ALIASES}
                self._wrappers[number] = wrappers
            for alias, wrapper in wrappers.items():
                connections[alias] = wrapper
            try:
                act(number)
            except Exception as error:
                self._counts["errors"] += 1
                self._counts[f"error {type(error).__name__}: {error}"] += 1

    def connect(self, number: int) -> None:
        """Open both connections, as the first requests of the client do, and leave them open."""
        connections["default"].ensure_connection()
        with scope(user=number):
            Tag.objects.get(pk=number)
        if connections["replica1"].connection is None:
            connections["replica1"].ensure_connection()

    def write_and_read_back(self, number: int) -> None:
        """Write a value of the client's own, and read it in the next request."""
        value = f"{number}-{self._counts['rounds']}-written"
        with scope(user=number):
            Tag.objects.filter(pk=number).update(name=value)
        with scope(user=number):
            tag = Tag.objects.get(pk=number)
        self._counts["reads"] += 1
        self._counts[f"reads by {'primary' if tag._state.db == 'default' else 'replica'}"] += 1
        if tag.name != value:
            self._counts["stale"] += 1

    def count_open(self) -> None:
        """Count the connections that stand."""
        for wrappers in self._wrappers.values():
            for wrapper in wrappers.values():
                is_open = wrapper.connection is not None and not wrapper.connection.closed
                self._counts["open"] += is_open


def main() -> None:
    """Do what standard input says, a word a line, and answer each with what was counted."""
    first, count = int(sys.argv[1]), int(sys.argv[2])
    counts: Counter[str] = Counter()
    # Of the thread's own, so that nothing is lost between two threads.
    shares = [Counter[str]() for _ in range(THREADS)]
    barrier = threading.Barrier(THREADS + 1)
    steps: list[str] = [""]

    def work(index: int) -> None:
        clients = Clients(range(first + index, first + count, THREADS), shares[index])
        while True:
            barrier.wait()
            if steps[0] == "connect":
                clients.each(clients.connect)
                clients.count_open()
            elif steps[0] == "work":
                clients.each(clients.write_and_read_back)
                shares[index]["rounds"] += 1
            barrier.wait()

    for index in range(THREADS):
        threading.Thread(target=work, args=(index,), daemon=True).start()
    for line in sys.stdin:
        steps[0] = json.loads(line)
        barrier.wait()
        barrier.wait()
        counts = sum(shares, Counter[str]())
        names = {f"reads_{reason.name.lower()}" for reason in Reason}
        stats = {name: n for name, n in get_stats().items() if name in names or "retried" in name}
        sys.stdout.write(json.dumps({"counts": counts, "stats": stats}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
