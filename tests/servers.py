"""Server processes that tests talk to over loopback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import httpx

from testproject.cluster.programs import running_program
from tests.programs import KEEP_ALIVE, wait_until_it_answers


class Service:
    """A server process and a client to it.

    Args:
        process: the leader of the server's processes.
        port: where it listens.
        log: what it prints.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0)

    def wait_until_it_answers(self, path: str = "/") -> None:
        """Return once there is an answer, whichever."""
        wait_until_it_answers(self.client, self.process, self.log, path, timeout=60.0)

    def close(self) -> None:
        """Close the client."""
        self.client.close()


@contextmanager
def running(
    arguments: Sequence[str], port: int, log: Path, environment: Mapping[str, str]
) -> Iterator[Service]:
    """Run Python with these arguments, as a server at that port, and end it however the block ends."""
    with (
        log.open("w") as output,
        # Killed: it may be at anything, as at a stream without an end.
        running_program(
            [sys.executable, *arguments],
            timeout=0.0,
            env=dict(environment),
            stdout=output,
            stderr=output,
        ) as process,
        closing(Service(process, port, log)) as service,
    ):
        yield service


def uvicorn(application: str, port: int) -> list[str]:
    """Return the arguments that have uvicorn serve an application."""
    address = ["--host", "127.0.0.1", "--port", str(port)]
    return ["-m", "uvicorn", *address, "--timeout-keep-alive", KEEP_ALIVE, application]


def gunicorn(application: str, port: int) -> list[str]:
    """Return the arguments that have one process of gunicorn, with threads, serve an application."""
    address = ["-b", f"127.0.0.1:{port}"]
    return ["-m", "gunicorn", "--threads", "8", *address, "--keep-alive", KEEP_ALIVE, application]


def daphne(application: str, port: int) -> list[str]:
    """Return the arguments that have daphne serve an application."""
    return ["-m", "daphne", "-b", "127.0.0.1", "-p", str(port), application]


def granian(application: str, port: int) -> list[str]:
    """Return the arguments that have one process of granian serve an application."""
    address = ["--host", "127.0.0.1", "--port", str(port)]
    return ["-m", "granian", "--interface", "asgi", *address, application]
