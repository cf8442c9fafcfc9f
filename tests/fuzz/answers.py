"""What a server answers: NULL, other types, other widths, numbers beyond all bounds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any

from psycopg import pq

from django_replica_router.errors import PositionError
from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.readings import Sample
from django_replica_router.sql import answering, standby, wal
from django_replica_router.values.tokens import Position
from tests.fuzz.surface import Surface, Tally, require

SYSTEM = "7000000000000000001"
PRIMARY_LIFE = ("1750000000.5", "127.0.0.1/32", 5432)
LIFE = ("1750000001.5", "127.0.0.1/32", 5433)
PID = 4711
TIMELINE, LSN = 3, 0x1600000100
FAR = (1 << 64) - 1

GENUINE: dict[str, tuple[Any, ...]] = {
    "token": ("16/100", "000000030000001600000000", 16 * 1024 * 1024),
    "sample": ("16/100", "000000030000001600000000"),
    "replica": (True, "16/100", *LIFE),
    "examination": ("not paused", 0.0, True, 3, 3),
    "identity": (SYSTEM, True, PID, *LIFE),
    "answerer": (True, PID, *LIFE),
}
ASK: dict[str, Callable[[Any], Any]] = {
    "token": wal.read_token,
    "sample": wal.sample_primary,
    "replica": lambda connection: standby.ask_replica(connection),
    "examination": lambda connection: standby.examine_replica(connection),
    "identity": answering.identify,
    "answerer": lambda connection: answering.read_answerer(connection.execute("SELECT")),
}
_WAL_FILE = re.compile("[0-9A-F]{24}", re.ASCII)


class Answering:
    """A connection whose server gives the answers that it is told to.

    Args:
        rows: for each question a part of its text, and the row that answers it.
    """

    closed = False

    def __init__(self, rows: dict[str, Any]) -> None:
        self._rows = rows
        self._row: Any = None
        self.info = SimpleNamespace(
            transaction_status=pq.TransactionStatus.IDLE,
            backend_pid=PID,
            hostaddr="127.0.0.1",
            port=5432,
            get_parameters=lambda: {"host": "127.0.0.1"},
        )

    def execute(self, sql: str, **options: Any) -> Answering:
        """Look up the answer."""
        self._row = next(row for part, row in self._rows.items() if part in sql)
        return self

    def fetchone(self) -> Any:
        """Return the answer."""
        return self._row

    def nextset(self) -> None:
        """There is no other answer."""


def is_count(value: Any) -> bool:
    """Tell whether a value is a whole number from 0, as PostgreSQL's are."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_lsn(value: Any) -> bool:
    """Tell whether a value is a position as PostgreSQL writes it, by another way than the package."""
    if not isinstance(value, str) or value.count("/") != 1:
        return False
    digits = frozenset("0123456789abcdefABCDEF")
    return all(1 <= len(half) <= 8 and set(half) <= digits for half in value.split("/"))


def is_wal_file(value: Any) -> bool:
    """Tell whether a value is the name of a WAL file; there is no timeline 0."""
    return isinstance(value, str) and bool(_WAL_FILE.fullmatch(value)) and value[:8] != "0" * 8


def is_life(values: tuple[Any, ...]) -> bool:
    """Tell whether values are a start time, and perhaps an address and a port."""
    start, address, port = values
    is_address = address is None or isinstance(address, str)
    return isinstance(start, str) and is_address and (port is None or is_count(port))


def is_right(kind: str, row: Any) -> bool:
    """Tell whether a row answers the question of a kind."""
    if not isinstance(row, tuple) or len(row) != len(GENUINE[kind]):
        return False
    if kind in {"token", "sample"}:
        size = row[2] if kind == "token" else 1 << 24
        is_size = is_count(size) and size >= postgres_page()
        return is_lsn(row[0]) and is_wal_file(row[1]) and is_size
    if kind == "replica":
        is_position = row[1] is None or is_lsn(row[1])
        return isinstance(row[0], bool) and is_position and is_life(row[2:])
    if kind == "examination":
        state, delay, has_receiver, *timelines = row
        return (
            (state is None or isinstance(state, str))
            and isinstance(delay, float)
            and math.isfinite(delay)
            and delay >= 0
            and isinstance(has_receiver, bool)
            and all(value is None or is_count(value) for value in timelines)
        )
    if kind == "answerer":
        return isinstance(row[0], bool) and is_count(row[1]) and is_life(row[2:])
    system, in_recovery, pid, *life = row
    is_known = isinstance(system, str) and isinstance(in_recovery, bool) and is_count(pid)
    return is_known and is_life(tuple(life))


def postgres_page() -> int:
    """Return the size of a WAL page: a segment has one at least."""
    return 8192


def check(kind: str, row: Any) -> None:
    """Require that a row is understood where it is an answer, and refused where it is not."""
    try:
        found = ASK[kind](Answering({"": row}))
    except PositionError:
        require(not is_right(kind, row), "is refused")
        return
    require(is_right(kind, row), f"is understood as {found}")
    if isinstance(found, Position):
        require(0 < found.timeline < 1 << 32 and 0 <= found.lsn < 1 << 64, f"gives {found}")
    if kind == "replica":
        require(found.in_recovery is (row[0] is True), f"gives {found}")


class Answers(Surface):
    """Understanding a server's answers, and what the monitor makes of them."""

    name = "answers"
    what = "what PostgreSQL answers, names of WAL files"
    share = 0.17

    def __init__(self, random: Random, tally: Tally) -> None:
        super().__init__(random, tally)
        self.now = 1000.0

    def case(self) -> None:
        """Ask one question, or let the monitor look at a replica."""
        if self.draw.chance(0.15):
            self.tally.kinds["looks of the monitor"] += 1
            self._look()
            return
        kind = self.random.choice(list(GENUINE))
        self.tally.kinds[kind] += 1
        row = self._row(kind)
        self.present = (kind, row)
        check(kind, row)

    def _row(self, kind: str) -> Any:
        draw, random = self.draw, self.random
        genuine = GENUINE[kind]
        way = random.randrange(20)
        if way == 0:
            return None
        if way == 1:
            return tuple(draw.value() for _ in range(random.randrange(8)))
        if way == 2:
            return genuine[: random.randrange(len(genuine))] or ("",)
        if way == 3:
            return (*genuine, draw.value())
        if way == 4:
            return genuine
        row = list(genuine)
        for _ in range(random.choice((1, 1, 2))):
            place = random.randrange(len(row))
            old = row[place]
            is_text = isinstance(old, str) and draw.chance(0.6)
            row[place] = draw.changed(old) if is_text else draw.value()
        return tuple(row)

    def _look(self) -> None:
        """Require that only who answers as a healthy standby does is taken for one."""
        monitor = Monitor("default", ["r1"], 1.0, clock=lambda: self.now)
        monitor.known.primary_looks.identity = answering.ServerIdentity(SYSTEM, PRIMARY_LIFE)
        monitor.answers.publish_sample(Sample(self.now, Position(TIMELINE, LSN)))
        poller = monitor._pollers["r1"]
        replica, examination = self._row("replica"), self._row("examination")
        identity = self._row("identity") if self.draw.chance(0.3) else GENUINE["identity"]
        self.present = (replica, examination, identity)
        try:
            poller.looks.identity = answering.identify(Answering({"": identity}))  # type: ignore[arg-type]
            connection: Any = Answering(
                {
                    "system_identifier": identity,  # asked again where the life is another
                    "pg_last_wal_replay_lsn": replica,
                    "recovery_min_apply_delay": examination,
                }
            )
            poller.look(connection)
        except PositionError as error:
            poller.failed(error)
        known = monitor.health.replicas()[0]
        if known.state is not ReplicaState.STREAMING:
            require(known.watermark == -1, "a watermark is kept of who does not serve")
            return
        self.tally.kinds["taken for healthy"] += 1
        is_healthy = (
            is_right("replica", replica)
            and is_right("examination", examination)
            and replica[0] is True
            and replica[1] is not None
            and (examination[3] or examination[4]) == TIMELINE
            and identity[0] == SYSTEM
        )
        require(is_healthy, f"is taken for {known}")
