"""Counts of what has happened in this process, for metrics and for whoever looks into a case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from django_replica_router.forking import after_fork, make_lock
from django_replica_router.observations import note_events, observers

_lock = make_lock()
_counts: dict[str, int] = {}
_popped: Counter[str] = Counter()


@after_fork
def _begin_anew() -> None:
    _counts.clear()  # the parent has counted that
    _popped.clear()


def count(*events: str, about: str = "") -> None:
    """Count something that is not part of every read: a fallback, a retry, a lost token.

    Args:
        events: their names.
        about: what they are about, for whoever observes the code.
    """
    with _lock:
        for event in events:
            _counts[event] = _counts.get(event, 0) + 1
    if observers.present:
        note_events(*events, about=about)


def get_stats() -> Mapping[str, int]:
    """Return how often each event has happened in this process since it started, or since popped.

    - ``reads_<reason>``: first decisions of a scope, by the reason in lower case; ``reads_from_<alias>``: the
      same, by the server.
    - ``shadow_reads_from_<alias>``, ``shadow_reads_<reason>``: where reads would have gone, and why, of who is not
      routed yet by SHADOW or ROLLOUT. They are counted as ``reads_shadow`` as well.
    - ``retried_<cause>``: statements that were run again on the primary: ``refused_write``,
      ``replica_fault``, ``unsupported`` (what only that server cannot do, as read an unlogged table),
      ``replayed_lock`` (a lock was replayed, and not yet the commit that frees it), ``elsewhere`` (a replica
      that was promoted, started anew, or is another server behind its pooler), ``behind`` (one of several
      servers behind a pooler has answered that lacks what was written or seen before), ``first_fetch``.
    - ``statements_unproven``: statements that were run on the primary since any of several servers behind
      a pooler might have answered them, and could not have proven what it shows.
    - ``repeated_after_conflict``: statements that a replica has cancelled as soon as they had begun,
      to go on replaying, and that were run again there.
    - ``fallbacks_refused``: reads that no replica could serve, and that ``PRIMARY_SHARE`` kept from the primary.
    - ``connects_failed``: connections to replicas that requests could not open.
    - ``waits_by_server``: waits of readers that ended since a replica's server, of PostgreSQL 19 or newer, told
      itself that it was there; ``waits_by_server_in_vain``: those that ended without that.
    - ``waits_ended``: statements whose waiting for a replica that hung was ended.
    - ``wal_flushes``: records that made the primary write out WAL for which somebody waited.
    - ``readers_unknown``: readers without a record in a cache that drops keys: they were shown what
      the primary had at that moment, or more.
    - ``tokens_stored``: scopes whose token, of what their reader has written or seen, the store has taken.
    - ``tokens_unstored``: writes whose token the store refused.
    - ``writes_unlocated``: writes that could not be located in the WAL, so that their user is
      pinned to the primary.
    - ``saved_from_replica``: saves of objects that were read from a replica, which write back what may
      be old; ``reinserted_from_replica``: those of them that found the row deleted, and made it anew.
    - ``writes_in_queries``: statements that a ``query`` was refused.
    - ``cookies_refused``: signed cookies that were not ours, broken or too old.
    - ``tokens_refused``: texts that were given as a token and are none, or signed by another key.
    - ``transactions_outwaited``: tokens made in a transaction that had not ended after 5 seconds, or whose end
      is not known: who reads by one is sent to the primary.
    """
    with _lock:
        return dict(_counts)


def pop_stats() -> Mapping[str, int]:
    """Return the same, and begin to count anew."""
    with _lock:
        counts = dict(_counts)
        _popped.update(counts)
        _counts.clear()
        return counts


def get_totals() -> Mapping[str, int]:
    """Return how often each event has happened since the process started, whoever has popped what."""
    with _lock:
        return _popped + Counter(_counts)
