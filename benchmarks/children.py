"""Processes that stay, one for each contender, so that all can take turns."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.contenders import Contender
from testproject.cluster import Cluster, ProgramError
from testproject.cluster.programs import LineProgram

PATIENCE = 120.0


class Child(LineProgram):
    """A process with settings of its own, which runs functions for this one.

    Args:
        environ: the environment, as a contender makes it.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__([sys.executable, "-m", "benchmarks.child"], environ)

    def call(self, function: str, **kwargs: Any) -> Any:
        """Run ``module:function`` there, with what JSON can hold, and return what it returns.

        Raises:
            ProgramError: the function has raised, or the process has ended or hangs.
        """
        answer = self.ask({"function": function, "kwargs": kwargs}, timeout=PATIENCE)
        if "error" in answer:
            raise ProgramError(answer["error"])
        return answer["value"]


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
