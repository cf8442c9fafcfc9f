"""Whether a site can serve now, by what this process knows. It asks nobody."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from django.db import DEFAULT_DB_ALIAS

from django_replica_router.conf import Config, get_config
from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.health import DOWN, LAGGING
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.registry import get_monitor
from django_replica_router.status.servers import LAGS, MAY_LAG, ServerStatus, describe

STANDS_IN = "the primary does not answer, and replicas serve reads in its place"


class Trouble(NamedTuple):
    """Why a site cannot serve, or not as well as it might.

    Args:
        alias: of the server.
        state: name of its state.
        sentence: what that means. It names no address.
    """

    alias: str
    state: str
    sentence: str


class Verdict(NamedTuple):
    """Whether a site can serve.

    Args:
        serve: each cluster has a server that answers what a request asks.
        age: seconds since the primary has last answered; of several, the longest; None where one never has.
        reasons: of each server that does not serve. Where the site serves all the same, others do.
    """

    serve: bool
    age: float | None
    reasons: tuple[Trouble, ...]


def judge(primaries: Iterable[str]) -> Verdict:
    """Return whether the site can serve. What is not known is not in health.

    It takes no longer than looking into what this process's monitors know, and starts those that do not run.

    Args:
        primaries: aliases of the primaries that it needs.
    """
    config = get_config()
    verdicts = [_judge(get_monitor(primary), config) for primary in primaries]
    ages = [verdict.age for verdict in verdicts]
    known = [age for age in ages if age is not None]
    return Verdict(
        bool(verdicts) and all(verdict.serve for verdict in verdicts),
        max(known) if known and len(known) == len(ages) else None,
        tuple(trouble for verdict in verdicts for trouble in verdict.reasons),
    )


def needed_primaries() -> Sequence[str]:
    """Return the aliases of the primaries of all clusters; of a site without any, its default database."""
    return list(get_config().topology.clusters) or [DEFAULT_DB_ALIAS]


def _judge(monitor: Monitor, config: Config) -> Verdict:
    primary, *replicas = describe(monitor).servers
    answered_at = monitor.known.history.sampled_at
    age = monitor.clock() - answered_at if math.isfinite(answered_at) else None
    may_stand_in = config.PRIMARY_DOWN == "replicas" and not config.routes_nobody
    has_stand_in = primary.state == DOWN and may_stand_in and any(map(_answers, replicas))
    serves = primary.serves or has_stand_in
    troubles: list[Trouble] = []
    if not primary.serves:
        sentence = STANDS_IN if serves else primary.sentence
        troubles.append(Trouble(primary.alias, primary.state, sentence))
    troubles += _troubles(replicas)
    return Verdict(serves, age, tuple(troubles))


def _answers(replica: ServerStatus) -> bool:
    """Tell whether a replica may stand in for the primary: however old its data is."""
    return replica.state in (ReplicaState.STREAMING.name, LAGGING)


def _troubles(replicas: Sequence[ServerStatus]) -> Iterator[Trouble]:
    serving = {replica.alias for replica in replicas if replica.serves}
    told: set[str] = set()
    for replica in replicas:
        if replica.alias not in serving | told:
            told.add(replica.alias)
            yield Trouble(replica.alias, replica.state, sentence_of(replica))


def sentence_of(server: ServerStatus) -> str:
    """Return what the state of a server means, without any remark.

    Args:
        server: as it is known.
    """
    if server.state == LAGGING:
        return MAY_LAG if server.seconds_behind is None else LAGS
    if server.role == "primary":
        return server.sentence
    return ReplicaState[server.state].value
