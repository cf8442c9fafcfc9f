"""``use_primary``, ``use_replica`` and ``scope``: each a block and a decorator."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from contextvars import Token
from types import CodeType, FrameType, TracebackType
from typing import Any, TypeVar, overload

from asgiref.sync import sync_to_async
from django.template.response import SimpleTemplateResponse

from django_replica_router.conf import get_config
from django_replica_router.context import Frame, Override, Scope, current_frame
from django_replica_router.errors import ConfigurationError
from django_replica_router.identity import NamedIdentity
from django_replica_router.writes import finish_scope, needs_finish, release_scope

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def _opener() -> CodeType | None:
    """Return the site's code that opens a block: no ``ExitStack`` in between, and none of this file."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in _BETWEEN:
        frame = frame.f_back
    return None if frame is None else frame.f_code


_BETWEEN = (_opener.__code__.co_filename, contextlib.contextmanager.__code__.co_filename)


class Routed:
    """A block, and a decorator, in which reads are routed as asked. Nests, and restores.

    The frame that was there before hangs on the frame of the block, and not on the block: one
    object may be entered by several threads and tasks at the same time.
    """

    def __init__(
        self, override: Override, scope: Scope | None = None, source: CodeType | None = None
    ) -> None:
        self._override = override
        self._scope = scope
        self._source = source

    def __enter__(self) -> Routed:
        outer = current_frame.get()
        scope = outer.scope or self._scope
        owns_scope = scope is None and not self._override.primary
        if owns_scope:
            scope = self._new_scope()
        current_frame.set(Frame(scope, self._override, outer, owns_scope))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        frame = current_frame.get()
        if frame.outer is None:
            return  # left in another context than entered: there is nothing to restore here
        current_frame.set(frame.outer)
        if frame.owns_scope and frame.scope is not None:
            release_scope(frame.scope)

    def _new_scope(self) -> Scope:
        source = self._source or _opener()
        return Scope(NamedIdentity(), debug=get_config().DEBUG, source=source)

    def _again(self) -> Routed:
        return Routed(self._override, self._scope, self._source)

    def _for_steps(self) -> Routed:
        """Return a block for the steps of a generator, which share one scope.

        Whoever runs the steps ends it with ``_end``.
        """
        if self._override.primary or current_frame.get().scope is not None:
            return self._again()
        return Routed(self._override, self._new_scope(), self._source)

    def _end(self) -> None:
        if self._scope is not None:
            release_scope(self._scope)

    def __call__(self, target: F) -> F:
        """Decorate a function, coroutine function, generator, async generator, or view class."""
        given: object = target  # who checks no types may pass a lag by position
        if not callable(given):
            message = (
                f"{target!r} cannot be decorated: expected a function or a class-based view. "
                f"Pass a lag by its name, as in use_replica(max_lag=2.0)."
            )
            raise ConfigurationError(message)
        # Known by what it decorates: one object may decorate several functions.
        routed = Routed(self._override, self._scope, getattr(target, "__code__", None))
        if inspect.isclass(target):
            decorate: Callable[[Any], Any] = routed._decorate_class
        elif inspect.isasyncgenfunction(target):
            decorate = routed._decorate_async_generator
        elif inspect.isgeneratorfunction(target):
            decorate = routed._decorate_generator
        elif inspect.iscoroutinefunction(target):
            decorate = routed._decorate_coroutine
        else:
            decorate = routed._decorate_function
        decorated: F = decorate(target)
        return decorated

    def _decorate_class(self, target: Any) -> Any:
        dispatch = getattr(target, "dispatch", None)
        if dispatch is None:
            message = (
                f"{target!r} cannot be decorated: expected a function, or a class-based view "
                f"with a method dispatch(). Decorate its methods."
            )
            raise ConfigurationError(message)
        target.dispatch = self(dispatch)
        return target

    def _decorate_function(self, function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self._again():
                return self._bind(function(*args, **kwargs))

        return wrapper

    def _decorate_coroutine(self, function: Any) -> Any:
        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self._again():
                return self._bind(await function(*args, **kwargs))

        return wrapper

    def _decorate_generator(self, function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return self._drive(function(*args, **kwargs))

        return wrapper

    def _decorate_async_generator(self, function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return self._drive_async(function(*args, **kwargs))

        return wrapper

    def _bind(self, result: Any) -> Any:
        """Keep to the route what is evaluated after the function has returned."""
        if inspect.isawaitable(result):
            # The dispatch() of a view class with async handlers is a plain function.
            return self._await(result)
        if isinstance(result, SimpleTemplateResponse) and not result.is_rendered:
            self._bind_rendering(result)
        elif getattr(result, "streaming", False) and not hasattr(result, "file_to_stream"):
            drive = self._drive_async if result.is_async else self._drive
            result.streaming_content = drive(_as_generator(result.streaming_content))
        return result

    async def _await(self, awaitable: Awaitable[Any]) -> Any:
        with self._again():
            return self._bind(await awaitable)

    def _bind_rendering(self, response: Any) -> None:
        render = response.render

        def render_routed() -> Any:
            # Gone before it is used: a rendered response may be pickled by a cache.
            response.__dict__.pop("render", None)
            with self._again():
                return render()

        response.render = render_routed

    def _drive(self, generator: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """Run each step of the generator in a block, and what uses it between them outside."""
        block = self._for_steps()
        try:
            return (yield from self._steps(generator, block))
        finally:
            block._end()

    def _steps(self, generator: Generator[Any, Any, T], block: Routed) -> Generator[Any, Any, T]:
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

    async def _drive_async(self, generator: AsyncGenerator[Any, Any]) -> AsyncGenerator[Any, Any]:
        block = self._for_steps()
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
            block._end()


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


@overload
def use_primary(target: F, /) -> F: ...
@overload
def use_primary() -> Routed: ...
def use_primary(target: Any = None, /) -> Any:
    """Read from the primary: ``@use_primary``, ``@use_primary()`` or ``with use_primary():``.

    For functions, ``async def``, generators, function views and class-based views. A template
    response or a stream that such a view returns is routed, too, although it is evaluated later.
    A lazy queryset that leaves the function is not: evaluate it inside.

    Raises:
        ConfigurationError: a class without ``dispatch`` is decorated.
    """
    routed = Routed(Override(primary=True))
    return routed if target is None else routed(target)


@overload
def use_replica(target: F, /) -> F: ...
@overload
def use_replica(*, max_lag: float | None = None) -> Routed: ...
def use_replica(target: Any = None, /, *, max_lag: float | None = None) -> Any:
    """Let reads go to a replica although the request may write, or outside a request.

    What a *reader* is promised holds: the replica must have replayed what the user has written (and
    what this very request has), and inside ``atomic()`` on the primary reads stay there. Where no
    replica may serve, the primary does. But an object that was read from a replica and is saved may
    overwrite what others have written meanwhile: see the setting ``STALE_SAVES``.

    Args:
        target: what to decorate, when used without parentheses.
        max_lag: seconds that the replica's data may be old; the setting ``MAX_LAG`` when None. A
            larger value admits replicas that lag more, as for a report.

    Raises:
        ConfigurationError: ``max_lag`` is no number of seconds, or a class without ``dispatch`` is
            decorated.
    """
    is_number = isinstance(max_lag, int | float) and not isinstance(max_lag, bool)
    if max_lag is not None and not (is_number and math.isfinite(max_lag) and max_lag >= 0):
        message = f"max_lag should be a number of seconds, 0 or more, or None, not {max_lag!r}."
        raise ConfigurationError(message)
    routed = Routed(Override(primary=False, max_lag=max_lag))
    return routed if target is None else routed(target)


class ScopeBlock:
    """A routing scope outside a request: ``with`` or ``async with``."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._token: Token[Frame] | None = None
        self._outer: Scope | None = None

    def _open(self) -> Scope:
        outer = current_frame.get()
        self._outer = outer.scope
        self.scope.source = _opener()
        if self._outer is not None:
            self.scope.follow(self._outer)
        self._token = current_frame.set(Frame(self.scope, outer.override))
        return self.scope

    def _close(self) -> None:
        if self._token is not None:
            # Left in another context than entered, as by a generator that somebody else closes:
            # there is nothing to restore here.
            with contextlib.suppress(ValueError):
                current_frame.reset(self._token)
        release_scope(self.scope)

    def _hand_over(self) -> None:
        # What was written inside must be seen by the rest of the scope outside, and by its user.
        if self._outer is not None:
            self._outer.inherit_writes(self.scope)

    def __enter__(self) -> Scope:
        return self._open()

    def __exit__(self, *error: object) -> None:
        self._hand_over()
        try:
            finish_scope(self.scope)
        finally:
            self._close()

    async def __aenter__(self) -> Scope:
        return self._open()

    async def __aexit__(self, *error: object) -> None:
        self._hand_over()
        try:
            if needs_finish(self.scope):
                await sync_to_async(finish_scope)(self.scope)
        finally:
            self._close()


def scope(*, user: Any = None, users: Iterable[Any] = ()) -> ScopeBlock:
    """Open a routing scope, as the middleware does for a request.

    For a task, a consumer or a command that works for a user: inside it reads go to replicas that
    have what the user has written, and what is written inside is remembered for the user.

    Args:
        user: a user object or primary key; None for nobody.
        users: further users to whom it applies.
    """
    named = (*(() if user is None else (user,)), *users)
    return ScopeBlock(Scope(NamedIdentity(named), debug=get_config().DEBUG))
