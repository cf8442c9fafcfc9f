"""A replica that refuses new sessions, while the monitor's own lives, is not tried by every request."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.http import HttpRequest
from django.test import Client

from django_replica_router import get_stats, pop_stats
from django_replica_router.policy import Decision, Reason, ReplicaState
from django_replica_router.replicas.answers import Answers
from django_replica_router.replicas.breaker import FIRST_PAUSE, LAST_PAUSE, Breaker
from django_replica_router.replicas.connecting import refused_replicas
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.readings import Reading, Sample
from django_replica_router.replicas.registry import find_monitor, stop_monitors
from django_replica_router.routing import candidates, deciding, search, waiting
from django_replica_router.routing.balancers import Order
from django_replica_router.routing.budget import Budget
from django_replica_router.routing.candidates import Target
from django_replica_router.routing.search import Search
from django_replica_router.values.tokens import Position
from testproject.cluster import Cluster, ReplicaServer
from testproject.notes.models import Note
from tests.conftest import PATIENT, wait_until, wait_until_known, wait_until_routed
from tests.helpers import Served
from tests.site import sign_in, visit

Patch = pytest.MonkeyPatch

REQUESTS = 102
HANDFUL = 5
"""Attempts that a process makes at one replica within 15 s: at 0, 1, 3, 7 and 15 s."""

TIMEOUT = 0.5
REFUSED = OSError("too many clients")


# The rule, on a clock that is moved by hand


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return a clock that stands still until it is moved."""
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    """Return breakers of replicas that have refused nobody yet."""
    return Breaker(clock)


def fail_once(breaker: Breaker, alias: str = "r1") -> bool:
    """Have an attempt fail that must be granted; tell whether it has opened the breaker."""
    pause = breaker.begin(alias, TIMEOUT)
    assert pause is not None
    return breaker.fail(alias, pause, REFUSED)


def test_who_accepts_is_tried_by_everybody(breaker: Breaker) -> None:
    """Nothing is counted where nothing has failed."""
    assert [breaker.begin("r1", TIMEOUT) for _ in range(3)] == [0.0] * 3
    breaker.close("r1")
    assert breaker.open_aliases() == []


def test_the_pauses_grow_up_to_a_bound(breaker: Breaker, clock: Clock) -> None:
    """One second, doubled by each failure; and within one nobody is let through."""
    pauses = []
    for _ in range(7):
        fail_once(breaker)
        began = clock.now
        while breaker.is_open("r1"):
            assert breaker.begin("r1", TIMEOUT) is None
            assert breaker.open_aliases() == ["r1"]
            clock.now += 0.5
        pauses.append(clock.now - began)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]


def test_each_replica_has_its_own(breaker: Breaker) -> None:
    """That one refuses says nothing of the next."""
    fail_once(breaker)
    assert breaker.begin("r2", TIMEOUT) == 0.0


def test_failures_at_the_same_time_count_once(breaker: Breaker, clock: Clock) -> None:
    """Many threads may have begun before the first of them failed; only one tells the monitor."""
    pauses = [breaker.begin("r1", TIMEOUT) for _ in range(5)]
    opened = [breaker.fail("r1", pause, REFUSED) for pause in pauses if pause is not None]
    assert opened == [True, False, False, False, False]
    clock.now += FIRST_PAUSE
    assert breaker.begin("r1", TIMEOUT) == FIRST_PAUSE
    assert breaker.fail("r1", 0.0, REFUSED) is False  # one of the first, late
    assert breaker.fail("r1", FIRST_PAUSE, REFUSED) is False
    clock.now += FIRST_PAUSE
    assert breaker.begin("r1", TIMEOUT) is None


def test_after_a_pause_one_thread_tries(breaker: Breaker, clock: Clock) -> None:
    """However many come at that moment."""
    fail_once(breaker)
    clock.now += FIRST_PAUSE
    barrier = threading.Barrier(16)

    def begin(number: int) -> float | None:
        barrier.wait()
        return breaker.begin("r1", TIMEOUT)

    with ThreadPoolExecutor(16) as pool:
        granted = list(pool.map(begin, range(16)))
    assert sorted(granted, key=str) == [FIRST_PAUSE, *[None] * 15]


def test_who_passes_the_check_together_is_not_granted_twice(
    breaker: Breaker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was seen without the lock is seen again with it."""
    fail_once(breaker)
    monkeypatch.setattr(breaker, "is_open", lambda alias: False)
    assert breaker.begin("r1", TIMEOUT) is None

    def close(alias: str) -> bool:
        breaker.close(alias)
        return False

    monkeypatch.setattr(breaker, "is_open", close)
    assert breaker.begin("r1", TIMEOUT) == 0.0


def test_an_attempt_without_an_end_is_waited_for(breaker: Breaker, clock: Clock) -> None:
    """It may take its time-out, or its thread may be gone: another one tries after a pause more."""
    fail_once(breaker)
    clock.now += FIRST_PAUSE
    assert breaker.begin("r1", TIMEOUT) == FIRST_PAUSE
    clock.now += TIMEOUT + FIRST_PAUSE / 2
    assert breaker.begin("r1", TIMEOUT) is None
    clock.now += FIRST_PAUSE / 2
    assert breaker.begin("r1", TIMEOUT) == FIRST_PAUSE


def test_a_connection_that_was_opened_ends_it(breaker: Breaker, clock: Clock) -> None:
    """The next failure begins with a pause as short as the first."""
    for _ in range(3):
        fail_once(breaker)
        clock.now += LAST_PAUSE
    breaker.close("r1")
    assert breaker.begin("r1", TIMEOUT) == 0.0
    assert fail_once(breaker) is True
    clock.now += FIRST_PAUSE
    assert not breaker.is_open("r1")


def test_it_is_told_once_when_it_opens_and_once_when_it_closes(
    breaker: Breaker, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """What happens in between is counted."""
    caplog.set_level(logging.INFO)
    pop_stats()
    for _ in range(3):
        fail_once(breaker)
        clock.now += LAST_PAUSE
    for _ in range(2):
        breaker.close("r1")
    assert [record.getMessage() for record in caplog.records] == [
        "Replica 'r1' refuses new connections: too many clients. One is tried again in 1 s, and then "
        "ever less often, every 15 s at last.",
        "New connections to replica 'r1' are opened again.",
    ]
    assert get_stats()["connects_failed"] == 3


def fail_all(monitor: Monitor, aliases: set[str]) -> bool:
    """Let the replicas refuse once more where they may be tried again; tell whether none may."""
    for alias in aliases:
        pause = monitor.breaker.begin(alias, TIMEOUT)
        if pause is not None:
            monitor.breaker.fail(alias, pause, REFUSED)
    return set(monitor.breaker.open_aliases()) == aliases


def test_a_new_life_of_the_server_ends_it_and_a_look_does_not(clock: Clock) -> None:
    """The monitor's session is an old one, and shows nothing."""
    monitor = Monitor("default", ["r1"], 1.0, clock=clock)
    fail_once(monitor.breaker)
    monitor.answers.publish_reading("r1", Reading(ReplicaState.STREAMING, 100, read_at=clock.now))
    assert monitor.breaker.is_open("r1")
    monitor.known.forget("r1")
    assert not monitor.breaker.is_open("r1")


def test_a_search_leaves_out_who_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for no position there, and asks nothing; with none left, it says why."""
    monitor = Monitor("default", ["r1", "r2"], 1.0)
    now = monitor.clock()
    monitor.answers.publish_sample(Sample(now, Position(1, 50)))
    for alias in ("r1", "r2"):
        monitor.answers.publish_reading(alias, Reading(ReplicaState.STREAMING, 50, read_at=now))
    asked: list[str] = []
    monkeypatch.setattr(waiting, "ask_over_connection", lambda alias, monitor: asked.append(alias))
    monkeypatch.setattr(
        candidates, "refused_replicas", lambda monitor: set(monitor.breaker.open_aliases())
    )

    def decide() -> Decision:
        target = Target(Position(1, 100), 0.0, 10.0, TIMEOUT, None, 1.0)
        order = Order("r1", lambda: ["r1", "r2"])
        return Search("default", monitor, order, target, 0.01, keeps_replica=True).run().decision

    fail_once(monitor.breaker, "r1")
    assert decide() == Decision("default", Reason.LAGGING)
    assert set(asked) == {"r2"}
    asked.clear()
    fail_once(monitor.breaker, "r2")
    assert decide() == Decision("default", Reason.NO_REPLICA)
    assert asked == []


# On real servers

on_servers = pytest.mark.usefixtures("test_site")
NO_POOLER = pytest.mark.not_pooled(
    "it keeps sessions of its own, and takes connections also for a server that refuses them"
)


@contextmanager
def refusing(replicas: Sequence[ReplicaServer]) -> Iterator[None]:
    """Have the replicas refuse new sessions of the site; those that are open live.

    The monitor's own are in another database here.
    """
    files = [replica.data_directory / "pg_hba.conf" for replica in replicas]
    texts = [file.read_text() for file in files]
    try:
        for replica, file, text in zip(replicas, files, texts, strict=True):
            file.write_text(f"host app all 127.0.0.1/32 reject\n{text}")
            replica.configure()
        yield
    finally:
        for replica, file, text in zip(replicas, files, texts, strict=True):
            file.write_text(text)
            replica.configure()


@contextmanager
def limited(cluster: Cluster) -> Iterator[None]:
    """Have the first replica refuse sessions beyond the one that the monitor has.

    By a role of the site's own there, since no limit holds for a superuser.
    """
    replica = cluster.replicas[0]
    cluster.primary.execute("CREATE ROLE reader LOGIN IN ROLE pg_read_all_data CONNECTION LIMIT 1")
    wait_until_known(cluster)
    try:
        with as_role("reader", replica):
            wait_until_routed()  # the monitor has begun, and has taken the place
            assert count_of("reader", replica) == 1
            yield
    finally:
        cluster.primary.execute("DROP ROLE reader")


@contextmanager
def as_role(role: str, replica: ReplicaServer) -> Iterator[None]:
    """Have this process connect to a replica as another role."""
    connection = connections[replica.name]
    original = dict(connection.settings_dict)
    stop_monitors()
    connection.close()
    connection.settings_dict["USER"] = role
    try:
        yield
    finally:
        stop_monitors()
        connection.close()
        connection.settings_dict.update(original)


def count_of(role: str, replica: ReplicaServer) -> int:
    """Return how many sessions a role has there."""
    [(number,)] = replica.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = %s", [role]
    )
    return int(number)


@contextmanager
def serializable(cluster: Cluster) -> Iterator[None]:
    """Have new sessions of the site be serializable, on every server: no standby can have such ones."""
    role = "ALTER ROLE postgres IN DATABASE app"
    cluster.primary.execute(f"{role} SET default_transaction_isolation = 'serializable'")
    wait_until_known(cluster)
    try:
        yield
    finally:
        cluster.primary.execute(f"{role} RESET default_transaction_isolation")
        wait_until_known(cluster)


def rejections(replicas: Sequence[ReplicaServer]) -> int:
    """Return how many sessions the replicas say that they have refused."""
    return sum(r.log_path.read_text().count("pg_hba.conf rejects") for r in replicas)


def title(request: HttpRequest) -> str:
    """Read something."""
    return Note.objects.get().title


def read_often(client: Client, times: int = REQUESTS) -> None:
    """Have so many requests answered, which must find what there is."""
    for _ in range(times):
        assert visit(client, title) == "first"


def disconnect(replicas: Sequence[ReplicaServer]) -> None:
    """Let this thread be one that is not connected to the replicas yet."""
    for replica in replicas:
        connections[replica.name].close()


def wait_until_serving(replicas: Sequence[ReplicaServer], served: Served) -> float:
    """Return the seconds until requests are served by each of the replicas."""
    names = {replica.name for replica in replicas}
    served.clear()
    began = time.monotonic()

    def are_serving() -> bool:
        read_often(Client(), 1)
        return names <= served.aliases("notes_note")

    wait_until(are_serving, "the replicas to serve again")
    return time.monotonic() - began


@pytest.fixture
def site(note: Note, healed: Cluster) -> Cluster:
    """The cluster with a note, made whole again afterwards, and known again from the beginning."""
    return healed


@on_servers
@NO_POOLER
@pytest.mark.parametrize("number", [1, 2])
def test_a_replica_that_refuses_is_tried_a_handful_of_times(
    number: int, site: Cluster, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """Reads go on, on another replica if there is one; the refusing one comes back by itself."""
    caplog.set_level(logging.INFO, "django_replica_router")
    refused = site.replicas[:number]
    disconnect(refused)
    before = rejections(refused)
    pop_stats()
    with refusing(refused):
        served.clear()
        read_often(Client())
        assert served.aliases("notes_note") == {"replica2" if number == 1 else "default"}
        attempts = rejections(refused) - before
        assert number <= attempts <= number * HANDFUL
        assert get_stats()["connects_failed"] == attempts
        for replica in refused:
            # The monitor goes on seeing it by the session that it has.
            wait_until_streaming(replica)
            assert caplog.text.count(f"'{replica.name}' refuses new connections") == 1
    assert wait_until_serving(refused, served) < LAST_PAUSE + 5.0
    for replica in refused:
        assert caplog.text.count(f"to replica '{replica.name}' are opened again") == 1


def wait_until_streaming(replica: ReplicaServer) -> None:
    """Return once the monitor has it that the replica answers."""
    monitor = find_monitor("default")
    assert monitor is not None
    wait_until(
        lambda: monitor.known.readings[replica.name].state is ReplicaState.STREAMING,
        f"{replica.name} to be looked at",
    )


def try_always(patch: Patch) -> None:
    """Take the breaker out: each request may try, and each failure is reported."""
    patch.setattr(Breaker, "begin", lambda self, alias, timeout: 0.0)
    patch.setattr(Breaker, "open_aliases", lambda self: [])
    patch.setattr(Breaker, "fail", lambda self, alias, pause, error: True)


def close_by_looks(patch: Patch) -> None:
    """Let a look of the monitor's close the breaker, as if it showed that new sessions are accepted."""
    publish = Answers.publish_reading

    def publish_and_close(self: Answers, alias: str, reading: Reading) -> None:
        self.known.breaker.close(alias)
        publish(self, alias, reading)

    patch.setattr(Answers, "publish_reading", publish_and_close)


@on_servers
@NO_POOLER
@pytest.mark.parametrize("take_out", [try_always, close_by_looks])
def test_without_the_breaker_each_request_tries(
    take_out: Callable[[Patch], None], site: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly: none does between a failure and the next look, which follows at once."""
    take_out(monkeypatch)
    disconnect(site.replicas)
    before = rejections(site.replicas)
    with refusing(site.replicas):
        read_often(Client())
        assert rejections(site.replicas) - before > REQUESTS / 2


@on_servers
@NO_POOLER
def test_a_signed_in_reader_of_the_replica_goes_on(
    ann: User, site: Cluster, served: Served, settings: Any
) -> None:
    """The other replica serves: it is looked at at once, as where the usual one is down."""
    settings.REPLICA_ROUTER = {**PATIENT, "MONOTONIC_SHARE": 1}
    client = sign_in(ann)
    wait_until_known(site)
    served.clear()
    read_often(client, 1)
    (usual,) = served.aliases("notes_note")
    refused = [replica for replica in site.replicas if replica.name == usual]
    disconnect(refused)
    pop_stats()
    with refusing(refused):
        served.clear()
        read_often(client)
        assert 1 <= get_stats()["connects_failed"] <= HANDFUL
        reads = [alias for alias, sql in served.statements if "notes_note" in sql]
        assert usual not in reads
        assert reads.count("default") < REQUESTS / 2


@on_servers
@NO_POOLER
def test_who_is_connected_goes_on_there(site: Cluster, served: Served) -> None:
    """The sessions that live are as good as ever: other threads' failures are not theirs."""

    def read_elsewhere() -> str:
        try:
            return str(visit(Client(), title))
        finally:
            connections.close_all()

    names = {replica.name for replica in site.replicas}
    for name in names:
        assert Note.objects.using(name).exists()
    with refusing(site.replicas), ThreadPoolExecutor(1) as pool:
        pop_stats()
        assert {pool.submit(read_elsewhere).result() for _ in range(20)} == {"first"}
        assert 2 <= get_stats()["connects_failed"] <= 2 * HANDFUL
        monitor = find_monitor("default")
        assert monitor is not None
        wait_until(
            lambda: (
                fail_all(monitor, names)
                and pool.submit(refused_replicas, monitor).result() == names
                and refused_replicas(monitor) == set()
            ),
            "both to be known as refusing, but not to who is connected",
        )
        for replica in site.replicas:
            wait_until_streaming(replica)
        served.clear()
        read_often(Client(), 20)
        assert served.only_replicas("notes_note")


@on_servers
@NO_POOLER
def test_a_role_without_a_session_left_is_refused_likewise(site: Cluster, served: Served) -> None:
    """The monitor would always get its own session back: it proves nothing for anybody else."""
    replica = site.replicas[0]
    with limited(site):
        pop_stats()
        served.clear()
        read_often(Client())
        assert 1 <= get_stats()["connects_failed"] <= HANDFUL
        assert served.aliases("notes_note") == {"replica2"}
        wait_until_streaming(replica)
        site.primary.execute("ALTER ROLE reader CONNECTION LIMIT -1")
        assert wait_until_serving([replica], served) < LAST_PAUSE + 5.0


@on_servers
@NO_POOLER
def test_a_standby_whose_new_sessions_are_serializable_is_left_alone(
    site: Cluster, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """It accepts them and then refuses every query: 0A000. The log says so, once."""
    with serializable(site):
        connections.close_all()
        pop_stats()
        read_often(Client(), 4)  # each is found out by a statement, which the primary answers
        served.clear()
        read_often(Client())
        assert served.only_primary("notes_note")
        assert 2 <= get_stats()["connects_failed"] <= 2 * HANDFUL
        assert caplog.text.count("refuses new connections: cannot use serializable mode") == 2
    assert wait_until_serving(site.replicas, served) < LAST_PAUSE + 5.0


@on_servers
@NO_POOLER
def test_the_primarys_share_holds_where_all_refuse(
    site: Cluster, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That no replica can be connected to is no reason to drown the primary."""
    settings.REPLICA_ROUTER = {**PATIENT, "PRIMARY_SHARE": 0.1}
    budget = Budget(clock=lambda: 0.0)
    monkeypatch.setattr(deciding, "primary_budget", budget)
    monkeypatch.setattr(search, "primary_budget", budget)
    disconnect(site.replicas)
    with refusing(site.replicas):
        answers = [visit(Client(), title) for _ in range(60)]
    served = [answer for answer in answers if answer == "first"]
    assert len(served) == 20
    assert {answer.status_code for answer in answers if answer != "first"} == {503}


@on_servers
@NO_POOLER
@pytest.mark.parametrize("number", [0, 1])
def test_with_the_primary_down_one_that_refuses_is_no_hindrance(
    number: int, site: Cluster, settings: Any
) -> None:
    """Another one stands in, also for the request that finds out."""
    settings.REPLICA_ROUTER = {**PATIENT, "PRIMARY_DOWN": "replicas", "MAX_LAG": 0.4}
    wait_until_routed()
    monitor = find_monitor("default")
    assert monitor is not None
    disconnect(site.replicas)
    with refusing([site.replicas[number]]):
        site.primary.stop()
        wait_until(lambda: monitor.known.primary_is_down, "the loss of the primary to be noticed")
        wait_until(
            lambda: min(r.age for r in monitor.health.replicas()) > 0.4, "readings to grow old"
        )
        read_often(Client(), 5)
