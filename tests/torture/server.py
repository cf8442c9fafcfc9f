"""The site under gunicorn: several processes, each of which can be killed alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from testproject.cluster.processes import children_of, is_gone, send_signal, wait_for

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
START_SECONDS = 30.0
STOP_SECONDS = 10.0
LOG_TAIL = 4000


class SiteError(Exception):
    """The site could not be started, or has ended."""


def environment(
    databases: Mapping[str, Mapping[str, Any]],
    cache_url: str,
    router: Mapping[str, Any],
    control: str = "",
) -> dict[str, str]:
    """Return the environment that tells the settings where the servers are."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.torture.settings",
        "PYTHONPATH": str(ROOT),
        "TESTPROJECT_DATABASES": json.dumps(databases),
        "TESTPROJECT_CACHE_URL": cache_url,
        "TESTPROJECT_ROUTING": "package",
        "TORTURE_ROUTER": json.dumps(router),
        "TORTURE_CONTROL": control,
    }


class Site:
    """Gunicorn with its workers, for the length of a block."""

    def __init__(self, environ: Mapping[str, str], *, workers: int, threads: int) -> None:
        self._environ = dict(environ)
        self.worker_count = workers
        self._threads = threads
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the end of the block
        self._listener = socket.socket()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((HOST, 0))
        self._listener.listen(512)
        self.port = self._listener.getsockname()[1]
        command = [sys.executable, "-m", "gunicorn", "tests.torture.wsgi"]
        command += ["--config", "python:testproject.demo.gunicorn_conf"]
        command += ["--threads", str(self._threads), "--workers", str(self.worker_count)]
        # Longer than any client rests: who closes a connection at rest races with who uses it.
        command += ["--keep-alive", "75", "--bind", f"fd://{self._listener.fileno()}"]
        self._process = subprocess.Popen(
            command,
            env=self._environ,
            cwd=ROOT,
            pass_fds=[self._listener.fileno()],
            # Nothing is ever written to it: gunicorn ends when it closes, however this process ends.
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            # Of its own, so that Ctrl-C reaches this process alone, which then stops that one.
            process_group=0,
        )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process = self._process
        if process is not None:
            workers = self.workers() if process.poll() is None else []
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pid in workers:
                if not is_gone(pid):
                    send_signal(pid, signal.SIGKILL)
            if process.stdin is not None:
                process.stdin.close()
        self._listener.close()
        self._log.close()

    def _master(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise SiteError(f"The site has ended: {self.log_tail()}")
        return self._process

    def _wait_until_it_answers(self) -> None:
        def answers() -> bool:
            self._master()
            try:
                httpx.get(f"http://{HOST}:{self.port}/stats", trust_env=False, timeout=5.0)
            except httpx.TransportError:
                return False
            return True

        if not wait_for(answers, timeout=START_SECONDS):
            raise SiteError(f"The site did not answer in {START_SECONDS} s: {self.log_tail()}")

    def log_tail(self, length: int = LOG_TAIL) -> str:
        """Return the last lines that gunicorn and Django wrote."""
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - length))
        return self._log.read().decode(errors="replace")

    def workers(self) -> list[int]:
        """Return the ids of the worker processes."""
        return [pid for pid in children_of(self._master().pid) if not is_gone(pid)]

    def kill_worker(self, place: int) -> None:
        """Kill one worker, and return when there is another in its place."""
        before = self.workers()
        victim = before[place % len(before)]
        send_signal(victim, signal.SIGKILL)
        self._wait_for_workers(lambda: victim not in self.workers())

    def replace_workers(self) -> None:
        """Have gunicorn start new workers and end the old ones, as for a new release."""
        before = self.workers()
        send_signal(self._master().pid, signal.SIGHUP)
        self._wait_for_workers(lambda: not set(before) & set(self.workers()))

    def _wait_for_workers(self, happened: Any) -> None:
        if not wait_for(
            lambda: happened() and len(self.workers()) >= self.worker_count, timeout=START_SECONDS
        ):
            raise SiteError(f"The workers are not replaced: {self.log_tail()}")

    def stats(self) -> dict[int, dict[str, Any]]:
        """Return what the package has counted, by worker, of as many as answer."""
        found: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + 3.0
        while len(found) < self.worker_count and time.monotonic() < deadline:
            try:
                # Without keep-alive, so that any worker may take the next one.
                answer = httpx.get(
                    f"http://{HOST}:{self.port}/stats", trust_env=False, timeout=5.0
                ).json()
            except (httpx.TransportError, ValueError):
                continue
            found[answer["pid"]] = answer["stats"]
        return found
