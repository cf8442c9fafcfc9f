"""The PostgreSQL primary that the suite runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg.conninfo import conninfo_to_dict

DATABASES = ("django", "other")

# What is in these databases is thrown away: nothing of it need survive a crash. The suite creates
# and drops more tables in one transaction than the default number of locks allows for.
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_locks_per_transaction": "256",
}


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where the primary is."""

    host: str
    port: int
    user: str
    password: str = ""

    def alias(self, database: str, **test: str) -> dict[str, Any]:
        """Return an entry of ``DATABASES``."""
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": database,
            "USER": self.user,
            "PASSWORD": self.password,
            "HOST": self.host,
            "PORT": str(self.port),
            "TEST": test,
        }


@contextmanager
def running(dsn: str | None) -> Iterator[Server]:
    """Give the server of the DSN, or start one and stop it at the end.

    Args:
        dsn: of a server where the user may create databases, of which one named "django" and one
            named "other" exist.
    """
    if dsn is not None:
        parts = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
        yield Server(
            host=parts.get("host", "127.0.0.1"),
            port=int(parts.get("port", "5432")),
            user=parts.get("user", "postgres"),
            password=parts.get("password", ""),
        )
        return
    # Imported here: who brings a server needs no binaries.
    from testproject.cluster import Cluster

    with Cluster(replicas=0, cache=False, databases=DATABASES, settings=SETTINGS) as cluster:
        primary = cluster.primary
        yield Server(host=primary.host, port=primary.port, user=primary.user)
