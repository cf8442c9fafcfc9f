"""The log: sentences for people, and fields for programs."""

from __future__ import annotations

import logging

logger = logging.getLogger("django_replica_router")


def fields(event: str, error: BaseException | None = None, **others: object) -> dict[str, object]:
    """Return the fields of a record of the log; ``docs/logging.md`` lists them.

    Args:
        event: what has happened. It stays what it is when the sentence is reworded.
        error: what was raised: its class is told.
        others: further fields.
    """
    told = {"event": event, **others}
    return told if error is None else {**told, "error": type(error).__name__}
