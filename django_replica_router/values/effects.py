"""What a statement would do in a query of CQRS, which may only read; and what to name where it does more."""

from __future__ import annotations

import enum
import re
from functools import lru_cache
from typing import NamedTuple

from django_replica_router.values.statements import (
    ODD,
    SESSION_WORDS,
    WRITES,
    first_word,
    might_write,
    plain_text,
)

_FLAGS = re.VERBOSE | re.IGNORECASE | re.ASCII
_LOCKS = re.compile(r"\bFOR\s+(?:(?:NO\s+KEY\s+)?UPDATE | (?:KEY\s+)?SHARE)\b", _FLAGS)
_INTO = re.compile(r"(?<![A-Za-z_.])INTO\b", _FLAGS)
_TELLS = re.compile(r"\bpg_notify\s*\(", _FLAGS)
_CHANGES = re.compile(
    r"\b(?:INSERT\s+INTO | DELETE\s+FROM | MERGE\s+INTO | UPDATE\b[^;]*?\bSET)\b", _FLAGS
)
_COPY_OUT = re.compile(r"\s*COPY\s+[\w.]+\s*(?:\([\w\s,]*\))?\s*TO\b", _FLAGS)
_COPY_QUERY = re.compile(r"\s*COPY\s*\(", _FLAGS)
_FOR = re.compile(r"\bFOR\b", _FLAGS)
_PREPARED = re.compile(r"\s*(?:PREPARE\s+TRANSACTION | (?:COMMIT|ROLLBACK)\s+PREPARED)\b", _FLAGS)
_NAME = r'(?:"(?:[^"]|"")+"|[\w$]+)'
_PREPOSITIONS = r"(?:\s+(?:ONLY|IF\s+EXISTS|IF\s+NOT\s+EXISTS|TABLE|INTO|FROM))*"
_TARGET = re.compile(
    rf"\b(?:INSERT|MERGE|DELETE|UPDATE|TRUNCATE|COPY|LOCK|NOTIFY|INTO|TABLE){_PREPOSITIONS}"
    rf"\s+({_NAME}(?:\.{_NAME})*)",
    re.IGNORECASE,
)
_SOURCE = re.compile(rf"\bFROM\s+({_NAME}(?:\.{_NAME})*)", re.IGNORECASE)


class EffectKind(enum.IntEnum):
    """How much a statement does. Of several the highest counts."""

    READS = 0
    MIGHT_WRITE = 1
    LOCKS = 2
    WRITES = 3
    SEVERAL = 4


class Effect(NamedTuple):
    """What a statement would do.

    Args:
        kind: how much.
        command: its first word.
        table: what it writes to or locks, as far as the text names it.
    """

    kind: EffectKind
    command: str
    table: str = ""


def effect_of(text: str) -> Effect:
    """Return what the text of a statement tells of its effect.

    ``MIGHT_WRITE`` is what only a server can tell: a function may write. What the text does not say at all,
    as the definition of a view, is ``READS``.
    """
    return _effect_of(str(text))


@lru_cache(maxsize=2048)
def _effect_of(text: str) -> Effect:
    plain = plain_text(text)
    kind = _kind_of(text, plain)
    pattern = _SOURCE if kind is EffectKind.LOCKS and first_word(plain) != "LOCK" else _TARGET
    return Effect(kind, first_word(plain), written_table(text, pattern) if kind > 1 else "")


def written_table(text: str, pattern: re.Pattern[str] = _TARGET) -> str:
    """Return the first table that a text names as one that it writes to, or nothing. For messages only."""
    found = pattern.search(text)
    return found[1].replace('"', "") if found else ""


def _kind_of(text: str, plain: str) -> EffectKind:
    if ODD in plain:  # where its parts begin and end cannot be told
        if ";" in text.rstrip("; \t\n\r\f\v"):
            return EffectKind.SEVERAL
        return max(_kind_of_one(plain), EffectKind.MIGHT_WRITE)
    parts = [part for part in plain.split(";") if part.strip()]
    if len(parts) > 1 and any(first_word(part) in SESSION_WORDS for part in parts):
        return EffectKind.SEVERAL  # they could end what they are kept in
    return max(map(_kind_of_one, parts), default=EffectKind.READS)


def _kind_of_one(plain: str) -> EffectKind:
    word = first_word(plain)
    if word in {"COPY", "DECLARE", "EXPLAIN"}:
        return _kind_of_outer(word, plain)
    if word in WRITES or word == "NOTIFY" or _PREPARED.match(plain) or _TELLS.search(plain):
        return EffectKind.WRITES
    if word == "LOCK" or _LOCKS.search(plain):
        return EffectKind.LOCKS
    if word in {"SELECT", "WITH"} and _INTO.search(plain):
        return EffectKind.WRITES
    if word == "WITH" and _CHANGES.search(plain):
        return EffectKind.WRITES
    return EffectKind.MIGHT_WRITE if might_write(plain) else EffectKind.READS


def _kind_of_outer(word: str, plain: str) -> EffectKind:
    """Return the kind of a statement that is about another one."""
    if word == "COPY":
        if _COPY_QUERY.match(plain):
            return EffectKind.WRITES if _CHANGES.search(plain) else EffectKind.MIGHT_WRITE
        return EffectKind.READS if _COPY_OUT.match(plain) else EffectKind.WRITES
    if word == "EXPLAIN":
        if not might_write(plain):
            return EffectKind.READS
        return EffectKind.WRITES if _CHANGES.search(plain) else EffectKind.MIGHT_WRITE
    # A cursor: what its query calls runs with a later FETCH.
    inner = _kind_of_one(_FOR.split(plain, maxsplit=1)[-1])
    return EffectKind.READS if inner is EffectKind.READS else max(inner, EffectKind.WRITES)
