"""The oracle of the benchmarks: what it says where the answer is known."""

from __future__ import annotations

import pytest

from benchmarks.oracle import BEYOND, PRIMARY, Look, Oracle, Promise, Read, Track, Verdict, Write

REPLICA = "replica1"
OTHER = "replica2"


def stands(*steps: tuple[float, int], until: float = 100.0, delay: float = 0.0) -> Track:
    """Return a server that reaches each position at its moment, looked at every half second."""
    moments = [step / 2 for step in range(round(until * 2))]
    return Track(
        [
            Look(moment, moment + 0.1, max([p for at, p in steps if at + delay <= moment] or [0]))
            for moment in moments
        ]
    )


STEPS = ((0.0, 10), (10.0, 20), (20.0, 30), (30.0, 40))


def judge(
    promise: Promise, *history: Read | Write, lag: float = 5.0, other_lag: float | None = None
) -> Verdict:
    """Judge a history on a primary that writes at 10, 20 and 30, and on replicas that lag."""
    replicas = {REPLICA: stands(*STEPS, delay=lag)}
    if other_lag is not None:
        replicas[OTHER] = stands(*STEPS, delay=other_lag)
    return Oracle(stands(*STEPS), replicas, promise).judge(history)


@pytest.mark.parametrize("promise", Promise)
def test_who_has_written_nothing_is_served_by_a_replica(promise: Promise) -> None:
    """Also while it lags: nothing that the user knows of is missing there."""
    verdict = judge(promise, Read(1, 11.0, PRIMARY, "LAGGING"), Read(1, 12.0, REPLICA))
    assert (verdict.reads, verdict.by_oracle, verdict.by_contender) == (2, 2, 1)
    assert verdict.missed == {"LAGGING": 1}
    assert verdict.ratio == 0.5


@pytest.mark.parametrize("promise", Promise)
@pytest.mark.parametrize(("moment", "could"), [(10.2, 0), (14.0, 0), (15.0, 1), (18.0, 1)])
def test_a_write_must_have_arrived(promise: Promise, moment: float, could: int) -> None:
    """Before that, only the primary has it."""
    verdict = judge(promise, Write(1, 10.1, 20), Read(1, moment, REPLICA))
    assert verdict.by_oracle == could
    assert verdict.gained == 1 - could


def test_a_write_of_somebody_else_binds_nobody() -> None:
    """The floor is that of the user."""
    verdict = judge(Promise.WRITTEN, Write(2, 10.1, 20), Read(1, 11.0, REPLICA))
    assert verdict.by_oracle == 1


def test_a_write_binds_only_what_comes_after_it() -> None:
    """A history may be given in any order."""
    verdict = judge(Promise.WRITTEN, Write(1, 10.1, 20), Read(1, 9.0, REPLICA))
    assert verdict.by_oracle == 1


def test_any_replica_will_do() -> None:
    """It takes the one that has the write."""
    verdict = judge(Promise.WRITTEN, Write(1, 10.1, 20), Read(1, 12.0, OTHER), other_lag=1.0)
    assert verdict.by_oracle == 1


def test_what_the_primary_has_shown_is_not_taken_back() -> None:
    """The two promises differ here, and only here.

    The write of 10 arrives at 25. The read at 21 shows, on the primary, what was written at 20 and
    arrives at 35: who was shown that may not be served by the replica at 26.
    """
    history = (Write(1, 10.1, 20), Read(1, 21.0, PRIMARY), Read(1, 26.0, REPLICA))
    assert judge(Promise.WRITTEN, *history, lag=15.0).by_oracle == 1
    assert judge(Promise.SHOWN, *history, lag=15.0).by_oracle == 0
    later = (*history, Read(1, 36.0, REPLICA))
    assert judge(Promise.SHOWN, *later, lag=15.0).by_oracle == 1


def test_it_shows_as_little_as_it_may() -> None:
    """Who was shown the lagging replica may be served by either one later."""
    history = (Read(1, 11.0, OTHER), Read(1, 12.0, REPLICA))
    assert judge(Promise.SHOWN, *history, other_lag=0.0).by_oracle == 2


def test_it_plays_its_own_game() -> None:
    """That the contender has shown a user the primary is no excuse for its next read."""
    history = (Read(1, 11.0, PRIMARY, "a"), Read(1, 12.0, PRIMARY, "b"))
    verdict = judge(Promise.SHOWN, *history)
    assert verdict.by_oracle == 2
    assert verdict.missed == {"a": 1, "b": 1}


def test_what_was_left_of_an_earlier_history_counts() -> None:
    """A long run is judged in parts."""
    oracle = Oracle(stands(*STEPS), {REPLICA: stands(*STEPS, delay=5.0)}, Promise.WRITTEN)
    floors: dict[int, int] = {}
    oracle.judge([Write(1, 10.1, 20)], floors)
    assert oracle.judge([Read(1, 11.0, PRIMARY)], floors).by_oracle == 0
    assert oracle.judge([Read(1, 11.0, PRIMARY)]).by_oracle == 1


def test_doubt_favours_the_oracle() -> None:
    """Between two looks a replica counts as the later one finds it, what is shown as the earlier."""
    track = Track([Look(1.0, 1.1, 10), Look(2.0, 2.1, 20)])
    assert [track.at_most(moment) for moment in (0.5, 1.0, 1.5, 2.0, 2.5)] == [
        10,
        10,
        20,
        20,
        BEYOND,
    ]
    assert [track.at_least(moment) for moment in (0.5, 1.0, 1.1, 2.05, 2.1)] == [0, 0, 10, 10, 20]


def test_the_longest_pause_is_told() -> None:
    """By so much the oracle may know the future."""
    track = Track([Look(1.0, 1.1, 10), Look(2.0, 2.1, 20), Look(2.2, 2.5, 20)])
    assert track.pauses() == pytest.approx([1.1, 0.5])


def test_verdicts_add_up() -> None:
    """The sum of two rounds is judged like one."""
    verdict = judge(Promise.WRITTEN, Read(1, 11.0, PRIMARY, "a"))
    verdict.add(judge(Promise.WRITTEN, Read(1, 11.0, REPLICA)))
    assert (verdict.reads, verdict.by_oracle, verdict.by_contender) == (2, 2, 1)
    assert verdict.missed == {"a": 1}
    assert Verdict().ratio is None


def test_an_oracle_that_ignores_writes_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without floors it would promise a stale read, which a test above refuses."""
    monkeypatch.setattr(Track, "at_most", lambda self, moment: BEYOND)
    with pytest.raises(AssertionError):
        test_a_write_must_have_arrived(Promise.WRITTEN, 14.0, 0)


def test_an_oracle_that_forgets_what_it_showed_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: with nothing counted as shown, its two promises would be one."""
    monkeypatch.setattr(Track, "at_least", lambda self, moment: 0)
    with pytest.raises(AssertionError):
        test_what_the_primary_has_shown_is_not_taken_back()
