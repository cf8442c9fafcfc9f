"""Positions, the records that the store keeps, and the floor that binds a reader."""

from __future__ import annotations

import functools
import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from django_replica_router.values.tokens import NOWHERE, Floor, Position, Record

MAXIMUM_MS = (1 << 48) - 1
DIGITS = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
OWNER = "-0123456789_AZaz"
NOW = 1_700_000_000_000

positions = st.builds(Position, st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1))
times = st.integers(0, MAXIMUM_MS)
owners = st.sampled_from(["", "a" * 16, "-" * 16]) | st.text(DIGITS, min_size=16, max_size=16)


def plain(record: Record) -> Record:
    """Return the record as it is stored: what was seen stands in it where it lies behind the rest."""
    return record if record.seen > record.position else record._replace(seen=NOWHERE)


records = st.builds(Record, positions, times, times, owners, st.just(NOWHERE) | positions).map(
    plain
)


def test_later_timeline_is_ahead_of_any_lsn() -> None:
    """Of two positions the one of the later history is the higher, whatever its LSN."""
    assert Position(2, 0) > Position(1, (1 << 64) - 1)
    assert Position(1, 2) > Position(1, 1)
    assert max(Position(9, 5), Position(10, 4)) == Position(10, 4)


@given(positions)
def test_nowhere_is_behind_every_position(position: Position) -> None:
    """Every server has passed the position that stands for none."""
    assert position >= NOWHERE


def test_new_record_binds_nobody() -> None:
    """A record without values is one whose key is merely known."""
    assert Record() == (NOWHERE, 0, 0, "", NOWHERE)
    assert Floor().raised_by(Record(), 0) == Floor()


def test_encoded_form_is_fixed() -> None:
    """The text in the cache is what servers of other versions and the Lua script read."""
    record = Record(Position(3, 0x16_B374D848), 0x18BCFE56800)
    assert record.encode() == "2-----k---0PnSCW7-NjEtLV-"
    assert record._replace(owner=OWNER).encode() == f"2-----k---0PnSCW7-NjEtLV-{OWNER}"
    record = record._replace(pinned_until_ms=5, owner=OWNER)
    assert record.encode() == f"2-----k---0PnSCW7-NjEtLV--------4{OWNER}"


def test_encoded_form_of_what_was_seen_is_fixed() -> None:
    """It stands behind the expiry, under a version of its own; what adds nothing does not stand there."""
    record = Record(Position(3, 0x16_B374D848), 0x18BCFE56800)
    seen = "-----k---0PnSCW8"
    for more, rest in (({}, ""), ({"pinned_until_ms": 5, "owner": OWNER}, f"-------4{OWNER}")):
        shown = record._replace(seen=Position(3, 0x16_B374D849), **more)
        assert shown.encode() == f"3-----k---0PnSCW7-NjEtLV-{seen}{rest}"
        assert shown._replace(seen=record.position).encode() == record._replace(**more).encode()


def test_a_record_of_before_counts_as_written() -> None:
    """Of a position that an earlier version has stored nobody knows whether it was only seen."""
    record = Record.decode("2-----k---0PnSCW7-NjEtLV-")
    assert record is not None
    floor = Floor().raised_by(record, 0)
    assert floor.written == floor.position == Position(3, 0x16_B374D848)


def test_an_earlier_version_takes_what_was_seen_for_no_record() -> None:
    """And so its writer must not be there any more, or ``MONOTONIC_SHARE`` be 1 as long as it is."""
    earlier = re.compile(r"2[-0-9A-Z_a-z]{24}((?!-{8})[-0-9A-Z_a-z]{8})?([-0-9A-Z_a-z]{16})?")
    assert earlier.fullmatch(Record(Position(1, 5), 1, 1, OWNER).encode())
    assert not earlier.fullmatch(Record(Position(1, 5), seen=Position(1, 6)).encode())


@given(records)
@example(Record())
@example(Record(Position((1 << 32) - 1, (1 << 64) - 1), MAXIMUM_MS, MAXIMUM_MS, "z" * 16))
@example(Record(seen=Position((1 << 32) - 1, (1 << 64) - 1), owner="z" * 16))
def test_round_trip(record: Record) -> None:
    """A record is read back as it was written, from text and from bytes."""
    assert Record.decode(record.encode()) == record
    assert Record.decode(record.encode().encode()) == record


def fields_of(record: Record) -> tuple[bytes, bytes, bytes, bytes]:
    """Return position, expiry, pin and what was seen as they stand in the text of a record."""
    text = record.encode().removesuffix(record.owner).encode()
    end = 41 if text.startswith(b"3") else 25
    return text[1:17], text[17:25], text[end:], text[25:end]


@given(records, records)
def test_encoded_fields_compare_as_the_numbers_do(first: Record, second: Record) -> None:
    """Text has the order of the numbers field by field, which the Lua script relies on."""
    texts = zip(fields_of(first), fields_of(second), strict=True)
    values = [(record.position, *record[1:3], record.seen) for record in (first, second)]
    for (one, other), mine, others in zip(texts, *values, strict=True):
        assert (one < other) == (mine < others)


@given(st.integers(MAXIMUM_MS, 1 << 70))
def test_time_too_late_for_the_format_is_the_latest(time_ms: int) -> None:
    """A time that does not fit is written as the latest one, never as an early one."""
    record = Record(Position(1, 1), time_ms, time_ms)
    assert Record.decode(record.encode()) == Record(Position(1, 1), MAXIMUM_MS, MAXIMUM_MS)


GOOD = Record(Position(1, 1), 1, 1, OWNER).encode()
SEEN = Record(Position(1, 1), 1, 1, OWNER, Position(1, 2)).encode()


@pytest.mark.parametrize(
    "value",
    [
        None,
        0,
        1,
        True,
        1.5,
        [],
        {},
        (GOOD,),
        bytearray(GOOD.encode()),
        memoryview(GOOD.encode()),
        "",
        "1",
        GOOD + "\n",
        GOOD + " ",
        " " + GOOD,
        GOOD[:-1] + "+",
        GOOD[:-1] + "=",
        GOOD[:-1] + "\0",
        GOOD[:-1] + "\u0661",
        GOOD[:-1],
        GOOD + "0",
        GOOD[1:],
        "1" + GOOD[1:],
        "3" + GOOD[1:],
        "4" + GOOD[1:],
        "2" + SEEN[1:],
        "4" + SEEN[1:],
        SEEN[:-1],
        SEEN + "0",
        SEEN[:40],
        SEEN[:25],
        SEEN[:25] + SEEN[1:17],  # no more than what was written
        SEEN[:25] + "-" * 16,
        SEEN[:41] + "-" * 8,
        SEEN[:41] + "-" * 8 + OWNER,
        "1:00000003:00000016b374d848:018bcfe56800:000000000000:",
        "2:" + GOOD[1:],
        GOOD[:25] + "-" * 8 + OWNER,
        GOOD[:25] + "-" * 8,
        GOOD[:24],
        GOOD[:32],
        "2",
        GOOD.encode("utf-16"),
        b"\xff" + GOOD.encode(),
        Position(1, 1),
        Record(),
    ],
    ids=lambda value: "memoryview" if isinstance(value, memoryview) else repr(value),
)
def test_anything_else_is_no_record(value: object) -> None:
    """What is not exactly a record is None: unknown, and never a low position."""
    assert Record.decode(value) is None


@given(
    st.text()
    | st.binary()
    | st.from_regex(r"[23][-0-9A-Z_a-z]{24}([-0-9A-Z_a-z]{8})*")
    | st.none()
    | st.integers()
    | st.floats()
    | st.lists(st.text())
    | st.dictionaries(st.text(), st.integers())
)
def test_decoding_never_raises(value: object) -> None:
    """Whatever lies in the cache gives None, or a record which is written the same way."""
    record = Record.decode(value)
    if record is not None:
        text = value.decode() if isinstance(value, bytes) else value
        assert record.encode() == text


@given(st.sampled_from([GOOD, SEEN]), st.integers(0, 100), st.characters())
def test_one_wrong_character_never_lowers_a_position(good: str, place: int, character: str) -> None:
    """A record that was damaged is unreadable, or reads as exactly what it says."""
    damaged = good[: place % len(good)] + character + good[place % len(good) + 1 :]
    record = Record.decode(damaged)
    assert record is None or record.encode() == damaged


@given(records, records)
def test_merging_is_the_same_both_ways(first: Record, second: Record) -> None:
    """Position and times do not depend on which record came first."""
    assert first.merge(second)[:3] == second.merge(first)[:3]
    assert first.merge(second).seen == second.merge(first).seen


@given(records, records, records)
def test_merging_may_be_grouped(first: Record, second: Record, third: Record) -> None:
    """Three records give one result, in whatever pairs they are merged."""
    assert first.merge(second).merge(third) == first.merge(second.merge(third))


@given(records)
def test_merging_with_itself_changes_nothing(record: Record) -> None:
    """A record that arrives twice counts once."""
    assert record.merge(record) == record
    assert Record().merge(record) == record
    assert record.merge(Record()) == record


@given(records, records)
def test_merging_never_lowers(first: Record, second: Record) -> None:
    """What either record demands, the merged one demands, and nothing beyond."""
    merged = first.merge(second)
    for field in (0, 1, 2):
        assert merged[field] >= first[field]
        assert merged[field] >= second[field]
        assert merged[field] in (first[field], second[field])
    assert merged.token == max(first.token, second.token)
    assert merged == plain(merged)


@given(records, records, times)
def test_what_was_seen_never_raises_what_was_written(
    first: Record, second: Record, now_ms: int
) -> None:
    """Neither in a record nor in a floor; but where nothing else is known it counts as written."""
    for record in (first.merge(second), second.merge(first)):
        assert record.position == max(first.position, second.position)
        floor = Floor().raised_by(first, now_ms).raised_by(second, now_ms)
        alive = [one for one in (first, second) if one.expires_ms > now_ms]
        assert floor.written == max((one.position for one in alive), default=NOWHERE)
        assert floor.written <= floor.position
        assert record.as_written() == record._replace(position=record.token, seen=NOWHERE)


def test_every_order_of_arrival_ends_the_same() -> None:
    """However requests of one user interleave, the record is the maximum of all."""
    parts = [
        Record(Position(1, 900), NOW + 1, 0),
        Record(Position(2, 5), NOW, NOW + 7),
        Record(Position(1, 3), NOW + 9, 0),
        Record(pinned_until_ms=NOW + 8),
    ]
    results = {
        functools.reduce(Record.merge, order, Record()) for order in itertools.permutations(parts)
    }
    assert results == {Record(Position(2, 5), NOW + 9, NOW + 8)}


@pytest.mark.parametrize(
    ("old", "new", "owner"),
    [("", "", ""), ("a", "", "a"), ("", "b", "b"), ("a", "b", "b")],
)
def test_owner_that_was_named_last_is_kept(old: str, new: str, owner: str) -> None:
    """A session belongs to whom it was last given; a record that names nobody takes none away."""
    assert Record(owner=old).merge(Record(owner=new)).owner == owner


@pytest.mark.parametrize(
    ("expires_ms", "counts"), [(NOW - 1, False), (NOW, False), (NOW + 1, True)]
)
def test_position_counts_until_it_expires(expires_ms: int, counts: bool) -> None:
    """A position raises the floor before its expiry and not from then on."""
    floor = Floor().raised_by(Record(Position(1, 5), expires_ms), NOW)
    expected = Floor(Position(1, 5), False, expires_ms, Position(1, 5))
    assert floor == (expected if counts else Floor())


@pytest.mark.parametrize(
    ("until_ms", "pinned"), [(0, False), (NOW - 1, False), (NOW, False), (NOW + 1, True)]
)
def test_pin_counts_until_it_ends(until_ms: int, pinned: bool) -> None:
    """A pin binds before its end and not from then on, whatever the position's expiry."""
    record = Record(Position(1, 5), 0, until_ms)
    assert Floor().raised_by(record, NOW) == Floor(NOWHERE, pinned, 0)


@given(st.lists(records, max_size=5), st.booleans(), times)
def test_floor_is_the_highest_of_what_still_counts(
    known: list[Record], pinned: bool, now_ms: int
) -> None:
    """The floor is the maximum of the positions that have not expired, in any order."""
    start = Floor(NOWHERE, pinned)
    floor = functools.reduce(lambda floor, record: floor.raised_by(record, now_ms), known, start)
    alive = [record.token for record in known if record.expires_ms > now_ms]
    assert floor.position == max(alive, default=NOWHERE)
    assert floor.pinned == (pinned or any(record.pinned_until_ms > now_ms for record in known))


@given(st.lists(records, max_size=5), times)
def test_floor_expires_with_the_token_that_it_is(known: list[Record], now_ms: int) -> None:
    """The expiry of a floor is that of a record that has the floor's position, and lies ahead."""
    floor = functools.reduce(lambda floor, record: floor.raised_by(record, now_ms), known, Floor())
    if floor.position == NOWHERE:
        assert floor.expires_ms == 0
    else:
        assert floor.expires_ms > now_ms
        assert (floor.position, floor.expires_ms) in [(r.token, r.expires_ms) for r in known]


@given(positions, records, times)
def test_floor_is_never_lowered(position: Position, record: Record, now_ms: int) -> None:
    """Taking a record into account leaves the floor where it is, or raises it."""
    for pinned in (False, True):
        raised = Floor(position, pinned).raised_by(record, now_ms)
        assert raised.position >= position
        assert raised.pinned >= pinned
        assert Floor(position, pinned, 0, position).raised_by(record, now_ms).written >= position


def test_pattern_of_the_format_is_anchored() -> None:
    """A record inside other text is no record."""
    assert re.fullmatch(r"2[-0-9A-Z_a-z]{48}", GOOD)
    assert Record.decode("x" + GOOD + "x") is None
