"""What runs around a statement: it goes in, and comes out answered by a server that may answer it."""
