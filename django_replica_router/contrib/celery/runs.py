"""From whoever publishes a task to its run: a token in the message's headers, and a scope for the run."""

from __future__ import annotations

from typing import Any

from django_replica_router.contrib.background import Run, note_run_at_once, token_to_publish
from django_replica_router.contrib.extras import needs
from django_replica_router.errors import TooStale
from django_replica_router.scopes.scope import current_scope
from django_replica_router.scopes.signing import Token

with needs("celery"):
    from celery import signals
    from celery.app.task import Task
    from celery.exceptions import Retry

HEADER = "replica_router"
"""In which the token travels. It is there, and empty, where there is nothing to see."""

_PUT_OFF = "replica_router_put_off"
"""Header of a task that has been put off already."""

_EARLY = "replica_router_early"
"""Header: how often a task was put off since a transaction was open."""

_MOST_EARLY = 60

_AS_IS = "replica_router_as_is"
"""Header of a message that keeps its token: it is taken out before it is sent."""

AGAIN = 5.0
"""Seconds until a task comes again that was published in a transaction which has not ended yet."""

_RUN = "replica_router_run"
"""Attribute of a request: its run."""


def on_publish(*, sender: Any = None, headers: Any = None, **kwargs: Any) -> None:
    """Put the token into the headers of a message. That of a retry has one already."""
    if isinstance(headers, dict) and not headers.pop(_AS_IS, False):
        token = token_to_publish(str(sender))
        headers[HEADER] = str(Token.read(headers.get(HEADER)) | token)


def on_prerun(*, task: Any, **kwargs: Any) -> None:
    """Open a scope for the run. One that runs in its caller's code is part of the caller's scope."""
    request = task.request
    if request.is_eager and task.app.conf.task_always_eager:
        # On the site, which runs workers, it would have been published.
        note_run_at_once(task.name)
    if request.is_eager and current_scope() is not None:
        return
    token = "" if request.is_eager else request.get(HEADER)
    run = Run(token, task.run)
    setattr(request, _RUN, run)
    run.is_late = not run.wait_for_replica(getattr(task, "replica_wait", 0.0))


def on_postrun(*, task: Any, **kwargs: Any) -> None:
    """End the scope, however the run has ended."""
    run = task.request.__dict__.pop(_RUN, None)
    if run is not None:
        run.close()


def put_off(task: Any) -> None:
    """Have a task run later: until a transaction that it must see has ended; and once, if it says so, where
    no replica has what it must see.

    Raises:
        Retry: it runs later.
    """
    request, delay = task.request, getattr(task, "replica_delay", None)
    run = getattr(request, _RUN, None)
    if run is None:
        return
    early = request.get(_EARLY, 0)
    if run.is_early and early < _MOST_EARLY:
        _again(task, AGAIN, {_EARLY: early + 1}, "A transaction that the task must see is open.")
    if run.is_late and delay is not None and not request.get(_PUT_OFF):
        _again(task, delay, {_PUT_OFF: True}, "No replica has what the task must see.")


def _again(task: Any, delay: float, headers: dict[str, Any], reason: str) -> None:
    """Publish the task once more, with the headers that it came with. It counts as no retry."""
    request = task.request
    later = task.signature_from_request(
        request,
        request.args,
        request.kwargs,
        countdown=delay,
        headers={**(request.headers or {}), **headers, _AS_IS: True},
        retries=request.retries,
    )
    later.apply_async()
    raise Retry(exc=TooStale(reason, {}), when=delay, sig=later)


def _before_start(self: Any, task_id: Any, args: Any, kwargs: Any) -> None:
    put_off(self)


def connect() -> None:
    """Connect to Celery's signals.

    None of them can keep a task from running: what they raise is logged. ``Task.before_start`` can, and
    Celery looks whether somebody has replaced it.
    """
    signals.before_task_publish.connect(on_publish, dispatch_uid="django_replica_router")
    signals.task_prerun.connect(on_prerun, dispatch_uid="django_replica_router")
    signals.task_postrun.connect(on_postrun, dispatch_uid="django_replica_router")
    Task.before_start = _before_start
