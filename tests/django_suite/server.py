"""The PostgreSQL servers that the suite runs on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg
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


# Tables of Django's tests name it.
COLLATION = "sv-x-icu"


class ServerError(Exception):
    """There is no server for what is asked for."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where the primary is, and its standby if it has one."""

    host: str
    port: int
    user: str
    password: str = ""
    standby: Server | None = None

    def alias(self, database: str, **test: str) -> dict[str, Any]:
        """Return an entry of ``DATABASES``."""
        return {
            "ENGINE": os.environ.get("TESTPROJECT_ENGINE", "django.db.backends.postgresql"),
            "NAME": database,
            "USER": self.user,
            "PASSWORD": self.password,
            "HOST": self.host,
            "PORT": str(self.port),
            "TEST": test,
        }


@contextmanager
def running(dsn: str | None, *, needs_standby: bool) -> Iterator[Server]:
    """Give the server of the DSN, or start one and stop it at the end.

    Args:
        dsn: of a server where the user may create databases.
        needs_standby: start a streaming standby of it as well.

    Raises:
        ServerError: a standby is needed, and the server is not one that is started here.
    """
    if dsn is None:
        # Imported here: who brings a server needs no binaries.
        from testproject.cluster import Cluster, ClusterError

        cluster = Cluster(
            replicas=int(needs_standby), cache=False, databases=DATABASES, settings=SETTINGS
        )
        try:
            cluster.start()
        except ClusterError as error:
            raise ServerError(str(error)) from error
        with cluster:
            servers = [
                Server(host=server.host, port=server.port, user=server.user)
                for server in (cluster.primary, *cluster.replicas)
            ]
            yield replace(servers[0], standby=servers[1] if needs_standby else None)
    elif needs_standby:
        message = "The mode needs a standby, which is there only without --dsn."
        raise ServerError(message)
    else:
        parts = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
        yield Server(
            host=parts.get("host", "127.0.0.1"),
            port=int(parts.get("port", "5432")),
            user=parts.get("user", "postgres"),
            password=parts.get("password", ""),
        )


def require_collation(server: Server) -> None:
    """Refuse a server that cannot create the tables of all apps.

    Raises:
        ServerError: it was built without ICU.
    """
    query = "SELECT EXISTS (SELECT FROM pg_collation WHERE collname = %s)"
    with psycopg.connect(
        host=server.host,
        port=server.port,
        user=server.user,
        password=server.password,
        dbname="postgres",
    ) as connection:
        row = connection.execute(query, [COLLATION]).fetchone()
    if row != (True,):
        message = (
            f"The server has no collation {COLLATION!r}, which tables of Django's tests need: name "
            f"one that was built with ICU by REPLICA_ROUTER_POSTGRES_BIN or --dsn."
        )
        raise ServerError(message)
