"""Run the suite in one mode, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pprint import pformat
from tempfile import TemporaryDirectory
from typing import Any

import django

from testproject.cluster.programs import running_program
from tests.django_suite import outcomes
from tests.django_suite.modes import OTHER, PRIMARY, REPLICA, Mode
from tests.django_suite.outcomes import Run
from tests.django_suite.server import Server

_SETTINGS = "django_suite_settings"
_TAIL = 40

_MEMORY = "django.core.cache.backends.locmem.LocMemCache"
_REPLICATED = {
    # Tests clear the default cache. What is lost with the tokens is a user's claim to see it all.
    "CACHES": {name: {"BACKEND": _MEMORY, "LOCATION": name} for name in ("default", "tokens")},
    "REPLICA_ROUTER": {
        "CACHE": "tokens",
        # A test is to read from the standby, however slow the machine is.
        "WAIT": 5.0,
        # A test writes and the test client reads, as two users of whom one knows nothing of the
        # other: its requests go to the primary.
        "SAFE_METHODS": [],
    },
}


class RunError(Exception):
    """The suite came to no end, so nothing can be said about its tests."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What to run, and on what.

    Args:
        tests: the directory of Django's tests.
        server: the primary.
        labels: apps, classes or tests; none means all.
        parallel: number of processes.
        timeout: seconds after which a run is ended.
    """

    tests: Path
    server: Server
    labels: Sequence[str]
    parallel: int
    timeout: float

    def run(self, mode: Mode) -> Run:
        """Run the suite in that mode.

        Raises:
            RunError: with the last lines of what the suite printed.
        """
        with TemporaryDirectory(prefix="django-suite-") as name:
            directory = Path(name)
            # Beside Django's own settings for its suite, so that it is found wherever they are.
            write_settings(self.tests / f"{_SETTINGS}.py", self.server, mode)
            started = time.monotonic()
            log = self._run(mode, directory)
            seconds = time.monotonic() - started
            try:
                return outcomes.load(directory / "outcomes.json", seconds)
            except FileNotFoundError:
                message = f"The suite did not end in mode {mode.name!r}:\n{log}"
                raise RunError(message) from None

    def _run(self, mode: Mode, directory: Path) -> str:
        command = [sys.executable, "-m", "tests.django_suite.inside", "--mode"]
        command += [json.dumps(asdict(mode))]
        command += ["--tests", str(self.tests), "--settings", _SETTINGS]
        command += ["--output", str(directory / "outcomes.json")]
        command += ["--parallel", str(self.parallel), "--timeout", str(self.timeout)]
        temporary = directory / "tmp"
        temporary.mkdir()
        # Django's own script gives its tests a directory of their own in the same way.
        environ = os.environ | {"TMPDIR": str(temporary)}
        for key in ("DJANGO_SETTINGS_MODULE", "PYTHONPATH", "PYTHONWARNINGS", "PYTHONDEVMODE"):
            environ.pop(key, None)
        log = directory / "log"
        with log.open("wb") as stream:
            program = running_program(
                [*command, "--", *self.labels],
                timeout=0.0,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
            with program as process:
                try:
                    process.wait(self.timeout)
                except subprocess.TimeoutExpired:
                    stream.write(f"\nEnded after {self.timeout:.0f} s.\n".encode())
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_TAIL:])


def write_settings(path: Path, server: Server, mode: Mode) -> None:
    """Write the settings module: two primaries and a replica of the first."""
    standby = server.standby if mode.is_replicated else None
    settings: dict[str, Any] = {
        "DATABASES": {
            PRIMARY: server.alias("django"),
            OTHER: server.alias("other"),
            REPLICA: (standby or server).alias("django", MIRROR=PRIMARY),
        },
        "DATABASE_ROUTERS": list(mode.routers),
        # The rest is what Django's own settings for its suite say.
        "SECRET_KEY": "django_tests_secret_key",
        "PASSWORD_HASHERS": ["django.contrib.auth.hashers.MD5PasswordHasher"],
        "USE_TZ": False,
        "TEST_RUNNER": "tests.django_suite.recording.RecordingRunner",
    }
    if django.VERSION < (6, 0):
        settings["DEFAULT_AUTO_FIELD"] = "django.db.models.AutoField"
    if mode.is_replicated:
        settings |= _REPLICATED
    path.write_text(
        "".join(f"{name} = {pformat(value)}\n" for name, value in settings.items()),
        encoding="utf-8",
    )
