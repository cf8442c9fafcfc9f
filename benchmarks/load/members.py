"""Users who sign in, write, are sent on to a page that shows it, and read on."""

from __future__ import annotations

import time

import psycopg

from benchmarks.load.browsers import Jar, Sender
from benchmarks.load.crowd import Crowd, Habits, Log, User, _check
from benchmarks.oracle import Read, Write
from testproject.cluster import Cluster

PASSWORD_HASH = "md5$salt$ceb20772e0c9d240c75eb26b0e37abee"  # of the empty password
SIGN_IN_SHARE = 0.2
"""Of the writes: the part that are a new login, which makes a new session."""

SESSION_OF = 1 << 40
"""Added to a user's number, it is the reader of the user's session: who must see what that holds."""

CREATE = """
INSERT INTO auth_user (id, username, password, is_superuser, is_staff, is_active, first_name,
                       last_name, email, date_joined)
SELECT number, 'member' || number, %s, false, false, true, '', '', '', now()
FROM generate_series(%s::int, %s::int) AS number
"""
POSITION = "SELECT pg_current_wal_insert_lsn() - '0/0'"
FIRST = 1000
"""The lowest number of a member: those of users who were created before are lower."""


def create_members(cluster: Cluster, number: int) -> None:
    """Create so many users with an empty password, and wait until all replicas have them."""
    last = FIRST + number - 1
    cluster.primary.execute(CREATE, [PASSWORD_HASH, FIRST, last], dbname="app")
    cluster.wait_caught_up()


class Members(Crowd):
    """Users whose sessions are rows of the database.

    The oracle has two readers for each: of the session, which must show what was last saved in it,
    and of everything else. What the user writes binds both.
    """

    def __init__(self, sender: Sender, habits: Habits) -> None:
        from django.conf import settings

        super().__init__(sender, habits)
        database = settings.DATABASES["default"]
        self._primary = psycopg.connect(
            host=database["HOST"],
            port=database["PORT"],
            user=database["USER"],
            dbname=database["NAME"],
            autocommit=True,
        )
        self._saves_session = settings.SESSION_SAVE_EVERY_REQUEST
        self._signed_in: set[int] = set()

    def _act(self, user: User, log: Log) -> None:
        draw = self._random
        if user.number not in self._signed_in:
            self._sign_in(user, log)
        elif draw.random() < self._habits.act_share():
            if draw.random() < SIGN_IN_SHARE:
                self._sign_in(user, log)
            else:
                self._write(user, log)
        self._read(user, log)

    def _sign_in(self, user: User, log: Log) -> None:
        user.jar = Jar()
        self._sender.send(user.jar, "POST", f"/sign-in/?name=member{user.number}")
        self._signed_in.add(user.number)
        self._note_write(log, user.number, user.number + SESSION_OF)

    def _write(self, user: User, log: Log) -> None:
        self._sender.send(user.jar, "POST", f"/write/?row={user.number}")
        user.written += 1
        self._note_write(log, user.number, user.number + SESSION_OF)

    def _note_write(self, log: Log, *readers: int) -> None:
        """Note that each of them must see from now on what the primary has."""
        moment = time.monotonic()
        [position] = self._primary.execute(POSITION).fetchone() or [0]
        log.events += [Write(reader, moment, int(position)) for reader in readers]

    def _read(self, user: User, log: Log) -> None:
        habits = self._habits
        other = habits.first + self._random.randrange(habits.users)
        answer = self._sender.send(user.jar, "GET", f"/page/?rows={user.number},{other}")
        if self._saves_session:
            self._note_write(log, user.number + SESSION_OF)
        for alias, is_of_session in answer["reads"]:
            reader = user.number + SESSION_OF if is_of_session else user.number
            log.events.append(Read(reader, answer["asked"], alias, answer["reason"]))
        log.seconds.append(answer["answered"] - answer["asked"])
        if answer["user"] is None:
            log.log_outs += 1
            log.note(f"member{user.number} was logged out: {answer}")
            self._signed_in.discard(user.number)
        versions = {int(row): version for row, version in answer["versions"].items()}
        _check(user, versions, answer, log)
