"""Blocks of a test that may also decorate a test, be it a function or a coroutine."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import Context, copy_context
from typing import Any, Generic, ParamSpec, TypeVar

from asgiref.sync import sync_to_async

from django_replica_router.errors import ConfigurationError

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Block(Generic[T]):
    """A block that may be entered again and again, in a coroutine by ``async with``. Made by ``block``.

    Args:
        make: makes a context manager for each time that it is entered.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[T]]) -> None:
        self._make = make
        self._entered: list[AbstractContextManager[T]] = []
        self._contexts: list[Context] = []

    def __enter__(self) -> T:
        """Enter the block.

        Raises:
            ConfigurationError: in a coroutine, whose connections to databases belong to another thread.
        """
        if asyncio._get_running_loop() is not None:
            message = "In a coroutine enter this block by `async with`."
            raise ConfigurationError(message)
        return self._enter()

    def __exit__(self, *error: Any) -> bool | None:
        """Leave it."""
        __tracebackhide__ = True  # of pytest's
        try:
            return self._entered.pop().__exit__(*error)
        except AssertionError as failure:
            # The block's own: how that was found is no news.
            raise failure.with_traceback(None) from None

    async def __aenter__(self) -> T:
        """Enter the block in the thread that works with databases."""
        context = copy_context()
        value = await sync_to_async(context.run)(self._enter)
        self._contexts.append(context)
        _take(context)
        return value

    async def __aexit__(self, *error: Any) -> bool | None:
        """Leave it there."""
        context = self._contexts.pop()
        try:
            return await sync_to_async(context.run)(self.__exit__, *error)
        finally:
            _take(context)

    def _enter(self) -> T:
        manager = self._make()
        value = manager.__enter__()
        self._entered.append(manager)
        return value

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
                async with self:
                    return await given(*args, **kwargs)

            return run_async  # type: ignore[return-value]

        @functools.wraps(given)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self:
                return given(*args, **kwargs)

        return run  # type: ignore[return-value]


def _take(context: Context) -> None:
    """Have what was set in another context hold in the present one."""
    for variable in context:
        if variable.get(None) is not context[variable]:
            variable.set(context[variable])


def block(function: Callable[P, Iterator[T]]) -> Callable[P, Block[T]]:
    """Have a function that yields once, as for ``contextmanager``, return a ``Block``."""
    make = contextmanager(function)

    @functools.wraps(function)
    def begin(*args: P.args, **kwargs: P.kwargs) -> Block[T]:
        return Block(functools.partial(make, *args, **kwargs))

    return begin
