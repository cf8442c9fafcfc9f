"""What one request knows: whom it is for, what it has written and seen, and what was decided for it."""
