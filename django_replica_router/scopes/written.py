"""What a scope has written to one primary, and the positions that have come with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from django_replica_router.forking import make_lock
from django_replica_router.values.tokens import Position

# Threads of one scope may write at the same time. Held for moments only.
_lock = make_lock()


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

    def part_from(self, is_others: Callable[[Any], bool]) -> WriteMark | None:
        """Take out the transactions that are others'; return their mark, or None where there are none."""
        others = [raw for raw in self.transactions if is_others(raw)]
        if not others:
            return None
        mark = WriteMark(
            transactions=others,
            noted=[raw for raw in self.noted if _is_among(raw, others)],
            changed=[raw for raw in self.changed if _is_among(raw, others)],
        )
        for raw in others:
            self.remove(raw)
        return mark

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
    """A position that came with the answer to a COMMIT, or to a change outside a transaction.

    Args:
        position: it lies at or behind everything that was written and seen before.
        moment: before when: the message was sent after it.
    """

    position: Position
    moment: Moment


class Written:
    """What a scope has written to one primary, and what of it is not recorded yet."""

    __slots__ = (
        "carried",
        "checkpoint",
        "last_statement",
        "last_write",
        "pending",
        "saving",
        "wrote",
    )

    def __init__(self) -> None:
        self.wrote = False
        """The scope has written; never taken back."""
        self.pending: WriteMark | None = None
        """The writes that no token covers yet."""
        self.last_statement: object = None
        """Stands for the latest statement that the primary has answered."""
        self.last_write: object = None
        """Stands for the latest write whose position is not known."""
        self.checkpoint: Checkpoint | None = None
        """The latest position that came with a COMMIT, or with a change outside a transaction."""
        self.carried = 0
        """How many changes have been asked for theirs."""
        self.saving: dict[int, Checkpoint | None] = {}
        """Objects that are being saved, by ``id()``, with the checkpoint of before."""

    def decide_anew(self) -> None:
        """Forget where reads go."""
        raise NotImplementedError

    def note_written(self) -> None:
        """Remember that there was a write: whatever was decided before does not hold any more."""
        self.wrote = True
        self.decide_anew()

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

    def end_transaction(
        self, raw: Any, checkpoint: Checkpoint | None, *, wrote: bool | None
    ) -> bool:
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
            if wrote is None:
                wrote = was_noticed
            # Also where it was rolled back: what was written past it was not.
            wrote |= was_noted
            self._take(checkpoint, wrote=wrote)
        if wrote:
            self.note_written()
        return was_noticed and not wrote

    def has_noticed(self, raw: Any) -> bool:
        """Tell whether a write was noticed in the open transaction of a connection."""
        return self.pending is not None and _is_among(raw, self.pending.transactions)

    def note_change(self, checkpoint: Checkpoint, *, wrote: bool) -> None:
        """Take into account a change outside a transaction that has come with its position.

        Args:
            checkpoint: of the position.
            wrote: whether it has written something, as one that matches no row has not.
        """
        with _lock:
            self._take(checkpoint, wrote=wrote)
        if wrote:
            self.note_written()

    def _take(self, checkpoint: Checkpoint | None, *, wrote: bool) -> None:
        if checkpoint is not None and (
            self.checkpoint is None or checkpoint.position >= self.checkpoint.position
        ):
            self.checkpoint = checkpoint
        if wrote:
            self.pending = self.pending or WriteMark()
            self.pending.committed = True
            if checkpoint is None:
                self.last_write = object()

    def begin_save(self, instance: object) -> None:
        """Remember that an object is about to be saved."""
        self.saving[id(instance)] = self.checkpoint

    def has_saved(self, instance: object) -> bool:
        """Tell whether a position has come since the object is being saved, and nothing was done after it."""
        before = self.saving.pop(id(instance), self.checkpoint)
        last = self.checkpoint
        return last is not None and last is not before and last.moment == self.moment

    def has_changed(self, raw: Any) -> bool:
        """Tell whether a statement has changed rows in the open transaction of a connection."""
        return self.pending is not None and _is_among(raw, self.pending.changed)

    def was_committed_by_hand(self, raw: Any) -> None:
        """Keep the writes of a transaction that the code itself has perhaps committed."""
        with _lock:
            if self.pending is not None and _is_among(raw, self.pending.transactions):
                self.pending.committed = True
                self.last_write = object()

    def take_pending(self, is_others: Callable[[Any], bool]) -> WriteMark | None:
        """Return the writes that no token covers yet, and leave them to the caller.

        Args:
            is_others: tells of the driver's connection of a transaction whether another thread has that open
                yet, which will take what it has written at its end.
        """
        if self.pending is None and not self.carried:
            return None
        with _lock:
            pending, self.carried = self.pending, 0
            self.pending = None if pending is None else pending.part_from(is_others)
        return None if pending is None or pending.is_empty else pending

    @property
    def has_pending(self) -> bool:
        """Whether there are writes that no token covers yet."""
        return self.pending is not None and not self.pending.is_empty
