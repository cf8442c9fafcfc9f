"""Wait until replicas have what was written, as between the steps of a deployment."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS

from django_replica_router.errors import PositionError, TooStale
from django_replica_router.management.shared import telling_itself
from django_replica_router.scopes.signing import Token
from django_replica_router.status.servers import look
from django_replica_router.tokens import wait_for_replicas

GETTING_TO_KNOW = 5.0


class Command(BaseCommand):
    """Wait, and fail where a replica is late."""

    help = (
        "Wait until all replicas in service have what the primary has by now, or what a token binds to, or "
        "lag no more than allowed. The exit code is 1 where one is late; one that is out of service is told of."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take the options."""
        parser.add_argument(
            "--token", help="what current_token() gave; default: all there is by now"
        )
        parser.add_argument(
            "--max-lag", type=float, metavar="SECONDS", help="wait until data is no older than that"
        )
        parser.add_argument(
            "--timeout", type=float, default=60.0, metavar="SECONDS", help="default: 60"
        )
        parser.add_argument(
            "--database", default=DEFAULT_DB_ALIAS, help="alias of the primary; default: default"
        )

    @telling_itself()
    def handle(self, *args: Any, **options: Any) -> None:
        """Wait."""
        primary, text = options["database"], options["token"]
        if text is not None and not str(Token.read(text)):
            raise CommandError(
                "--token is none of current_token(), or signed by another key than those of TOKEN_KEYS."
            )
        try:
            wait_for_replicas(
                token=text,
                max_lag=options["max_lag"],
                timeout=options["timeout"],
                using=primary,
            )
        except (TooStale, PositionError) as error:
            raise CommandError(str(error)) from error
        self._tell_who_is_missing(primary)

    def _tell_who_is_missing(self, primary: str) -> None:
        cluster = look(primary, GETTING_TO_KNOW)
        for server in cluster.servers[1:]:
            if server.alias in cluster.out_of_service:
                told = f"{server.alias!r} is out of service, and was not waited for: {server.sentence}."
                self.stderr.write(self.style.WARNING(told))
