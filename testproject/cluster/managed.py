"""Things that are there for the length of a block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import Self


class Managed(ABC):
    """Opened where a block begins, and closed where it ends, or where opening fails halfway."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._open(stack)
            self._opened = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    @abstractmethod
    def _open(self, stack: ExitStack) -> None:
        """Open what is needed, and tell the stack how each is closed."""
