"""Tell which views and tasks read from the primary since they have saved what they had read, and forget those mended."""

from __future__ import annotations

from argparse import ArgumentParser
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from django_replica_router.conf import get_config
from django_replica_router.errors import StoreError
from django_replica_router.management.shared import telling_itself
from django_replica_router.recording.learning import learned, unlearn


class Command(BaseCommand):
    """List what was learned, or have it forgotten."""

    help = (
        "List the views and tasks that read from the primary since they have saved what they had read from a "
        "replica (LEARNED), or have those forgotten that were mended: their reads go to replicas again."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take the options."""
        parser.add_argument("--forget", nargs="+", default=[], metavar="NAME", help="as listed")
        parser.add_argument("--forget-all", action="store_true", help="all that are listed")

    @telling_itself()
    def handle(self, *args: Any, **options: Any) -> None:
        """List, or forget."""
        try:
            names = learned(get_config())
            forgotten = sorted(names) if options["forget_all"] else options["forget"]
            if not forgotten:
                self._list(names)
                return
            unknown = [name for name in forgotten if name not in names]
            if unknown:
                raise CommandError(
                    f"--forget: {', '.join(unknown)} was not learned. Without options this command lists what was."
                )
            unlearn(forgotten, get_config())
        except StoreError as error:
            raise CommandError(f"The cache that knows what was learned: {error}") from error
        self.stdout.write(f"Forgotten, by all processes within 5 s: {', '.join(forgotten)}.")

    def _list(self, names: dict[str, float]) -> None:
        for name, end in sorted(names.items()):
            day = datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%d %H:%M UTC")
            self.stdout.write(f"{name}  reads from the primary until {day}")
        if not names:
            self.stdout.write(
                "Nothing was learned: no view or task has saved what it had read from a replica."
            )
