"""The scope: what one request, task or ``scope()`` block knows, whatever threads it runs in."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Container, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any, NamedTuple, Protocol

from django_replica_router.policy import Decision
from django_replica_router.tokens import Floor, Position, Record

# Enough for the page of a developer who looks at one request; a bound, since a report may run
# a million queries in one scope.
_MAX_DECISIONS = 1000


class Identity(Protocol):
    """Whom a scope works for, as far as that is known at the moment. Keys of the token store."""

    settled: bool
    """No later look can find more."""

    shortcuts: Shortcuts | None
    """Those of the scope: dropped where a user is found whose token is not in the floor."""

    clusters: Mapping[str, ClusterScope] | None
    """What the scope knows of each cluster."""

    def session(self) -> str | None:
        """Return the key of the session cookie."""

    def credential(self) -> str | None:
        """Return the key of the credential in the headers."""

    def carried(self, primary: str) -> Record | None:
        """Return what the reader's browser itself knows, by a signed cookie."""

    def users(self) -> tuple[str, ...]:
        """Return the keys of the users that are known so far, without any query."""

    def has_news(self) -> bool:
        """Tell whether ``users`` may have more to say than when it was last asked. Cheap."""

    def owner(self) -> str:
        """Return the key of the user whose the session and the credential are, or nothing."""

    def look_again(self) -> None:
        """Take into account that the user may have changed."""

    def load_user(self) -> None:
        """Find out by a query who the user is, where nobody has asked yet."""

    def has_session_data(self) -> bool:
        """Tell whether there is a session that is not empty."""


class Shortcut:
    """A decision that holds in one thread until the scope drops it.

    It is what makes a repeated decision cheap: whoever follows it checks what may have changed
    without the scope being told (the transaction, the model, who is signed in), and nothing else.

    Args:
        alias: where reads go.
        connection: the thread's connection to the primary, which may be in a transaction.
        models: the models for which it holds. Emptied where the settings change.
        identity: whom the scope works for.
    """

    __slots__ = ("alias", "connection", "identity", "models")

    def __init__(
        self, alias: str, connection: Any, models: Container[Any], identity: Identity
    ) -> None:
        self.alias = alias
        self.connection = connection
        self.models = models
        self.identity = identity


class ThreadShortcuts(dict[str, Shortcut]):
    """Those of one thread, by the alias that Django would have read from."""

    __slots__ = ("__weakref__",)


Shortcuts = dict[int, ThreadShortcuts]
"""By the number of the thread, which another one may be given when it has ended."""


class _ThreadEnd:
    """Lies among what belongs to one thread alone, and takes its shortcuts with it.

    A shortcut leads past the questions whether a transaction is open in the thread, and whether it
    can connect: whoever gets its number next has to ask them himself.
    """

    _MANY = 64

    def __init__(self) -> None:
        self._kept: list[weakref.ref[ThreadShortcuts]] = []

    def note(self, shortcuts: ThreadShortcuts) -> None:
        """Have these dropped when the thread ends, where their scope has not ended before."""
        if len(self._kept) >= self._MANY:
            self._kept = [kept for kept in self._kept if kept() is not None]
        self._kept.append(weakref.ref(shortcuts))

    def __del__(self) -> None:
        for kept in self._kept:
            shortcuts = kept()
            if shortcuts is not None:
                shortcuts.clear()


class _Here(threading.local):
    """What belongs to one thread alone."""

    def __init__(self) -> None:
        self.end = _ThreadEnd()


_here = _Here()

# Threads of one scope may write at the same time. Held for moments only.
_lock = threading.Lock()


def _is_among(raw: Any, connections: list[Any]) -> bool:
    return any(raw is known for known in connections)


@dataclass(slots=True, eq=False)
class WriteMark:
    """What a scope has written to one primary and not yet recorded.

    Args:
        transactions: the driver's connections on which a write ran inside a transaction. Whether
            that was committed is known only while the connection lives, or where the package's
            database backend tells.
        noted: of these the ones on which something may have been written past the transaction: by the
            driver's own connection, or by a function such as ``dblink_exec``. It is not rolled back.
        changed: of these the ones on which a statement has changed rows, of a foreign table perhaps.
        uncertain: a write failed in a way that leaves open whether it was committed.
        committed: there was a write outside a transaction, or in one that was committed.
    """

    transactions: list[Any] = field(default_factory=list)
    uncertain: bool = False
    committed: bool = False
    noted: list[Any] = field(default_factory=list)
    changed: list[Any] = field(default_factory=list)

    def merge(self, other: WriteMark) -> None:
        """Add the writes of another mark."""
        self.uncertain |= other.uncertain
        self.committed |= other.committed
        for mine, others in (
            (self.transactions, other.transactions),
            (self.noted, other.noted),
            (self.changed, other.changed),
        ):
            mine.extend(raw for raw in others if not _is_among(raw, mine))

    def remove(self, raw: Any) -> tuple[bool, bool]:
        """Take out the transaction of a connection.

        Returns:
            whether it was there, and whether its number does not tell if something was written.
        """
        found = _is_among(raw, self.transactions), _is_among(raw, self.noted)
        self.transactions = [known for known in self.transactions if known is not raw]
        self.noted = [known for known in self.noted if known is not raw]
        self.changed = [known for known in self.changed if known is not raw]
        return found

    @property
    def is_empty(self) -> bool:
        """Whether all writes have turned out to be none."""
        return not (self.transactions or self.uncertain or self.committed)


class Moment(NamedTuple):
    """A place in the order of what a scope does on a primary: two are the same, or differ.

    Args:
        statement: stands for the latest statement that was answered there.
        write: stands for the latest write that came with no position.
    """

    statement: object
    write: object


class Checkpoint(NamedTuple):
    """A position that came with the answer to a COMMIT.

    Args:
        position: it lies at or behind everything that was written and seen before.
        moment: before when: the message was sent after it.
    """

    position: Position
    moment: Moment


@dataclass(slots=True, eq=False)
class ClusterScope:
    """What a scope knows of one cluster.

    Args:
        wrote: the scope has written to it; never taken back.
        failed: a replica failed under the scope; the rest is read from the primary.
        pending: the writes that no token covers yet.
        last_statement: stands for the latest statement that the primary has answered.
        last_write: stands for the latest write whose position is not known.
        checkpoint: the latest position that came with a COMMIT.
        seen_on: the server that the scope was sent to although its reader usually meets another;
            what the reader has seen there must not be missing the next time.
        recorded: what a write of the scope was recorded as, for the browser to carry.
        is_unstored: the token store has refused that.
        floor: what the reader must see; None until the store was asked.
        records: what the store knows of the reader, by key.
        seen_users: the users whose records are in the floor.
        store_failed: the store could not be read.
        met_at: where the primary was when the store knew nothing of the reader, and may have dropped
            what it knew.
        choices: the decision that holds for the rest of the scope, by allowed lag.
        lives: the replicas that were chosen, each with the server, and the life of it, that it was
            chosen for; None where nobody knows.
        stand_in: the decision for a replica in place of a primary that is down.
        entered: replicas that the scope is counted for as in flight.
        wait_left: seconds of the wait budget that are left.
        shortcuts: those of the whole scope, which end with what was decided.
    """

    wrote: bool = False
    failed: bool = False
    pending: WriteMark | None = None
    last_statement: object = None
    last_write: object = None
    checkpoint: Checkpoint | None = None
    seen_on: str | None = None
    recorded: Record | None = None
    is_unstored: bool = False
    floor: Floor | None = None
    records: dict[str, Record | None] = field(default_factory=dict)
    seen_users: tuple[str, ...] = ()
    store_failed: bool = False
    met_at: Position | None = None
    choices: dict[float, Decision] = field(default_factory=dict)
    lives: dict[str, tuple[Any, ...] | None] = field(default_factory=dict)
    stand_in: Decision | None = None
    entered: list[str] = field(default_factory=list)
    wait_left: float | None = None
    shortcuts: Shortcuts = field(default_factory=dict)

    def note_written(self) -> None:
        """Remember that there was a write: whatever was decided before does not hold any more."""
        self.wrote = True
        self.decide_anew()

    def decide_anew(self) -> None:
        """Forget where reads go."""
        self.choices = {}  # another one: who is deciding at this moment puts his into the old
        self.shortcuts.clear()

    def add_write(self, mark: WriteMark) -> None:
        """Remember a write that no token covers yet."""
        self.note_written()
        with _lock:
            if self.pending is None:
                self.pending = WriteMark()
            self.pending.merge(mark)
            if not mark.transactions or mark.committed:
                self.pending.committed = True
                self.last_write = object()

    def note_statement(self) -> None:
        """Remember that a statement was answered by the primary just now."""
        self.last_statement = object()

    @property
    def moment(self) -> Moment:
        """What the scope has done on the primary up to now."""
        return Moment(self.last_statement, self.last_write)

    def settle(self, raw: Any, checkpoint: Checkpoint | None, *, wrote: bool | None) -> bool:
        """Take into account how the transaction of a connection has ended.

        Args:
            raw: the driver's connection.
            checkpoint: the position that came with the answer.
            wrote: whether it has written something itself and was committed. None when it was
                committed and only the statements tell whether they might have written.

        Returns:
            whether a write was noticed in it that turns out to be none.
        """
        with _lock:
            was_noticed, was_noted = (
                (False, False) if self.pending is None else self.pending.remove(raw)
            )
            if checkpoint is not None and (
                self.checkpoint is None or checkpoint.position >= self.checkpoint.position
            ):
                self.checkpoint = checkpoint
            if wrote is None:
                wrote = was_noticed
            # Also where it was rolled back: what was written past it was not.
            wrote |= was_noted
            if wrote:
                self.pending = self.pending or WriteMark()
                self.pending.committed = True
                if checkpoint is None:
                    self.last_write = object()
        if wrote:
            self.note_written()
        return was_noticed and not wrote

    def has_changed(self, raw: Any) -> bool:
        """Tell whether a statement has changed rows in the open transaction of a connection."""
        return self.pending is not None and _is_among(raw, self.pending.changed)

    def was_committed_by_hand(self, raw: Any) -> None:
        """Keep the writes of a transaction that the code itself has perhaps committed."""
        with _lock:
            if self.pending is not None and _is_among(raw, self.pending.transactions):
                self.pending.committed = True
                self.last_write = object()

    def take_pending(self) -> WriteMark | None:
        """Return the writes that no token covers yet, and leave them to the caller."""
        with _lock:
            pending, self.pending = self.pending, None
        return None if pending is None or pending.is_empty else pending

    @property
    def has_pending(self) -> bool:
        """Whether there are writes that no token covers yet."""
        return self.pending is not None and not self.pending.is_empty

    def leave_replica(self) -> None:
        """Read what is left from the primary: a replica has failed under the scope."""
        self.failed = True
        self.shortcuts.clear()


class Scope:
    """One mutable object for all threads and tasks that work for one request.

    A plain value in a ``ContextVar`` is copied into the tasks of ``asyncio.gather`` and into
    ``sync_to_async`` and what they set is lost; what they change in a shared object is not.
    """

    __slots__ = (
        "clusters",
        "decisions",
        "identity",
        "learned",
        "shortcuts",
        "source",
        "unsafe",
    )

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
        self.clusters: dict[str, ClusterScope] = {}
        self.shortcuts: Shortcuts = {}
        identity.shortcuts, identity.clusters = self.shortcuts, self.clusters
        self.decisions: list[tuple[str, str]] | None = [] if debug else None

    def cluster(self, primary: str) -> ClusterScope:
        """Return what the scope knows of the cluster of that primary."""
        try:
            return self.clusters[primary]
        except KeyError:
            return self.clusters.setdefault(primary, ClusterScope(shortcuts=self.shortcuts))

    def follow(self, outer: Scope) -> None:
        """Read inside what the scope outside has written: no token tells of it yet."""
        for primary, state in list(outer.clusters.items()):
            if state.wrote:
                self.cluster(primary).note_written()
            if state.pending is not None and state.pending.uncertain:
                # No position covers it: who reads in here stays on the primary.
                self.cluster(primary).add_write(WriteMark(uncertain=True))

    def shortcuts_here(self) -> ThreadShortcuts:
        """Return what is to hold the shortcuts of this thread.

        Where somebody ends the scope's shortcuts, it does not belong to them any more: so what is
        decided meanwhile makes none.
        """
        self.identity.users()  # else the decision would find them, and end what it makes
        mine = self.shortcuts.get(get_ident())
        if mine is None:
            mine = self.shortcuts[get_ident()] = ThreadShortcuts()
            _here.end.note(mine)
        return mine

    def inherit_writes(self, inner: Scope) -> None:
        """Take over what a scope inside this one has written, before that one forgets it."""
        for primary, state in list(inner.clusters.items()):
            pending = state.pending
            if pending is None and state.wrote:
                pending = WriteMark()
            if pending is not None and not pending.is_empty:
                self.cluster(primary).add_write(pending)

    def note_decision(self, decision: Decision) -> None:
        """Keep a decision for the developer, where the setting DEBUG asks for it."""
        if self.decisions is not None and len(self.decisions) < _MAX_DECISIONS:
            self.decisions.append((decision.alias, decision.reason.name))


class Override(NamedTuple):
    """What ``use_primary`` or ``use_replica`` asks for.

    Args:
        primary: True for the primary, False for a replica.
        max_lag: seconds a replica's data may be old, or None for the setting's.
    """

    primary: bool
    max_lag: float | None = None


class Frame:
    """The present scope and override. Never changed: nested blocks put back the one before.

    Args:
        scope: the scope, or None outside of any.
        override: what a block around the code asks for, or None.
        outer: the frame that a block puts back.
        owns_scope: the block has opened the scope, and ends it.
    """

    __slots__ = ("outer", "override", "owns_scope", "scope", "shortcuts")

    def __init__(
        self,
        scope: Scope | None = None,
        override: Override | None = None,
        outer: Frame | None = None,
        owns_scope: bool = False,
    ) -> None:
        self.scope = scope
        self.override = override
        self.outer = outer
        self.owns_scope = owns_scope
        # Those of the scope, where no override stands in their way.
        self.shortcuts = scope.shortcuts if scope is not None and override is None else None


_OUTSIDE = Frame()

current_frame: ContextVar[Frame] = ContextVar("replica_router_frame", default=_OUTSIDE)


def _after_fork() -> None:
    # Whoever holds the lock does not exist in the child.
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def current_scope() -> Scope | None:
    """Return the scope that the calling code runs in, or None."""
    return current_frame.get().scope
