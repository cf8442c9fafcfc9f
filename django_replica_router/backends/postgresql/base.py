"""What Django loads for ``"ENGINE": "django_replica_router.backends.postgresql"``."""

from __future__ import annotations

from django.db.backends.postgresql import base

from django_replica_router.backends.mixin import TokenMixin


class DatabaseWrapper(TokenMixin, base.DatabaseWrapper):
    """Django's own connection to PostgreSQL, whose COMMIT brings the token along."""
