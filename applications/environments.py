"""An environment of its own for each application: installed from the registry of packages, unchanged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from testproject.cluster import ProgramError
from testproject.cluster.programs import LOG_TAIL, ROOT


def create(directory: Path, requirements: Sequence[str]) -> Path:
    """Return the Python of a new environment that has the package and an application.

    Args:
        directory: of the environment; one that is there already is used as it is.
        requirements: what to install, as pip takes it.
    """
    python = directory / "bin" / "python"
    if not python.exists():
        run([sys.executable, "-m", "venv", str(directory)])
        run([str(python), "-m", "pip", "install", "-q", f"{ROOT}[demo]", *requirements])
    return python


def run(
    command: Sequence[str], *, env: dict[str, str] | None = None, cwd: Path | None = None
) -> str:
    """Run a program to its end, and return what it prints.

    Raises:
        ProgramError: it fails.
    """
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProgramError(
            f"{' '.join(command)} failed: {(done.stderr or done.stdout)[-LOG_TAIL:]}"
        )
    return done.stdout
