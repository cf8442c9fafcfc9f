"""Management commands where the setting cannot be read: the check tells why, and each ends in a sentence."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.core.management.base import SystemCheckError

from django_replica_router import commands
from django_replica_router.conf import SettingError, get_config
from django_replica_router.management import shared
from django_replica_router.routers import ReplicaRouter
from testproject.cluster import Cluster

MISSPELLED = {"MAXLAG": 1}
TOLD = r"REPLICA_ROUTER has the unknown key 'MAXLAG'\."

CHECKS: dict[str, dict[str, Any]] = {
    "check": {},
    "check of each database": {"databases": ["default", "replica1"]},
    "migrate": {"skip_checks": False},
    "loaddata": {"skip_checks": False, "database": "replica1"},
}
"""What is called by Django's commands, which check."""

OURS: dict[str, tuple[str, ...]] = {
    "replica_explain": ("notes.Note",),
    "replica_learned": (),
    "replica_status": (),
    "replica_wait": (),
}
"""What the package's own commands are called with."""


def call(name: str) -> None:
    """Call one of Django's commands."""
    command = name.split()[0]
    args = ["notes"] if command == "loaddata" else []
    call_command(command, *args, **CHECKS[name], stdout=StringIO(), stderr=StringIO())


@pytest.mark.parametrize("name", CHECKS)
def test_a_misspelled_key_is_told_by_the_check(name: str, cluster: Cluster, settings: Any) -> None:
    """The list of all findings tells it, and no traceback of whoever reads the setting first."""
    settings.REPLICA_ROUTER = MISSPELLED
    with pytest.raises(SystemCheckError, match=rf"\(django_replica_router\.E002\) {TOLD}"):
        call(name)


@pytest.mark.parametrize("name", OURS)
def test_the_commands_of_the_package_end_in_a_sentence(name: str, settings: Any) -> None:
    """They do not check, so as to tell of servers also where a check fails."""
    settings.REPLICA_ROUTER = MISSPELLED
    with pytest.raises(CommandError, match=rf"^{TOLD} Use one of: "):
        call_command(name, *OURS[name])


def test_a_balancer_that_is_not_there_ends_an_explanation_in_a_sentence(
    cluster: Cluster, settings: Any
) -> None:
    """It is looked for by the first read that it is to rank replicas for."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "BALANCER": "nowhere.fastest"}
    with pytest.raises(
        CommandError, match=r"^REPLICA_ROUTER\['BALANCER'\] names 'nowhere.fastest'"
    ):
        call_command("replica_explain", "notes.Note")


def test_nothing_is_migrated_without_checks(cluster: Cluster, settings: Any) -> None:
    """Whether an alias is a replica is not known then."""
    settings.REPLICA_ROUTER = MISSPELLED
    with pytest.raises(SettingError, match=TOLD):
        call_command("migrate", database="replica1", skip_checks=True, verbosity=0)


# Negative controls


def test_control_of_the_guard(cluster: Cluster, settings: Any) -> None:
    """Where the guard of commands insists on the setting, no check begins."""
    settings.REPLICA_ROUTER = MISSPELLED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            commands, "_is_replica", lambda alias: get_config().topology.is_replica(alias)
        )
        with pytest.raises(SettingError, match=TOLD):
            call("check")


def test_control_of_the_router(cluster: Cluster, settings: Any) -> None:
    """Where the router insists on it, the checks of models end in its error."""

    def insist(self: ReplicaRouter, db: str, app_label: str, **hints: Any) -> None:
        get_config()

    settings.REPLICA_ROUTER = MISSPELLED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplicaRouter, "allow_migrate", insist)
        with pytest.raises(SettingError, match=TOLD):
            call("check of each database")


def test_control_of_the_sentence(settings: Any) -> None:
    """Where nothing turns it into one, the error is the setting's."""
    settings.REPLICA_ROUTER = MISSPELLED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "ConfigurationError", CommandError)
        with pytest.raises(SettingError, match=TOLD):
            call_command("replica_status")
