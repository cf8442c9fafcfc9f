"""Tell statements that cannot write from those that might."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import TypeVar

T = TypeVar("T")

# Statements that change no table. SET, SAVEPOINT and the like are sent by Django itself.
_HARMLESS = frozenset(
    "ABORT BEGIN CHECKPOINT CLOSE COMMIT DEALLOCATE DISCARD END FETCH LISTEN LOAD LOCK MOVE NOTIFY "
    "RELEASE RESET ROLLBACK SAVEPOINT SET SHOW START UNLISTEN".split()
)
_COMMITS = frozenset(["COMMIT", "END", "PREPARE"])
_COMMIT_PARTS = frozenset(["CALL", "DO"])
_QUERIES = frozenset(["SELECT", "TABLE", "VALUES", "WITH"])
_CHANGES = frozenset(["DELETE", "INSERT", "MERGE", "UPDATE"])
WRITES = frozenset(
    "ALTER CALL CLUSTER COMMENT COPY CREATE DELETE DO DROP GRANT IMPORT INSERT MERGE "
    "REASSIGN REFRESH REINDEX REVOKE SECURITY TRUNCATE UPDATE VACUUM ANALYZE".split()
)

# What means something in one session only. EXECUTE runs what was prepared there.
SESSION_WORDS = frozenset(
    "ABORT BEGIN CLOSE COMMIT DEALLOCATE DECLARE DISCARD END EXECUTE FETCH LISTEN LOAD LOCK MOVE PREPARE "
    "RELEASE RESET ROLLBACK SAVEPOINT SET START UNLISTEN".split()
)
_SESSION_PART = re.compile(
    rf";\s*(?:{'|'.join(sorted(SESSION_WORDS))})\b", re.IGNORECASE | re.ASCII
)
# A standby grants advisory locks of its own, which keep nobody out elsewhere.
_OF_PRIMARY = re.compile(
    r"\b(?:pg_(?:try_)?advisory_\w+|currval|lastval)\s*\(", re.IGNORECASE | re.ASCII
)
_LASTING_CONFIG = re.compile(r"\bset_config\s*\(", re.IGNORECASE | re.ASCII)
_LOCAL_CONFIG = re.compile(
    r"\bset_config\s*\([^()]*,\s*(?:true|on|t)\s*\)", re.IGNORECASE | re.ASCII
)
_NAMES = re.compile(r"[A-Za-z_][\w.]*", re.ASCII)
_PASSING_SETS = frozenset(["local", "constraints", "transaction"])
# Settings that change how long a statement takes, or what is logged, and never its rows.
_HARMLESS_SETS = (
    "application_name", "client_min_messages", "commit_delay", "cpu_", "deadlock_timeout", "effective_",
    "enable_", "geqo", "hash_mem", "idle_", "jit", "lock_timeout", "log_", "logical_decoding", "maintenance_",
    "max_parallel", "min_parallel", "parallel_", "random_page", "seq_page", "statement_timeout",
    "synchronous_commit", "temp_buffers", "track_", "transaction_timeout", "work_mem",
)  # fmt: skip

# Words that a query may have in front of a parenthesis and that call nothing that writes: words
# that cannot be the name of a function, or whose function is PostgreSQL's own, and functions that
# Django's ORM and its contrib apps emit. A word of the syntax that may name a function as well
# (BY, OVER, FILTER, ...) does not belong here, but into _SYNTAX.
_KNOWN_CALLS = frozenset(
    """
    ALL AND ANY ARRAY AS BETWEEN CASE DISTINCT ELSE EXCEPT EXISTS FROM GROUP GROUPING HAVING IN
    INTERSECT LATERAL LEFT LIKE LIMIT NOT OFFSET ON OR ORDER RIGHT ROW SELECT SOME THEN UNION
    UNNEST USING VALUES WHEN WHERE WINDOW WITH
    BIT CHAR CHARACTER DECIMAL FLOAT INTERVAL NUMERIC TIME TIMESTAMP VARCHAR
    ABS ACOS AGE AKEYS ANY_VALUE ARRAY_AGG ARRAY_LENGTH ARRAY_POSITION ARRAY_TO_STRING ASCII ASIN
    ATAN ATAN2 AVALS AVG BIT_AND BIT_OR BIT_XOR BOOL_AND BOOL_OR BTRIM CARDINALITY CAST CEIL
    CEILING CHAR_LENGTH CHR CLOCK_TIMESTAMP COALESCE CONCAT CONCAT_WS CORR COS COT COUNT COVAR_POP
    COVAR_SAMP CUME_DIST CURRENT_DATE CURRENT_TIME CURRENT_TIMESTAMP DATE DATE_PART DATE_TRUNC
    DEGREES DENSE_RANK DIGEST DIV ENCODE EVERY EXP EXTRACT FIRST_VALUE FLOOR FORMAT
    GENERATE_SERIES GEN_RANDOM_UUID GREATEST INITCAP ISEMPTY JSONB_AGG JSONB_ARRAY_ELEMENTS
    JSONB_ARRAY_LENGTH JSONB_BUILD_ARRAY JSONB_BUILD_OBJECT JSONB_EACH JSONB_EXTRACT_PATH
    JSONB_EXTRACT_PATH_TEXT JSONB_OBJECT_AGG JSONB_OBJECT_KEYS JSONB_PATH_EXISTS JSONB_TYPEOF
    JSON_AGG JSON_ARRAY JSON_ARRAYAGG JSON_BUILD_ARRAY JSON_BUILD_OBJECT JSON_OBJECT
    JSON_OBJECTAGG LAG LAST_VALUE LEAD LEAST LENGTH LN LOCALTIMESTAMP LOG LOWER LOWER_INC
    LOWER_INF LPAD LTRIM MAKE_DATE MAX MD5 MIN MOD MODE NOW NTH_VALUE NTILE NULLIF OCTET_LENGTH
    OVERLAY PERCENTILE_CONT PERCENTILE_DISC PERCENT_RANK PHRASETO_TSQUERY PI PLAINTO_TSQUERY
    POSITION POWER RADIANS RANDOM RANK REGEXP_MATCH REGEXP_REPLACE REGR_AVGX REGR_AVGY REGR_COUNT
    REGR_INTERCEPT REGR_R2 REGR_SLOPE REGR_SXX REGR_SXY REGR_SYY REPEAT REPLACE REVERSE ROUND
    ROW_NUMBER ROW_TO_JSON RPAD RTRIM SETWEIGHT SHA224 SHA256 SHA384 SHA512 SIGN SIMILARITY SIN
    SPLIT_PART SQRT STATEMENT_TIMESTAMP STDDEV STDDEV_POP STDDEV_SAMP STRICT_WORD_SIMILARITY
    STRING_AGG STRIP STRPOS SUBSTR SUBSTRING SUM TAN TO_CHAR TO_DATE TO_JSON TO_JSONB TO_TIMESTAMP
    TO_TSQUERY TO_TSVECTOR TRANSACTION_TIMESTAMP TRANSLATE TRIM TRUNC TS_HEADLINE TS_RANK
    TS_RANK_CD UNACCENT UPPER UPPER_INC UPPER_INF UUIDV4 UUIDV7 VARIANCE VAR_POP VAR_SAMP VERSION
    WEBSEARCH_TO_TSQUERY WIDTH_BUCKET WORD_SIMILARITY XMLAGG
    CURRENT_SETTING SET_CONFIG PG_BACKEND_PID PG_CURRENT_WAL_FLUSH_LSN PG_CURRENT_WAL_INSERT_LSN PG_CURRENT_WAL_LSN
    PG_CURRENT_XACT_ID_IF_ASSIGNED PG_IS_IN_RECOVERY PG_SLEEP
    """.split()
)

# A letter of a name is, for PostgreSQL, every character beyond ASCII. So the classes say what of ASCII is not
# in them: one that goes on to the last character of all takes Python some ten milliseconds to compile.
_NO_LETTERS = r"\[-^`{-\x7f"
_LETTER = rf"[^\x00-@{_NO_LETTERS}]"
_IN_TAG = rf"[^\x00-/:-@{_NO_LETTERS}]"
_IN_NAME = rf"[^\x00-#%-/:-@{_NO_LETTERS}]"
_NAME = rf"{_LETTER}{_IN_NAME}*+"
_NAME_BEGINS = rf"(?<!{_IN_NAME})(?<![.])"

# What a statement has besides words and signs (PostgreSQL, src/backend/parser/scan.l). Each
# alternative begins with a plain character: that makes the search many times as fast.
_NOISE = re.compile(
    rf"""E(?<!{_IN_NAME}E)'(?:[^'\\]|''|\\.)*+'    # a string with escapes
      | e(?<!{_IN_NAME}e)'(?:[^'\\]|''|\\.)*+'
      | '(?:[^'\\]|'')*+'
      | "(?:[^"]|"")*+"
      | --[^\n\r]*
      | /\*(?:(?!/\*).)*?\*/
      # Where these end cannot be told: a quote that is never closed or that holds a backslash, a
      # comment inside a comment, a dollar quote.
      | '.*()
      | ".*()
      | \\.*()
      | /\*.*()
      | \$(?:{_LETTER}{_IN_TAG}*+)?\$.*()""",
    re.VERBOSE | re.DOTALL,
)
ODD = "\0"
_QUOTED_NAME = "quoted_name"

# In front of a parenthesis these words are syntax, by what stands around them.
_SYNTAX = re.compile(
    rf"""\b(?:ORDER|GROUP|PARTITION)\s+BY\s*(?=\()
      | \bGROUP\s+BY\s+(?:CUBE|ROLLUP)\s*(?=\()
      | \bGROUPING\s+SETS\s*(?=\()
      | \b(?:BIT|CHAR|CHARACTER)\s+VARYING\s*(?=\()
      | \bFILTER\s*(?=\(\s*WHERE\b)
      | (?<=\))\s*OVER\s*(?=\()
      # The columns of a common table expression.
      | {_NAME_BEGINS}{_NAME}\s*\([\w\s,]*\)\s*AS\s*(?:(?:NOT\s+)?MATERIALIZED\s*)?
        (?=\(\s*(?:(?:SELECT|TABLE|WITH)\b|VALUES\s*\())""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
# What an INSERT fills, and what it must not meet.
_COLUMNS = re.compile(
    rf"\bINTO\s+{_NAME}(?:[.]{_NAME})*+\s*\([\w\s,]*\) | \bON\s+CONFLICT\s*(?=\()",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
# A parenthesis that begins with one of these words is a subquery, and the word in front no call.
_CALL = re.compile(
    rf"{_NAME_BEGINS}([.]?{_NAME}(?:[.]{_NAME})*+)\s*\((?!\s*(?:SELECT|TABLE|WITH)\b)",
    re.IGNORECASE | re.ASCII,
)
_FIRST_WORD = re.compile(r"[\s(]*([A-Za-z]+)", re.ASCII)
_DOT = re.compile(r"(?<!\s)\s*+\.\s*", re.ASCII)
# "1INTO" is two words up to PostgreSQL 14.
_DATA_MODIFYING = re.compile(
    r"(?<![A-Za-z_])(?:INSERT|UPDATE|DELETE|MERGE|INTO)\b", re.IGNORECASE | re.ASCII
)
_ROWS = re.compile(r"\b(?:FETCH|FROM|TABLE)\b", re.IGNORECASE | re.ASCII)
_COMMIT_PREPARED = re.compile(r"\bPREPARED\b", re.IGNORECASE | re.ASCII)
_ROW_LOCK = re.compile(r"\bFOR\s+(?:NO\s+KEY\s+)?UPDATE\b", re.IGNORECASE | re.ASCII)
_SHARED_ROW_LOCK = re.compile(r"\bFOR\s+(?:KEY\s+)?SHARE\b", re.IGNORECASE | re.ASCII)
_OF_SAVEPOINT = re.compile(r"\s*(?:SAVEPOINT|RELEASE|ROLLBACK\s+TO)\b", re.IGNORECASE | re.ASCII)
# Both spellings run the statement, as a word and as an option, which may be quoted.
_EXPLAIN_RUNS = re.compile(
    rf"\bANALY[SZ]E\b | ^\s*EXPLAIN\s*\((?!\s*(?:SELECT|TABLE|WITH)\b)[^()]*{_QUOTED_NAME}",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)


def _replace_noise(match: re.Match[str]) -> str:
    if match.lastindex:
        return ODD
    # A quoted name may be that of a function, or "delete", which is a fine name for a column.
    return f" {_QUOTED_NAME} " if match[0][0] == '"' else " "


def plain_text(text: str) -> str:
    """Return the statement without strings, comments and quoted names, and with ``a.b`` as such."""
    return _DOT.sub(".", _NOISE.sub(_replace_noise, text))


def text_of(sql: object) -> str:
    if isinstance(sql, str):
        return sql
    if isinstance(sql, bytes):
        return sql.decode("utf-8", "replace")
    # psycopg.sql.Composable: what it says depends on a connection.
    return ""


def _of_its_text(tell: Callable[[str], T]) -> Callable[[object], T]:
    """Return a function of any statement that keeps what another one tells of its text.

    A site has some hundreds of different statements, since values travel apart from the text.
    """
    kept = lru_cache(maxsize=2048)(tell)

    @wraps(tell)
    def told(sql: object) -> T:
        return kept(sql if isinstance(sql, str) else text_of(sql))

    return told


class Kind(enum.Enum):
    """What a statement means for the server that it was sent to."""

    WRITE = "begins with a command that changes data or schema"
    SETTING = "sets for the session what later statements may show other rows by"
    SESSION = "begins, ends or sets up a transaction or a session: means something there only"
    PRIMARY = "asks for what only the primary has: advisory locks, and the last value of a sequence"
    OTHER = "anything else"


OF_SESSION = frozenset([Kind.SESSION, Kind.SETTING])
"""Statements that mean something in their own session only."""


@_of_its_text
def kind_of(text: str) -> Kind:
    """Return what the statement means for the server that it was sent to."""
    plain = plain_text(text)
    words = {first_word(part) for part in plain.split(";")}
    # In what is not understood, as behind a dollar quote, there may be more of them.
    is_write = first_word(plain) in WRITES
    if not is_write and _sets_session(plain):
        return Kind.SETTING
    if words & SESSION_WORDS or (not is_write and ODD in plain and _SESSION_PART.search(text)):
        return Kind.SESSION
    if is_write:
        return Kind.WRITE
    return Kind.PRIMARY if _OF_PRIMARY.search(plain) else Kind.OTHER


@dataclass(frozen=True, slots=True)
class Description:
    """What the text of a statement tells of where it is to run.

    Args:
        is_of_primary: only the primary can do what it says.
        is_of_session: it means something in its own session only.
        names_table: it could name one of the tables that only the primary shows.
        is_plain: none of these.
    """

    is_of_primary: bool
    is_of_session: bool
    names_table: bool
    is_plain: bool


def describe(sql: object, tables: frozenset[str]) -> Description:
    """Return what a statement tells of where it is to run.

    Args:
        sql: the statement.
        tables: those that only the primary shows.
    """
    kind = kind_of(sql)
    found = kind in (Kind.WRITE, Kind.PRIMARY), kind in OF_SESSION, names_table(sql, tables)
    return Description(*found, is_plain=not any(found))


describe_text = lru_cache(maxsize=2048)(describe)
"""Return the same for a text: for each statement a look-up, and no more."""


def named_setting(sql: object) -> str | None:
    """Return the name of what a SET or RESET is about: "all" for everything, None where it has none."""
    plain = plain_text(text_of(sql))
    names = [word.lower() for word in _NAMES.findall(plain) if word.upper() != "SESSION"]
    return names[1] if names[1:] and names[0] in {"discard", "reset", "set"} else None


def _sets_session(plain: str) -> bool:
    """Tell whether a statement sets what later ones of its session may show other rows by.

    Not what lasts for its transaction only, and not what changes times, plans and logs alone.
    """
    if _LASTING_CONFIG.search(plain) and not _LOCAL_CONFIG.search(plain):
        return True
    return any(_is_lasting_set(part) for part in plain.split(";"))


def _is_lasting_set(plain: str) -> bool:
    if first_word(plain) != "SET":
        return False
    names = [word.lower() for word in _NAMES.findall(plain)[1:] if word.upper() != "SESSION"]
    return bool(names) and not (names[0] in _PASSING_SETS or names[0].startswith(_HARMLESS_SETS))


def first_word(plain: str) -> str:
    match = _FIRST_WORD.match(plain)
    return match[1].upper() if match else ""


def is_query(sql: object) -> bool:
    """Tell whether the statement is a text that begins as a query does."""
    return isinstance(sql, str) and first_word(sql) in _QUERIES


@_of_its_text
def reads_rows(text: str) -> bool:
    """Tell whether the statement may show rows: a ``SELECT 1`` does not."""
    return _ROWS.search(plain_text(text)) is not None


@_of_its_text
def is_plain_change(text: str) -> bool:
    """Tell whether the statement is one INSERT, UPDATE, DELETE or MERGE that calls no unknown function."""
    plain = plain_text(text)
    is_change = is_one(plain) and first_word(plain) in _CHANGES
    return is_change and not _calls_unknown(_COLUMNS.sub(" ", plain))


class IgnoredWrite(str):
    """The text of a statement that the ORM has made for a table whose writes bind nobody.

    The text itself says so, to whatever runs around the statement: a mark beside it would hold for
    other statements as well, as those of a field's ``pre_save()``.
    """

    __slots__ = ()


def is_ignored(sql: object) -> bool:
    """Tell whether the statement writes to a table whose writes bind nobody, and to no other.

    A function that is called in it may write to any.
    """
    return type(sql) is IgnoredWrite and is_plain_change(sql)


def names_table(sql: object, tables: frozenset[str]) -> bool:
    """Tell whether the statement could name one of the tables. Errs on the side of yes."""
    return bool(tables) and _names_table(str(sql), tables)


@lru_cache(maxsize=2048)
def _names_table(text: str, tables: frozenset[str]) -> bool:
    return _table_pattern(tables).search(text) is not None


@lru_cache(maxsize=8)
def _table_pattern(tables: frozenset[str]) -> re.Pattern[str]:
    # Of a name with its schema the last part. A table may be called "order".
    names = "|".join(re.escape(table.split(".")[-1].strip('"')) for table in sorted(tables))
    return re.compile(rf"(?<!\w)(?:{names})(?!\w|\s+BY\b)", re.IGNORECASE)


@_of_its_text
def might_write(text: str) -> bool:
    """Tell whether the statement could change data. Errs on the side of yes.

    Used only to *protect* a user after a statement on the primary, never to send a statement to a
    replica: what a statement does cannot be told from its text. A function not known to be
    harmless counts as a write. What escapes is a writing function that is called without its name
    and a parenthesis (by a view, an operator, a cast, or as ``row.function``), and one that bears
    the name of a harmless one of PostgreSQL's for arguments of other types.
    """
    plain = plain_text(text)
    if not is_one(plain):
        return True
    word = first_word(plain)
    if word == "EXPLAIN":
        return _EXPLAIN_RUNS.search(plain) is not None
    if word in _HARMLESS:
        return _COMMIT_PREPARED.search(plain) is not None
    if word not in _QUERIES or _DATA_MODIFYING.search(_ROW_LOCK.sub(" ", plain)):
        return True
    return _calls_unknown(plain)


@_of_its_text
def might_commit(text: str) -> bool:
    """Tell whether the statement could end a transaction and keep what it has written."""
    return _may_be_one_of(_COMMITS, plain_text(text))


def might_commit_part(sql: object) -> bool:
    """Tell whether the statement may fail after it has committed some of what it has written.

    A procedure may, and several statements in one text.
    """
    return _may_be_one_of(_COMMIT_PARTS, plain_text(text_of(sql)))


@_of_its_text
def only_reads(text: str) -> bool:
    """Tell whether the statement leaves nothing behind in its transaction: no write, lock or setting.

    What handles a savepoint leaves nothing either.
    """
    plain = plain_text(text)
    if might_write(text) or any(
        pattern.search(plain) for pattern in (_ROW_LOCK, _SHARED_ROW_LOCK, _LASTING_CONFIG)
    ):
        return False
    return first_word(plain) in _QUERIES or _OF_SAVEPOINT.match(plain) is not None


def _calls_unknown(plain: str) -> bool:
    calls = _CALL.findall(_SYNTAX.sub(" AND ", plain))
    return not all(map(_is_known, calls))


def _is_known(name: str) -> bool:
    # Letters beyond ASCII may have one of ASCII as their upper case.
    return name.isascii() and name.upper().removeprefix("PG_CATALOG.") in _KNOWN_CALLS


def _may_be_one_of(commands: frozenset[str], plain: str) -> bool:
    """Tell whether the statement is one of the commands, is not understood, or is several."""
    word = first_word(plain)
    return not is_one(plain) or not word or word in commands


def is_one(plain: str) -> bool:
    return ODD not in plain and ";" not in plain.rstrip("; \t\n\r\f\v")
