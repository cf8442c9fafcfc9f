"""WAL positions: read, written, compared, and cleared of page headers."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from django_replica_router.values.lsn import (
    WAL_PAGE_SIZE,
    format_lsn,
    normalise_insert_lsn,
    parse_lsn,
)

MIB = 1 << 20
SEGMENT_SIZES = [MIB << power for power in range(11)]  # 1 MiB to 1 GiB: all that initdb allows

lsns = st.integers(0, (1 << 64) - 1)
segment_sizes = st.sampled_from(SEGMENT_SIZES)


def at_page_starts(offset: int) -> st.SearchStrategy[int]:
    """Return positions that lie so many bytes behind the start of a page."""
    return st.integers(0, (1 << 50) - 1).map(lambda page: page * WAL_PAGE_SIZE + offset)


@pytest.mark.parametrize(
    ("text", "lsn"),
    [
        ("0/0", 0),
        ("0/1", 1),
        ("0/FFFFFFFF", (1 << 32) - 1),
        ("1/0", 1 << 32),
        ("16/B374D848", 0x16_B374D848),
        ("FFFFFFFF/FFFFFFFF", (1 << 64) - 1),
    ],
)
def test_text_and_number_stand_for_the_same_position(text: str, lsn: int) -> None:
    """PostgreSQL's text and the 64-bit number turn into each other."""
    assert parse_lsn(text) == lsn
    assert format_lsn(lsn) == text


@pytest.mark.parametrize(
    ("text", "lsn"),
    [("a/b", 0xA_0000000B), ("00000016/0b374D848", None), ("0000000A/00000001", 0xA_00000001)],
)
def test_case_and_leading_zeros_do_not_matter(text: str, lsn: int | None) -> None:
    """Lower case and zeros up to eight digits are read; a ninth digit is not."""
    if lsn is None:
        with pytest.raises(ValueError, match="is not an LSN"):
            parse_lsn(text)
    else:
        assert parse_lsn(text) == lsn


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("0/FFFFFFFF", "1/0"),
        ("9/0", "10/0"),  # as text, the other way round
        ("1/F0000000", "2/1"),  # half by half, neither is lower
        ("7FFFFFFF/FFFFFFFF", "80000000/0"),
        ("0/9", "0/A"),
    ],
)
def test_positions_compare_as_numbers(lower: str, higher: str) -> None:
    """Order holds across the 32-bit boundary, where text and halves would be wrong."""
    assert parse_lsn(lower) < parse_lsn(higher)


@given(lsns)
@example((1 << 32) - 1)
@example(1 << 32)
def test_round_trip(lsn: int) -> None:
    """What was formatted is read back as the same number."""
    assert parse_lsn(format_lsn(lsn)) == lsn


@given(
    st.tuples(*[st.integers(0, (1 << 32) - 1)] * 2), st.tuples(*[st.integers(0, (1 << 32) - 1)] * 2)
)
def test_order_is_that_of_the_pair_of_halves(
    first: tuple[int, int], second: tuple[int, int]
) -> None:
    """The high half decides, and the low half where the high ones are equal."""
    parsed = [parse_lsn(f"{high:X}/{low:X}") for high, low in (first, second)]
    assert (parsed[0] < parsed[1]) == (first < second)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "0",
        "0/",
        "/0",
        "0/0/0",
        "0/0\n",
        " 0/0",
        "0/0 ",
        "G/0",
        "0x1/0",
        "-1/0",
        "+1/0",
        "1_0/0",
        "100000000/0",
        "0/100000000",
        "\u0661/0",
        "\uff11/0",
        "0/0\x00",
    ],
)
def test_other_text_is_refused(text: str) -> None:
    """Text that is no LSN raises an error that shows it and says what is expected."""
    message = f"{text!r} is not an LSN: expected two hexadecimal numbers such as '16/B374D848'."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_lsn(text)


@given(st.text())
def test_any_text_is_read_in_full_or_refused(text: str) -> None:
    """Whatever is read without an error formats back to the same text, but for case and zeros."""
    try:
        lsn = parse_lsn(text)
    except ValueError:
        return
    halves = [half.upper().lstrip("0") or "0" for half in text.split("/")]
    assert format_lsn(lsn) == "/".join(halves)


@pytest.mark.parametrize("number", [-1, 1 << 64, -(1 << 64)])
def test_number_outside_64_bits_is_refused(number: int) -> None:
    """A number that cannot be a position raises an error that shows it and the limits."""
    message = f"{number} is not an LSN: expected a number from 0 to 2**64 - 1."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        format_lsn(number)


@pytest.mark.parametrize("segment_size", SEGMENT_SIZES)
@pytest.mark.parametrize("segment", [0, 1, 255, 256])
def test_header_of_a_segment_is_taken_off(segment_size: int, segment: int) -> None:
    """Just behind the long header of a segment's first page, the position is the segment's start."""
    start = segment * segment_size
    assert normalise_insert_lsn(start + 40, segment_size) == start


@pytest.mark.parametrize("page", [1, 2, 127, 129])
def test_header_of_a_page_is_taken_off(page: int) -> None:
    """Just behind the short header of any other page, the position is the page's start."""
    start = 16 * MIB + page * WAL_PAGE_SIZE
    assert normalise_insert_lsn(start + 24, 16 * MIB) == start


@pytest.mark.parametrize("page", [1, 2, 127, 2047])
def test_forty_bytes_into_another_page_a_record_may_end(page: int) -> None:
    """On a page that begins no segment, offset 40 is a real record's end and stays."""
    lsn = 16 * MIB + page * WAL_PAGE_SIZE + 40
    assert normalise_insert_lsn(lsn, 16 * MIB) == lsn


def test_segment_size_decides_what_is_a_segment_start() -> None:
    """The same position is a segment's start or an ordinary page's, by the server's segment size."""
    lsn = MIB + 40
    assert normalise_insert_lsn(lsn, MIB) == MIB
    assert normalise_insert_lsn(lsn, 16 * MIB) == lsn


@given(lsns | at_page_starts(24) | at_page_starts(40), segment_sizes)
def test_normalising_takes_off_a_header_or_nothing(lsn: int, segment_size: int) -> None:
    """Only a whole header is taken off, only where one ends, and what is left is a page's start."""
    taken = lsn - normalise_insert_lsn(lsn, segment_size)
    if lsn % segment_size == 40:
        assert taken == 40
    elif lsn % WAL_PAGE_SIZE == 24:
        assert taken == 24
    else:
        assert taken == 0
    assert taken == 0 or (lsn - taken) % WAL_PAGE_SIZE == 0


@given(lsns | at_page_starts(24) | at_page_starts(40), segment_sizes)
def test_normalising_twice_changes_nothing_more(lsn: int, segment_size: int) -> None:
    """A normalised position is normal."""
    once = normalise_insert_lsn(lsn, segment_size)
    assert normalise_insert_lsn(once, segment_size) == once


@given(at_page_starts(0), st.sampled_from([0, 24, 40, 64]), segment_sizes)
def test_normalising_never_crosses_a_record(page: int, offset: int, segment_size: int) -> None:
    """Of two insert positions the later one never becomes the earlier one."""
    positions = [page, page + 24, page + 40, page + 64, page + WAL_PAGE_SIZE]
    if page % segment_size == 0:
        positions.remove(page + 24)  # inside the long header, where no record begins
    normal = [normalise_insert_lsn(position, segment_size) for position in positions]
    assert normal == sorted(normal)
    assert normalise_insert_lsn(page + offset, segment_size) >= page
