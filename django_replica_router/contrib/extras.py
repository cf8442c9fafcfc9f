"""What a module needs beside Django and psycopg, told where it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(package: str, extra: str = "") -> Iterator[None]:
    """Import one optional package in a block: where that is not installed, the error says what to run.

    What is missing inside of an installed package is told as it is.

    Args:
        package: the name by which it is imported.
        extra: that of the extra which brings it, and of the module here; the package's own where it is empty.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if not error.name or not f"{package}.".startswith(f"{error.name}."):
            raise
        extra = extra or package
        message = (
            f"django_replica_router.contrib.{extra.replace('-', '_')} needs {package.partition('.')[0]}, which is "
            f"not installed: run 'pip install \"django-replica-router[{extra}]\"'."
        )
        raise ModuleNotFoundError(message, name=package) from None
