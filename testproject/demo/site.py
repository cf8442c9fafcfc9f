"""Starts and stops the project under gunicorn, and prepares its database."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from testproject.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
PASSWORD = "replica"
START_SECONDS = 30.0
STOP_SECONDS = 10.0
LOG_TAIL = 2000


class SiteError(Exception):
    """The site could not be prepared or started."""


@dataclass(frozen=True, slots=True)
class Account:
    """One user as the database was prepared."""

    name: str
    sessions: list[str]
    notes: list[int]


@dataclass(frozen=True, slots=True)
class Site:
    """The running project."""

    url: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def is_running(self) -> bool:
        """Return whether gunicorn still lives."""
        return self.process.poll() is None

    def log_tail(self) -> str:
        """Return the last lines that gunicorn and Django wrote."""
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - LOG_TAIL))
        return self.log.read().decode(errors="replace")


def environment(cluster: Cluster, routing: str, *, inspect: bool = False) -> dict[str, str]:
    """Return the environment that tells the settings where the servers are."""
    if cluster.cache is None:
        raise SiteError("The cluster has no cache. Start it with cache=True.")
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "testproject.settings",
        "TESTPROJECT_DATABASES": json.dumps(cluster.django_databases()),
        "TESTPROJECT_CACHE_URL": cluster.cache.url,
        "TESTPROJECT_ROUTING": routing,
        "TESTPROJECT_INSPECT": "1" if inspect else "",
    }


def prepare(
    cluster: Cluster, names: list[str], *, staff: str = "", sessions: int = 0
) -> list[Account]:
    """Migrate, create the users, and wait until the replicas have them."""
    command = [sys.executable, "-m", "django", "prepare_demo", "--password", PASSWORD]
    command += ["--staff", staff, "--sessions", str(sessions), *names]
    done = subprocess.run(
        command,
        env=environment(cluster, "primary"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SiteError(f"The database could not be prepared: {done.stderr[-LOG_TAIL:]}")
    cluster.wait_caught_up()
    return [Account(name, **described) for name, described in json.loads(done.stdout).items()]


@contextmanager
def running_site(
    cluster: Cluster, routing: str, *, workers: int, port: int = 0, inspect: bool = False
) -> Iterator[Site]:
    """Serve the project for the length of the block."""
    environ = environment(cluster, routing, inspect=inspect)
    with serving(environ, workers=workers, port=port) as site:
        yield site


@contextmanager
def serving(environ: dict[str, str], *, workers: int, port: int = 0) -> Iterator[Site]:
    """Serve the project for the length of the block, with the settings that the environment names."""
    with tempfile.TemporaryFile() as log:
        site = _start(environ, workers=workers, port=port, log=log)
        try:
            _wait_until_it_answers(site)
            yield site
        finally:
            _stop(site.process)


def _start(environ: dict[str, str], *, workers: int, port: int, log: IO[bytes]) -> Site:
    # The socket is opened here and handed over: no other process can take the port in between.
    with _listening_socket(port) as listener:
        command = [sys.executable, "-m", "gunicorn", "testproject.wsgi"]
        command += ["--config", "python:testproject.demo.gunicorn_conf"]
        command += ["--workers", str(workers), "--bind", f"fd://{listener.fileno()}"]
        process = subprocess.Popen(
            command,
            env=environ,
            cwd=ROOT,
            pass_fds=[listener.fileno()],
            # Nothing is ever written to it: gunicorn ends when it closes, however this process ends.
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            # Of its own, so that Ctrl-C reaches this process alone, which then stops that one.
            process_group=0,
        )
        return Site(f"http://{HOST}:{listener.getsockname()[1]}", process, log)


def _listening_socket(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        raise SiteError(f"Port {port} of {HOST} could not be opened: {error}") from error
    return listener


def _wait_until_it_answers(site: Site) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if not site.is_running():
            raise SiteError(f"The site ended while starting: {site.log_tail()}")
        try:
            httpx.get(f"{site.url}/login/", trust_env=False, timeout=START_SECONDS)
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise SiteError(f"The site did not answer within {START_SECONDS} s: {site.log_tail()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
