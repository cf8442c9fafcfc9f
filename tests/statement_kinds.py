"""What tests of statements have in common."""

from __future__ import annotations

from django_replica_router.values.statements import Kind, kind_of


def is_write_command(statement: object) -> bool:
    """Tell whether a statement is known by its first word as one that writes."""
    return kind_of(statement) is Kind.WRITE
