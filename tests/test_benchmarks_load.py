"""The benchmarks under load: that they run, and that they find what they look for."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from benchmarks import freshness
from benchmarks.failover import Event, timeline_of
from benchmarks.harness import Options
from benchmarks.load.browsers import Jar
from benchmarks.load.crowd import Crowd, Habits, Log, User, _check
from benchmarks.load.loops import ERROR, Request
from benchmarks.load.members import SESSION_OF
from benchmarks.load.variants import plain
from benchmarks.oracle import Look, Oracle, Promise, Read, Track, Write
from tests.benchmarked import rows

QUICK = Options(quick=True, rounds=1)


def test_a_session_that_is_saved_binds_nothing_but_the_session() -> None:
    """The oracle serves a page from a replica that lacks the session of the page before."""
    primary = Track([Look(0.0, 0.0, 10), Look(1.0, 1.0, 20), Look(9.0, 9.0, 20)])
    replica = Track([Look(0.0, 0.0, 10), Look(9.0, 9.0, 10)])
    saved = Write(1 + SESSION_OF, 1.0, 20)
    oracle = Oracle(primary, {"replica1": replica}, Promise.WRITTEN)
    reads = [Read(1, 2.0, "replica1"), Read(1 + SESSION_OF, 2.0, "default")]
    verdict = oracle.judge([saved, *reads])
    assert (verdict.by_oracle, verdict.by_contender) == (1, 1)


def test_freshness_takes_no_old_row_for_a_fresh_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: who routes at random shows a row that is old, at every lag but none."""
    random = plain("random")
    monkeypatch.setattr(freshness, "DEFAULT", random[0])
    # A replica that has the row before it is asked for it would show nothing old.
    monkeypatch.setattr(freshness, "QUICK_LAGS", (0.0, 1.0))
    result = freshness.run(QUICK)
    lagging = [row for row in rows(result.tables[0]) if row["lag"] != "0 ms"]
    assert sum(row["never, or old"] for row in lagging) > 0


# The arithmetic ----------------------------------------------------------------------------------


def reads_every(seconds: float, until: float) -> list[Request]:
    """Return reads of 10 ms at a steady pace, from the moment 100 on."""
    number = round(until / seconds)
    moments = [100.005 + index * seconds for index in range(number)]
    return [Request(moment, moment + 0.01, "replica1", True) for moment in moments]


FAULT = Event("fault", 1.0, 0.5, lambda cluster: None)


def test_a_quiet_timeline_shows_no_effect() -> None:
    """Nothing is above normal."""
    timeline = timeline_of(reads_every(0.02, 3.0), 100.0, 3.0, [(FAULT, 101.0)])
    assert timeline.normal == pytest.approx(0.01)
    assert timeline.effects["fault"].errors == 0
    assert timeline.effects["fault"].above == 0.0
    assert timeline.bins[0][0] == 5
    assert timeline.bins[0][3] == 1.0


@pytest.mark.parametrize(("slow", "above"), [(0.05, 0.0), (0.5, 0.845)])
def test_what_a_fault_slows_down_counts_from_the_fault(slow: float, above: float) -> None:
    """Until the last slow read is answered; a little slower does not count."""
    reads = [
        read._replace(ended=read.began + slow) if 101.0 <= read.began < 101.35 else read
        for read in reads_every(0.02, 3.0)
    ]
    timeline = timeline_of(reads, 100.0, 3.0, [(FAULT, 101.0)])
    assert timeline.effects["fault"].above == pytest.approx(above)
    assert timeline.effects["fault"].slowest == pytest.approx(slow)


def test_a_read_that_is_under_way_counts_against_what_happens_then() -> None:
    """Not against the fault before, which is over; one that hangs since that one does."""
    later = Event("later", 2.0, 0.5, lambda cluster: None)
    caught = Request(101.995, 103.0, "replica1", True)
    happened = [(FAULT, 101.0), (later, 102.001)]
    timeline = timeline_of([*reads_every(0.02, 4.0), caught], 100.0, 4.0, happened)
    above = {name: effect.above for name, effect in timeline.effects.items()}
    assert above == {"fault": 0.0, "later": pytest.approx(0.999)}
    hanging = Request(101.5, 103.0, "replica1", True)
    timeline = timeline_of([*reads_every(0.02, 4.0), hanging], 100.0, 4.0, happened)
    above = {name: effect.above for name, effect in timeline.effects.items()}
    assert above == {"fault": pytest.approx(2.0), "later": 0.0}


def test_failed_reads_are_counted_once() -> None:
    """Under the fault during which they began."""
    later = Event("later", 2.0, 0.5, lambda cluster: None)
    reads = [*reads_every(0.02, 3.0), Request(101.5, 101.6, ERROR, True, "no")]
    timeline = timeline_of(reads, 100.0, 3.0, [(FAULT, 101.0), (later, 102.0)])
    assert {name: effect.errors for name, effect in timeline.effects.items()} == {
        "fault": 1,
        "later": 0,
    }


def shown(user: User, **versions: int) -> Log:
    """Return what is noted of an answer with those versions of rows 1 and 2."""
    log = Log()
    _check(user, {int(row[1:]): version for row, version in versions.items()}, {}, log)
    return log


class Listener:
    """A site that notes how many threads have asked it."""

    def __init__(self) -> None:
        self.threads = 0
        self._mine = threading.local()

    def send(self, jar: Jar, method: str, path: str) -> dict[str, Any]:
        """Answer any request."""
        if not hasattr(self._mine, "is_known"):
            self._mine.is_known = True
            self.threads += 1
        now = time.monotonic()
        rows = dict.fromkeys(path.partition("=")[2].split(","), 1)
        return {"asked": now, "answered": now, "alias": "default", "reason": "", "versions": rows}


def test_visitors_of_the_next_round_find_the_connections_of_the_last() -> None:
    """A thread keeps them: where it is a new one, what is measured is how it connects."""
    site = Listener()
    crowd = Crowd(site, Habits(first=0, users=3, visitors=2, write_share=0.0))
    with ThreadPoolExecutor(1) as pool:
        logs = [crowd.live(0.5, 1, pool) for _ in range(2)]
    assert all(log.events and not log.errors for log in logs)
    assert site.threads == 1


def test_a_user_notices_what_is_old() -> None:
    """What they have written, and what they were shown."""
    user = User(1)
    user.written = 3
    assert shown(user, r1=3, r2=7).stale_own == 0
    assert shown(user, r1=2, r2=7).stale_own == 1
    assert shown(user, r1=3, r2=6).stale_seen == 1
    assert shown(user, r2=8).stale_own == 1
    log = shown(user, r1=4, r2=8)
    assert (log.stale_own, log.stale_seen, log.examples) == (0, 0, [])
