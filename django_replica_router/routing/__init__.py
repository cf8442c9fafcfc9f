"""Where a read goes: a model and a scope go in, the alias of a server comes out."""
