"""What management commands may do to a replica that they are given by name."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from functools import wraps
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from django_replica_router.conf import get_config
from django_replica_router.connections.rerouting import is_refused_write
from django_replica_router.errors import ConfigurationError
from django_replica_router.replicas.mirrors import is_mirror

WRITERS: Mapping[str, frozenset[str]] = {
    "changepassword": frozenset(),
    "createcachetable": frozenset(["dry_run"]),
    "createsuperuser": frozenset(),
    "flush": frozenset(),
    "loaddata": frozenset(),
    "migrate": frozenset(["plan", "check_unapplied"]),
    "remove_stale_contenttypes": frozenset(),
}
"""The commands of Django that write to their ``--database``, and the options with which they only read."""

_GUARDED = "_replica_router_guarded"

named_replica: ContextVar[str | None] = ContextVar("replica_router_named", default=None)
"""The replica that the present command was given. What it reads by way of an object from there it reads
there, too: a dump with rows of one server and relations of another would fit no moment."""

get_named_replica = named_replica.get
"""Return that one, or None."""


def refuse_replica(alias: str, command: str) -> None:
    """Raise an error if the alias is a replica, which a command is about to write to.

    Raises:
        CommandError: it is one. In one sentence, as Django prints it.
    """
    primary = _primary_behind(alias)
    if primary is not None:
        message = (
            f"{alias!r} is a replica of {primary!r}, which {command!r} cannot write to: run it with "
            f"--database={primary}, and the replica receives what is written there."
        )
        raise CommandError(message)


def _primary_behind(alias: object) -> str | None:
    """Return the primary of a replica, or None for any other alias, and for a mirror in a test run."""
    topology = get_config().topology
    if not isinstance(alias, str) or not topology.is_replica(alias):
        return None
    primary = topology.primary_of[alias]
    return None if is_mirror(alias, primary) else primary


def _is_replica(alias: object) -> bool:
    """Return whether it is one, and False where the setting cannot be read: the command's own checks tell that."""
    try:
        return _primary_behind(alias) is not None
    except ConfigurationError:
        return False


def name_of(command: BaseCommand) -> str:
    """Return the name that a command is called by: that of its module, whose app it may be."""
    return type(command).__module__.rpartition(".")[2]


def _writes(name: str, options: Mapping[str, Any]) -> bool:
    if name not in WRITERS:
        return False
    return bool(options.get("prune")) or not any(options.get(option) for option in WRITERS[name])


def guard_commands() -> None:
    """Have each command that is given a replica refused, or its error told, in one sentence.

    Django has no hook for that, and commands of this app would not do: another app that overrides
    one takes the place of ours, or ours of that, as the apps happen to be ordered. So ``execute``
    is wrapped, which every command runs through, however it is called.
    """
    execute = BaseCommand.execute
    if hasattr(execute, _GUARDED):
        return

    @wraps(execute)
    def execute_guarded(self: BaseCommand, *args: Any, **options: Any) -> Any:
        alias: Any = options.get("database")
        name = name_of(self)
        if not _is_replica(alias):
            return execute(self, *args, **options)
        if _writes(name, options):
            refuse_replica(alias, name)
        token = named_replica.set(alias)
        try:
            return execute(self, *args, **options)
        except Exception as error:
            if not is_refused_write(error):
                raise
            _tell_refusal(alias, name, error)
        finally:
            named_replica.reset(token)

    setattr(execute_guarded, _GUARDED, True)
    BaseCommand.execute = execute_guarded  # type: ignore[method-assign]


def _tell_refusal(alias: Any, name: str, error: Exception) -> None:
    """Tell in a sentence what the standby has refused to a command that is not known to write."""
    try:
        refuse_replica(alias, name)
    except CommandError as refusal:
        raise refusal from error
