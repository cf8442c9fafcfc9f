"""Migrate, and create the users that the demonstration drives."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from datetime import timedelta
from secrets import token_hex
from typing import Any

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.utils.timezone import now

from testproject.notes.models import Note, Tag

NOTES_EACH = 3
SESSION_AGE = timedelta(days=1)
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
        sessions = _create_sessions(users, options["sessions"])
        described = {
            user.username: {
                "sessions": sessions[user.username],
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


def _create_sessions(users: list[User], each: int) -> dict[str, list[str]]:
    """Return the keys of new sessions, as of visitors who signed in some other day."""
    keys = {user.username: [token_hex(16) for _ in range(each)] for user in users}
    Session.objects.bulk_create(
        Session(session_key=key, session_data=data, expire_date=now() + SESSION_AGE)
        for user in users
        for data in [_session_data(user)]
        for key in keys[user.username]
    )
    return keys


def _session_data(user: User) -> str:
    """Return what `django.contrib.auth.login` keeps in a session, one by one too slow for many."""
    return Session.objects.encode(
        {
            SESSION_KEY: str(user.pk),
            BACKEND_SESSION_KEY: settings.AUTHENTICATION_BACKENDS[0],
            HASH_SESSION_KEY: user.get_session_auth_hash(),
        }
    )
