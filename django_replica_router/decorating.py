"""What a block does as a decorator: it holds for whatever the function returns, until that is evaluated."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self, TypeVar

from django.template.response import SimpleTemplateResponse

from django_replica_router.errors import ConfigurationError

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class Block(AbstractContextManager[Any], Protocol):
    """A block that may be entered again and again, by several threads and tasks."""

    def __call__(self, target: F) -> F:
        """Decorate a function."""

    def for_steps(self) -> Self:
        """Return a block for the steps of a generator, which share one scope."""

    def end(self) -> None:
        """End what the steps have shared."""


def decorate(block: Block, target: F, entries: Sequence[str] = ("dispatch",)) -> F:
    """Return a function, coroutine function, generator, async generator or class that runs in a block.

    Args:
        block: the block.
        target: what is decorated.
        entries: of a class, the methods of which the first that it has does its work.

    Raises:
        ConfigurationError: the target is nothing of these.
    """
    if isinstance(target, staticmethod | classmethod):
        return type(target)(block(target.__func__))
    given: object = target  # who checks no types may pass a lag by position
    if not callable(given):
        message = (
            f"{target!r} cannot be decorated: expected a function or a class-based view. "
            f"Pass a lag by its name, as in use_replica(max_lag=2.0)."
        )
        raise ConfigurationError(message)
    if inspect.isclass(target):
        wrap: Callable[[Block, Any], Any] = functools.partial(_decorate_class, entries)
    elif inspect.isasyncgenfunction(target):
        wrap = functools.partial(_decorate_steps, _drive_async)
    elif inspect.isgeneratorfunction(target):
        wrap = functools.partial(_decorate_steps, _drive)
    elif inspect.iscoroutinefunction(target):
        wrap = _decorate_coroutine
    else:
        wrap = _decorate_function
    decorated: F = wrap(block, target)
    return decorated


def _decorate_class(entries: Sequence[str], block: Block, target: Any) -> Any:
    entry = find_entry(target, entries)
    setattr(target, entry, block(inspect.getattr_static(target, entry)))
    return target


def find_entry(target: type[Any], entries: Sequence[str]) -> str:
    """Return the name of the method of a class that does its work.

    Raises:
        ConfigurationError: it has none of these.
    """
    for name in entries:
        if any(name in vars(base) for base in target.__mro__):
            return name
    names = " or ".join(f"{name}()" for name in entries)
    message = (
        f"{target!r} cannot be decorated: expected a function, or a class-based view "
        f"with a method {names}. Decorate its methods."
    )
    raise ConfigurationError(message)


def _decorate_function(block: Block, function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with block:
            return _bind(block, function(*args, **kwargs))

    return wrapper


def _decorate_coroutine(block: Block, function: Any) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        with block:
            return _bind(block, await function(*args, **kwargs))

    return wrapper


def _decorate_steps(drive: Callable[[Block, Any], Any], block: Block, function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return drive(block, function(*args, **kwargs))

    return wrapper


def _bind(block: Block, result: Any) -> Any:
    """Keep to the route what is evaluated after the function has returned."""
    if inspect.isawaitable(result):
        # The dispatch() of a view class with async handlers is a plain function.
        return _await(block, result)
    if isinstance(result, SimpleTemplateResponse) and not result.is_rendered:
        _bind_rendering(block, result)
    elif getattr(result, "streaming", False) and not hasattr(result, "file_to_stream"):
        drive: Callable[..., Any] = _drive_async if result.is_async else _drive
        result.streaming_content = drive(block, _as_generator(result.streaming_content))
    return result


async def _await(block: Block, awaitable: Awaitable[Any]) -> Any:
    with block:
        return _bind(block, await awaitable)


def _bind_rendering(block: Block, response: Any) -> None:
    render = response.render

    def render_routed() -> Any:
        # Gone before it is used: a rendered response may be pickled by a cache.
        response.__dict__.pop("render", None)
        with block:
            return render()

    response.render = render_routed


def _drive(block: Block, generator: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
    """Run each step of the generator in a block, and what uses it between them outside."""
    block = block.for_steps()
    try:
        return (yield from _steps(block, generator))
    finally:
        block.end()


def _steps(block: Block, generator: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
    step: Callable[[], Any] = functools.partial(next, generator)
    while True:
        try:
            with block:
                item = step()
        except StopIteration as stop:
            result: T = stop.value
            return result
        try:
            step = functools.partial(generator.send, (yield item))
        except GeneratorExit:
            with block:
                generator.close()
            raise
        except BaseException as error:
            step = functools.partial(generator.throw, error)


async def _drive_async(
    block: Block, generator: AsyncGenerator[Any, Any]
) -> AsyncGenerator[Any, Any]:
    block = block.for_steps()
    step: Callable[[], Awaitable[Any]] = generator.__anext__
    try:
        while True:
            try:
                with block:
                    item = await step()
            except StopAsyncIteration:
                return
            try:
                step = functools.partial(generator.asend, (yield item))
            except GeneratorExit:
                with block:
                    await generator.aclose()
                raise
            except BaseException as error:
                step = functools.partial(generator.athrow, error)
    finally:
        block.end()


def _as_generator(content: Any) -> Any:
    """Return a generator of a streaming response's content, which may be any iterator."""
    if inspect.isgenerator(content) or inspect.isasyncgen(content):
        return content
    if hasattr(content, "__aiter__"):

        async def steps() -> AsyncGenerator[Any, Any]:
            async for item in content:
                yield item

        return steps()
    return (item for item in content)
