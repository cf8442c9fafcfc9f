"""What several commands share."""

from __future__ import annotations

import logging
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError

from django_replica_router.errors import ConfigurationError
from django_replica_router.logs import logger


def add_timeout(parser: ArgumentParser) -> None:
    """Have a command take ``--timeout``: a process that has just started knows no server yet."""
    parser.add_argument(
        "--timeout",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="for getting to know the servers (default: 5)",
    )


@contextmanager
def telling_itself() -> Iterator[None]:
    """Have a command say all that is to be said: no log beside it, and a setting that cannot be used in one sentence."""
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except ConfigurationError as error:
        raise CommandError(str(error)) from error
    finally:
        logger.setLevel(before)
