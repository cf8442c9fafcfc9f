"""What a read of a model would do now, and why, step by step."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.contrib.auth import get_user_model
from django.core.exceptions import ObjectDoesNotExist
from django.db import router
from django.test import RequestFactory
from django.urls import resolve

from django_replica_router.conf import Config, get_config
from django_replica_router.policy import Reason, ReplicaState
from django_replica_router.recording.learning import is_learned
from django_replica_router.replicas.registry import get_monitor
from django_replica_router.routing.deciding import release_scope
from django_replica_router.scopes.identity import RequestIdentity
from django_replica_router.scopes.scope import Frame, Override, Scope, current_frame
from django_replica_router.scopes.views import override_for
from django_replica_router.status.servers import look
from django_replica_router.values.lsn import format_lsn
from django_replica_router.values.tokens import Floor


class Explanation(NamedTuple):
    """What a read would do.

    Args:
        alias: where it would go.
        reason: name of the reason, as counted and logged.
        sentence: what that means.
        steps: the rule, as far as it was followed: a sentence for each of its questions.
    """

    alias: str
    reason: str
    sentence: str
    steps: tuple[str, ...]


def explain(
    model: Any, primary: str, *, user: Any, path: str | None, method: str, timeout: float
) -> Explanation:
    """Return what a read would do now, in a new request, that has not written.

    Args:
        model: that is read.
        primary: alias of the primary of its cluster.
        user: whose request it is; nobody's where it is None.
        path: of the request, or None.
        method: of the request.
        timeout: seconds for getting to know the servers.

    Raises:
        Resolver404: no view has that path.
    """
    look(primary, timeout)
    config = get_config()
    request: Any = RequestFactory().generic(method, path or "/")
    if user is not None:
        request.user = user
    override = None
    if path is not None:
        request.resolver_match = resolve(request.path_info)
        override = override_for(request.resolver_match, config)
    unsafe = method not in config.SAFE_METHODS
    scope = Scope(RequestIdentity(request), unsafe=unsafe, debug=True, source=request)
    token = current_frame.set(Frame(scope, override))
    try:
        alias = router.db_for_read(model)
        reason = next((why for to, why in reversed(scope.decisions or []) if to == alias), "")
        steps = [
            *_steps_of_request(model, method, request, override, scope, config),
            *_steps_of_reader(primary, scope, config, reason),
        ]
    finally:
        release_scope(scope)
        current_frame.reset(token)
    sentence = Reason[reason].value if reason else "no router of this package has decided"
    return Explanation(str(alias), reason, sentence, tuple(steps))


def find_user(pk: str) -> Any:
    """Return the user with that primary key, as the primary has it, or None.

    Args:
        pk: as text.
    """
    kind = get_user_model()
    try:
        return kind._default_manager.db_manager(router.db_for_write(kind)).get(pk=pk)
    except (ObjectDoesNotExist, ValueError):
        return None


def _steps_of_request(
    model: Any, method: str, request: Any, override: Override | None, scope: Scope, config: Config
) -> list[str]:
    """Return the questions that need neither the token store nor a server."""
    label = model._meta.label
    steps = [f"ENABLED is {'on' if config.ENABLED else 'off: all goes to the primary'}."]
    if config.shadows:
        share = "nobody" if config.SHADOW else f"{config.ROLLOUT:.0%} of the users"
        steps.append(f"Of all readers {share} may be sent to replicas so far (SHADOW, ROLLOUT).")
    if request.resolver_match is not None:
        name = request.resolver_match.view_name or request.resolver_match._func_path
        where = "neither PRIMARY_VIEWS nor REPLICA_VIEWS names"
        if override is not None:
            where = f"{'PRIMARY_VIEWS' if override.primary else 'REPLICA_VIEWS'} names"
        steps.append(f"{where[0].upper()}{where[1:]} the view {name!r}.")
    is_only = config.is_primary_only(model)
    steps.append(
        f"{label} is read from {'the primary only' if is_only else 'replicas, too'} (PRIMARY_ONLY)."
    )
    may = "may write: its reads go to the primary" if scope.unsafe else "is not to write"
    steps.append(f"A {method} request {may}.")
    if is_learned(scope, config):
        steps.append("The view has once saved what it had read from a replica.")
    return steps


def _steps_of_reader(primary: str, scope: Scope, config: Config, reason: str) -> list[str]:
    """Return what the reader must see, and which replicas have it; nothing where that was not asked."""
    state = scope.clusters.get(primary)
    if state is not None and state.reader.store_failed:
        return ["The token store does not answer."]
    if state is None or state.reader.floor is None:
        return ["The token store need not be asked for that."]
    floor = state.reader.floor
    monitor = get_monitor(primary)
    if reason == Reason.EMPTY_STORE.name:
        return [
            "The token store was empty, as it is at first. It has begun to remember now: ask again, and the next "
            "reader goes by that."
        ]
    lines = [_describe_floor(floor)]
    for replica in monitor.health.replicas():
        lsn = format_lsn(replica.watermark) if replica.watermark >= 0 else "an unknown position"
        if replica.state is not ReplicaState.STREAMING:
            told = f"out of service: {replica.state.value}"
        elif replica.watermark < floor.position.lsn:
            told = f"at {lsn}, which lacks {floor.position.lsn - replica.watermark} bytes of that"
        elif replica.age > config.MAX_LAG:
            told = f"at {lsn}, and more than MAX_LAG ({config.MAX_LAG:g} s) behind"
        else:
            told = f"at {lsn}, at most {replica.age:.1f} s behind: it may serve"
        lines.append(f"{replica.alias!r} is {told}.")
    return lines


def _describe_floor(floor: Floor) -> str:
    if floor.pinned:
        return "A write of this reader could not be located: the primary serves for a while."
    if floor.position.lsn <= 0:
        return "The token store knows of nothing that this reader must see."
    return f"The reader must see what was there at {format_lsn(floor.position.lsn)}."
