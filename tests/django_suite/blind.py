"""The control: a router that sends every read to the replica, which must break tests."""

from __future__ import annotations

from typing import Any

from django.db.models import Model


class BlindRouter:
    """Read from the replica whatever the reader has just written or locked."""

    def db_for_read(self, model: type[Model], **hints: Any) -> str:
        """Return the replica, always."""
        return "replica"

    def db_for_write(self, model: type[Model], **hints: Any) -> str:
        """Return the primary, always."""
        return "default"

    def allow_relation(self, obj1: Model, obj2: Model, **hints: Any) -> bool:
        """Allow every relation: the aliases are one server."""
        return True
