"""Signals sent by the package."""

from __future__ import annotations

from django.dispatch import Signal

replica_lost = Signal()
"""A replica stopped being eligible. Arguments: ``sender`` (its alias), ``state`` (ReplicaState).

Sent from the monitor's thread, once until it is eligible again: that it is now left out for another
reason is only logged. Not sent for a replica that was never eligible."""

replica_restored = Signal()
"""A replica became eligible, at first or again. Arguments: ``sender`` (its alias).

Sent from the monitor's thread, once until it is lost."""

write_unrecorded = Signal()
"""A write could not be stored as a token. Arguments: ``sender`` (alias of the primary), ``error``.

Sent from the thread that ended the scope."""
