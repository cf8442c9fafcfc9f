"""The site under gunicorn, for the length of a block."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
START_SECONDS = 60.0
STOP_SECONDS = 10.0
LOG_TAIL = 4000


class SiteError(Exception):
    """The site could not be started."""


@contextmanager
def serving(environ: Mapping[str, str], *, workers: int = 2, threads: int = 4) -> Iterator[str]:
    """Serve the benchmarks' site, and return its URL."""
    with tempfile.TemporaryFile() as log, _listening() as listener:
        process = _start(environ, listener, log, workers, threads)
        try:
            port = listener.getsockname()[1]
            _wait_until_it_answers(process, port, log)
            yield f"http://{HOST}:{port}"
        finally:
            _stop(process)


def _listening() -> socket.socket:
    listener = socket.socket()
    listener.bind((HOST, 0))
    listener.listen(512)
    return listener


def _start(
    environ: Mapping[str, str],
    listener: socket.socket,
    log: IO[bytes],
    workers: int,
    threads: int,
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gunicorn", "benchmarks.load.wsgi"]
    command += ["--config", "python:testproject.demo.gunicorn_conf"]
    command += ["--workers", str(workers), "--threads", str(threads)]
    # Longer than any client rests: who closes a connection at rest races with who uses it.
    command += ["--keep-alive", "75", "--bind", f"fd://{listener.fileno()}"]
    return subprocess.Popen(
        command,
        env={**environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        cwd=ROOT,
        pass_fds=[listener.fileno()],
        # Nothing is ever written to it: gunicorn ends when it closes, however this process ends.
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        # Of its own, so that Ctrl-C reaches this process alone, which then stops that one.
        process_group=0,
    )


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection(HOST, port, timeout=START_SECONDS)
        try:
            connection.request("GET", "/read/?rows=0", headers={"Cookie": "sessionid=0"})
            if connection.getresponse().status == http.client.OK:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL))
    message = f"The site does not answer: {log.read().decode(errors='replace')}"
    raise SiteError(message)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()
