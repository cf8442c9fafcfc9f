"""Commands tell themselves what the log would tell beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from django_replica_router.logs import logger


@contextmanager
def log_is_quiet() -> Iterator[None]:
    """Have the package log errors only, for the length of the block."""
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
