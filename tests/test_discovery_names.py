"""The name that leads to servers, and monotonic reads while they change."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.http import HttpRequest
from django.test import Client

from django_replica_router.conf import get_config
from django_replica_router.replicas import ending, lookups
from django_replica_router.replicas.discovery import Discoverer, alias_of, entries_for
from django_replica_router.replicas.lookups import MOST, Server, look_up
from django_replica_router.routing import choosing
from django_replica_router.routing.balancers import order_for
from testproject.cluster import Cluster, ReplicaServer
from testproject.notes.models import Note
from tests.conftest import TIMEOUT, wait_until, wait_until_known
from tests.discovered import (  # noqa: F401 - fixtures
    A2,
    A3,
    SECOND,
    THIRD,
    Discover,
    _standbys,
    discover,
    names,
    readers_of,
    rounds,
    serving,
    standbys,
    template,
    the_monitor,
    wait_until_serving,
    where,
)
from tests.dnsmasq import NAME, Dnsmasq
from tests.site import sign_in, visit

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = [
    pytest.mark.usefixtures("test_site"),
    pytest.mark.not_pooled("the servers that are found are reached themselves"),
]

LONG = {"MAX_LAG": 100.0, "TOKEN_TTL": 200.0, "INTERVAL": 0.5, "MONOTONIC_SHARE": 1.0}
"""Settings under which a replica that is paused may serve for the length of a test, and nobody yields."""


# Monotonic reads


@pytest.fixture
def title(ann: User) -> Callable[[HttpRequest], str]:
    """Return a view that shows the one note to somebody who is signed in."""
    Note.objects.create(owner=ann, title="old")

    def view(request: HttpRequest) -> str:
        assert request.user.is_authenticated
        return Note.objects.get().title

    return view


@pytest.fixture
def see_after_one_appears(
    discover: Discover,
    names: Dnsmasq,
    cluster: Cluster,
    standbys: list[ReplicaServer],
    title: Callable[[HttpRequest], str],
) -> Callable[[], str]:
    """Return what a reader of the new one sees who was, a moment ago, where nobody knows of it yet."""

    def see() -> str:
        names.lead(SECOND)
        discover(**LONG)
        wait_until_serving(A2)
        client = sign_in(readers_of(A3, A2, A3)[0])
        names.lead(SECOND, THIRD)
        wait_until_serving(A2, A3)
        wait_until_known(cluster)
        replace_unseen(cluster, standbys)
        with pytest.MonkeyPatch.context() as patch:  # another process
            patch.setattr(choosing, "order_for", lambda *args: order_for(*args[:3], {A2: 1.0}))
            assert visit(client, title) == "new"
        return str(visit(client, title))

    return see


@pytest.fixture
def see_after_one_vanishes(
    discover: Discover,
    names: Dnsmasq,
    cluster: Cluster,
    standbys: list[ReplicaServer],
    title: Callable[[HttpRequest], str],
) -> Callable[[], str]:
    """Return what its reader sees on the one that is left, which lags."""

    def see() -> str:
        names.lead(SECOND, THIRD)
        discover(**LONG)
        wait_until_serving(A2, A3)
        client = sign_in(readers_of(A2, A2, A3)[0])
        wait_until_known(cluster)
        assert visit(client, title) == "old"
        replace_unseen(cluster, standbys)
        assert visit(client, title) == "new"
        names.lead(THIRD)
        wait_until_serving(A3)
        return str(visit(client, title))

    return see


def replace_unseen(cluster: Cluster, standbys: list[ReplicaServer]) -> None:
    """Change the note for nobody whom the package knows, and on the first standby alone."""
    standbys[1].pause()
    cluster.primary.execute("UPDATE notes_note SET title = 'new'", dbname="app")
    standbys[0].wait_replayed(cluster.primary.flush())


CHANGES = ["see_after_one_appears", "see_after_one_vanishes"]


@pytest.mark.parametrize("change", CHANGES)
def test_who_is_given_another_replica_sees_no_less(
    change: str, request: pytest.FixtureRequest
) -> None:
    """What the replica of before has shown is recorded nowhere."""
    assert request.getfixturevalue(change)() == "new"


@pytest.mark.parametrize("change", CHANGES)
def test_control_of_being_given_another_replica(
    change: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the rule the reader goes back in time."""
    monkeypatch.setattr(choosing, "_is_moved", lambda *args: False)
    assert request.getfixturevalue(change)() == "old"


def test_the_new_replica_is_as_good_as_any_once_all_know_of_it(
    discover: Discover,
    names: Dnsmasq,
    cluster: Cluster,
    standbys: list[ReplicaServer],
    title: Callable[[HttpRequest], str],
) -> None:
    """Afterwards its readers stay with it also while it lags."""
    names.lead(SECOND)
    discover(**LONG)
    wait_until_serving(A2)
    client = sign_in(readers_of(A3, A2, A3)[0])
    wait_until_known(cluster)
    names.lead(SECOND, THIRD)
    wait_until_serving(A2, A3)
    wait_until_known(cluster)
    replace_unseen(cluster, standbys)
    settling: Any = get_config().topology.settling
    assert settling["default"].before == {A2: 1.0}
    settling["default"] = settling["default"]._replace(until=0.0)
    assert visit(client, title) == "old"


# The name


TROUBLES: dict[str, Callable[[Dnsmasq], None]] = {
    "it is not known": lambda names: names.lead(name="other.test"),
    "it has no address": lambda names: names.lead(),
    "its name server is down": lambda names: names.stop(),
    "its name server hangs": lambda names: names.suspend(),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_name_that_cannot_be_resolved_changes_nothing(
    discover: Discover,
    names: Dnsmasq,
    cluster: Cluster,
    rounds: Callable[[int], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
) -> None:
    """It is logged once, and once more when it can be again."""
    monkeypatch.setattr(lookups, "_LIFETIME", 0.3)
    caplog.set_level(logging.INFO, "django_replica_router")
    names.lead(SECOND)
    discover()
    wait_until_serving(A2)
    wait_until_known(cluster)
    names.lead(SECOND)
    rounds(2)
    caplog.clear()
    TROUBLES[trouble](names)
    wait_until(lambda: "cannot be resolved" in caplog.text, "it to be told")
    rounds(2)
    assert serving() == {A2}
    assert visit(Client(), where) == A2
    said = [r for r in caplog.records if "cannot be resolved" in r.getMessage()]
    assert [record.levelname for record in said] == ["WARNING"]
    assert said[0].getMessage().startswith(f"The name '{NAME}' of replica 'replica1' cannot be")
    if trouble == "its name server hangs":
        names.resume_process()
    names.lead(SECOND, THIRD)
    wait_until_serving(A2, A3)
    assert f"The name '{NAME}' can be resolved." in caplog.messages


def test_control_of_a_name_that_cannot_be_resolved(
    discover: Discover, names: Dnsmasq, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that has no address, believed, leaves no replica at all."""
    names.lead(SECOND)
    discover()
    wait_until_serving(A2)

    def believe(self: Discoverer, error: object) -> None:
        with self._lock:
            self._publish({}, 0.0)

    monkeypatch.setattr(Discoverer, "_fail", believe)
    names.lead()
    wait_until_serving()
    assert visit(Client(), where) == "default"


def test_until_a_name_is_resolved_the_alias_itself_serves(
    discover: Discover,
    names: Dnsmasq,
    cluster: Cluster,
    template: dict[str, Any],
    rounds: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its settings may name a server; later it can be named by the code, and no more."""
    monkeypatch.setattr(lookups, "_LIFETIME", 0.3)
    template["HOST"] = SECOND
    names.stop()
    discover()
    wait_until_serving("replica1")
    wait_until_known(cluster)
    rounds(2)
    assert visit(Client(), where) == "replica1"
    names.lead(THIRD)
    wait_until_serving(A3)
    wait_until_known(cluster)
    assert visit(Client(), where) == A3
    assert get_config().topology.settling["default"].before == {"replica1": 1.0}
    assert get_config().topology.is_replica("replica1")
    assert Note.objects.using("replica1").count() == 0
    connections["replica1"].close()
    wait_until(lambda: "replica1" not in the_monitor().known.readings, "nobody to look at it")


def test_of_thousands_of_servers_the_first_are_used(
    discover: Discover,
    names: Dnsmasq,
    rounds: Callable[[int], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each costs a thread and a connection; what listens nowhere does no harm."""
    names.lead(SECOND, *(f"127.9.{n // 200}.{n % 200 + 1}" for n in range(1500)), THIRD)
    discover()
    wait_until_serving(A2, A3)
    rounds(3)
    assert len(get_config().topology.replicas["default"]) == MOST
    seen: set[str] = set()
    wait_until(lambda: seen.add(visit(Client(), where)) or seen >= {A2, A3}, "both to serve")
    told = [m for m in caplog.messages if "leads to more than" in m]
    assert told == [
        f"The name '{NAME}' of replica 'replica1' leads to more than 64 servers: the first 64 are used."
    ]


@pytest.mark.parametrize("garbage", [b"", b"\0", b"\xff" * 512, b"\x12\x34\x81\x80" + b"\0\1" * 40])
def test_a_name_server_that_talks_nonsense_does_no_harm(
    garbage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it sends is no answer."""
    monkeypatch.setattr(lookups, "_LIFETIME", 0.3)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.bind(("127.0.0.1", 0))
        port = line.getsockname()[1]

        def talk() -> None:
            while True:
                question, asker = line.recvfrom(4096)
                if question == b"end":
                    return
                line.sendto(garbage, asker)

        thread = threading.Thread(target=talk)
        thread.start()
        try:
            with pytest.raises(Exception):  # noqa: B017, PT011 - of any kind
                look_up({"NAME": NAME, "NAMESERVER": "127.0.0.1", "PORT": port})
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.sendto(b"end", ("127.0.0.1", port))
            thread.join(TIMEOUT)


@pytest.fixture
def asked(names: Dnsmasq) -> Callable[..., Any]:
    """Return a function that asks the name server."""
    entry = {"NAME": NAME, "NAMESERVER": "127.0.0.1", "PORT": names.port}
    return lambda **more: look_up({**entry, **more})


def test_addresses_are_of_both_kinds_unless_one_is_named(
    names: Dnsmasq, asked: Callable[..., Any]
) -> None:
    """Each once, in an order that does not depend on that of the answer."""
    names.lead("127.0.0.10", "::2", SECOND, "::1", SECOND, ttl=7)
    four, six = [Server(SECOND), Server("127.0.0.10")], [Server("::1"), Server("::2")]
    assert asked() == ((*four, *six), 7, False)
    assert asked(TYPE="A") == ((*four,), 7, False)
    assert asked(TYPE="AAAA") == ((*six,), 7, False)


def test_without_tcp_the_name_is_looked_up_over_udp(
    names: Dnsmasq, asked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server may take no connection."""
    import dns.query

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionRefusedError

    names.lead(SECOND)
    monkeypatch.setattr(dns.query, "tcp", refuse)
    assert asked().servers == (Server(SECOND),)


def test_the_systems_name_servers_are_asked_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its own resolver does, with the domains that it searches."""
    import dns.resolver

    asked: list[Any] = []

    def resolve(self: Any, name: str, kind: str, **options: Any) -> Any:
        asked.append((self.nameservers, self.port, options["search"]))
        raise dns.resolver.NXDOMAIN

    monkeypatch.setattr(dns.resolver.Resolver, "resolve", resolve)
    with pytest.raises(dns.resolver.NXDOMAIN):
        look_up({"NAME": "replicas"})
    expected = dns.resolver.Resolver()
    assert asked == [(expected.nameservers, 53, True)]


@pytest.mark.parametrize(
    ("server", "alias"),
    [
        (Server("10.0.0.5"), "r@10.0.0.5"),
        (Server("10.0.0.5", 5433), "r@10.0.0.5:5433"),
        (Server("fd00::5"), "r@fd00::5"),
        (Server("fd00::5", 5433), "r@[fd00::5]:5433"),
    ],
)
def test_an_alias_tells_the_server(server: Server, alias: str) -> None:
    """So that it is the same in every process."""
    assert alias_of("r", server) == alias


def test_the_next_look_up_is_due_when_the_answer_has_run_out(
    discover: Discover, names: Dnsmasq, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or after the interval; never more often than once a second for that."""
    waits: list[float] = []

    class Ended(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            if len(waits) > 1:
                self.set()
            return super().wait(0.0)

    discover()  # so that the settings are those of the test
    monkeypatch.setattr(ending._draw, "uniform", lambda low, high: high)
    (entry,) = entries_for("default", get_config()).values()
    for ttl, interval, expected in ((7, 10.0, 7), (0, 10.0, 1.0), (7, 2.0, 2.0), (0, 0.5, 0.5)):
        names.lead(SECOND, ttl=ttl)
        waits.clear()
        discoverer = Discoverer(
            the_monitor(), "replica1", {**entry, "INTERVAL": interval}, threading.Lock()
        )
        discoverer._ended = Ended()
        discoverer.run()
        assert waits == [0.0, expected]
