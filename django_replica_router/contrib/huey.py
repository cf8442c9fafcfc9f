"""huey: ``connect(huey)``, once, where it is made."""

from __future__ import annotations

import functools
import inspect
from contextvars import ContextVar
from typing import Any

from django_replica_router.contrib.background import (
    Run,
    hand_on,
    handed_on,
    remember_result,
    see_result,
    token_to_publish,
)
from django_replica_router.contrib.extras import needs
from django_replica_router.scopes.scope import current_scope

with needs("huey"):
    from huey import signals
    from huey.api import Result
    from huey.constants import EmptyData

_run: ContextVar[Run | None] = ContextVar("replica_router_run", default=None)


def _name(task_id: Any) -> str:
    return f"huey:{task_id}"


def _function(task: Any) -> Any:
    """Return the site's code: what the ``execute()`` that huey makes of a function calls, or that of a class."""
    execute = type(task).execute
    return inspect.getclosurevars(execute).nonlocals.get("func", execute)


def _end() -> None:
    run = _run.get()
    if run is not None:
        _run.set(None)
        run.close()


def connect(huey: Any) -> None:
    """Have tasks see what whoever publishes them has written, and whoever gets a result what the task has written.

    Args:
        huey: a ``Huey``, as ``huey.contrib.djhuey.HUEY``.
    """
    put_result = huey.put_result

    def on_enqueued(signal: Any, task: Any) -> None:
        if not huey.immediate:
            # Its message has no headers.
            hand_on(_name(task.id), token_to_publish(task.name))

    def open_scope(task: Any) -> None:
        if huey.immediate and current_scope() is not None:
            return  # it is part of its caller's
        _end()  # of whose end nobody was told
        token = "" if huey.immediate else handed_on(_name(task.id), 0.0)
        _run.set(Run(token, _function(task)))

    def end_scope(task: Any, value: Any, error: Any) -> None:
        _end()

    @functools.wraps(put_result)
    def put(key: Any, data: Any) -> Any:
        if _run.get() is not None and not huey.immediate:
            remember_result([_name(key)])
        return put_result(key, data)

    huey.signal(signals.SIGNAL_ENQUEUED)(on_enqueued)
    huey.pre_execute("replica_router")(open_scope)
    huey.post_execute("replica_router")(end_scope)
    huey.put_result = put
    _show_results()


def _show_results() -> None:
    """Have whoever gets a result see what its task has written. No signal is sent to them."""
    get: Any = Result._get
    if hasattr(get, "__wrapped__"):
        return

    @functools.wraps(get)
    def get_and_see(result: Any, *args: Any, **kwargs: Any) -> Any:
        value = get(result, *args, **kwargs)
        if value is not EmptyData:
            see_result(_name(result.id))
        return value

    Result._get = get_and_see
