"""Processes that live for the length of a block, and are talked to through a pipe."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from typing import Any, Self

END_SECONDS = 10.0


class PipedProcess:
    """A process that ends when this end of its pipe is closed.

    Args:
        target: what it runs, with its end of the pipe as the first argument.
        args: the other arguments.
    """

    def __init__(self, target: Callable[..., None], *args: Any) -> None:
        context = get_context("spawn")
        self._pipe, self._there = context.Pipe()
        self._process = context.Process(target=target, args=(self._there, *args), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._there.close()  # so that the end of the process is noticed here
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe.close()
        self._process.join(END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
