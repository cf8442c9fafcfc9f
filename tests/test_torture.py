"""The torture: its checker, its proxy, its controls, and a minute of all faults on the package."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from django.core import signing

from testproject.cluster import Cluster
from testproject.settings import SECRET_KEY
from tests.torture import checker
from tests.torture.arena import SESSION_SALT, sessions_in
from tests.torture.checker import check
from tests.torture.controls import plan_for, plan_without
from tests.torture.faults import FAULTS
from tests.torture.history import (
    GLOBAL,
    RECOVERED,
    WATCHED_READS,
    Fork,
    History,
    Op,
    Recorder,
    SessionKey,
    Window,
)
from tests.torture.proxy import ProxyProcess
from tests.torture.report import excerpt, is_passed, text
from tests.torture.run import Plan, new_cluster, run
from tests.torture.schedule import schedule

OWN = "own ann"

SABOTAGES = (
    "token_compare_always_true",
    "retry_without_verification",
    "token_lowered_by_plain_set",
    "lsn_taken_before_commit",
    "old_timeline_replica_accepted",
    "watermark_kept_over_rebuild",
    "early_session_token_ignored",
    "tokens_of_old_timeline_bind_for_ever",
    "dropped_tokens_not_missed",
    "kept_objects_followed_blindly",
)

# 1. The checker, on histories written by hand ------------------------------------------------------


def op(kind: Any, start: float, end: float, **values: Any) -> Op:
    """Return a request of ann's that was answered while she was signed in."""
    defaults: dict[str, Any] = {"status": 200, "signed_in": "ann", "aliases": ("replica1",)}
    session = values.pop("session", "ann.a#1")
    status = values.pop("status", defaults.pop("status"))
    return Op(kind, "ann", session, start, end, status, **{**defaults, **values})


def read(start: float, end: float, *values: int, register: str = OWN, **more: Any) -> Op:
    """Return a request that read a register, as often as there are values."""
    return op("read", start, end, reads=tuple((register, value) for value in values), **more)


def write(start: float, end: float, value: int, register: str = OWN, **more: Any) -> Op:
    """Return a request that wrote a register and was acknowledged."""
    return op("write", start, end, written=(register, value), safe=False, **more)


LOGIN = op("login", 0, 1, safe=False)

SOUND: dict[str, list[Op]] = {
    "a read after a write sees it": [write(0, 1, 1), read(2, 3, 1)],
    "a read that began before the write ended may miss it": [write(0, 2, 1), read(1, 3, 0)],
    "reads that overlap may come in any order": [read(0, 3, 5), read(2, 4, 4)],
    "a write without an answer may be missing": [
        write(0, 1, 1, status=0)._replace(written=None),
        read(2, 3, 0),
    ],
    "a write without an answer may be there": [
        write(0, 1, 1, status=500)._replace(written=None),
        read(2, 3, 1),
    ],
    "a value may rise within a request": [read(0, 1, 4, 5)],
    "a request may leave a replica for the primary": [
        read(0, 1, 4, aliases=("replica1", "default"))
    ],
    "who is not signed in is promised nothing": [
        write(0, 1, 1),
        read(2, 3, 0, session="", signed_in=None),
    ],
    "another user's write may be missing": [
        write(0, 1, 1, register=GLOBAL)._replace(user="bob", signed_in="bob"),
        read(2, 3, 0, register=GLOBAL),
    ],
    "while a logout is under way both are right": [
        LOGIN,
        op("logout", 2, 4, signed_in=None),
        read(3, 3.5, 0, signed_in=None),
        read(3, 3.6, 0),
    ],
    "a session that is signed out while a request saves it interrupts that": [
        LOGIN,
        op("logout", 2, 4, signed_in=None),
        write(3, 5, 1, status=400)._replace(written=None, signed_in=None),
    ],
    "a logout without an answer may have happened or not": [
        LOGIN,
        op("logout", 2, 3, status=0),
        read(4, 5, 0, signed_in=None),
        read(6, 7, 0),
    ],
}

BROKEN: dict[str, tuple[str, list[Op]]] = {
    "the own write is missing": (
        checker.READ_YOUR_WRITES,
        [write(0, 1, 1), read(2, 3, 0)],
    ),
    "the own write is missing on another device": (
        checker.READ_YOUR_WRITES,
        [write(0, 1, 1), read(2, 3, 0, session="ann.b#1")],
    ),
    "the latest of several own writes is missing": (
        checker.READ_YOUR_WRITES,
        [write(0, 1, 1), write(1.1, 1.9, 2), read(2, 3, 1)],
    ),
    "a slow write counts from its end, not a quick one's": (
        checker.READ_YOUR_WRITES,
        [write(0, 5, 2), write(1, 2, 1), read(6, 7, 1)],
    ),
    "the own write to everybody's register is missing": (
        checker.READ_YOUR_WRITES,
        [write(0, 1, 7, register=GLOBAL), read(2, 3, 6, register=GLOBAL)],
    ),
    "a read goes back behind another": (
        checker.MONOTONIC_READS,
        [read(0, 1, 5), read(2, 3, 4)],
    ),
    "a read goes back behind the last value of another": (
        checker.MONOTONIC_READS,
        [read(0, 1, 5, 6), read(2, 3, 5)],
    ),
    "a read goes back behind a longer one that began before": (
        checker.MONOTONIC_READS,
        [read(0, 5, 9), read(1, 2, 8), read(6, 7, 8)],
    ),
    "a request goes back in time": (checker.BACK_IN_TIME, [read(0, 1, 5, 4)]),
    "a request does not see what it wrote itself": (
        checker.BACK_IN_TIME,
        [write(0, 1, 5, reads=((OWN, 4),))],
    ),
    "two replicas serve one request": (
        checker.ONE_REPLICA,
        [read(0, 1, 5, aliases=("replica1", "replica2"))],
    ),
    "a value is shown long after a newer one": (
        checker.STALENESS,
        [
            write(0, 1, 1)._replace(user="bob", signed_in="bob"),
            read(4.5, 5, 0),
        ],
    ),
    "the bound counts from the earliest newer value": (
        checker.STALENESS,
        [
            write(0, 4, 1)._replace(user="bob", signed_in="bob"),
            write(0, 1, 2)._replace(user="bob", signed_in="bob"),
            read(4.5, 5, 0),
        ],
    ),
    "a session is lost": (checker.LOST_SESSION, [LOGIN, read(2, 3, 0, signed_in=None)]),
    "a session is somebody else's": (
        checker.LOST_SESSION,
        [LOGIN, read(2, 3, 0, signed_in="bob")],
    ),
    "a session comes back": (
        checker.REVIVED_SESSION,
        [LOGIN, op("logout", 2, 3, signed_in=None), read(4, 5, 0)],
    ),
    "two writes are told the same value": (
        checker.LOST_WRITE,
        [write(0, 1, 1), write(0, 2, 1, session="ann.b#1")],
    ),
    "an acknowledged write is gone when the next comes": (
        checker.LOST_WRITE,
        [write(0, 1, 5), write(2, 3, 4)],
    ),
    "a read fails": (checker.AVAILABILITY, [read(0, 1, status=500)]),
    "a read is not answered": (checker.AVAILABILITY, [read(0, 1, status=0)]),
    "a session cannot be saved": (
        checker.AVAILABILITY,
        [LOGIN, write(2, 3, 1, status=400)._replace(written=None, signed_in=None)],
    ),
}


@pytest.mark.parametrize("ops", SOUND.values(), ids=SOUND)
def test_the_checker_finds_nothing_in_a_sound_history(ops: list[Op]) -> None:
    """What the guarantees allow is no violation."""
    excuse = [Window("primary", 0, 3)]
    assert check(History(ops, excuse), max_staleness=3.0).violations == []


@pytest.mark.parametrize(("rule", "ops"), BROKEN.values(), ids=BROKEN)
def test_the_checker_finds_the_violation(rule: str, ops: list[Op]) -> None:
    """Each anomaly is found, under its own name, once, in whatever order the history is given."""
    for history in (History(ops), History(ops[::-1])):
        violations = check(history, max_staleness=3.0).violations
        assert [violation.rule for violation in violations] == [rule]


SESSION = "session ann.a#1"

FORKED_SOUND: dict[str, tuple[Fork, list[Op]]] = {
    "what the fork has lost need not be shown": (
        Fork(5, {OWN: 3}),
        [write(0, 1, 3), write(2, 3, 4), read(6, 7, 3)],
    ),
    "nor what was shown and is lost": (
        Fork(5, {OWN: 3}),
        [read(0, 1, 4), read(6, 7, 3), read(8, 9, 1_000_000)],
    ),
    "a read that ends after the fork may show what has survived": (
        Fork(5, {OWN: 3}),
        [write(0, 1, 4), read(4, 6, 3)],
    ),
    "a session whose row is lost is over": (
        Fork(5, {}),
        [LOGIN, read(6, 7, 0, signed_in=None)],
    ),
    "a session whose sign-out is lost may live on": (
        Fork(5, {SESSION: 0}),
        [LOGIN, op("logout", 2, 3, signed_in=None), read(6, 7, 0)],
    ),
    "what a session held and is lost need not be shown": (
        Fork(5, {SESSION: 1}),
        [LOGIN, write(2, 3, 2, register=SESSION), read(6, 7, 1, register=SESSION)],
    ),
}

FORKED_BROKEN: dict[str, tuple[str, Fork, list[Op]]] = {
    "what has survived is not shown": (
        checker.READ_YOUR_WRITES,
        Fork(5, {OWN: 3}),
        [write(2, 3, 3), write(3.1, 4, 4), read(6, 7, 2)],
    ),
    "what was shown and has survived is not shown": (
        checker.MONOTONIC_READS,
        Fork(5, {OWN: 3}),
        [read(0, 1, 9), read(6, 7, 2)],
    ),
    "before the fork all binds": (
        checker.READ_YOUR_WRITES,
        Fork(5, {OWN: 3}),
        [write(0, 1, 4), read(2, 3, 3)],
    ),
    "a write after the fork binds whole": (
        checker.READ_YOUR_WRITES,
        Fork(5, {OWN: 3}),
        [write(6, 7, 1_000_001), read(8, 9, 3)],
    ),
    "what is shown after the fork binds whole": (
        checker.MONOTONIC_READS,
        Fork(5, {OWN: 3}),
        [read(6, 7, 1_000_001), read(8, 9, 3)],
    ),
    "a number of before the fork is written again": (
        checker.LOST_WRITE,
        Fork(5, {OWN: 3}),
        [write(0, 1, 4), write(6, 7, 4)],
    ),
    "what has survived is missing long after": (
        checker.STALENESS,
        Fork(5, {OWN: 3}),
        [write(0, 1, 4)._replace(user="bob", signed_in="bob"), read(6, 7, 2)],
    ),
    "a session that has survived is lost": (
        checker.LOST_SESSION,
        Fork(5, {SESSION: 0}),
        [LOGIN, read(6, 7, 0, signed_in=None)],
    ),
    "a session is lost before the fork": (
        checker.LOST_SESSION,
        Fork(5, {}),
        [LOGIN, read(2, 3, 0, signed_in=None)],
    ),
    "a session that ended before the fork comes back": (
        checker.REVIVED_SESSION,
        Fork(5, {}),
        [LOGIN, op("logout", 2, 3, signed_in=None), read(6, 7, 0)],
    ),
    "a session that began after the fork is lost": (
        checker.LOST_SESSION,
        Fork(5, {}),
        [op("login", 6, 7, safe=False), read(8, 9, 0, signed_in=None)],
    ),
}


@pytest.mark.parametrize(("fork", "ops"), FORKED_SOUND.values(), ids=FORKED_SOUND)
def test_the_checker_asks_after_a_fork_for_no_more_than_has_survived(
    fork: Fork, ops: list[Op]
) -> None:
    """Asynchronous replication may lose what was acknowledged: that is no violation."""
    assert check(History(ops, forks=[fork])).violations == []
    later = Fork(6.5, {OWN: 3, **fork.values})
    assert check(History(ops, forks=[later, fork])).violations == []


@pytest.mark.parametrize(("rule", "fork", "ops"), FORKED_BROKEN.values(), ids=FORKED_BROKEN)
def test_the_checker_finds_the_violation_around_a_fork(
    rule: str, fork: Fork, ops: list[Op]
) -> None:
    """A fork excuses what it has lost, and nothing else; the requests are shown as they were."""
    for history in (History(ops, forks=[fork]), History(ops[::-1], forks=[fork])):
        violations = check(history, max_staleness=4.0).violations
        assert [violation.rule for violation in violations] == [rule]
        assert all(op in ops for op in violations[0].ops)


def test_the_checker_counts_what_a_fork_has_lost() -> None:
    """Acknowledged writes above the value at the fork, and none that were never acknowledged."""
    ops = [write(0, 1, 3), write(2, 3, 4), write(4, 4.5, 5, status=500), write(6, 7, 9)]
    assert check(History(ops, forks=[Fork(5, {OWN: 3})])).lost == 1


def test_the_checker_finds_who_is_stuck_on_the_primary() -> None:
    """Who reads often after a failover, and always on the primary, is stuck there."""
    watched = [Window(RECOVERED, 0, 100)]
    on_primary = [read(n, n + 0.5, 0, aliases=("default",)) for n in range(WATCHED_READS)]
    verdict = check(History(on_primary, watched))
    assert [violation.rule for violation in verdict.violations] == [checker.STUCK]
    assert verdict.recovered == 1
    once_on_a_replica = [*on_primary, read(50, 50.5, 0)]
    for ops in (once_on_a_replica, on_primary[1:]):
        assert check(History(ops, watched)).violations == []
    assert check(History(on_primary, [Window(RECOVERED, 200, 300)])).violations == []


def test_a_session_whose_sign_in_is_half_lost_is_none() -> None:
    """Its row is inserted before it says who has signed in."""

    def row(key: str, **content: Any) -> tuple[str, str]:
        return key, signing.dumps(content, key=SECRET_KEY, salt=SESSION_SALT)

    rows = [row("a", _auth_user_id="7", value=3), row("b", value=3), row("c", _auth_user_id="8")]
    assert sessions_in(rows) == {"a": 3, "c": 0}


def test_the_recorder_names_the_sessions_that_a_fork_has_left() -> None:
    """Rows are known by their keys, histories by the names of sessions."""
    recorder = Recorder()
    recorder.sessions = {
        "ann.a#1": SessionKey("kept", 1),
        "ann.b#1": SessionKey("lost", 1),
        "bob.a#1": SessionKey("of later", 6),
    }
    recorder.add_fork(Fork(5, {OWN: 3}), {"kept": 7, "of nobody": 1})
    (fork,) = recorder.history().forks
    assert fork == Fork(5, {OWN: 3, SESSION: 7})
    lost = {name: recorder.has_lost(name) for name in [*recorder.sessions, ""]}
    assert lost == {"ann.a#1": False, "ann.b#1": True, "bob.a#1": False, "": False}


@pytest.mark.parametrize(
    ("kind", "status", "is_excused"),
    [
        ("primary", 500, True),
        ("primary", 0, True),
        ("worker", 0, True),
        ("worker", 500, False),
        ("kill", 500, False),
    ],
)
def test_only_a_fault_that_nobody_could_mend_excuses(
    kind: str, status: int, is_excused: bool
) -> None:
    """An error is excused by the primary's fault, a broken connection also by the worker's."""
    verdict = check(History([read(2, 3, status=status)], [Window(kind, 2.5, 9.0)]))
    assert (verdict.violations == [], verdict.excused) == (is_excused, int(is_excused))


def test_a_fault_before_or_after_excuses_nothing() -> None:
    """The fault must have been there at some moment of the request."""
    windows = [Window("primary", 0, 1.9), Window("primary", 3.1, 4)]
    assert check(History([read(2, 3, status=500)], windows)).counts[checker.AVAILABILITY] == 1


def test_the_verdict_counts_reads_by_who_served_them() -> None:
    """Each value is a checked read; it counts for the server at which the request ended."""
    ops = [
        read(0, 1, 5, 5),
        read(0, 1, 5, aliases=("default",)),
        read(0, 1, 5, aliases=("replica1", "default")),
    ]
    verdict = check(History(ops))
    assert (verdict.checked_reads, verdict.by_replica, verdict.by_primary) == (4, 2, 2)


def test_an_excerpt_marks_the_requests_that_show_the_violation() -> None:
    """The excerpt has the requests in question, that user's others in between, and the faults."""
    ops = [write(0, 1, 1), read(1.2, 1.4, 1), read(2, 3, 0)]
    history = History(ops, [Window("pause", 0.5, 2.5, "replica1"), Window("kill", 8, 9)])
    (violation,) = [v for v in check(history).violations if v.rule == checker.READ_YOUR_WRITES]
    lines = excerpt(violation, history)
    assert [line[:2] for line in lines] == ["  ", "> ", "  ", "> "]
    assert "pause replica1" in lines[0]


# 2. The schedule and the proxy ---------------------------------------------------------------------


def test_a_seed_gives_the_same_schedule_each_time() -> None:
    """A seed decides on all, and another on something else."""

    def rounds(seed: int) -> list[Any]:
        return list(islice(schedule(seed, list(FAULTS), range(3)), 3))

    assert rounds(1) == rounds(1) != rounds(2)


def test_a_schedule_breaks_no_cache_twice_at_once() -> None:
    """What has been killed can neither be emptied nor hang."""
    for steps in islice(schedule(7, list(FAULTS), range(3)), 50):
        for step in steps:
            scopes = [FAULTS[name].scope for name, _ in step.faults]
            assert scopes.count("cache") <= 1


def test_each_round_of_a_schedule_has_every_fault_once() -> None:
    """Faults come in pairs only on different replicas, and those of the whole cluster alone."""
    for steps in islice(schedule(7, list(FAULTS), range(3)), 20):
        names = [name for step in steps for name, _ in step.faults]
        assert sorted(names) == sorted(FAULTS)
        for step in steps:
            places = [place for _, place in step.faults]
            assert len(places) == len(set(places))
            if len(places) > 1:
                assert not any(FAULTS[name].scope == "cluster" for name, _ in step.faults)


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(connection: socket.socket) -> None:
            # Its other end is reset, as the test wants it.
            with connection, contextlib.suppress(ConnectionResetError):
                while data := connection.recv(100):
                    connection.sendall(data)

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_the_proxy_breaks_the_network_and_mends_it(echo: int) -> None:
    """It relays; refuses; is silent, and delivers afterwards; resets; leads elsewhere."""
    with ProxyProcess({"a": echo}) as proxy:

        def dial() -> socket.socket:
            return socket.create_connection(("127.0.0.1", proxy.ports["a"]), timeout=5.0)

        with dial() as line:
            line.sendall(b"one")
            assert line.recv(10) == b"one"
            proxy.set_mode("a", "blackhole")
            line.settimeout(0.1)
            line.sendall(b"two")
            with dial() as late:
                late.sendall(b"three")
                with pytest.raises(TimeoutError):
                    line.recv(10)
                proxy.set_mode("a", "pass")
                line.settimeout(5.0)
                assert line.recv(10) == b"two"
                assert late.recv(10) == b"three"
            proxy.set_mode("a", "refuse")
            with pytest.raises(ConnectionResetError):
                line.recv(10)
        with pytest.raises(ConnectionRefusedError):
            dial()
        proxy.set_mode("a", "reset")
        with pytest.raises(ConnectionResetError), dial() as line:
            line.recv(10)
        proxy.set_target("a", echo)
        with dial() as line:
            line.sendall(b"four")
            assert line.recv(10) == b"four"
            proxy.set_mode("a", "refuse")
            proxy.set_mode("a", "blackhole")
            proxy.set_mode("a", "reset")
            proxy.set_mode("a", "pass")
        with dial() as line:
            line.sendall(b"five")
            assert line.recv(10) == b"five"


# 3. The controls: the package sabotaged --------------------------------------------------------------


@pytest.fixture(scope="module")
def small_cluster() -> Iterator[Cluster]:
    """The cluster that the controls share."""
    with new_cluster(2) as cluster:
        yield cluster


@pytest.fixture
def healed_cluster(small_cluster: Cluster) -> Cluster:
    """The cluster as it was at the start."""
    small_cluster.heal()
    return small_cluster


@pytest.mark.parametrize("control", SABOTAGES)
def test_a_sabotage_is_found_out(healed_cluster: Cluster, control: str) -> None:
    """With a rule of the package taken out, a short run has violations."""
    result = run(plan_for(control), healed_cluster)
    assert not result.failure, text(result)
    assert result.verdict.violations, text(result)


def test_the_directed_run_finds_nothing_in_the_package_itself(healed_cluster: Cluster) -> None:
    """Lag alone, which finds out most sabotages, does no harm to the package as it is."""
    plan = plan_without("early_session_token_ignored", seconds=6.0, reads=1001)
    result = run(plan, healed_cluster)
    # Not is_passed, which asks for reads on replicas as well: users who never pause for as long as
    # all replicas lag are right on the primary. The run with all faults asks for both.
    assert not result.failure, text(result)
    assert not result.verdict.violations, text(result)
    assert result.verdict.checked_reads > 1000, text(result)


# 4. The package ----------------------------------------------------------------------------------


def test_the_guarantees_hold_under_all_faults() -> None:
    """A minute of every fault there is, from many users in several processes: no violation."""
    plan = Plan(seconds=50.0, seed=20)
    with new_cluster(plan.replicas) as cluster:
        result = run(plan, cluster)
    assert is_passed(result), text(result)
