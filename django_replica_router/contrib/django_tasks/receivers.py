"""Tokens of Django's tasks. Their messages have no headers: the cache keeps the token, by the id of the result."""

from __future__ import annotations

import functools
import importlib
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.utils import timezone

from django_replica_router.contrib.background import (
    Run,
    hand_on,
    handed_on,
    remember_result,
    see_result,
    token_to_publish,
)
from django_replica_router.scopes.scope import current_scope

_PACKAGES = ("django.tasks", "django_tasks")
"""Django's own since 6.0, and its backport. A site may use both."""

_PATIENCE = 2.0
"""Seconds that the token of a task may come later than the task."""

_run: ContextVar[tuple[str, Run] | None] = ContextVar("replica_router_run", default=None)


def on_enqueued(*, sender: Any, task_result: Any, **kwargs: Any) -> None:
    """Keep the token for whoever takes up the task."""
    kind = _kind(sender)
    if kind in ("immediate", "dummy"):
        return
    path = task_result.task.module_path
    in_database = kind == "django_tasks_db"
    hand_on(_name(task_result), token_to_publish(path, commits_with=in_database))


def on_started(*, sender: Any, task_result: Any, **kwargs: Any) -> None:
    """Open a scope for the run. One that runs in its caller's code is part of the caller's scope."""
    token: str | None = ""
    if _kind(sender) != "immediate":
        _end()  # of whose end nobody was told
        enqueued_at = task_result.enqueued_at
        age = (timezone.now() - enqueued_at).total_seconds() if enqueued_at else 0.0
        token = handed_on(_name(task_result), max(0.0, _PATIENCE - age))
    elif current_scope() is not None:
        return
    _run.set((_name(task_result), Run(token, task_result.task.func)))


def on_finished(*, sender: Any, task_result: Any, **kwargs: Any) -> None:
    """End the scope, and let whoever learns of the result see what was written."""
    run, name = _run.get(), _name(task_result)
    if run is not None and run[0] == name:
        remember_result([name])
        _end()


def _end() -> None:
    run = _run.get()
    if run is not None:
        _run.set(None)
        run[1].close()


def _kind(sender: Any) -> str:
    """Return of which kind a backend is. Signals are sent by its class, and by an object of it."""
    module: str = getattr(sender, "__module__", "")
    return module.rpartition(".")[2] if ".backends." in module else module.partition(".")[0]


def _name(task_result: Any) -> str:
    return f"django_tasks:{task_result.id}"


def _see(result: Any) -> Any:
    if result.is_finished:
        see_result(_name(result))
    return result


def _show_results(backend: Any) -> Any:
    """Have whoever asks a backend for a result see what its task has written."""
    get_result, aget_result = backend.get_result, backend.aget_result

    @functools.wraps(get_result)
    def get(result_id: Any) -> Any:
        return _see(get_result(result_id))

    @functools.wraps(aget_result)
    async def aget(result_id: Any) -> Any:
        return _see(await aget_result(result_id))

    if not hasattr(get_result, "__wrapped__"):
        backend.get_result, backend.aget_result = get, aget
    return backend


def _connect(package: str) -> None:
    tasks = importlib.import_module(package)
    signals = importlib.import_module(f"{package}.signals")
    signals.task_enqueued.connect(on_enqueued, dispatch_uid="django_replica_router")
    signals.task_started.connect(on_started, dispatch_uid="django_replica_router")
    signals.task_finished.connect(on_finished, dispatch_uid="django_replica_router")
    handler = tasks.task_backends
    create = handler.create_connection
    if not hasattr(create, "__wrapped__"):
        # No signal is sent to whoever asks for a result.
        handler.create_connection = functools.wraps(create)(
            lambda alias: _show_results(create(alias))
        )
        for backend in handler.all(initialized_only=True):
            _show_results(backend)


def connect() -> None:
    """Connect to each package of tasks that is installed.

    Raises:
        ImproperlyConfigured: none is.
    """
    found = [package for package in _PACKAGES if find_spec(package)]
    if not found:
        message = (
            "django_replica_router.contrib.django_tasks needs the tasks of Django 6.0 and newer, or django-tasks, "
            "which is not installed: run 'pip install django-tasks'."
        )
        raise ImproperlyConfigured(message)
    for package in found:
        _connect(package)
