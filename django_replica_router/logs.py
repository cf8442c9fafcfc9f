"""What the log tells programs, beside its sentences for people."""

from __future__ import annotations


def fields(event: str, error: BaseException | None = None, **others: object) -> dict[str, object]:
    """Return the fields of a record of the log; ``docs/logging.md`` lists them.

    Args:
        event: what has happened. It stays what it is when the sentence is reworded.
        error: what was raised: its class is told.
        others: further fields.
    """
    told = {"event": event, **others}
    return told if error is None else {**told, "error": type(error).__name__}
