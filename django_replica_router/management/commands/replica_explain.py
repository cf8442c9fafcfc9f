"""Tell where a read would go now, and why."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError
from django.db import router
from django.urls import Resolver404

from django_replica_router.conf import get_config
from django_replica_router.management.shared import add_timeout, telling_itself
from django_replica_router.status.explaining import explain, find_user


class Command(BaseCommand):
    """Print the steps of the rule, and the decision."""

    help = "Tell where a read of a model would go in a request that begins now, step by step of the rule, and why."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take the options."""
        parser.add_argument("model", help="as app_label.Model")
        parser.add_argument(
            "--user", metavar="ID", help="primary key of the user whose request it is"
        )
        parser.add_argument("--path", metavar="URL", help="path of the request, as /notes/1/")
        parser.add_argument("--method", default="GET", help="of the request (default: GET)")
        add_timeout(parser)

    @telling_itself()
    def handle(self, *args: Any, **options: Any) -> None:
        """Explain."""
        model = _find_model(options["model"])
        primary = router.db_for_write(model)
        if not get_config().topology.replicas.get(primary):
            raise CommandError(f"{model._meta.label} is in {primary!r}, which has no replicas.")
        user = None
        if options["user"] is not None:
            user = find_user(options["user"])
            if user is None:
                raise CommandError(
                    f"--user: there is no user {options['user']!r}: expected a primary key."
                )
        try:
            found = explain(
                model,
                primary,
                user=user,
                path=options["path"],
                method=options["method"].upper(),
                timeout=options["timeout"],
            )
        except Resolver404:
            raise CommandError(f"--path: no view has the path {options['path']!r}.") from None
        for number, step in enumerate(found.steps, 1):
            self.stdout.write(f"{number}. {step}")
        told = f"-> {found.alias}  {found.reason}: {found.sentence}."
        self.stdout.write(
            self.style.WARNING(told) if found.alias == primary else self.style.SUCCESS(told)
        )


def _find_model(label: str) -> Any:
    try:
        model = apps.get_model(label)
    except LookupError as error:
        raise CommandError(f"{label!r} is no model: {error} Give it as app_label.Model.") from error
    except ValueError as error:  # which tells of unpacking a list
        raise CommandError(f"{label!r} is no model. Give it as app_label.Model.") from error
    if model._meta.swapped:
        raise CommandError(
            f"{label!r} has no table: {model._meta.swappable} puts {model._meta.swapped!r} in its place. Ask for that."
        )
    return model
