"""The kinds of site that are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from testproject.cluster.binaries import locate_proxy

WRITE_SHARE = 0.1
CLICKING = (0.2, 0.6)
FASTER_THAN_LAG = (0.2, 0.4)
FIVE_A_SECOND = (0.15, 0.25)
TWO_A_SECOND = (0.4, 0.6)

SAVED_SESSIONS = {"SESSION_SAVE_EVERY_REQUEST": True}
PROXIES = {"roundrobin": "haproxy", "session": "pgbouncer", "transaction": "pgbouncer"}


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One kind of site.

    Args:
        name: what tables call it.
        lag: seconds by which both standbys delay each commit.
        target: the share of what the oracle serves that replicas are to serve; None for one that
            stands beside another.
        of_all: the target is a share of all SELECTs.
        contender: who routes.
        clicking: seconds between two clicks of a user.
        write_share: the part of the requests that write.
        settings: of Django.
        router: ``REPLICA_ROUTER``.
        primary: settings of the primary's alias.
        entrance: what hides both standbys behind one alias: "roundrobin" is HAProxy in that mode,
            "session" and "transaction" are a PgBouncer in that mode.
    """

    name: str
    lag: float = 0.1
    target: float | None = None
    of_all: bool = False
    contender: str = "package"
    clicking: tuple[float, float] = CLICKING
    write_share: float = WRITE_SHARE
    settings: Mapping[str, Any] = field(default_factory=dict)
    router: Mapping[str, Any] = field(default_factory=dict)
    primary: Mapping[str, Any] = field(default_factory=dict)
    entrance: str = ""

    @property
    def lag_text(self) -> str:
        """Return the lag as tables show it."""
        return f"{self.lag * 1000:g} ms"

    @property
    def missing(self) -> str | None:
        """Return why it cannot run, or None."""
        program = PROXIES.get(self.entrance)
        if program is None or (locate_proxy(program) and locate_proxy("haproxy")):
            return None
        return f"{program} or haproxy is not installed"


_SHOP = {**SAVED_SESSIONS, "FURTHER_QUERIES": 12}
_SESSIONS_ONLY = {"PRIMARY_ONLY": ["sessions"]}

SITES = (
    Site("as in the README", target=1.0),
    Site("as in the README, a random router", contender="random"),
    Site("ATOMIC_REQUESTS", target=0.95, primary={"ATOMIC_REQUESTS": True}),
    Site("one endpoint, HAProxy", target=0.95, entrance="roundrobin"),
    Site("one endpoint, PgBouncer, session mode", target=0.95, entrance="session"),
    Site("one endpoint, PgBouncer, transaction mode", target=0.95, entrance="transaction"),
    Site(
        "sessions saved on every request",
        lag=0.5,
        clicking=FASTER_THAN_LAG,
        settings=SAVED_SESSIONS,
    ),
    Site(
        'sessions saved on every request, PRIMARY_ONLY ["sessions"]',
        lag=0.5,
        target=0.9,
        clicking=FASTER_THAN_LAG,
        settings=SAVED_SESSIONS,
        router=_SESSIONS_ONLY,
    ),
    Site("five clicks a second", lag=1.0, target=0.9, clicking=FIVE_A_SECOND, write_share=0.05),
    Site(
        "five clicks a second, MONOTONIC_SHARE 1",
        lag=1.0,
        clicking=FIVE_A_SECOND,
        write_share=0.05,
        router={"MONOTONIC_SHARE": 1.0},
    ),
    Site(
        "five clicks a second, MONOTONIC_READS False",
        lag=1.0,
        clicking=FIVE_A_SECOND,
        write_share=0.05,
        router={"MONOTONIC_READS": False},
    ),
    Site("a shop", lag=1.0, clicking=TWO_A_SECOND, write_share=0.05, settings=_SHOP),
    Site(
        'a shop, PRIMARY_ONLY ["sessions"]',
        lag=1.0,
        target=0.7,
        of_all=True,
        clicking=TWO_A_SECOND,
        write_share=0.05,
        settings=_SHOP,
        router=_SESSIONS_ONLY,
    ),
    Site("a shop", clicking=TWO_A_SECOND, write_share=0.05, settings=_SHOP),
)

QUICK = tuple(
    site
    for site in SITES
    if site.name
    in {"as in the README", "as in the README, a random router", "one endpoint, HAProxy"}
)
