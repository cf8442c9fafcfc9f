"""Blocks of a test that may also decorate a test, be it a function or a coroutine."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, ParamSpec, TypeVar

from django_replica_router.errors import ConfigurationError

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Block(Generic[T]):
    """A block that may be entered again and again. Made by ``block``.

    Args:
        make: makes a context manager for each time that it is entered.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[T]]) -> None:
        self._make = make
        self._entered: list[AbstractContextManager[T]] = []

    def __enter__(self) -> T:
        """Enter the block."""
        manager = self._make()
        value = manager.__enter__()
        self._entered.append(manager)
        return value

    def __exit__(self, *error: Any) -> bool | None:
        """Leave it."""
        return self._entered.pop().__exit__(*error)

    def __call__(self, test: F) -> F:
        """Have a test run in the block.

        Raises:
            ConfigurationError: it is no function.
        """
        given: Any = test
        if inspect.isclass(given):
            message = (
                f"{given!r} cannot be decorated: expected a test. Decorate its tests, or enter the block "
                f"in setUp() by self.enterContext()."
            )
            raise ConfigurationError(message)
        if inspect.iscoroutinefunction(given):

            @functools.wraps(given)
            async def run_async(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await given(*args, **kwargs)

            return run_async  # type: ignore[return-value]

        @functools.wraps(given)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self:
                return given(*args, **kwargs)

        return run  # type: ignore[return-value]


def block(function: Callable[P, Iterator[T]]) -> Callable[P, Block[T]]:
    """Have a function that yields once, as for ``contextmanager``, return a ``Block``."""
    make = contextmanager(function)

    @functools.wraps(function)
    def begin(*args: P.args, **kwargs: P.kwargs) -> Block[T]:
        return Block(functools.partial(make, *args, **kwargs))

    return begin
