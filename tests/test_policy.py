"""The routing rule, over all of its inputs."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator

import pytest

from django_replica_router.policy import (
    Decision,
    Reason,
    Replica,
    ReplicaState,
    Situation,
    choose_least_lagged,
    choose_replica,
    choose_stand_in,
    choose_yielding,
    decide_at_once,
    fallback_reason,
    floor_reason,
    may_serve,
)
from django_replica_router.values.tokens import NOWHERE, Floor, Position

NAN = math.nan
INF = math.inf

# The rule as a table, from the strongest line to the weakest: what must hold, where the read goes
# and why. "replica" stands for the replica that has a transaction open.
PRECEDENCE: list[tuple[str, str, Reason]] = [
    ("not enabled", "primary", Reason.DISABLED),
    ("forced_primary", "primary", Reason.FORCED),
    ("primary_in_atomic", "primary", Reason.IN_ATOMIC),
    ("replica_in_atomic", "replica", Reason.IN_ATOMIC),
    ("primary_only", "primary", Reason.MODEL),
    ("replica_failed", "primary", Reason.REPLICA_FAILED),
    ("learned", "primary", Reason.LEARNED),
    ("not has_scope", "primary", Reason.NO_SCOPE),
    ("wrote", "primary", Reason.WROTE),
    ("unsafe", "primary", Reason.UNSAFE_METHOD),
]
# What ``use_replica`` lifts: the rules that guess.
LIFTED = {Reason.NO_SCOPE, Reason.WROTE, Reason.UNSAFE_METHOD}

FLAGS = [
    "enabled",
    "forced_primary",
    "asked_for_replica",
    "primary_in_atomic",
    "primary_only",
    "has_scope",
    "replica_failed",
    "wrote",
    "unsafe",
    "learned",
]

STREAMING = ReplicaState.STREAMING
STATES = list(ReplicaState)
AGES = [0.0, 1.0, 1.5, INF, NAN]
WATERMARKS = [-1, 0, 4, 5, 6]
FLOORS = [NOWHERE, Position(1, 0), Position(1, 4), Position(1, 5), Position(2, 5)]
MAX_LAGS = [0.0, 1.0, 2.0, NAN]


def situations() -> Iterator[Situation]:
    """Yield every combination of the inputs."""
    for values in itertools.product([False, True], repeat=len(FLAGS)):
        for alias in (None, "replica"):
            yield Situation(
                "primary", replica_in_atomic=alias, **dict(zip(FLAGS, values, strict=True))
            )


def holds(condition: str, situation: Situation) -> bool:
    """Tell whether a line of the table applies."""
    is_negated, name = condition.startswith("not "), condition.removeprefix("not ")
    return bool(getattr(situation, name)) is not is_negated


def by_the_table(situation: Situation) -> Decision | None:
    """Return what the first line of the table says that applies."""
    for condition, alias, reason in PRECEDENCE:
        if holds(condition, situation) and not (situation.asked_for_replica and reason in LIFTED):
            return Decision(alias, reason)
    return None


def test_every_input_is_in_the_product() -> None:
    """A new input of the rule has to be added to the table above."""
    assert set(FLAGS) | {"primary", "replica_in_atomic"} == set(Situation._fields)


def test_decision_follows_the_table_for_every_combination() -> None:
    """All 2048 combinations of the inputs give what the table of precedence says."""
    wrong = [
        (situation, decide_at_once(situation), by_the_table(situation))
        for situation in situations()
        if decide_at_once(situation) != by_the_table(situation)
    ]
    assert wrong == []


def test_every_line_of_the_table_decides_something() -> None:
    """Each line is the first to apply somewhere, and so is "not decided yet"."""
    decided = Counter(map(decide_at_once, situations()))
    expected = {Decision(alias, reason) for _, alias, reason in PRECEDENCE} | {None}
    assert set(decided) == expected
    assert sum(decided.values()) == 2048


@pytest.mark.parametrize(("condition", "alias", "reason"), PRECEDENCE)
def test_one_condition_alone_decides(condition: str, alias: str, reason: Reason) -> None:
    """Each condition decides by itself, where nothing else speaks."""
    name, value = condition.removeprefix("not "), not condition.startswith("not ")
    situation = Situation("primary")._replace(
        **{name: "replica" if name == "replica_in_atomic" else value}  # type: ignore[arg-type]
    )
    assert decide_at_once(situation) == Decision(alias, reason)


def test_a_safe_request_that_has_done_nothing_is_open() -> None:
    """Where no condition holds the rule leaves the decision to tokens and replicas."""
    assert decide_at_once(Situation("primary")) is None


def test_no_replica_is_named_that_has_no_transaction() -> None:
    """The only replica that the rule names by itself is the one inside whose transaction the read is."""
    for situation in situations():
        decision = decide_at_once(situation)
        if decision is not None and decision.alias != "primary":
            assert decision == Decision("replica", Reason.IN_ATOMIC)
            assert situation.replica_in_atomic == "replica"
            assert not situation.primary_in_atomic


def test_use_replica_lifts_no_rule_that_keeps_data_right() -> None:
    """Asking for a replica changes a decision only where the rule had guessed."""
    for situation in situations():
        asked = decide_at_once(situation._replace(asked_for_replica=True))
        plain = decide_at_once(situation._replace(asked_for_replica=False))
        if plain is not None and plain.reason in LIFTED:
            assert asked is None
        else:
            assert asked == plain


def replicas() -> Iterator[Replica]:
    """Yield a replica in every state, at every position, of every age."""
    for state, watermark, age in itertools.product(STATES, WATERMARKS, AGES):
        yield Replica("replica", state, watermark, age)


def test_replica_serves_only_with_health_position_and_youth_together() -> None:
    """A replica serves exactly when it streams, has replayed the floor and is young enough."""
    for replica, floor, max_lag in itertools.product(replicas(), FLOORS, MAX_LAGS):
        young = not math.isnan(replica.age + max_lag) and replica.age - max_lag <= 0
        expected = (
            replica.state == ReplicaState.STREAMING and not replica.watermark < floor.lsn and young
        )
        assert may_serve(replica, floor, max_lag) is expected, (replica, floor, max_lag)


@pytest.mark.parametrize(
    "state", [state for state in STATES if state is not ReplicaState.STREAMING]
)
def test_no_other_state_is_healthy(state: ReplicaState) -> None:
    """A replica in any state but one serves nobody, whatever else is known of it."""
    perfect = Replica("replica", ReplicaState.STREAMING, 1 << 63, 0.0)
    assert may_serve(perfect, NOWHERE, 1.0)
    assert not may_serve(perfect._replace(state=state), NOWHERE, 1.0)


@pytest.mark.parametrize(
    "unknown",
    [
        {"state": ReplicaState.UNKNOWN},
        {"state": None},
        {"state": "STREAMING"},
        {"watermark": -1},
        {"watermark": NAN},
        {"age": NAN},
        {"age": INF},
    ],
    ids=repr,
)
def test_unknown_is_never_healthy(unknown: dict[str, object]) -> None:
    """A replica of which something is not known serves nobody, even without a token."""
    perfect = Replica("replica", ReplicaState.STREAMING, 1 << 63, 0.0)
    replica = perfect._replace(**unknown)  # type: ignore[arg-type]
    assert not may_serve(replica, NOWHERE, 1e9)
    assert choose_replica([replica], NOWHERE, 1e9) is None
    assert choose_replica([replica], NOWHERE, 1e9, waited=True) is None


def test_unknown_lag_limit_admits_nobody() -> None:
    """A limit that is not a number is no limit that any replica keeps."""
    assert not may_serve(Replica("replica", ReplicaState.STREAMING, 9, 0.0), NOWHERE, NAN)


def test_position_itself_is_enough() -> None:
    """A replica that stands exactly at the token has replayed it, and one byte before has not."""
    replica = Replica("replica", ReplicaState.STREAMING, 5, 1.0)
    assert may_serve(replica, Position(1, 5), 1.0)
    assert not may_serve(replica, Position(1, 6), 1.0)


def test_first_replica_that_may_serve_is_chosen() -> None:
    """Of every three replicas the first in order of preference that may serve is taken."""
    kinds = {
        "good": (ReplicaState.STREAMING, 5, 0.0),
        "behind": (ReplicaState.STREAMING, 4, 0.0),
        "old": (ReplicaState.STREAMING, 5, 9.0),
        "lost": (ReplicaState.UNREACHABLE, 5, 0.0),
    }
    for names in itertools.product(kinds, repeat=3):
        ranked = [Replica(f"r{place}", *kinds[name]) for place, name in enumerate(names)]
        expected = f"r{names.index('good')}" if "good" in names else None
        decision = choose_replica(ranked, Position(1, 5), 1.0)
        assert (decision and decision.alias) == expected


@pytest.mark.parametrize(
    ("floor", "waited", "reason"),
    [
        (NOWHERE, False, Reason.NO_TOKEN),
        (Position(1, 5), False, Reason.CAUGHT_UP),
        (Position(1, 5), True, Reason.WAITED),
        (NOWHERE, True, Reason.WAITED),
    ],
)
def test_choice_tells_why(floor: Position, waited: bool, reason: Reason) -> None:
    """The reason of a choice says whether there was a token and whether it was waited for."""
    ranked = [Replica("replica", ReplicaState.STREAMING, 5, 0.0)]
    assert choose_replica(ranked, floor, 1.0, waited=waited) == Decision("replica", reason)


def test_without_replicas_nobody_is_chosen() -> None:
    """An empty list gives no choice, and the reason says so."""
    assert choose_replica([], NOWHERE, 1.0) is None
    assert fallback_reason([]) is Reason.NO_REPLICA


def test_freshest_that_has_the_token_is_the_least_lagged() -> None:
    """Of the replicas that may serve within the wider bound the youngest is taken, in any order."""
    young = Replica("young", STREAMING, 5, 20.0)
    old = Replica("old", STREAMING, 9, 25.0)
    behind = Replica("behind", STREAMING, 4, 1.0)
    sick = Replica("sick", ReplicaState.UNREACHABLE, 9, 0.0)
    for ranked in itertools.permutations([young, old, behind, sick]):
        decision = choose_least_lagged(list(ranked), Position(1, 5), 30.0)
        assert decision == Decision("young", Reason.LEAST_LAGGED)
        assert choose_least_lagged(list(ranked), Position(1, 5), 20.0) is not None
        assert choose_least_lagged(list(ranked), Position(1, 5), 19.9) is None
        assert choose_least_lagged(list(ranked), Position(1, 6), 30.0) == Decision(
            "old", Reason.LEAST_LAGGED
        )
    assert choose_least_lagged([], NOWHERE, 30.0) is None


def test_wider_bound_never_lowers_the_floor() -> None:
    """Whoever is the least lagged may serve by the ordinary rule with that bound."""
    for replica, floor, bound in itertools.product(replicas(), FLOORS, MAX_LAGS):
        decision = choose_least_lagged([replica], floor, bound)
        assert (decision is not None) is may_serve(replica, floor, bound)


def test_whoever_yields_gives_up_what_was_seen_and_nothing_else() -> None:
    """The first in order serves that may by the ordinary rule, with what was written for a floor."""
    for ranked in itertools.permutations(replicas(), 2):
        for written, max_lag in itertools.product(FLOORS, MAX_LAGS):
            able = [r.alias for r in ranked if may_serve(r, written, max_lag)]
            expected = Decision(able[0], Reason.YIELDED) if able else None
            assert choose_yielding(list(ranked), written, max_lag) == expected
    assert choose_yielding([], NOWHERE, INF) is None


def test_replica_that_has_the_most_stands_in() -> None:
    """For a primary that is down the healthy replica stands in that has replayed the most."""
    less = Replica("less", STREAMING, 5, 0.0)
    most = Replica("most", STREAMING, 6, 900.0)
    sick = Replica("sick", ReplicaState.AHEAD, 9, 0.0)
    for ranked in itertools.permutations([less, most, sick]):
        assert choose_stand_in(list(ranked)) == Decision("most", Reason.PRIMARY_DOWN)
    assert choose_stand_in([sick]) is None
    assert choose_stand_in([]) is None


def test_fallback_tells_sick_from_slow() -> None:
    """The reason is lag where at least one replica streams, else that there is no replica."""
    for states in itertools.product(STATES, repeat=2):
        ranked = [Replica(f"r{place}", state, -1, INF) for place, state in enumerate(states)]
        expected = Reason.LAGGING if ReplicaState.STREAMING in states else Reason.NO_REPLICA
        assert fallback_reason(ranked) is expected


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("position", [NOWHERE, Position(1, 5), Position(2, 5), Position(3, 0)])
@pytest.mark.parametrize("timeline", [1, 2, 3])
def test_token_of_a_later_timeline_binds_to_the_primary(
    pinned: bool, position: Position, timeline: int
) -> None:
    """A pin comes first, then a token of a history which the monitor has not yet seen."""
    expected = None
    if position.timeline > timeline:
        expected = Reason.EPOCH
    if pinned:
        expected = Reason.UNRECORDED_WRITE
    assert floor_reason(Floor(position, pinned), timeline) is expected


@pytest.mark.parametrize("position", [NOWHERE, Position(1, 5)])
def test_pin_binds_where_the_timeline_is_not_known(position: Position) -> None:
    """Before the primary was seen a pin still binds to it."""
    assert floor_reason(Floor(position, pinned=True), None) is Reason.UNRECORDED_WRITE


def test_reasons_and_states_are_told_apart() -> None:
    """No two reasons and no two states have the same words, which would make them one."""
    assert len({reason.value for reason in Reason}) == len(Reason.__members__)
    assert len({state.value for state in ReplicaState}) == len(ReplicaState.__members__)
