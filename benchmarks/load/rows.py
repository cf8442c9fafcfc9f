"""Creates the tables, from a process that may have no Django."""

from __future__ import annotations

from testproject.cluster import Cluster

CREATE = """
CREATE TABLE load_row (id bigint PRIMARY KEY, version bigint NOT NULL) WITH (fillfactor = 50);
INSERT INTO load_row SELECT number, 1 FROM generate_series(0, {last}) AS number
"""


def create_rows(cluster: Cluster, number: int) -> None:
    """Create the table with so many rows, numbered from 0, and wait until all replicas have it."""
    cluster.primary.execute(CREATE.format(last=number - 1), dbname="app")
    cluster.wait_caught_up()


# One lock on each server, not one for all: a standby has locks of its own. The cost is paid for each
# row that is read from the view, also by an UPDATE of it.
COSTLY = """
CREATE FUNCTION load_cost() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(1);
  PERFORM pg_sleep({seconds});
  RETURN 0;
END $$;
CREATE VIEW load_costly_row AS SELECT id, version + load_cost() AS version FROM load_row;
CREATE FUNCTION load_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE load_row SET version = version + 1 WHERE id = OLD.id;
  RETURN NEW;
END $$;
CREATE TRIGGER load_write INSTEAD OF UPDATE ON load_costly_row
  FOR EACH ROW EXECUTE FUNCTION load_write()
"""


def create_costly_rows(cluster: Cluster, number: int, seconds: float) -> None:
    """Create so many rows of which each server reads or writes one at a time, taking its time."""
    cluster.primary.execute(CREATE.format(last=number - 1), dbname="app")
    cluster.primary.execute(COSTLY.format(seconds=seconds), dbname="app")
    cluster.wait_caught_up()
