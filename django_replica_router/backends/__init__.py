"""Database backends whose COMMIT tells what was written, and where it lies in the WAL."""
