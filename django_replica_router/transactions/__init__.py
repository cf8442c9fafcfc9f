"""In which transaction a connection is, and what was set in its session: what keeps a read where it is."""
