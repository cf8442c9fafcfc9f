"""Migrate, and create the users that the demonstration drives."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.test import Client

from testproject.notes.models import Note, Tag

NOTES_EACH = 3
TAGS = ["idea", "later", "work"]


class Command(BaseCommand):
    """Prepare the database and print each user's session keys and notes as JSON."""

    help = __doc__

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take the users' names and the password they share."""
        parser.add_argument("names", nargs="+")
        parser.add_argument("--password", required=True)
        parser.add_argument("--staff", default="", help="the one who may use the admin")
        parser.add_argument("--sessions", type=int, default=0, help="open sessions of each user")

    def handle(self, *args: object, **options: Any) -> None:
        """Do it all on the primary."""
        call_command("migrate", verbosity=0)
        users = _create_users(options["names"], options["password"], options["staff"])
        notes = _create_notes(users)
        described = {
            user.username: {
                "sessions": [_sign_in(user) for _ in range(options["sessions"])],
                "notes": [note.pk for note in notes if note.owner == user],
            }
            for user in users
        }
        self.stdout.write(json.dumps(described))


def _create_users(names: list[str], password: str, staff: str) -> list[User]:
    hashed = make_password(password)
    return User.objects.bulk_create(
        User(username=name, password=hashed, is_staff=name == staff, is_superuser=name == staff)
        for name in names
    )


def _create_notes(users: list[User]) -> list[Note]:
    Tag.objects.bulk_create(Tag(name=name) for name in TAGS)
    return Note.objects.bulk_create(
        Note(owner=user, title=f"Note {number} of {user.username}", body="As first written.")
        for user in users
        for number in range(1, NOTES_EACH + 1)
    )


def _sign_in(user: User) -> str:
    """Return the key of a new session, as of a visitor who signed in some other day."""
    client = Client()
    client.force_login(user)
    return client.cookies[settings.SESSION_COOKIE_NAME].value
