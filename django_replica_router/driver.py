"""The driver: whether psycopg 3 can be used here, and what to install where it cannot."""

from __future__ import annotations

OLDEST = (3, 2)
"""The oldest version of psycopg that the package works with."""

_INSTALL = "run 'pip install \"psycopg[binary]>=3.2\"'"


def find_problem() -> str | None:
    """Return a sentence that tells what keeps psycopg 3 from being used, and what to install; None where nothing does.

    Django itself tells of it by "Error loading psycopg2 or psycopg module", or goes on with psycopg2 without a word.
    """
    try:
        import psycopg
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            return f"psycopg cannot be imported: {error}."
        return (
            "django-replica-router needs psycopg 3, which is not installed (psycopg2 is another driver): "
            f"{_INSTALL}."
        )
    except ImportError:
        return (
            "django-replica-router needs psycopg 3, which is installed but finds no libpq on this machine: "
            f"{_INSTALL}, which brings one, or install the system's (on Debian: 'apt install libpq5')."
        )
    version = psycopg.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return f"django-replica-router needs psycopg {oldest} or newer, and {version} is installed: {_INSTALL}."
    return None
