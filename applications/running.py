"""Runs an application on one database and on replicas that lag, and compares what people were shown."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from applications import environments
from applications.application import Application, Workplace
from applications.visit import Step, Visit
from testproject.cluster import Cluster
from testproject.cluster.gunicorn import serving
from testproject.cluster.programs import ROOT

SETTLE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How applications are run.

    Args:
        lag: seconds that replicas are behind.
        pace: seconds from one step of a person to the next.
        environments: directory of the environments.
        has_recipe: whether each gets the settings that the docs tell beside the README's.
    """

    lag: float
    pace: float
    environments: Path
    has_recipe: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What two runs of one application have shown.

    Args:
        name: of the application.
        alone: the steps on one database.
        routed: the same on replicas that lag.
    """

    name: str
    alone: list[Step]
    routed: list[Step]

    def differences(self) -> list[str]:
        """Return a sentence for each step that has shown something else."""
        found = [] if len(self.alone) == len(self.routed) else ["There are not as many steps."]
        for number, (routed, alone) in enumerate(zip(self.routed, self.alone, strict=False), 1):
            if difference := routed.difference(alone):
                found.append(f"{number}. {routed.who} {routed.does}: {difference}")
        return found

    def failures(self) -> list[str]:
        """Return a sentence for each step that a server's error has answered."""
        return [
            f"{step.who} {step.does}: {step.status}"
            for step in (*self.alone, *self.routed)
            if step.status >= 500
        ]

    def reads(self) -> Counter[str]:
        """Return how many SELECTs each alias has served, with replicas."""
        return sum((step.reads for step in self.routed), Counter())

    def share(self) -> float:
        """Return the share of SELECTs that replicas have served."""
        reads = self.reads()
        return 1.0 - reads["default"] / max(1, reads.total())


def run(application: Application, plan: Plan) -> Outcome:
    """Use an application on one database, and on replicas."""
    python = environments.create(plan.environments / application.name, application.requirements)
    alone = _steps(application, plan, python, replicas=0)
    routed = _steps(application, plan, python, replicas=2)
    return Outcome(application.name, alone, routed)


def _steps(application: Application, plan: Plan, python: Path, *, replicas: int) -> list[Step]:
    """Use it on servers of its own, and return what people were shown."""
    with (
        tempfile.TemporaryDirectory() as directory,
        Cluster(replicas=replicas, databases=("app",)) as cluster,
    ):
        environ = _environ(application, plan, cluster, Path(directory))
        place = Workplace(Path(directory), python, environ)
        application.create(place)
        place.django("migrate", "--verbosity", "0")
        application.fill(place)
        cluster.wait_caught_up()
        with serving(
            application.wsgi, environ, workers=2, page=application.page, python=str(python)
        ) as site:
            _settle(site.url, application.page, replicas)
            for replica in cluster.replicas:
                replica.set_delay(plan.lag)
            visit = Visit(site.url, plan.pace if replicas else 0.0, cluster.wait_caught_up)
            application.walk(visit)
            return visit.steps


def _settle(url: str, page: str, replicas: int) -> None:
    """Have somebody read on until replicas serve: each worker has to get to know the servers first."""
    reader = Visit(url, 0.1, lambda: None).person("anybody")
    deadline = time.monotonic() + SETTLE_SECONDS
    quiet = 0
    while replicas and quiet < 5 and time.monotonic() < deadline:
        reads = reader.open(page).reads
        quiet = quiet + 1 if not reads["default"] else 0


def _environ(
    application: Application, plan: Plan, cluster: Cluster, directory: Path
) -> dict[str, str]:
    assert cluster.cache is not None
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": application.settings,
        "PYTHONPATH": os.pathsep.join([str(directory), str(ROOT)]),
        "APPLICATIONS_DATABASES": json.dumps(cluster.django_databases()),
        "APPLICATIONS_CACHE_URL": cluster.cache.url,
        "APPLICATIONS_RECIPE": json.dumps(
            {**application.recipe_of_its_own, "REPLICA_ROUTER": application.recipe}
            if plan.has_recipe
            else {}
        ),
    }
