"""Django's source distribution, which holds its tests: fetched with pip, kept in a cache."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


class SourceError(Exception):
    """The tests of the installed Django cannot be had."""


def default_cache() -> Path:
    """Return where a user's caches are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "django-replica-router"


def fetch(version: str, cache: Path) -> Path:
    """Return the source distribution of that version, from the cache or else from pip.

    Raises:
        SourceError: pip did not deliver it.
    """
    name = f"django-{version}.tar.gz"
    kept = cache / name
    if kept.is_file():
        return kept
    cache.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that what is found there is always whole.
    with tempfile.TemporaryDirectory(dir=cache) as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--no-binary", "django"]
        command += ["--dest", directory, f"django=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        # Older releases are spelled "Django-...".
        found = [file for file in Path(directory).iterdir() if file.name.lower() == name]
        if done.returncode or not found:
            message = (
                f"pip did not deliver the source of Django {version}:\n{done.stderr}\n"
                f"Put {name} into {cache} by hand, or name a directory that holds it with --cache."
            )
            raise SourceError(message)
        found[0].replace(kept)
    return kept


def unpack(archive: Path, directory: Path) -> Path:
    """Unpack it and return the directory of the tests.

    All of it: some tests look at the documentation and the code beside them. The Django that they
    import is the installed one, since that directory is on nobody's path.
    """
    with tarfile.open(archive) as tar:
        # Python 3.11 has the filter from its fourth patch release on.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        tar.extractall(directory)  # noqa: S202 - pip has checked the archive's hash
    (tests,) = directory.glob("*/tests")
    if not (tests / "runtests.py").is_file():
        message = f"{archive} has no tests/runtests.py."
        raise SourceError(message)
    return tests
