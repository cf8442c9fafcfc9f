"""Values: positions in the WAL, tokens, names of servers, and what a statement is. No Django, no I/O."""
