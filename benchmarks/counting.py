"""Counts the calls of functions that serve a request; runs in a process with a contender's settings."""

from __future__ import annotations

import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.timing import server_of

_ROUTING = ("django_replica_router", "testproject.routing")


def count_calls(path: str, session: str | None, requests: int) -> list[dict[str, Any]]:
    """Return for each of so many requests how often which functions were called.

    ``all`` is every call of the request, of functions written in C as well; ``own`` those of the
    router's own functions, by file and name.
    """
    folders = {folder: Path(folder).parent for folder in map(_folder_of, _ROUTING)}
    serve = server_of(path, session)
    serve()
    return [_count(serve, folders) for _ in range(requests)]


def _folder_of(package: str) -> str:
    spec = find_spec(package)
    places = None if spec is None else spec.submodule_search_locations
    return str(next(iter(places or [""])))


def _count(serve: Any, folders: dict[str, Path]) -> dict[str, Any]:
    calls: Counter[Any] = Counter()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            calls[frame.f_code] += 1
        elif event == "c_call":
            calls[None] += 1

    sys.setprofile(note)
    try:
        serve()
    finally:
        sys.setprofile(None)
    own: Counter[str] = Counter()
    for code, times in calls.items():
        for folder, parent in folders.items():
            if code is not None and code.co_filename.startswith(folder):
                own[f"{Path(code.co_filename).relative_to(parent)}:{code.co_qualname}"] += times
    return {"all": calls.total(), "own": own}
