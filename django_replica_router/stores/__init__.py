"""Where tokens are kept: a cache goes in, records of what its users have written come out."""
