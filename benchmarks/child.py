"""A process with a contender's settings that does what its parent asks, line by line."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import Any

import django


def main() -> None:
    """Answer each line of stdin with one on stdout, until stdin ends."""
    # What the code under measurement prints must not end up among the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _take_package()
    django.setup()
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")


def _take_package() -> None:
    """Import the package from another build's folder, where one is named: its modules follow from there."""
    folder = os.environ.get("BENCHMARKS_PACKAGE")
    if folder:
        sys.path.insert(0, folder)
        importlib.import_module("django_replica_router")
        sys.path.remove(folder)


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    try:
        module, name = question["function"].split(":")
        function = getattr(importlib.import_module(module), name)
        return {"value": function(**question["kwargs"])}
    except Exception:
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    main()
