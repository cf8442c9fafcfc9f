"""Many clients over few server connections; the large form is ``python -m tests.pooler_scale``."""

from __future__ import annotations

from tests.pooled import require_pgbouncer
from tests.pooler_scale.run import run


def test_two_hundred_clients_share_six_server_connections() -> None:
    """All are connected at once, and each reads back what it has written."""
    require_pgbouncer()
    outcome = run(200, 6, rounds=2)
    assert outcome.counts["errors"] == 0
    assert outcome.counts["stale"] == 0
    assert outcome.counts["reads"] == 400
    assert outcome.counts["reads by replica"] > 0
    assert outcome.counts["open"] == 400
    assert outcome.peak_clients >= 400
    assert outcome.peak_servers <= 6
    assert outcome.is_passed
