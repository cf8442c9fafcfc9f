"""Dramatiq: ``broker.add_middleware(ReplicaRouter())``, after all others, where it publishes and where it works."""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import Any

from django_replica_router.contrib.background import (
    Run,
    remember_result,
    see_result,
    token_to_publish,
)
from django_replica_router.contrib.extras import needs
from django_replica_router.recording.carrying import token_of
from django_replica_router.scopes.signing import Token

with needs("dramatiq"):
    from dramatiq import Message, Middleware
    from dramatiq.results.errors import ResultFailure

_TOKEN = "replica_router"  # noqa: S105 - the name of the option

_run: ContextVar[Run | None] = ContextVar("replica_router_run", default=None)


class ReplicaRouter(Middleware):  # type: ignore[misc, unused-ignore]
    """Has messages carry a token, and each run a scope. The last of all, so that it comes before results are stored."""

    def __init__(self) -> None:
        _show_results()

    @property
    def actor_options(self) -> set[str]:
        """``replica_wait``: seconds that the actor may wait for a replica before it begins."""
        return {"replica_wait"}

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        """Put the token into the message. That of another try has one already."""
        token = token_to_publish(message.actor_name)
        message.options[_TOKEN] = str(Token.read(message.options.get(_TOKEN)) | token)

    def before_worker_boot(self, broker: Any, worker: Any) -> None:
        """Have scopes end after all others have seen the end of a message: they may publish the next one."""
        if not any(isinstance(known, _End) for known in broker.middleware):
            broker.middleware.insert(0, _End())

    def before_process_message(self, broker: Any, message: Any) -> None:
        """Open a scope for the run."""
        _end()  # of whose end nobody was told
        actor = broker.get_actor(message.actor_name)
        run = Run(message.options.get(_TOKEN), actor.fn)
        _run.set(run)
        run.wait_for_replica(actor.options.get("replica_wait", 0.0))

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: Any = None
    ) -> None:
        """Let whoever learns of the result see what was written; and the next try, if there is one."""
        run = _run.get()
        if run is not None:
            remember_result([_name(message)])
            message.options[_TOKEN] = str(token_of(run.scope))

    def after_skip_message(self, broker: Any, message: Any) -> None:
        """Do the same where the message was skipped."""
        self.after_process_message(broker, message)


class _End(Middleware):  # type: ignore[misc, unused-ignore]
    """Ends the scope of a run."""

    def after_process_message(self, broker: Any, message: Any, **kwargs: Any) -> None:
        _end()

    def after_skip_message(self, broker: Any, message: Any) -> None:
        _end()


def _end() -> None:
    run = _run.get()
    if run is not None:
        _run.set(None)
        run.close()


def _name(message: Any) -> str:
    return f"dramatiq:{message.message_id}"


def _show_results() -> None:
    """Have whoever gets the result of a message see what was written. No middleware is told of that."""
    get_result: Any = Message.get_result
    if hasattr(get_result, "__wrapped__"):
        return

    @functools.wraps(get_result)
    def get(message: Any, **kwargs: Any) -> Any:
        try:
            result = get_result(message, **kwargs)
        except ResultFailure:
            see_result(_name(message))
            raise
        see_result(_name(message))
        return result

    Message.get_result = get  # type: ignore[method-assign, assignment, unused-ignore]
