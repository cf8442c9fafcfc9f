"""For each sabotage, the short run that finds it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.torture.run import ROUTER, Plan
from tests.torture.visitors import Habits

SECONDS = 150.0
"""At most: a run ends with the first violation, which on a busy machine takes longer."""

# Little in each request, so that many begin and end; no rest, so that reads follow writes at once.
BUSY = Habits(times=2, pause=0.005, asynchronous=False, dawdles=False, write_share=2.0)

_COMMON: Mapping[str, Any] = {
    "seconds": SECONDS,
    "workers": 2,
    "threads": 3,
    "replicas": 2,
    "users": 8,
    "faults": (),
    "router": ROUTER,
    "habits": BUSY,
    "changes_lag": False,
    "stops_early": True,
}

# The lag of each replica, and what else is needed to tell right from wrong.
_DIRECTED: Mapping[str, Mapping[str, Any]] = {
    "token_compare_always_true": {"delays": (0.5, 0.5)},
    # One replica serves and is broken again and again; the other has not what is needed.
    "retry_without_verification": {
        "delays": (0.0, 1.5),
        "faults": ("reset",),
        "targets": (0,),
        "hold": (0.1, 0.2),
    },
    "token_lowered_by_plain_set": {"delays": (0.4, 0.4)},
    # Less than requests wait for: who waits is let go right before the commit is replayed.
    "lsn_taken_before_commit": {"delays": (0.25, 0.25), "router": {**ROUTER, "WAIT": 0.6}},
    "old_timeline_replica_accepted": {"faults": ("old_timeline",), "hold": (3.0, 3.0)},
    # Tokens must outlive the restart, and readers have written nothing since.
    "watermark_kept_over_rebuild": {
        "faults": ("rebuild",),
        "hold": (1.0, 1.5),
        "router": {"MAX_LAG": 10.0, "TOKEN_TTL": 30.0},
        "habits": replace(BUSY, write_share=0.4),
    },
    "early_session_token_ignored": {"delays": (0.5, 0.5)},
    "writes_yield_as_well": {
        "delays": (1.0, 1.0),
        "router": {**ROUTER, "WAIT": 0, "MONOTONIC_SHARE": 0},
    },
    # Some must come from a replica, so its users must at times be served by one.
    "kept_objects_followed_blindly": {
        "delays": (0.2, 0.2),
        "habits": replace(BUSY, pause=0.02, write_share=0.5),
    },
    # Late enough that much is dropped while it is needed.
    "dropped_tokens_not_missed": {
        "faults": ("cache_evict",),
        "delays": (1.0, 1.0),
        "hold": (0.05, 0.1),
    },
    "every_write_ignored": {"delays": (1.0, 1.0)},
    "tokens_of_old_timeline_bind_for_ever": {
        "faults": ("lossy_failover",),
        "hold": (0.5, 0.5),
        "router": {"MAX_LAG": 1.0, "TOKEN_TTL": 3.0},
    },
    # Each of these lasts for longer than a read may take.
    "locks_waited_for": {"faults": ("replayed_lock",)},
    "hanging_servers_waited_for": {"faults": ("suspend",)},
    "hanging_store_waited_for": {"faults": ("cache_suspend",)},
}


def plan_for(control: str, **changes: Any) -> Plan:
    """Return the directed run of a control."""
    return Plan(**{**_COMMON, **_DIRECTED[control], "control": control} | changes)


def plan_without(control: str, **changes: Any) -> Plan:
    """Return the same run of the package as it is, where nothing must be found."""
    return replace(plan_for(control, **changes), control="")
