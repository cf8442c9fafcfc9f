"""Processes that stay, one for each contender, so that all can take turns."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any, Self

from benchmarks.contenders import Contender
from benchmarks.machine import ROOT
from testproject.cluster import Cluster

PATIENCE = 120.0
END_SECONDS = 10.0


class ChildError(Exception):
    """A process of a benchmark has failed."""


class Child:
    """A process with settings of its own, which runs functions for this one.

    Args:
        environ: the environment, as a contender makes it.
    """

    def __init__(self, environ: dict[str, str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child"],
            env=environ,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        return self._process.pid

    def call(self, function: str, **kwargs: Any) -> Any:
        """Run ``module:function`` there, with what JSON can hold, and return what it returns.

        Raises:
            ChildError: the function has raised, or the process has ended or hangs.
        """
        self.send(function, **kwargs)
        return self.receive()

    def send(self, function: str, **kwargs: Any) -> None:
        """Ask for the function to be run, and do not wait for what it returns."""
        stdin = self._process.stdin
        if stdin is None or self._process.poll() is not None:
            raise ChildError(self._tail())
        stdin.write(json.dumps({"function": function, "kwargs": kwargs}).encode() + b"\n")
        stdin.flush()

    def receive(self) -> Any:
        """Return what the function asked for has returned."""
        stdout = self._process.stdout
        if stdout is None or not select.select([stdout], [], [], PATIENCE)[0]:
            message = f"A process of a benchmark does not answer within {PATIENCE:.0f} s."
            raise ChildError(message)
        line = stdout.readline()
        if not line:
            raise ChildError(self._tail())
        answer = json.loads(line)
        if "error" in answer:
            raise ChildError(answer["error"])
        return answer["value"]

    def _tail(self) -> str:
        self._log.seek(0)
        return f"A process of a benchmark has ended: {self._log.read()[-2000:].decode()}"

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()


def alias_environment(
    cluster: Cluster,
    contender: Contender,
    replicas: int,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Return the environment of a process that knows so many replicas; aliases share servers."""
    real = cluster.django_databases()
    databases = {"default": real["default"]}
    for number in range(1, replicas + 1):
        databases[f"replica{number}"] = dict(real[f"replica{2 - number % 2}"])
    for database in databases.values():
        database["ENGINE"] = contender.engine
    url = cluster.cache.url if cluster.cache else None
    environ = contender.environment_for(databases, url, overrides=overrides)
    return {**environ, "BENCHMARKS_PROBE": "1"}
