"""How far the replicas are behind, and a control that makes them lag."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from django.conf import settings

PRIMARY = "default"
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
    with _connect(PRIMARY) as connection:
        [(inserted,)] = connection.execute(INSERTED)
    return [_state(alias, inserted) for alias in _aliases()]


def set_lag(ms: int) -> None:
    """Have every replica apply commits this much later than the primary made them."""
    for alias in _aliases():
        with _connect(alias) as connection:
            # ALTER SYSTEM takes no parameters; the value is an integer.
            connection.execute(f"ALTER SYSTEM SET recovery_min_apply_delay = {ms:d}")
            connection.execute("SELECT pg_reload_conf()")


def _aliases() -> list[str]:
    return [alias for alias in settings.DATABASES if alias != PRIMARY]


def _connect(alias: str) -> psycopg.Connection[Any]:
    """Open a connection past Django's, so that neither the meter nor the package looks at it."""
    database = settings.DATABASES[alias]
    return psycopg.connect(
        host=database["HOST"],
        port=database["PORT"],
        user=database["USER"],
        dbname=database["NAME"],
        connect_timeout=2,
        autocommit=True,
    )


def _state(alias: str, inserted: str) -> ReplicaState:
    try:
        with _connect(alias) as connection:
            [(bytes_behind, delay)] = connection.execute(REPLAYED, [inserted])
    except psycopg.Error:
        return ReplicaState(alias)
    return ReplicaState(alias, max(0, bytes_behind), delay)
