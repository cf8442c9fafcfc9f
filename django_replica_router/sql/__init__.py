"""All SQL about WAL and replication, but for what goes with a COMMIT: a connection goes in, positions and who has answered come out."""
