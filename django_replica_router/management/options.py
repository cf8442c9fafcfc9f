"""Options that several commands take."""

from __future__ import annotations

from argparse import ArgumentParser


def add_timeout(parser: ArgumentParser) -> None:
    """Have a command take ``--timeout``: a process that has just started knows no server yet."""
    parser.add_argument(
        "--timeout",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="for getting to know the servers (default: 5)",
    )
