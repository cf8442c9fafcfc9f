"""The torture's checker, on histories written by hand."""

from __future__ import annotations

import math
import signal
import sys
import time
from typing import Any

import pytest
from django.core import signing

from django_replica_router.conf import Config
from testproject.cluster.processes import wait_for
from testproject.cluster.programs import LineProgram
from testproject.settings import SECRET_KEY
from tests.torture import checker
from tests.torture.arena import SESSION_SALT, sessions_in
from tests.torture.bound import longest_read
from tests.torture.checker import check
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
    SlowRead,
    Window,
)
from tests.torture.report import excerpt
from tests.torture.run import ROUTER
from tests.torture.stalls import LATE, covered

OWN = "own ann"


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
YIELDED = ("replica1:YIELDED",)
SOUND: dict[str, list[Op]] = {
    "who has yielded may be shown less than before": [
        read(0, 1, 5),
        read(2, 3, 4, reasons=YIELDED),
        read(4, 5, 5),
    ],
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
    "the own write is missing where what was seen has yielded": (
        checker.READ_YOUR_WRITES,
        [write(0, 1, 1), read(2, 3, 0, reasons=YIELDED)],
    ),
    "what was seen is missing after a read that has yielded": (
        checker.MONOTONIC_READS,
        [read(0, 1, 5), read(2, 3, 4, reasons=YIELDED), read(4, 5, 4)],
    ),
    "a request that has yielded goes back within itself": (
        checker.BACK_IN_TIME,
        [read(0, 1, 5, 4, reasons=YIELDED)],
    ),
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


def test_the_checker_lets_nobody_yield_where_monotonic_reads_are_strict() -> None:
    """Whatever the request tells of its reason."""
    history = History([read(0, 1, 5), read(2, 3, 4, reasons=YIELDED)])
    verdict = check(history)
    assert (verdict.counts[checker.MONOTONIC_READS], verdict.yielded) == (0, 1)
    verdict = check(history, may_yield=False)
    assert (verdict.counts[checker.MONOTONIC_READS], verdict.yielded) == (1, 0)


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


def slow(start: float, end: float, *stalls: tuple[float, float]) -> Op:
    """Return a request with one read that took that long."""
    return read(start, end, 1)._replace(slow_reads=(SlowRead(start, end, stalls),))


SLOW: dict[str, tuple[Op, list[tuple[float, float]]]] = {
    "a read takes longer than the bound": (slow(0, 3.1), []),
    "whoever serves it": (slow(0, 3.1)._replace(aliases=("default",)), []),
    "also where its request fails": (slow(0, 3.1)._replace(status=500), [(8, 9)]),
    "the primary could not answer before and after": (slow(10, 13.1), [(8, 10), (13.1, 15)]),
    "the primary could not answer for a part of what is too much": (slow(0, 4), [(1, 1.9)]),
    "what excuses the same moments excuses them once": (
        slow(0, 4, (1, 1.6)),
        [(1, 1.6), (1.1, 1.6)],
    ),
}
NOT_SLOW: dict[str, tuple[Op, list[tuple[float, float]]]] = {
    "a read takes as long as it may": (slow(0, 3), []),
    "the primary could not answer meanwhile": (slow(0, 4), [(1, 2.1)]),
    "nor for the most of it": (slow(10, 20), [(5, 17.1)]),
    "the process was not run meanwhile": (slow(0, 4, (1, 2.1)), []),
    "one, and then the other": (slow(0, 4, (0.5, 1)), [(1, 1.6)]),
}


@pytest.mark.parametrize(("op", "outages"), SLOW.values(), ids=SLOW)
def test_the_checker_finds_a_slow_read(op: Op, outages: list[tuple[float, float]]) -> None:
    """Only what neither the primary nor the machine is to blame for counts; all of that does."""
    history = History([op], [Window("primary", 0, 20)], outages=outages)
    violations = check(history, longest_read=3.0).violations
    assert [violation.rule for violation in violations] == [checker.SLOW_READ]
    assert check(history).violations == []


@pytest.mark.parametrize(("op", "outages"), NOT_SLOW.values(), ids=NOT_SLOW)
def test_the_checker_excuses_what_nobody_could_mend(
    op: Op, outages: list[tuple[float, float]]
) -> None:
    """The time during which the primary could not answer, or the process was not run, is taken off."""
    verdict = check(History([op], outages=outages), longest_read=3.0)
    assert (verdict.violations, verdict.slowest <= 3.0) == ([], True)


def test_a_read_may_take_what_the_settings_add_up_to() -> None:
    """Each of them counts; and what may hold a read up lasts for longer than the usual ones allow."""
    usual = longest_read(ROUTER, 3)
    for setting in ("STORE_TIMEOUT", "WAIT", "LOCK_WAIT"):
        value = getattr(Config(), setting)
        changed = longest_read({**ROUTER, setting: value + 1}, 3)
        assert changed == pytest.approx(usual + 1)
    connecting = longest_read({**ROUTER, "CONNECT_TIMEOUT": 1.5}, 3)
    assert connecting == pytest.approx(usual + 3)
    assert longest_read({**ROUTER, "LOCK_WAIT": None}, 3) == math.inf
    lasting = {name for name, spec in FAULTS.items() if spec.least > usual}
    assert lasting == {"suspend", "blackhole", "replayed_lock", "cache_suspend"}


def test_a_process_that_is_stopped_finds_out_afterwards() -> None:
    """Its heartbeat tells when it was not run."""
    script = (
        "import json, time; from tests.torture.stalls import heartbeat; heartbeat.start()\n"
        "input(); print(time.monotonic(), flush=True)\n"
        "start = float(input()); end = time.monotonic()\n"
        "print(json.dumps([start, end, heartbeat.stalls(start, end)]), flush=True)"
    )
    with LineProgram([sys.executable, "-c", script]) as program:
        program.ask("go")
        start = time.monotonic()
        program.process.send_signal(signal.SIGSTOP)
        try:
            assert wait_for(lambda: time.monotonic() - start > 10 * LATE, timeout=30.0)
        finally:
            program.process.send_signal(signal.SIGCONT)
        began, ended, stalls = program.ask(start)
    assert covered(began, ended, map(tuple, stalls)) > 8 * LATE


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
