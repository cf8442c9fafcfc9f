"""WAL positions (LSN) as plain integers."""

from __future__ import annotations

import re

WAL_PAGE_SIZE = 8192
"""Bytes in one WAL page: ``XLOG_BLCKSZ`` of every stock build of PostgreSQL."""

_SHORT_PAGE_HEADER = 24
_LONG_PAGE_HEADER = 40
_MAXIMUM = (1 << 64) - 1
_PATTERN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})", re.ASCII)


def parse_lsn(text: str) -> int:
    """Return the LSN that PostgreSQL writes as ``"16/B374D848"`` as an integer.

    The two halves are one 64-bit number, so that positions compare as numbers and never as text
    or half by half (PostgreSQL documentation, "pg_lsn Type").

    Raises:
        ValueError: when the text is not two hexadecimal numbers of 1-8 digits with a slash between.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        message = f"{text!r} is not an LSN: expected two hexadecimal numbers such as '16/B374D848'."
        raise ValueError(message)
    return (int(match[1], 16) << 32) | int(match[2], 16)


def format_lsn(lsn: int) -> str:
    """Return the LSN in PostgreSQL's own notation.

    Raises:
        ValueError: when the number does not fit in 64 bits.
    """
    if not 0 <= lsn <= _MAXIMUM:
        message = f"{lsn!r} is not an LSN: expected a number from 0 to 2**64 - 1."
        raise ValueError(message)
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def normalise_insert_lsn(lsn: int, segment_size: int) -> int:
    """Return the end of the last record at or before an *insert* position.

    ``pg_current_wal_insert_lsn()`` names the place where the next record will begin. Where the
    last record ended exactly at a page's end, that place is behind the next page's header, while
    replay stops in front of it: an idle replica would never be seen to reach it. The header has 24
    bytes, and 40 on the first page of a segment; on no other page may 40 be taken off, since
    records do end there (``src/include/access/xlog_internal.h``: SizeOfXLogShortPHD,
    SizeOfXLogLongPHD).

    Args:
        lsn: the insert position.
        segment_size: ``wal_segment_size`` in bytes.
    """
    if lsn % segment_size == _LONG_PAGE_HEADER:
        return lsn - _LONG_PAGE_HEADER
    if lsn % WAL_PAGE_SIZE == _SHORT_PAGE_HEADER:
        return lsn - _SHORT_PAGE_HEADER
    return lsn
