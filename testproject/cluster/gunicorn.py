"""A site under gunicorn: several processes, each of which can be killed alone."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO

import httpx

from testproject.cluster.errors import ProgramError
from testproject.cluster.processes import children_of, is_gone, send_signal, wait_for
from testproject.cluster.programs import log_tail, running_program
from testproject.cluster.server import LOOPBACK

START_TIMEOUT = 60.0
REQUEST_TIMEOUT = 30.0

LONG_KEEP_ALIVE = 75
"""Longer than any client rests: who closes a connection at rest races with who uses it."""


@dataclass(frozen=True, slots=True)
class Site:
    """What gunicorn serves."""

    port: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    worker_count: int

    @property
    def url(self) -> str:
        """Return its address, without a slash at the end."""
        return f"http://{LOOPBACK}:{self.port}"

    def is_running(self) -> bool:
        """Return whether gunicorn still lives."""
        return self.process.poll() is None

    def log_tail(self) -> str:
        """Return the last lines that gunicorn and Django wrote."""
        return log_tail(self.log)

    def require_running(self) -> None:
        """Raise an error with the end of the log if gunicorn has ended."""
        if not self.is_running():
            raise ProgramError(f"The site has ended: {self.log_tail()}")

    def workers(self) -> list[int]:
        """Return the ids of the worker processes."""
        self.require_running()
        return [pid for pid in children_of(self.process.pid) if not is_gone(pid)]

    def kill_worker(self, place: int) -> None:
        """Kill one worker, and return when there is another in its place."""
        before = self.workers()
        victim = before[place % len(before)]
        send_signal(victim, signal.SIGKILL)
        self._wait_for_workers(lambda: victim not in self.workers())

    def replace_workers(self) -> None:
        """Have gunicorn start new workers and end the old ones, as for a new release."""
        before = self.workers()
        send_signal(self.process.pid, signal.SIGHUP)
        self._wait_for_workers(lambda: not set(before) & set(self.workers()))

    def _wait_for_workers(self, happened: Callable[[], bool]) -> None:
        if not wait_for(
            lambda: happened() and len(self.workers()) >= self.worker_count, timeout=START_TIMEOUT
        ):
            raise ProgramError(f"The workers are not replaced: {self.log_tail()}")

    def answers(self, page: str, cookie: str) -> bool:
        """Return whether there is an answer; raise an error where that is one of the server."""
        self.require_running()
        headers = {"Cookie": cookie} if cookie else {}
        try:
            answer = httpx.get(
                f"{self.url}{page}", headers=headers, trust_env=False, timeout=REQUEST_TIMEOUT
            )
        except httpx.TransportError:
            return False
        if answer.is_server_error:
            raise ProgramError(f"The site answers {page} with an error: {self.log_tail()}")
        return True


@contextmanager
def serving(
    application: str,
    environ: Mapping[str, str],
    *,
    workers: int,
    threads: int = 4,
    port: int = 0,
    keep_alive: int = 2,
    page: str = "/login/",
    cookie: str = "",
    python: str = sys.executable,
) -> Iterator[Site]:
    """Serve a WSGI application for the length of the block.

    Args:
        application: the module.
        environ: of gunicorn and its workers.
        workers: how many processes.
        threads: of each worker.
        port: of loopback; a free one if it is 0.
        keep_alive: seconds after which a connection at rest is closed.
        page: a page of it, which answers once it is up.
        cookie: to be sent with the request for that page.
        python: whose gunicorn serves it.
    """
    command = [python, "-m", "gunicorn", application]
    command += ["--config", "python:testproject.cluster.gunicorn_conf"]
    command += ["--workers", str(workers), "--threads", str(threads)]
    command += ["--keep-alive", str(keep_alive)]
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        # The socket is opened here and handed over: nobody can take the port in between.
        with _listening_socket(port) as listener:
            program = running_program(
                [*command, "--bind", f"fd://{listener.fileno()}"],
                env=environ,
                pass_fds=[listener.fileno()],
                # Nothing is ever written to it: gunicorn ends when it closes, however this process ends.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
            process = stack.enter_context(program)
            site = Site(listener.getsockname()[1], process, log, workers)
        if not wait_for(lambda: site.answers(page, cookie), timeout=START_TIMEOUT):
            raise ProgramError(f"The site did not answer in {START_TIMEOUT} s: {site.log_tail()}")
        yield site


def _listening_socket(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        listener.listen(512)
    except (OSError, OverflowError) as error:
        listener.close()
        raise ProgramError(f"Port {port} of {LOOPBACK} could not be opened: {error}") from error
    return listener
