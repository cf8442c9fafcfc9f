"""From a run to whoever learns of its result: they see what it has written.

No signal is sent between the end of a task's code and the moment when its result can be read, and none to
those who read it: so the methods of Celery's classes are wrapped that every backend and every reader calls.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from django_replica_router.contrib import background
from django_replica_router.contrib.extras import needs

with needs("celery"):
    from celery.backends.base import Backend
    from celery.result import AsyncResult, ResultSet
    from celery.states import READY_STATES


# Celery's own methods.
_celerys_get, _celerys_get_task_meta = AsyncResult.get, AsyncResult._get_task_meta
_celerys_iter_native = ResultSet.iter_native


def _name(task_id: Any) -> str:
    return f"celery:{task_id}"


def _remember(task_id: Any, request: Any, store_result: bool) -> None:
    """Remember what was written under the task, and under its group: a chord's body has all of them to see."""
    if request is not None and request.is_eager:
        return
    is_stored = store_result and not getattr(request, "ignore_result", False)
    group = request.group if request is not None and request.chord else None
    names = [_name(known) for known in (task_id if is_stored else None, group) if known]
    if names:
        background.remember_result(names)
    if group:
        # The last of them to end publishes the body, in this scope.
        see_result(group)


def see_result(task_id: Any) -> None:
    """Have the present scope see what a task has written."""
    background.see_result(_name(task_id))


def _remembering(mark: Callable[..., Any]) -> Callable[..., Any]:
    """Return a backend's method that stores a result, and remembers before what was written."""
    signature = inspect.signature(mark)

    @functools.wraps(mark)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        _remember(given["task_id"], given.get("request"), given.get("store_result", True))
        return mark(*args, **kwargs)

    return wrapper


def _get(self: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return _celerys_get(self, *args, **kwargs)
    finally:  # one of a task that has failed raises
        if self._cache is not None:
            see_result(self.id)


def _get_task_meta(self: Any) -> Any:
    meta = _celerys_get_task_meta(self)
    if meta and meta.get("status") in READY_STATES:
        see_result(self.id)
    return meta


def _iter_native(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
    for task_id, meta in _celerys_iter_native(self, *args, **kwargs):
        for node in meta if isinstance(meta, list) else ():  # a group of groups
            see_result(node.id)
        see_result(task_id)
        yield task_id, meta


def connect() -> None:
    """Wrap the methods. To do so again changes nothing."""
    if AsyncResult.get is _get:
        return
    Backend.mark_as_done = _remembering(Backend.mark_as_done)
    Backend.mark_as_failure = _remembering(Backend.mark_as_failure)
    AsyncResult.get = functools.wraps(AsyncResult.get)(_get)
    AsyncResult._get_task_meta = functools.wraps(AsyncResult._get_task_meta)(_get_task_meta)
    ResultSet.iter_native = functools.wraps(ResultSet.iter_native)(_iter_native)
