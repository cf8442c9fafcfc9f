"""The line of the site's own code that is running."""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib.util import find_spec
from types import FrameType

_PACKAGES = (
    *("django", "asgiref", "concurrent", "debug_toolbar", "django_replica_router"),
    # By which tasks are published.
    *("celery", "kombu", "vine", "django_tasks", "django_tasks_db", "django_tasks_rq"),
    *("dramatiq", "django_dramatiq", "huey", "rq", "django_rq"),
)


def _file_of(package: str) -> str | None:
    """Return the file of a package, or None where it is not installed, or is a folder of that name only."""
    loaded = sys.modules.get(package)
    if loaded is not None:  # it may have no spec any more, as Celery
        return getattr(loaded, "__file__", None)
    spec = find_spec(package)
    return None if spec is None else spec.origin


@cache
def _passed_by() -> tuple[str, ...]:
    """Return the folders, and files, of code that calls nothing by itself."""
    folders = [os.path.dirname(file) + os.sep for file in map(_file_of, _PACKAGES) if file]
    files = [str(_file_of(module)) for module in ("contextlib", "functools", "threading")]
    return (*folders, *files, "<frozen")


def find_frame() -> FrameType | None:
    """Return the frame of the site's code that is running, or None where there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_passed_by()):
        frame = frame.f_back
    return frame


def find_caller() -> str:
    """Return the file and line of the site's code that is running."""
    frame = find_frame()
    if frame is None:
        return "code of no known line"
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
