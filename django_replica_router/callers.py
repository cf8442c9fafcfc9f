"""The line of the site's own code that is running."""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib.util import find_spec
from types import FrameType


@cache
def _passed_by() -> tuple[str, ...]:
    """Return the folders of code that calls nothing by itself."""
    packages = ("django", "asgiref", "concurrent", "debug_toolbar", "django_replica_router")
    found = (find_spec(name) for name in packages)
    folders = [os.path.dirname(str(spec.origin)) + os.sep for spec in found if spec is not None]
    threads = str(getattr(sys.modules["threading"], "__file__", ""))
    return (*folders, os.path.dirname(os.__file__) + os.sep + "contextlib.py", "<frozen", threads)


def find_caller() -> str:
    """Return the file and line of the site's code that is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_passed_by()):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return "code of no known line"
