"""Which servers are known behind an alias, and when others are looked for: values only."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sized
from types import SimpleNamespace
from typing import Any

import pytest

from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.endpoints import Scout, may_lead_elsewhere
from django_replica_router.replicas.inflight import InFlight, Waiter, in_flight
from django_replica_router.replicas.known import Known
from django_replica_router.replicas.looks import MAX_CONNECTION_AGE
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.pollers import Poller
from django_replica_router.replicas.registry import stop_monitors
from django_replica_router.sql import answering, opening
from django_replica_router.sql.answering import Answerer, ServerIdentity
from django_replica_router.values.servers import Servers

ONE = ("1", "10.0.0.2/32", 5432)
TWO = ("2", "10.0.0.3/32", 5432)


@pytest.fixture(autouse=True)
def no_real_monitor() -> None:
    """Stop the monitor of real servers that another test has started: it would take the connections."""
    stop_monitors()


def test_a_further_server_has_a_key_of_its_own() -> None:
    """By it goes what is known of that server; the first one goes by the alias."""
    servers = Servers()
    assert servers.keys("r") == ("r",)
    key = servers.add("r", TWO)
    assert servers.keys("r") == ("r", key)
    assert servers.key("r", TWO) == key
    assert servers.key("r", ONE) is None
    assert servers.key("s", TWO) is None
    assert (servers.alias_of(key), servers.alias_of("r")) == ("r", "r")


def test_a_key_is_not_used_again() -> None:
    """What is said of one server is not said of the next."""
    servers = Servers()
    key = servers.add("r", TWO)
    servers.remove(key)
    assert servers.keys("r") == ("r",)
    assert servers.add("r", TWO) != key


def test_a_server_is_asked_all_until_it_has_told() -> None:
    """However many others answer meanwhile; those that never answer again are given up."""
    servers = Servers()
    servers.wonder("r", ONE)
    servers.has_told("r", TWO)
    assert servers.is_curious("r")
    servers.has_told("r", ONE)
    assert not servers.is_curious("r")
    for number in range(100):
        servers.wonder("r", (str(number), None, None))
    assert len(servers._curious["r"]) < 10


def connection(host: str, address: str, port: int = 5432, **given: str) -> Any:
    """Return what a driver's connection tells of how it was opened."""
    info = SimpleNamespace(
        hostaddr=address, port=port, get_parameters=lambda: {"host": host, **given}
    )
    return SimpleNamespace(info=info)


@pytest.mark.parametrize(
    ("opened", "life", "expected"),
    [
        (connection("10.0.0.2", "10.0.0.2"), ONE, False),
        (connection("10.0.0.9", "10.0.0.9"), ONE, True),  # a proxy, or a service
        (connection("10.0.0.2", "10.0.0.2", 6432), ONE, True),
        (connection("one.internal", "10.0.0.2"), ONE, False),
        (connection("both.internal", "10.0.0.2"), ONE, True),
        (connection("both.internal", "10.0.0.2", hostaddr="10.0.0.2"), ONE, False),
        (connection("gone.internal", "10.0.0.2"), ONE, True),
        (connection("10.0.0.2,10.0.0.3", "10.0.0.2"), ONE, True),
        (connection("/run/postgresql", ""), ("1", None, None), False),
        (connection("10.0.0.9", "10.0.0.9"), ("1", None, None), True),
    ],
)
def test_others_are_looked_for_where_there_may_be_some(
    monkeypatch: pytest.MonkeyPatch, opened: Any, life: Any, expected: bool
) -> None:
    """Not where the server itself is connected to, by the only address there is."""

    def getaddrinfo(host: str, port: int) -> list[Any]:
        found = {"one.internal": ["10.0.0.2"], "both.internal": ["10.0.0.2", "10.0.0.3"]}
        if host.endswith(".internal") and host not in found:
            raise socket.gaierror
        return [(0, 0, 0, "", (address, port)) for address in found.get(host, [host])]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert may_lead_elsewhere(opened, ServerIdentity("1", life)) is expected


def test_a_pooler_may_lead_anywhere() -> None:
    """Whatever its address; and of what is not known nothing is said."""
    pooled = ServerIdentity("1", ONE, is_pooled=True)
    assert may_lead_elsewhere(connection("10.0.0.2", "10.0.0.2"), pooled)
    assert not may_lead_elsewhere(None, None)


class Line:
    """A connection that remembers whether it was closed."""

    def __init__(self, life: Any) -> None:
        self.life = life
        self.autocommit = True
        self.is_closed = False
        self.is_in_transaction = True

    @property
    def closed(self) -> bool:
        """Whether it was closed, as the driver calls it."""
        return self.is_closed

    def rollback(self) -> None:
        """End the transaction."""
        self.is_in_transaction = False

    def close(self) -> None:
        """Be closed."""
        self.is_closed = True


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    """The connections that a scout opens: to one server and another in turn."""
    opened: list[Line] = []

    def connect(alias: str, timeout: float) -> Line:
        opened.append(Line((ONE, TWO)[len(opened) % 2]))
        return opened[-1]

    monkeypatch.setattr(opening, "connect", connect)
    monkeypatch.setattr(answering, "identify", lambda line: ServerIdentity("1", line.life))
    return opened


def test_a_scout_stops_when_it_meets_nobody_new(lines: list[Line]) -> None:
    """It keeps a connection to each server that is new, and closes the others."""
    scout = Scout("r", [ONE], 3)
    scout.run()
    assert [line.life for line in lines] == [ONE, TWO, ONE, TWO, ONE]
    met = scout.take()
    assert [identity.life for _, identity in met] == [TWO]
    assert [line.is_closed for line in lines] == [True, False, True, True, True]
    assert not any(line.is_in_transaction for line in lines)
    assert lines[1].autocommit
    assert scout.take() == []


def test_a_scout_that_is_given_up_keeps_nothing(
    lines: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its monitor is stopped meanwhile, or before it was asked what it has met."""
    scout = Scout("r", [], 3)
    identify = answering.identify

    def identify_and_give_up(line: Any) -> ServerIdentity:
        assert scout.take() == []
        return identify(line)

    with monkeypatch.context() as patch:
        patch.setattr(answering, "identify", identify_and_give_up)
        scout.run()
    assert [line.is_closed for line in lines] == [True]
    late = Scout("r", [], 3)
    late.run()
    late.discard()
    assert all(line.is_closed for line in lines)


def test_a_scout_that_fails_keeps_what_it_has_met(
    lines: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One server that cannot be reached hides no other."""
    scout = Scout("r", [], 3)
    connect = opening.connect

    def connect_twice(alias: str, timeout: float) -> Any:
        if len(lines) == 2:
            raise OSError("unreachable")
        return connect(alias, timeout)

    monkeypatch.setattr(opening, "connect", connect_twice)
    scout.run()
    assert [identity.life for _, identity in scout.take()] == [ONE, TWO]


# Servers that come and go --------------------------------------------------------------------------


class Endpoint:
    """A monitor of one alias, by hand and on a clock of its own: its threads are never started."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.monitor = Monitor("default", ["r"], 1.0, clock=lambda: self.now)
        self.poller = self.monitor._pollers["r"]

    def answer(self, number: int) -> None:
        """Let one of many servers answer a statement that a pooler has led to it."""
        life = (str(number), "10.0.0.2/32", 5432)
        self.monitor.servers.wonder("r", life)
        self.monitor.answers.publish_answer("r", Answerer(life, True, 1, 5, "1", 1), self.now)

    def meet(self, number: int) -> Line:
        """Let one of many servers be looked at, by a connection that has ended meanwhile."""
        line = Line((str(number), "10.0.0.2/32", 5432))
        line.is_closed = True
        self.poller.adopt(line, ServerIdentity("1", line.life))  # type: ignore[arg-type]
        for companion in self.poller.all()[1:]:
            companion.join()
        return line

    def sizes(self) -> dict[str, int]:
        """Return how much is in each of the collections of what is known."""
        known = self.monitor.known
        held: list[Any] = [known, known.servers, known.history, known.breaker, self.poller]
        return {
            f"{type(one).__name__}.{name}": len(value)
            for one in held
            for name, value in vars(one).items()
            if isinstance(value, Sized)
        }


@pytest.fixture
def counted() -> Endpoint:
    """An endpoint whose collections can be counted."""
    return Endpoint()


def let_many_come_and_go(counted: Endpoint, times: int) -> None:
    """Let servers be met, and lost, again and again."""
    counted.monitor.known.note_endpoint("r", is_led=True)
    for number in range(times):
        counted.answer(number)
        counted.now += MAX_CONNECTION_AGE / 4
    counted.monitor.servers.led = frozenset()
    for number in range(times, 2 * times):
        counted.meet(number)
        counted.now += 1.0


def test_nothing_grows_where_servers_come_and_go(counted: Endpoint) -> None:
    """A process that runs for a year has met thousands behind one endpoint."""
    let_many_come_and_go(counted, 100)
    before = counted.sizes()
    let_many_come_and_go(counted, 100)
    assert counted.sizes() == before
    assert before["Known.readings"] <= 8


def test_what_is_never_removed_grows(counted: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    monkeypatch.setattr(Known, "remove", lambda self, key: None)
    let_many_come_and_go(counted, 100)
    assert counted.sizes()["Known.readings"] > 100


def test_who_waits_for_a_server_that_was_dropped_is_not_kept(
    counted: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at no more: that it hangs is not found out by a look."""
    ended: list[str] = []
    monkeypatch.setattr(in_flight, "end", lambda key, patience: ended.append(key) or 0)
    watcher, is_over = counted.monitor._watcher, iter([False, True])
    monkeypatch.setattr(watcher._ended, "wait", lambda seconds: next(is_over))
    counted.meet(1)
    watcher.run()
    assert ended == ["r #2"]


def test_an_alias_that_leaves_takes_its_servers_along(counted: Endpoint) -> None:
    """Whoever looks at one of them yet may have something to tell of it, and is not heard."""
    monitor = counted.monitor
    empty = Monitor("default", [], 1.0)
    counted.answer(1)
    counted.answer(2)
    monitor.known.note_endpoint("r", is_led=True)
    assert len(monitor.known.readings) == 3
    poller = monitor.remove("r")
    counted.answer(3)
    line = counted.meet(4)
    monitor.known.note_endpoint("r", is_led=True)
    assert monitor.servers.key("r", ONE) is None
    assert monitor.servers.life("r") is None
    assert monitor.health.replica("r", ONE).state is ReplicaState.UNKNOWN
    monitor.servers._curious.clear()  # who wonders lately is asked nothing any more
    assert monitor.known.readings == {}
    assert (monitor._pollers, monitor.known.looks) == ({}, {})
    for name, value in vars(empty.servers).items():
        if name != "_numbers":
            assert getattr(monitor.servers, name) == value, name
    assert line.is_closed
    assert isinstance(poller, Poller)
    assert poller.is_over


def test_who_has_left_long_ago_is_forgotten() -> None:
    """That a server has answered is kept of as many as there may be at a time."""
    waiting = InFlight()
    for number in range(1000):
        waiting.ask(Waiter(), f"r #{number}", None, lambda: None)
    assert 2 < len(waiting._answered_at) < 500
    assert "r #999" in waiting._answered_at
    assert sys.getsizeof(waiting._waiting) < 100_000
