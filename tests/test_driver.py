"""A site on which psycopg 3 cannot be used is told what to install, in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from django_replica_router import driver

ROOT = Path(__file__).resolve().parent.parent
INSTALL = 'pip install "psycopg[binary]>=3.2"'
NOT_INSTALLED = "import sys; sys.modules['psycopg'] = None"
# What psycopg asks for a libpq, once it finds none of its own.
NO_LIBPQ = "import ctypes.util; ctypes.util.find_library = lambda name: None"
SITE = (
    "SECRET_KEY = 'x'\n"
    "INSTALLED_APPS = ['django.contrib.contenttypes', 'django.contrib.auth', 'django_replica_router']\n"
    "DATABASES = {'default': {'ENGINE': 'django.db.backends.postgresql'}}\n"
)


def run(folder: Path, state: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python on a new site, on a machine that is in such a state."""
    (folder / "site_settings.py").write_text(SITE)
    (folder / "sitecustomize.py").write_text(state)
    environment = os.environ | {
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        "DJANGO_SETTINGS_MODULE": "site_settings",
        "PSYCOPG_IMPL": "python",
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("state", "problem"),
    [(NOT_INSTALLED, "which is not installed"), (NO_LIBPQ, "finds no libpq on this machine")],
    ids=["no psycopg", "no libpq"],
)
@pytest.mark.parametrize(
    "command",
    [
        ("-m", "django", "check"),
        (
            "-c",
            "import threading, django; t = threading.Thread(target=django.setup); t.start(); t.join()",
        ),
    ],
    ids=["a command", "a thread of runserver"],
)
def test_a_program_ends_in_one_sentence(
    tmp_path: Path, state: str, problem: str, command: tuple[str, ...]
) -> None:
    """Whatever Django itself would have said of a missing driver, one line tells what to install."""
    done = run(tmp_path, state, *command)
    (line,) = done.stderr.splitlines()
    assert line.startswith("django-replica-router needs psycopg 3, ")
    assert problem in line
    assert INSTALL in line
    assert done.returncode == 1 or command[0] == "-c"


def test_settings_that_import_the_package_are_told_as_well(tmp_path: Path) -> None:
    """A name that cannot be had for want of the driver is an ImportError with the same sentence."""
    done = run(tmp_path, NO_LIBPQ, "-c", "from django_replica_router import use_primary")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: django-replica-router needs psycopg 3, ")
    assert INSTALL in last


def test_other_errors_keep_their_traceback(tmp_path: Path) -> None:
    """What happens after the sentence, and is something else, is told as ever."""
    code = (
        "import django\n"
        "try: django.setup()\n"
        "except Exception: raise RuntimeError('another') from None\n"
    )
    done = run(tmp_path, NOT_INSTALLED, "-c", code)
    assert done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1] == "RuntimeError: another"


@pytest.mark.parametrize("version", ["3.1.20", "2.9.9"])
def test_old_psycopg_is_told_from_a_new_one(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """The oldest version that works is named beside the one that is there."""
    assert driver.find_problem() is None
    monkeypatch.setattr(psycopg, "__version__", version)
    problem = driver.find_problem()
    assert problem is not None
    assert f"needs psycopg 3.2 or newer, and {version} is installed" in problem
    assert INSTALL in problem


@pytest.mark.parametrize("version", ["3.2", "3.2.0", "3.10.1", "4.0.0.dev1"])
def test_new_psycopg_is_fine(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Versions are compared as numbers."""
    monkeypatch.setattr(psycopg, "__version__", version)
    assert driver.find_problem() is None


def test_the_oldest_version_is_the_one_that_pip_is_told() -> None:
    """The sentence asks for what the distribution asks for."""
    oldest = ".".join(map(str, driver.OLDEST))
    assert f'"psycopg>={oldest}",' in (ROOT / "pyproject.toml").read_text()
    assert f"psycopg[binary]>={oldest}" in driver._INSTALL
