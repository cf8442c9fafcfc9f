"""What a token carries: its text, and which of two covers the other. No server is needed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_replica_router.values.carried import LONGEST, MOST_CLUSTERS, Carried, Entry
from django_replica_router.values.tokens import NOWHERE, Position, Record

numbers = st.integers(0, (1 << 64) - 1)
times = st.integers(0, (1 << 48) - 1)
positions = st.builds(Position, st.integers(1, (1 << 32) - 1), numbers)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Draw what a token may say of a cluster."""
    position, seen = draw(positions), draw(st.just(NOWHERE) | positions)
    pin = draw(st.just(0) | times)
    return Record(position, draw(times), pin, seen=seen if seen > position else NOWHERE)


entries = st.builds(Entry, records(), st.frozensets(numbers, max_size=3))
tokens = st.builds(Carried, st.dictionaries(numbers, entries, max_size=3))


@given(tokens)
def test_the_text_says_it_all(token: Carried) -> None:
    """And needs no quotes in a header, a cookie, an address or a message."""
    text = token.encode()
    assert Carried.decode(text) == token
    assert text.isascii()
    assert text.replace("-", "").replace("_", "").isalnum()


@given(tokens, tokens)
def test_both_together_cover_each(one: Carried, other: Carried) -> None:
    """In whichever order they are met."""
    both = one | other
    assert both == other | one
    assert both >= one
    assert both >= other
    assert one <= both
    assert both | one == both
    assert (one >= other) == (one | other >= one and one >= (one | other))


@given(tokens)
def test_an_empty_one_is_covered_by_all(token: Carried) -> None:
    """And is false."""
    assert token >= Carried()
    assert not Carried()
    assert hash(token) == hash(Carried(token.entries))


def test_neither_need_cover_the_other() -> None:
    """Each may be ahead in a cluster of its own."""
    one = Carried({1: Entry(Record(Position(1, 2), 3))})
    other = Carried({2: Entry(Record(Position(1, 1), 3))})
    assert not one >= other
    assert not other >= one
    assert one != other


def test_it_has_a_bound() -> None:
    """However many clusters a request goes through, the latest writes are kept."""
    many = Carried({n: Entry(Record(Position(1, n), n)) for n in range(1, 100)})
    text = many.encode()
    assert len(text) < LONGEST / 2
    assert list(Carried.decode(text).entries) == list(range(100 - MOST_CLUSTERS, 100))


@pytest.mark.parametrize("text", ["", "2AAAA", "1AAAA", "1A", "1" + "A" * LONGEST, "1*", "1é"])
def test_what_is_none_is_refused(text: str) -> None:
    """Whoever reads it counts that."""
    with pytest.raises(ValueError, match="The token is"):
        Carried.decode(text)
