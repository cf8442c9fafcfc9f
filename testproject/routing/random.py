"""Every read to a random replica, every write to the primary."""

from __future__ import annotations

import random

from django.conf import settings
from django.db.models import Model

PRIMARY = "default"


def replica_aliases() -> list[str]:
    """Return the aliases of the replicas."""
    return [alias for alias in settings.DATABASES if alias != PRIMARY]


class RandomReplicaRouter:
    """The `PrimaryReplicaRouter` of Django's own page on multiple databases.

    Drizzle's `withReplicas`, Prisma's replicas extension and the first page of many tutorials do
    the same. It knows nothing of lag.
    """

    def db_for_read(self, model: type[Model], **hints: object) -> str:
        """Return any replica."""
        return random.choice(replica_aliases())

    def db_for_write(self, model: type[Model], **hints: object) -> str:
        """Return the primary."""
        return PRIMARY

    def allow_relation(self, obj1: Model, obj2: Model, **hints: object) -> bool:
        """Allow every relation: the aliases hold the same rows."""
        return True

    def allow_migrate(self, db: str, app_label: str, **hints: object) -> bool:
        """Allow migrations on the primary, from where replicas receive them."""
        return db == PRIMARY
