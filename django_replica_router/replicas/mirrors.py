"""Aliases that are no server of their own, as Django's test runner makes them."""

from __future__ import annotations

from django.db import connections

from django_replica_router.sql.opening import is_under_test

_ADDRESS = ("HOST", "PORT", "NAME")


def differences(alias: str, primary: str) -> list[str]:
    """Return which parts of the address of a replica's alias are not those of its primary.

    None are different in a test run, where Django points a mirror to the test database of what it
    mirrors. It copies only the name: host and port stay what the settings say.
    """
    mine, others = connections[alias].settings_dict, connections[primary].settings_dict
    different = [part for part in _ADDRESS if str(mine[part]) != str(others[part])]
    if mine["OPTIONS"].get("hostaddr") != others["OPTIONS"].get("hostaddr"):
        different.append("hostaddr")
    return different


def is_mirror(alias: str, primary: str) -> bool:
    """Tell whether both aliases are one database."""
    return not differences(alias, primary)


def is_test_mirror(alias: str, primary: str) -> bool:
    """Tell whether an alias is its primary because Django's test runner has made it so."""
    return (
        is_under_test()
        and alias in connections
        and bool(connections.settings[alias].get("TEST", {}).get("MIRROR"))
        and is_mirror(alias, primary)
    )
