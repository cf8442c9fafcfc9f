"""The alias of a replica that the package has chosen, told from one that the code itself names."""

from __future__ import annotations

from functools import lru_cache


class RoutedAlias(str):
    """What ``db_for_read`` returns for a replica: its alias, and that nobody else has named it.

    Django keeps it in ``instance._state.db`` and ``QuerySet._db``, and passes it on as it is. So a
    query that Django sends by it, past the router, is known as one that the router may lead; an
    alias that the code writes down is a plain text, and is obeyed.

    An object of a replica counts as the primary's wherever Django compares where two come from,
    which it does by ``!=`` (``add()`` of a related manager, a subquery): no alias of the same cluster
    is unequal. Copied or pickled it is the primary's alias, which every process has, and which
    leads a cached object to nobody that lags, or is down.

    Args:
        alias: of the replica.
        primary: alias of its primary.
        cluster: the aliases of both, and of the other replicas at this moment.
    """

    __slots__ = ("cluster", "primary")

    primary: str
    cluster: frozenset[str]

    def __new__(cls, alias: str, primary: str, cluster: frozenset[str]) -> RoutedAlias:
        """Return the alias."""
        routed = super().__new__(cls, alias)
        routed.primary, routed.cluster = primary, cluster
        return routed

    def __ne__(self, other: object) -> bool:
        """Tell whether the other is the alias of another cluster, or none at all."""
        if isinstance(other, RoutedAlias) and other.primary == self.primary:
            return False  # also one that has come, or gone, since
        return not (isinstance(other, str) and str(other) in self.cluster)

    __eq__ = str.__eq__
    __hash__ = str.__hash__

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Copy and pickle as the primary's alias."""
        return str, (self.primary,)


@lru_cache(maxsize=1024)
def routed_alias(alias: str, primary: str, replicas: tuple[str, ...]) -> RoutedAlias:
    """Return the alias of a replica that the package has chosen.

    Args:
        alias: of the replica.
        primary: alias of its primary.
        replicas: aliases of all replicas of that, also of those that nobody is sent to.
    """
    return RoutedAlias(alias, primary, frozenset([primary, *replicas]))
