"""What a module here needs beside Django and psycopg, told where it is missing."""

from __future__ import annotations

from types import TracebackType


class needs:  # noqa: N801 - reads as "with needs(...)"
    """A block of imports of one optional package: where that is not installed, the error says what to run.

    Args:
        package: the name by which it is imported.
        extra: that of the extra which brings it, and of the module here; the package's own where it is empty.

    Raises:
        ModuleNotFoundError: it is not installed.
    """

    def __init__(self, package: str, extra: str = "") -> None:
        self.package = package
        self.extra = extra or package

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Tell what to run. What is missing inside of an installed package is told as it is."""
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{self.package}.".startswith(f"{missing}."):
            module = self.extra.replace("-", "_")
            message = (
                f"django_replica_router.contrib.{module} needs {self.package.partition('.')[0]}, which is not installed: "
                f"run 'pip install \"django-replica-router[{self.extra}]\"'."
            )
            raise ModuleNotFoundError(message, name=self.package) from None
