"""The servers that a DNS name leads to. The only module that knows dnspython."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MOST = 64
"""Servers of one name that are used. Each costs a thread, and a connection, in every process."""

_LIFETIME = 3.0
"""Seconds in which a question must be answered."""


class Server(NamedTuple):
    """Where a server listens.

    Args:
        address: its IP address.
        port: its port, or None where the name tells none.
    """

    address: str
    port: int | None = None


class Answer(NamedTuple):
    """What a name leads to.

    Args:
        servers: each once, in an order that depends on nothing else.
        ttl: seconds for which that holds.
        is_cut: there are more of them than are used.
    """

    servers: tuple[Server, ...]
    ttl: float
    is_cut: bool = False


def is_available() -> bool:
    """Tell whether names can be looked up at all, for which dnspython must be installed."""
    try:
        import dns.resolver  # noqa: F401
    except ImportError:
        return False
    return True


def look_up(entry: Mapping[str, Any]) -> Answer:
    """Return the servers that a name leads to; none where it has no record of the type.

    Of an SRV record neither priority nor weight counts: whether a server may serve is for the monitor
    to say, and its weight is that of the alias.

    Args:
        entry: a value of the setting ``DISCOVERY``.

    Raises:
        Exception: the name cannot be resolved. Nothing is known of its servers then, not even of
            those for which an answer came.
    """
    questions = _Questions(entry)
    if entry.get("TYPE") != "SRV":
        kinds = [entry["TYPE"]] if "TYPE" in entry else ["A", "AAAA"]
        found = {Server(address) for address in questions.addresses(entry["NAME"], kinds)}
        return _answer(found, questions.ttl)
    targets = sorted(questions.targets(entry["NAME"]))
    servers = {
        Server(address, port or None)  # Consul tells port 0 of a service that has none
        for target, port in targets[:MOST]
        for address in questions.addresses(target, ["A", "AAAA"], may_be_missing=True)
    }
    return _answer(servers, questions.ttl, is_cut=len(targets) > MOST)


def _answer(found: Iterable[Server], ttl: float, *, is_cut: bool = False) -> Answer:
    servers = sorted(found, key=_place)
    return Answer(tuple(servers[:MOST]), ttl, is_cut or len(servers) > MOST)


def _place(server: Server) -> tuple[int, int, int]:
    address = ipaddress.ip_address(server.address)
    return address.version, int(address), server.port or 0


class _Questions:
    """What is asked of a name server for one answer."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        import dns.resolver

        nameserver = entry.get("NAMESERVER")
        # Made anew each time: the file that tells the system's name servers may have changed.
        self._resolver = dns.resolver.Resolver(configure=nameserver is None)
        if nameserver is not None:
            self._resolver.nameservers = [nameserver]
        self._resolver.port = entry.get("PORT", 53)
        self._resolver.lifetime = _LIFETIME
        self._may_search = nameserver is None
        self.ttl = math.inf

    def targets(self, name: str) -> set[tuple[str, int]]:
        """Return the names, and ports, that a name's SRV records tell."""
        records = self._ask(name, "SRV")
        # A lone "." says that there is no such service (RFC 2782).
        return {(str(r.target), r.port) for r in records if str(r.target) != "."}

    def addresses(
        self, name: str, kinds: Iterable[str], *, may_be_missing: bool = False
    ) -> set[str]:
        """Return the addresses of a name."""
        import dns.resolver

        try:
            return {str(record.address) for kind in kinds for record in self._ask(name, kind)}
        except dns.resolver.NXDOMAIN:
            if not may_be_missing:
                raise
            return set()  # one that has just gone, while the record that names it has not yet

    def _ask(self, name: str, kind: str) -> Any:
        """Return the records: over TCP, or else over UDP.

        An answer over UDP need not be whole: Consul picks three records at random, and does not say so.
        """
        import dns.exception
        import dns.resolver

        for tcp in (True, False):
            try:
                answer = self._resolver.resolve(
                    name, kind, tcp=tcp, search=self._may_search, raise_on_no_answer=False
                )
                break
            except (dns.resolver.NoNameservers, dns.exception.Timeout):
                if not tcp:
                    raise
        self.ttl = min(self.ttl, answer.chaining_result.minimum_ttl)
        return answer
