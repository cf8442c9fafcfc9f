"""Comments of statements that tell the server's own log which server was chosen, and why.

In the format of sqlcommenter, which tools that read such logs know.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any
from urllib.parse import quote


@lru_cache(maxsize=256)
def comment_of(alias: str, reason: str) -> str:
    """Return the comment for a statement that is run on a server for a reason."""
    values = {"replica_reason": reason, "replica_server": alias}  # sorted, as the format asks
    # Encoded, a value has no quote of its own.
    pairs = [f"{key}={quote(value, safe='')!r}" for key, value in values.items()]
    return f" /*{','.join(pairs)}*/"


def with_comment(sql: str, comment: str, *, is_formatted: bool) -> str:
    """Return the statement with the comment behind it, or as it is where it has one of its own.

    Args:
        sql: the statement.
        comment: the comment.
        is_formatted: the driver puts parameters into the text: what is to be a percent sign stands there twice.
    """
    # What only looks like a comment, as two dashes in a string, counts as one: then there is one comment less.
    if "/*" in sql or "--" in sql:
        return sql
    return sql + (comment.replace("%", "%%") if is_formatted else comment)


def commented(executor: Callable[..., Any], alias: str, reason: str) -> Callable[..., Any]:
    """Return what runs a statement with a comment, in place of what Django runs innermost.

    Innermost, so that what runs around the statement, of this package's or of others', sees it as it was. Only
    texts get one: what is composed by ``psycopg.sql`` depends on its connection.
    """

    def run(sql: Any, params: Any, *rest: Any) -> Any:
        if isinstance(sql, str):
            sql = with_comment(sql, comment_of(alias, reason), is_formatted=params is not None)
        return executor(sql, params, *rest)

    return run
