"""The scope: what one request, task or ``scope()`` block knows, whatever threads it runs in."""

from __future__ import annotations

import threading
from collections.abc import Container, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

from django_replica_router.forking import after_fork
from django_replica_router.policy import Decision
from django_replica_router.scopes.cluster import ClusterScope
from django_replica_router.scopes.written import WriteMark
from django_replica_router.values.carried import Carried
from django_replica_router.values.tokens import Record

# Enough for the page of a developer who looks at one request; a bound, since a report may run
# a million queries in one scope.
_MAX_DECISIONS = 1000


class Identity:
    """Whom a scope works for, as far as that is known at the moment. Keys of the token store.

    By itself somebody with whom nothing came, and of whom no more will be known.
    """

    __slots__ = ("clusters", "settled", "shortcuts")

    settled: bool
    """No later look can find more."""

    shortcuts: Shortcuts | None
    """Those of the scope: dropped where a user is found whose token is not in the floor."""

    clusters: Mapping[str, ClusterScope] | None
    """What the scope knows of each cluster."""

    def session(self) -> str | None:
        """Return the key of the session cookie."""
        return None

    def credential(self) -> str | None:
        """Return the key of the credential in the headers."""
        return None

    def carries_nothing(self) -> bool:
        """Tell whether there is neither cookie nor credential."""
        return True

    def carried(self, primary: str) -> Record | None:
        """Return what the reader's browser itself knows, by a signed cookie."""
        return None

    def users(self) -> tuple[str, ...]:
        """Return the keys of the users that are known so far, without any query."""
        raise NotImplementedError

    def has_news(self) -> bool:
        """Tell whether ``users`` may have more to say than when it was last asked. Cheap."""
        return False

    def owner(self) -> str:
        """Return the key of the user whose the session and the credential are, or nothing."""
        raise NotImplementedError

    def look_again(self) -> None:
        """Take into account that the user may have changed."""

    def load_user(self) -> None:
        """Find out by a query who the user is, where nobody has asked yet."""

    def has_session_data(self) -> bool:
        """Tell whether there is a session that is not empty."""
        return False


class Shortcut:
    """A decision that holds in one thread until the scope drops it.

    It is what makes a repeated decision cheap: whoever follows it checks what may have changed
    without the scope being told (the transaction, the model, who is signed in), and nothing else.

    Args:
        alias: where reads go.
        connection: the thread's connection to the primary, which may be in a transaction.
        idle: its atomic blocks while none of them keeps reads there: see ``idle_blocks``.
        models: the models for which it holds. Emptied where the settings change.
        identity: whom the scope works for.
    """

    __slots__ = ("alias", "connection", "identity", "idle", "models")

    def __init__(
        self,
        alias: str,
        connection: Any,
        idle: list[Any],
        models: Container[Any],
        identity: Identity,
    ) -> None:
        self.alias = alias
        self.connection = connection
        self.idle = idle
        self.models = models
        self.identity = identity


Shortcuts = dict[object, dict[str, Shortcut]]
"""By ``here.thread``: those of one thread, by the alias that Django would have read from."""

# A scope may outlive any number of threads.
_MOST_THREADS = 64


class _Here(threading.local):
    """What belongs to one thread alone."""

    def __init__(self) -> None:
        self.thread = object()
        """Stands for the thread, and for no other one ever. The next thread may be given its number when it has ended,
        and a shortcut leads past the questions whether a transaction is open in it, and whether it can connect."""


here = _Here()


class Scope:
    """One mutable object for all threads and tasks that work for one request.

    A plain value in a ``ContextVar`` is copied into the tasks of ``asyncio.gather`` and into
    ``sync_to_async`` and what they set is lost; what they change in a shared object is not.
    """

    __slots__ = (
        "arrived",
        "carried",
        "clusters",
        "decisions",
        "has_ended",
        "identity",
        "learned",
        "published",
        "seen_keys",
        "shortcuts",
        "source",
        "tracked",
        "unsafe",
    )

    published: tuple[float, tuple[object, ...], Any]
    """The token that was published last, when, and what was known then. Not there before."""

    gives_token = False
    """Its token is asked for when it has ended, whoever it works for."""

    def __init__(
        self,
        identity: Identity,
        *,
        unsafe: bool = False,
        debug: bool = False,
        source: Any = None,
    ) -> None:
        self.identity = identity
        self.unsafe = unsafe
        # The request, or the code that has opened the scope: what saves what it has read from a
        # replica is known by it the next time.
        self.source = source
        self.learned = False
        # Nobody will store what is written from now on by a thread or task that goes on, but that one.
        self.has_ended = False
        # What came with the request, and with any token; the keys whose writes must be seen, and those
        # that what is written here is remembered under.
        self.arrived: Carried | None = None
        self.carried: Carried | None = None
        self.seen_keys: tuple[str, ...] = ()
        self.tracked: tuple[str, ...] = ()
        self.clusters: dict[str, ClusterScope] = {}
        self.shortcuts: Shortcuts = {}
        identity.shortcuts, identity.clusters = self.shortcuts, self.clusters
        self.decisions: list[tuple[str, str]] | None = [] if debug else None

    def cluster(self, primary: str) -> ClusterScope:
        """Return what the scope knows of the cluster of that primary."""
        state = self.clusters.get(primary)
        return state or self.clusters.setdefault(primary, ClusterScope(self.shortcuts))

    def follow(self, outer: Scope) -> None:
        """Read inside what the scope outside has written: no token tells of it yet."""
        for primary, state in list(outer.clusters.items()):
            if state.wrote:
                self.cluster(primary).note_written()
            if state.pending is not None and state.pending.uncertain:
                # No position covers it: who reads in here stays on the primary.
                self.cluster(primary).add_write(WriteMark(uncertain=True))

    def see(self, carried: Carried) -> None:
        """Read from now on what a token binds to, too."""
        if carried:
            self.carried = carried if self.carried is None else self.carried | carried
            self.read_anew()

    def see_key(self, key: str) -> None:
        """Read from now on what was written under a key, too."""
        if key not in self.seen_keys:
            self.seen_keys = (*self.seen_keys, key)
            self.read_anew()

    def read_anew(self) -> None:
        """Have the next read find out again what it must see. Where it was sent so far must pass again."""
        for state in list(self.clusters.values()):
            state.reader.floor = None
        self.shortcuts.clear()

    def shortcuts_here(self) -> dict[str, Shortcut]:
        """Return what is to hold the shortcuts of this thread.

        Where somebody ends the scope's shortcuts, it does not belong to them any more: so what is
        decided meanwhile makes none.
        """
        thread = here.thread
        mine = self.shortcuts.get(thread)
        if mine is None:
            if len(self.shortcuts) >= _MOST_THREADS:
                self.shortcuts.clear()
            mine = self.shortcuts[thread] = {}
        return mine

    def inherit_writes(self, inner: Scope) -> None:
        """Take over what a scope inside this one has written, before that one forgets it."""
        for primary, state in list(inner.clusters.items()):
            pending = state.pending
            if pending is None and state.wrote:
                pending = WriteMark()
            if pending is not None and not pending.is_empty:
                self.cluster(primary).add_write(pending)

    def inherit_seen(self, inner: Scope) -> None:
        """Take over what a scope inside this one has been shown by servers that this one was not sent to."""
        for primary, state in list(inner.clusters.items()):
            mine = self.cluster(primary)
            for alias in {state.seen_elsewhere_on, *state.route.lives} - {None, *mine.route.lives}:
                mine.note_seen_elsewhere(str(alias), primary)

    def note_decision(self, decision: Decision) -> None:
        """Keep a decision for the developer, where the setting DEBUG asks for it."""
        if self.decisions is not None and len(self.decisions) < _MAX_DECISIONS:
            self.decisions.append((decision.alias, decision.reason.name))


class Override(NamedTuple):
    """What ``use_primary`` or ``use_replica`` asks for.

    Args:
        primary: True for the primary, False for a replica.
        max_lag: seconds a replica's data may be old, or None for the setting's.
        on_stale: what to do where no replica may serve: "primary", "wait" or "raise".
        timeout: seconds that may be waited then.
    """

    primary: bool
    max_lag: float | None = None
    on_stale: str = "primary"
    timeout: float = 0.0


NO_OVERRIDE = Override(primary=False)


class Frame:
    """The present scope and override. Never changed: nested blocks put back the one before.

    Args:
        scope: the scope, or None outside of any.
        override: what a block around the code asks for, or None.
        outer: the frame that a block puts back.
        owns_scope: the block has opened the scope, and ends it.
        ignores: what is written binds nobody.
        query: the name of the ``query`` that the code runs in, and that may not write; empty outside of any.
    """

    __slots__ = ("ignores", "outer", "override", "owns_scope", "query", "scope", "shortcuts")

    def __init__(
        self,
        scope: Scope | None = None,
        override: Override | None = None,
        outer: Frame | None = None,
        owns_scope: bool = False,
        ignores: bool = False,
        query: str = "",
    ) -> None:
        self.scope = scope
        self.override = override
        self.outer = outer
        self.owns_scope = owns_scope
        self.ignores = ignores
        self.query = query
        # Those of the scope, where no override stands in their way.
        self.shortcuts = scope.shortcuts if scope is not None and override is None else None


OUTSIDE = Frame()
"""That of code which no scope is open around."""

current_frame: ContextVar[Frame] = ContextVar("replica_router_frame", default=OUTSIDE)

get_frame = current_frame.get
"""Return the present frame. Each statement asks for it: a method of an imported object is looked up each time."""


def current_scope() -> Scope | None:
    """Return the scope that the calling code runs in, or None."""
    return get_frame().scope


@after_fork
def _end_scope() -> None:
    # The parent, which stores what is written in it there, is told nothing of what is written here.
    scope = current_scope()
    if scope is not None:
        scope.has_ended = True
