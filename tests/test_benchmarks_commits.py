"""Where the benchmarks' oracle takes a write to be in the WAL."""

from __future__ import annotations

import pytest

from benchmarks.load.commits import enable, ends_of_commits, located
from benchmarks.oracle import Read, Write
from testproject.cluster import Cluster
from tests.conftest import wait_until

PRESENT = "SELECT pg_current_wal_insert_lsn() - '0/0', pg_current_xact_id()::text"


def test_a_write_is_at_the_end_of_its_commit_record(healed: Cluster) -> None:
    """A replica that delays commits passes the position in front of that, and does not show the write."""
    primary, replica = healed.primary, healed.replicas[0]
    enable(healed)
    primary.execute("CREATE TABLE located (number integer)", dbname="app")
    try:
        healed.wait_caught_up()
        replica.set_delay(600.0)
        with primary.connect("app") as raw:
            raw.autocommit = False
            raw.execute("INSERT INTO located VALUES (1)")
            row = raw.execute(PRESENT).fetchone()
            assert row is not None
            position, number = int(row[0]), int(row[1])
            # Of somebody else, between the position and the commit.
            primary.execute("SELECT pg_logical_emit_message(false, 'test', 'between')")
            raw.commit()
        # What is not flushed is not sent.
        primary.flush()
        wait_until(lambda: replica.replay_lsn() > position, "the replica to pass the position")
        shown = "SELECT count(*) FROM located"
        ends = ends_of_commits(healed, position)
        assert replica.replay_lsn() < ends[number]
        assert replica.execute(shown, dbname="app") == [(0,)]
        replica.set_delay(0)
        replica.wait_replayed(ends[number])
        assert replica.execute(shown, dbname="app") == [(1,)]
    finally:
        primary.execute("DROP TABLE located", dbname="app")


def test_reads_stay_where_they_are() -> None:
    """Only writes have a place in the WAL, and one that is not found there is no write."""
    read = Read(1, 10.0, "replica1")
    write = Write(1, 10.0, 20, 7)
    assert located([read, write], {7: 30}) == [read, Write(1, 10.0, 30, 7)]
    with pytest.raises(KeyError):
        located([write], {8: 30})
