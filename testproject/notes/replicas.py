"""How far the replicas are behind, and a control that makes them lag."""

from __future__ import annotations

from dataclasses import dataclass

from django.conf import settings
from django.db import connections
from django.db.utils import DatabaseError

INSERTED = "SELECT pg_current_wal_insert_lsn()"
REPLAYED = """
SELECT pg_wal_lsn_diff(%s, pg_last_wal_replay_lsn())::bigint,
       current_setting('recovery_min_apply_delay')
"""


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """One replica as the footer shows it."""

    alias: str
    bytes_behind: int | None = None
    delay: str = "unknown"


def replica_states() -> list[ReplicaState]:
    """Ask the primary how far it is and each replica how far it has come."""
    with connections["default"].cursor() as cursor:
        cursor.execute(INSERTED)
        inserted = cursor.fetchone()[0]
    return [_state(alias, inserted) for alias in _aliases()]


def set_lag(ms: int) -> None:
    """Have every replica apply commits this much later than the primary made them."""
    for alias in _aliases():
        with connections[alias].cursor() as cursor:
            # ALTER SYSTEM takes no parameters; the value is an integer.
            cursor.execute(f"ALTER SYSTEM SET recovery_min_apply_delay = {ms:d}")
            cursor.execute("SELECT pg_reload_conf()")


def _aliases() -> list[str]:
    return [alias for alias in settings.DATABASES if alias != "default"]


def _state(alias: str, inserted: str) -> ReplicaState:
    try:
        with connections[alias].cursor() as cursor:
            cursor.execute(REPLAYED, [inserted])
            bytes_behind, delay = cursor.fetchone()
    except DatabaseError:
        return ReplicaState(alias)
    return ReplicaState(alias, max(0, bytes_behind), delay)
