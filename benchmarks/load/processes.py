"""Processes that live for the length of a block, and are talked to through a pipe."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import get_context
from typing import Any

from testproject.cluster.managed import Managed

END_SECONDS = 10.0


class PipedProcess(Managed):
    """A process that ends when this end of its pipe is closed.

    Args:
        target: what it runs, with its end of the pipe as the first argument.
        args: the other arguments.
    """

    def __init__(self, target: Callable[..., None], *args: Any) -> None:
        context = get_context("spawn")
        self._pipe, self._there = context.Pipe()
        self._process = context.Process(target=target, args=(self._there, *args), daemon=True)

    def _open(self, stack: ExitStack) -> None:
        stack.callback(self._end)
        self._process.start()
        self._there.close()  # so that the end of the process is noticed here

    def _end(self) -> None:
        self._pipe.close()
        if self._process.pid is None:
            return  # it could not be started
        self._process.join(END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
