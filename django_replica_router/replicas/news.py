"""What is new of a replica, told to the site: by the log, and by signals."""

from __future__ import annotations

import logging
from typing import NamedTuple

from django_replica_router import signals
from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.mirrors import is_test_mirror
from django_replica_router.replicas.readings import Reading

logger = logging.getLogger("django_replica_router")


class News(NamedTuple):
    """A server is in another state than before."""

    key: str
    before: ReplicaState
    state: ReplicaState
    detail: str

    def tell(self, alias: str, primary: str, *, has_another: bool) -> None:
        """Tell it. Signals tell of aliases: not where another server behind the alias serves."""
        if self.state is ReplicaState.STREAMING:
            logger.info(
                "Replica %r serves.",
                self.key,
                extra={
                    "event": "replica_restored",
                    "alias": alias,
                    "server": self.key,
                    "primary": primary,
                },
            )
            if not has_another:
                signals.replica_restored.send_robust(sender=alias)
        elif self.state is ReplicaState.PRIMARY and is_test_mirror(alias, primary):
            logger.debug("Replica %r is a mirror, as in every test run.", alias)
        else:
            logger.warning(
                "Replica %r does not serve: %s. %s",
                self.key,
                self.state.value,
                self.detail,
                extra={
                    "event": "replica_lost",
                    "alias": alias,
                    "server": self.key,
                    "primary": primary,
                    "state": self.state.name,
                },
            )
            if self.before is ReplicaState.STREAMING and not has_another:
                # Else there is only another reason.
                signals.replica_lost.send_robust(sender=alias, state=self.state)


def tell_remark(key: str, old: Reading, reading: Reading, primary: str) -> None:
    """Tell what is unusual about a server, where that is new."""
    # The news of one that does not serve tells it as well.
    is_told = reading.state not in (old.state, ReplicaState.STREAMING)
    if reading.remark != old.remark and not is_told and not is_test_mirror(key, primary):
        logger.warning(
            "Replica %r: %s.",
            key,
            reading.remark or "nothing unusual any more",
            extra={
                "event": "replica_remark",
                "server": key,
                "primary": primary,
                "remark": reading.remark,
            },
        )
