"""Replicas that come and go: the servers that a name leads to, each with an alias of its own."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Collection, Mapping
from typing import Any

from django.db import connections
from django.db.backends.postgresql.base import DatabaseWrapper

from django_replica_router.conf import Config, find_found, get_config, note_found
from django_replica_router.logs import fields, logger
from django_replica_router.replicas.ending import EndingThread, jittered
from django_replica_router.replicas.lookups import MOST, Answer, Server, look_up
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.sql.opening import is_under_test
from django_replica_router.values.topology import Found

INTERVAL = 10.0
"""Seconds between two look-ups where the setting names no other number."""

_LEAST_TTL = 1.0
_MOST_TTL = 60.0

_FORMER_KEPT = 1000
"""Aliases of servers that are gone which can still be named."""


class Databases(dict[str, Any]):
    """Django's settings of each alias. Those of servers that are gone are found, and not gone through.

    Django goes through all of them at the begin and at the end of each request.

    Args:
        present: the settings.
        former: those of servers that are gone, to which no connection is open any more.
    """

    def __init__(self, present: Mapping[str, Any], former: Mapping[str, Any]) -> None:
        super().__init__(present)
        self.former = former

    def __contains__(self, alias: object) -> bool:
        """Tell whether there are settings of the alias."""
        return super().__contains__(alias) or alias in self.former

    def __missing__(self, alias: str) -> Any:
        """Return the settings of a server that is gone."""
        return self.former[alias]


# Django's connections, of all threads.
_made: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def note_connection(connection: Any) -> None:
    """Remember a connection object of Django's that was made."""
    _made[id(connection)] = connection


def entries_for(primary: str, config: Config) -> Mapping[str, Mapping[str, Any]]:
    """Return the entries of ``DISCOVERY`` for replicas of that primary. None count in a test run."""
    if not config.DISCOVERY or is_under_test():
        return {}
    replicas = config.topology.members.get(primary, ())
    return {
        alias: entry
        for alias, entry in config.DISCOVERY.items()
        if alias in replicas and alias in connections and connections[alias].vendor == "postgresql"
    }


class Discoverer(EndingThread):
    """Looks up the name of one alias again and again.

    Args:
        monitor: is to look at the servers that are found.
        template: the alias, whose settings each server gets.
        entry: its value in ``DISCOVERY``.
        lock: held by whoever starts or stops monitors.
    """

    patience = 0.0

    def __init__(
        self, monitor: Monitor, template: str, entry: Mapping[str, Any], lock: threading.Lock
    ) -> None:
        super().__init__(f"replica-router-monitor-names-{template}")
        self._monitor = monitor
        self._template = template
        self._entry = entry
        self._lock = lock
        self._interval: float = entry.get("INTERVAL", INTERVAL)
        self._has_failed = False
        self._has_cut = False
        self._ending: dict[str, threading.Thread] = {}

    def run(self) -> None:
        delay = 0.0
        while not self._ended.wait(jittered(delay)):
            delay = self._interval
            try:
                ttl = self._look()
                delay = min(delay, max(ttl, _LEAST_TTL))
            except Exception as error:  # whatever a name server answers, the site goes on
                self._fail(error)
            try:
                self._drain()
            except Exception:  # as that of a pool which does not end
                logger.exception(
                    "Not all that is left of servers which are gone has ended.",
                    extra=fields("drain_failed"),
                )

    def _look(self) -> float:
        """Look the name up, and use what is found. Return for how many seconds that holds."""
        answer = look_up(self._entry)
        if not answer.servers:
            # Nothing is gained by believing it: whether a server serves is seen there. But if it is a
            # mistake, all reads would go to the primary.
            message = "it has no address"
            raise LookupError(message)
        self._take(answer)
        return answer.ttl

    def _fail(self, error: Exception) -> None:
        if not self._has_failed and not self._ended.is_set():
            logger.warning(
                "The name %r of replica %r cannot be resolved: %s. Until it can be, everything stays as "
                "it is.",
                self._entry["NAME"],
                self._template,
                error,
                extra=fields("name_unresolved", error, alias=self._template),
            )
        self._has_failed = True

    def _take(self, answer: Answer) -> None:
        """Have those servers used, and no others."""
        if answer.is_cut and not self._has_cut:
            logger.warning(
                "The name %r of replica %r leads to more than %d servers: the first %d are used.",
                self._entry["NAME"],
                self._template,
                MOST,
                MOST,
                extra=fields("name_cut", alias=self._template),
            )
        if self._has_failed:
            logger.info(
                "The name %r can be resolved.",
                self._entry["NAME"],
                extra=fields("name_resolved", alias=self._template),
            )
        names = {alias_of(self._template, server): server for server in answer.servers}
        for alias, poller in list(self._ending.items()):
            # A thread that looks at it yet, though it was told to end, may have something old to tell.
            if poller.is_alive():
                names.pop(alias, None)
            else:
                del self._ending[alias]
        with self._lock:
            if names and not self._ended.is_set():
                self._publish(names, answer.ttl)
        self._has_failed, self._has_cut = False, answer.is_cut

    def _publish(self, servers: Mapping[str, Server], ttl: float) -> None:
        known = find_found(self._template)
        found = self._follow_up(known, tuple(servers), ttl)
        if found is not known:
            _add_settings(self._template, servers)
        note_found(self._template, found)
        self._monitor.follow(get_config().topology.replicas[self._monitor.primary])

    def _follow_up(self, known: Found | None, aliases: tuple[str, ...], ttl: float) -> Found:
        """Return what is known with those aliases: the same where nothing has changed."""
        now = time.monotonic()
        if known is None:
            known = Found(self._entry, ())
            # Where the name cannot be resolved at first, the alias itself serves meanwhile.
            before = [self._template] if self._has_failed else []
        elif known.entry == self._entry and known.aliases == aliases:
            return known
        else:
            before = [*(known.before if now < known.settles_at else known.aliases)]
        left = [alias for alias in (*known.former, *known.aliases) if alias not in aliases]
        for alias in set(aliases) - set(known.aliases):
            logger.info(
                "Replica %r was found by the name %r.",
                alias,
                self._entry["NAME"],
                extra=fields("replica_found", alias=alias),
            )
        for alias in set(known.aliases) - set(aliases):
            logger.info(
                "The name %r leads to replica %r no more: nobody new is sent there.",
                self._entry["NAME"],
                alias,
                extra=fields("replica_gone", alias=alias),
            )
        # By then every process has heard of it, and what was shown elsewhere until it did every
        # replica has that may serve at all.
        heard = self._interval + max(self._interval, min(ttl, _MOST_TTL))
        settles_at = now + heard + get_config().MAX_LAG if before else -math.inf
        return Found(self._entry, aliases, tuple(left[-_FORMER_KEPT:]), tuple(before), settles_at)

    def _drain(self) -> None:
        """End what is left of servers that the name leads to no more, where nothing runs any more."""
        found = find_found(self._template)
        if found is None or found.entry != self._entry:
            return
        idle, busy = {self._template, *found.former}, set()
        for connection in [made for ref in _made.valuerefs() if (made := ref()) is not None]:
            if connection.alias in idle and connection.connection is not None:
                if connection.alias != self._template:  # which the code may name
                    # Django closes it as it does one that is too old: when its thread is done with
                    # the request or task.
                    connection.close_at = 0.0
                busy.add(connection.alias)
        idle -= busy
        with self._lock:
            if self._ended.is_set():
                return
            _hide_settings(self._template, found, idle)
        for alias in idle & self._monitor.known.readings.keys():
            poller = self._monitor.remove(alias)
            if poller is not None:
                self._ending[alias] = poller
        for pool in _pools_of({*found.former} & idle):
            pool.close_pool()


def alias_of(template: str, server: Server) -> str:
    """Return the alias of a server that was found: the same in every process."""
    if server.port is None:
        return f"{template}@{server.address}"
    host = f"[{server.address}]" if ":" in server.address else server.address
    return f"{template}@{host}:{server.port}"


def _add_settings(template: str, servers: Mapping[str, Server]) -> None:
    """Let Django know the settings of servers that were found.

    Others may go through the settings at this moment: so these are not changed, but replaced.
    """
    old: Any = connections.settings
    former = dict(getattr(old, "former", {}))
    added = {
        alias: former.pop(alias, None) or _settings_of(old[template], server)
        for alias, server in servers.items()
        if alias not in [*old]
    }
    connections.settings = Databases({**old, **added}, former)


def _hide_settings(template: str, found: Found, idle: Collection[str]) -> None:
    """Have Django go through no settings of servers that are gone, but those with open connections."""
    old: Any = connections.settings
    known = {**getattr(old, "former", {}), **old}
    mine = {alias for alias in known if alias.startswith(f"{template}@")}
    hidden = {alias for alias in found.former if alias in idle}
    forgotten = mine - {*found.aliases, *found.former}
    if hidden == mine & getattr(old, "former", {}).keys() and not forgotten:
        return
    hidden |= getattr(old, "former", {}).keys() - mine
    connections.settings = Databases(
        {alias: of for alias, of in known.items() if alias not in hidden | forgotten},
        {alias: of for alias, of in known.items() if alias in hidden},
    )


def _settings_of(template: Mapping[str, Any], server: Server) -> dict[str, Any]:
    """Return the settings of one server.

    The name of the host stays: by it TLS knows the server, and ``.pgpass`` the password ("hostaddr" in
    libpq's manual). That the alias mirrors the primary is for tests, and for telling replicas.
    """
    return {
        **template,
        "PORT": template["PORT"] if server.port is None else str(server.port),
        "OPTIONS": {**template["OPTIONS"], "hostaddr": server.address},
        "TEST": {**template["TEST"], "MIRROR": None},
    }


def _pools_of(aliases: Collection[str]) -> list[Any]:
    """Return a connection object of each of these aliases that has a pool of psycopg's."""
    pools: Mapping[str, Any] = vars(DatabaseWrapper)["_connection_pools"]
    return [connections.create_connection(alias) for alias in pools.keys() & aliases]
