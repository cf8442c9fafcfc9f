"""In which order replicas are tried: stability, shares by weight, and who moves when one leaves."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_replica_router.errors import ConfigurationError
from django_replica_router.routing.balancers import (
    LeastInFlight,
    get_balancer,
    least_in_flight,
    random_order,
    rendezvous,
    round_robin,
)
from django_replica_router.values.rules import BALANCERS

EQUAL = {"replica1": 1.0, "replica2": 1.0, "replica3": 1.0}
READERS = [hashlib.blake2b(b"%d" % number, digest_size=16).hexdigest() for number in range(6000)]

aliases = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
weights = st.dictionaries(aliases, st.floats(1e-6, 1e6), max_size=6)


def shares(firsts: Sequence[str]) -> dict[str, float]:
    """Return what part of all came first, by alias."""
    return {alias: count / len(firsts) for alias, count in Counter(firsts).items()}


def tolerance(share: float, count: int) -> float:
    """Return five standard deviations of a share among so many draws."""
    return 5 * math.sqrt(share * (1 - share) / count)


@pytest.mark.parametrize("name", BALANCERS)
@given(reader=st.text(st.characters(codec="utf-8"), max_size=8), weights=weights)
def test_every_replica_is_ranked_once(name: str, reader: str, weights: dict[str, float]) -> None:
    """Every balancer returns each alias exactly once, for any reader and any weights."""
    ranked = list(get_balancer(name)(reader, weights))
    assert sorted(ranked) == sorted(weights)


@pytest.mark.parametrize("name", BALANCERS)
def test_callers_weights_are_left_alone(name: str) -> None:
    """No balancer changes the weights that it was given."""
    weights = dict(EQUAL)
    get_balancer(name)("reader", weights)
    assert weights == EQUAL


@pytest.mark.parametrize("name", BALANCERS)
def test_random_numbers_of_the_site_are_left_alone(name: str) -> None:
    """No read changes what comes next for who has seeded ``random``, as in a test."""
    before = random.getstate()
    get_balancer(name)("", EQUAL)
    assert random.getstate() == before


@given(reader=st.text(st.characters(codec="utf-8"), min_size=1), weights=weights)
def test_same_reader_meets_the_same_replica(reader: str, weights: dict[str, float]) -> None:
    """The rank depends on reader, alias and weight only, not on the order of the mapping."""
    backwards = dict(reversed(weights.items()))
    assert rendezvous(reader, weights) == rendezvous(reader, weights)
    assert rendezvous(reader, weights) == rendezvous(reader, backwards)


def test_same_reader_meets_the_same_replica_in_every_process() -> None:
    """The rank is the same in a process with another hash seed, so monotonic reads need no storage."""
    code = (
        "from django_replica_router.routing.balancers import rendezvous\n"
        f"print([rendezvous(reader, {EQUAL!r}) for reader in {READERS[:20]!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "42", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str([rendezvous(reader, EQUAL) for reader in READERS[:20]])


@pytest.mark.parametrize(
    "weights",
    [
        EQUAL,
        {"replica1": 1.0, "replica2": 3.0},
        {"replica1": 1.0, "replica2": 2.0, "replica3": 5.0},
        {"a": 0.1, "b": 0.1},
        dict.fromkeys([f"db-{number:02}" for number in range(10)], 1.0),
    ],
    ids=str,
)
def test_readers_are_shared_out_by_weight(weights: dict[str, float]) -> None:
    """A replica comes first for a part of the readers, and at random, as large as its weight."""
    total = sum(weights.values())
    for ranked in (
        [rendezvous(reader, weights)[0] for reader in READERS],
        [random_order("", weights)[0] for _ in READERS],
    ):
        found = shares(ranked)
        for alias, weight in weights.items():
            share = weight / total
            assert abs(found[alias] - share) < tolerance(share, len(READERS)), (alias, found)


def test_second_choice_is_shared_out_as_well() -> None:
    """The readers of one replica fall back to the others in equal parts, not all to one."""
    for first, second, third in itertools.permutations(EQUAL):
        mine = [order for reader in READERS if (order := rendezvous(reader, EQUAL))[0] == first]
        found = shares([order[1] for order in mine])
        assert set(found) == {second, third}
        assert abs(found[second] - 0.5) < tolerance(0.5, len(mine))


@pytest.mark.parametrize("gone", EQUAL)
def test_only_the_readers_of_a_replica_that_leaves_move(gone: str) -> None:
    """Without one replica every other reader keeps the order that was."""
    rest = {alias: weight for alias, weight in EQUAL.items() if alias != gone}
    for reader in READERS[:500]:
        before = rendezvous(reader, EQUAL)
        before.remove(gone)
        assert rendezvous(reader, rest) == before


@given(
    reader=st.text(st.characters(codec="utf-8"), min_size=1),
    weights=weights,
    factor=st.floats(2, 9),
)
def test_more_weight_never_loses_a_reader(
    reader: str, weights: dict[str, float], factor: float
) -> None:
    """A replica whose weight grows keeps all the readers that it had."""
    for alias in weights:
        more = weights | {alias: weights[alias] * factor}
        assert rendezvous(reader, more).index(alias) <= rendezvous(reader, weights).index(alias)


def test_reader_without_a_name_is_sent_anywhere() -> None:
    """Readers that cannot be told apart do not all meet one replica."""
    assert set(shares([rendezvous("", EQUAL)[0] for _ in range(200)])) == set(EQUAL)


def test_round_robin_begins_with_each_in_turn() -> None:
    """Three calls in a row begin with three replicas, each list in the order of the mapping."""
    ranked = [round_robin("reader", EQUAL) for _ in range(6)]
    assert ranked[:3] == ranked[3:]
    assert {order[0] for order in ranked} == set(EQUAL)
    turn = list(EQUAL) * 2
    for order in ranked:
        start = turn.index(order[0])
        assert order == turn[start : start + 3]


def test_round_robin_takes_turns_among_threads() -> None:
    """Of calls in four threads each replica comes first equally often."""
    firsts: list[str] = []

    def work() -> None:
        firsts.extend(round_robin("", EQUAL)[0] for _ in range(300))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(firsts) == dict.fromkeys(EQUAL, 400)


def test_replica_with_less_to_do_comes_first() -> None:
    """The replica that the fewest scopes work with is preferred, and again when one has left."""
    balancer = LeastInFlight()
    for alias in ("replica1", "replica1", "replica2"):
        balancer.enter(alias)
    assert balancer("reader", EQUAL) == ["replica3", "replica2", "replica1"]
    balancer.leave("replica1")
    balancer.leave("replica1")
    assert balancer("reader", EQUAL)[2] == "replica2"


def test_weight_counts_in_flight() -> None:
    """A replica of double weight takes twice as many scopes before another is preferred."""
    balancer = LeastInFlight()
    weights = {"small": 1.0, "large": 2.0}
    taken = []
    for _ in range(30):
        first = balancer("reader", weights)[0]
        balancer.enter(first)
        taken.append(first)
    assert Counter(taken) == {"small": 10, "large": 20}


def test_equally_busy_replicas_take_turns_at_random() -> None:
    """Where nothing tells replicas apart, no one of them is always first."""
    balancer = LeastInFlight()
    assert {balancer("reader", EQUAL)[0] for _ in range(200)} == set(EQUAL)


def test_count_in_flight_survives_threads() -> None:
    """Entering and leaving in eight threads at the same time loses no count."""
    balancer = LeastInFlight()

    def work() -> None:
        for _ in range(500):
            balancer.enter("replica1")
            balancer.leave("replica1")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    balancer.enter("replica2")
    balancer.enter("replica3")
    assert balancer("reader", EQUAL)[0] == "replica1"


@pytest.mark.parametrize(
    ("name", "balancer"),
    [
        ("rendezvous", rendezvous),
        ("random", random_order),
        ("round_robin", round_robin),
        ("least_in_flight", least_in_flight),
        ("random.choice", random.choice),
    ],
)
def test_balancer_is_found_by_name_or_path(name: str, balancer: object) -> None:
    """A name gives the package's own balancer, a dotted path whatever lies there."""
    assert get_balancer(name) == balancer


def test_names_of_the_setting_are_those_of_the_balancers() -> None:
    """The setting's documentation lists exactly the names that need no path."""
    assert all(callable(get_balancer(name)) for name in BALANCERS)
    assert [name for name in BALANCERS if "." in name] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fastest", "fastest doesn't look like a module path"),
        ("nowhere.fastest", "No module named 'nowhere'"),
        ("random.fastest", 'Module "random" does not define a "fastest" attribute/class'),
    ],
)
def test_path_that_leads_nowhere_is_an_error(name: str, message: str) -> None:
    """A balancer that cannot be imported raises an error that names it, and the setting."""
    names = f"REPLICA_ROUTER['BALANCER'] names {name!r}, which cannot be imported: "
    with pytest.raises(ConfigurationError, match=f"^{re.escape(names)}{message}"):
        get_balancer(name)
