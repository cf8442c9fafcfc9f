"""Commands tell themselves what the log would tell beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def log_is_quiet() -> Iterator[None]:
    """Have the package log errors only, for the length of the block."""
    logger = logging.getLogger("django_replica_router")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
