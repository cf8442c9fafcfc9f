"""Tell statements that cannot write from those that might."""

from __future__ import annotations

import re
from functools import lru_cache

# Statements that change no table. SET, SAVEPOINT and the like are sent by Django itself.
_HARMLESS = frozenset(
    "ABORT BEGIN CHECKPOINT CLOSE COMMIT DEALLOCATE DISCARD END FETCH LISTEN LOAD LOCK MOVE NOTIFY "
    "RELEASE RESET ROLLBACK SAVEPOINT SET SHOW START UNLISTEN".split()
)
_QUERIES = frozenset(["SELECT", "TABLE", "VALUES", "WITH"])
_WRITES = frozenset(
    "ALTER CALL CLUSTER COMMENT COPY CREATE DELETE DO DROP EXECUTE GRANT IMPORT INSERT MERGE "
    "REASSIGN REFRESH REINDEX REVOKE SECURITY TRUNCATE UPDATE VACUUM ANALYZE".split()
)

# Words that a query may have in front of a parenthesis and that call nothing that writes: syntax,
# and functions of pg_catalog that Django's ORM and its contrib apps emit.
_KNOWN_CALLS = frozenset(
    """
    ALL AND ANY ARRAY AS BETWEEN BY CASE CROSS CUBE DISTINCT ELSE EXCEPT EXISTS FILTER FROM GROUP
    GROUPING GROUPS HAVING IN INTERSECT IS JOIN LATERAL LEFT LIKE LIMIT MATERIALIZED NOT NULLS
    OFFSET ON OR ORDER OVER PARTITION RANGE RIGHT ROLLUP ROW ROWS SELECT SETS SOME THEN UNION
    UNNEST USING VALUES WHEN WHERE WINDOW WITH WITHIN
    BIT CHAR CHARACTER DECIMAL FLOAT INTERVAL NUMERIC TIME TIMESTAMP VARCHAR VARYING
    ABS ACOS AGE ARRAY_AGG ARRAY_LENGTH ARRAY_POSITION ARRAY_TO_STRING ASCII ASIN ATAN ATAN2 AVG
    BIT_AND BIT_OR BIT_XOR BOOL_AND BOOL_OR BTRIM CARDINALITY CAST CEIL CEILING CHAR_LENGTH CHR
    COALESCE CONCAT CONCAT_WS CORR COS COT COUNT COVAR_POP COVAR_SAMP CUME_DIST CURRENT_TIMESTAMP
    DATE DATE_PART DATE_TRUNC DEGREES DENSE_RANK DIV EVERY EXP EXTRACT FIRST_VALUE FLOOR FORMAT
    GENERATE_SERIES GREATEST INITCAP JSONB_AGG JSONB_ARRAY_ELEMENTS JSONB_ARRAY_LENGTH
    JSONB_BUILD_ARRAY JSONB_BUILD_OBJECT JSONB_EACH JSONB_EXTRACT_PATH JSONB_EXTRACT_PATH_TEXT
    JSONB_OBJECT_AGG JSONB_OBJECT_KEYS JSONB_PATH_EXISTS JSONB_TYPEOF JSON_AGG JSON_ARRAY
    JSON_BUILD_ARRAY JSON_BUILD_OBJECT JSON_OBJECT LAG LAST_VALUE LEAD LEAST LENGTH LN
    LOCALTIMESTAMP LOG LOWER LPAD LTRIM MAKE_DATE MAX MD5 MIN MOD MODE NOW NTH_VALUE NTILE NULLIF
    OCTET_LENGTH OVERLAY PERCENTILE_CONT PERCENTILE_DISC PERCENT_RANK PHRASETO_TSQUERY PI
    PLAINTO_TSQUERY POSITION POWER RADIANS RANDOM RANK REGEXP_MATCH REGEXP_REPLACE REGR_AVGX
    REGR_AVGY REGR_COUNT REGR_INTERCEPT REGR_R2 REGR_SLOPE REGR_SXX REGR_SXY REGR_SYY REPEAT
    REPLACE REVERSE ROUND ROW_NUMBER ROW_TO_JSON RPAD RTRIM SETWEIGHT SHA224 SHA256 SHA384 SHA512
    SIGN SIMILARITY SIN SPLIT_PART SQRT STATEMENT_TIMESTAMP STDDEV STDDEV_POP STDDEV_SAMP
    STRICT_WORD_SIMILARITY STRING_AGG STRIP STRPOS SUBSTR SUBSTRING SUM TAN TO_CHAR TO_DATE
    TO_TIMESTAMP TO_TSQUERY TO_TSVECTOR TRANSLATE TRIM TRUNC TS_HEADLINE TS_RANK TS_RANK_CD
    UNACCENT UPPER VARIANCE VAR_POP VAR_SAMP VERSION WEBSEARCH_TO_TSQUERY WIDTH_BUCKET
    WORD_SIMILARITY XMLAGG
    CURRENT_SETTING SET_CONFIG PG_BACKEND_PID PG_CURRENT_WAL_FLUSH_LSN PG_CURRENT_WAL_INSERT_LSN PG_CURRENT_WAL_LSN
    PG_CURRENT_XACT_ID_IF_ASSIGNED PG_IS_IN_RECOVERY PG_SLEEP
    """.split()
)

_NOISE = re.compile(
    r"""'(?:[^']|'')*'      # a string; one with a backslash before its end is caught below
      | "(?:[^"]|"")*"\s*(?P<call>\()?   # a quoted name, perhaps of a function
      | --[^\n]*
      | /\*.*?\*/""",
    re.VERBOSE | re.DOTALL,
)
_FIRST_WORD = re.compile(r"[\s(]*([A-Za-z]+)")
_CALL = re.compile(r"([A-Za-z_][A-Za-z0-9_$.]*)\s*\(")
_DATA_MODIFYING = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE|INTO)\b", re.IGNORECASE)
_COMMIT_PREPARED = re.compile(r"\bPREPARED\b", re.IGNORECASE)
# A backslash or a dollar quote: where the string ends cannot be told by the pattern above.
_ODD_STRING = re.compile(r"\\|\$[A-Za-z_0-9]*\$")
_ROW_LOCK = re.compile(r"\bFOR\s+(?:NO\s+KEY\s+)?UPDATE\b", re.IGNORECASE)


def _replace_noise(match: re.Match[str]) -> str:
    # A quoted name in front of a parenthesis is a call of who knows what; in front of anything
    # else it is a column, and "delete" is a fine name for a column.
    return " quoted_function(" if match["call"] else " "


def _text(sql: object) -> str:
    if isinstance(sql, str):
        return sql
    if isinstance(sql, bytes):
        return sql.decode("utf-8", "replace")
    # psycopg.sql.Composable: what it says depends on a connection.
    return ""


def is_write_command(sql: object) -> bool:
    """Tell whether the statement begins with a command that changes data or schema."""
    return _is_write_command(_text(sql))


@lru_cache(maxsize=2048)
def _is_write_command(text: str) -> bool:
    match = _FIRST_WORD.match(_NOISE.sub(_replace_noise, text))
    return match is not None and match[1].upper() in _WRITES


def might_write(sql: object) -> bool:
    """Tell whether the statement could change data. Errs on the side of yes.

    Used only to *protect* a user after a statement on the primary, never to send a statement to a
    replica: what a statement does cannot be told from its text. A function not known to be
    harmless counts as a write. What escapes is a view whose definition calls a writing function.
    """
    return _might_write(_text(sql))


# A site has some hundreds of different statements, since values travel apart from the text.
@lru_cache(maxsize=2048)
def _might_write(text: str) -> bool:
    plain = _NOISE.sub(_replace_noise, text)
    match = _FIRST_WORD.match(plain)
    word = match[1].upper() if match else ""
    if word == "EXPLAIN":
        return re.search(r"\bANALYZE\b", plain, re.IGNORECASE) is not None
    if word in _HARMLESS:
        return ";" in plain.rstrip().rstrip(";") or _COMMIT_PREPARED.search(plain) is not None
    if word not in _QUERIES or _ODD_STRING.search(text):
        return True
    if ";" in plain.rstrip().rstrip(";") or _DATA_MODIFYING.search(_ROW_LOCK.sub(" ", plain)):
        return True
    return any(
        name.rpartition(".")[2].upper() not in _KNOWN_CALLS
        or "." in name.removeprefix("pg_catalog.")
        for name in _CALL.findall(plain)
    )
