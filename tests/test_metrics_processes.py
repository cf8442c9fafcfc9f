"""What exporters tell of a site of several processes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from django_replica_router.contrib.prometheus.publishing import Publisher
from django_replica_router.stats import count, pop_stats
from testproject.cluster import Cluster
from testproject.cluster.server import free_port
from testproject.notes.models import Note
from tests.conftest import wait_until
from tests.monitoring import Exported, parse, scrape, value, values
from tests.programs import environment
from tests.servers import Service, running


class Site(NamedTuple):
    """A site of two workers, and the folder in which they publish."""

    service: Service
    folder: Path

    def metrics(self) -> Exported:
        """Return what it tells Prometheus."""
        answer = self.service.client.get("/metrics/")
        assert answer.status_code == 200
        return parse(answer.text)

    def reads(self) -> float:
        """Return how many decisions it has told of."""
        return sum(values(self.metrics(), "replica_router_reads_total"))

    def read(self, times: int) -> set[str]:
        """Have notes read, and return the process ids of the workers that have."""
        pages = [
            self.service.client.get("/visited/", headers={"Connection": "close"})
            for _ in range(times)
        ]
        assert {page.status_code for page in pages} == {200}
        return {page.headers["X-Worker"] for page in pages}

    def living(self) -> set[str]:
        """Return the process ids whose gauges are told."""
        return {file.stem.rpartition("_")[2] for file in self.folder.glob("gauge_*.db")}


@contextmanager
def serving(cluster: Cluster, folder: Path, *options: str) -> Iterator[Site]:
    """Serve the site from two workers of gunicorn."""
    port, published = free_port(), folder / "published"
    published.mkdir()
    arguments = ["-m", "gunicorn", "-w", "2", "-b", f"127.0.0.1:{port}", *options]
    arguments += ["-c", "python:tests.metrics_gunicorn", "testproject.wsgi"]
    variables = environment(cluster, settings="tests.metrics_settings")
    variables["PROMETHEUS_MULTIPROC_DIR"] = str(published)
    with running(arguments, port, folder / "log", variables) as service:
        service.wait_until_it_answers("/metrics/")
        yield Site(service, published)


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["plain", "preload"])
def test_workers_are_told_of_as_one(
    healed: Cluster, note: Note, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """What an ended worker has counted stays, its gauges go, and a stopped replica shows."""
    with serving(healed, tmp_path, *options) as site:
        done = 0
        workers: set[str] = set()
        while len(workers) < 2:
            workers |= site.read(10)
            done += 10
        wait_until(lambda: site.reads() == done, "both workers to tell all that they have counted")
        wait_until(lambda: workers <= site.living(), "both to tell of the servers")
        exported = site.metrics()
        assert value(exported, "replica_router_primary_up") == 1
        assert values(exported, "replica_router_replica_serves") == [1, 1]
        assert all(lag >= 0 for lag in values(exported, "replica_router_replica_lag_seconds"))

        # A worker ends in good order, right after it has counted: nothing is lost.
        done += 1
        ended = site.service.client.get("/end/").text
        wait_until(lambda: ended not in site.living(), "its gauges to be gone")
        wait_until(lambda: site.reads() == done, "all that was counted to be told")

        healed.replicas[0].stop()

        def is_told() -> bool:
            exported = site.metrics()
            serves = value(exported, "replica_router_replica_serves", alias="replica1")
            lag = value(exported, "replica_router_replica_lag_seconds", alias="replica1")
            return serves == 0 and (lag is None or math.isnan(lag))

        wait_until(is_told, "the replica to be told of as one that does not serve")
        assert value(site.metrics(), "replica_router_replica_serves", alias="replica2") == 1


FORK = """
import os, sys, time
import django
from prometheus_client import REGISTRY
from django_replica_router.contrib.prometheus import publishing
from django_replica_router.stats import count
publishing.EVERY = 0.01
django.setup()
count("wal_flushes", "wal_flushes")
deadline = time.monotonic() + 20.0
while REGISTRY.get_sample_value("replica_router_wal_flushes_total") != 2:
    assert time.monotonic() < deadline
    time.sleep(0.01)
child = os.fork()
count("wal_flushes")
if child == 0:
    sys.exit(0)
os.waitpid(child, 0)
"""


def test_a_forked_process_tells_what_it_has_counted_itself(tmp_path: Path) -> None:
    """And what its parent had counted is told once."""
    published = tmp_path / "published"
    published.mkdir()
    variables = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.metrics_settings",
        "PROMETHEUS_MULTIPROC_DIR": str(published),
    }
    subprocess.run([sys.executable, "-W", "error", "-c", FORK], env=variables, check=True)
    told = read_folder(published)
    assert value(told, "replica_router_wal_flushes_total") == 4


def test_counts_that_somebody_pops_are_told_all_the_same() -> None:
    """They begin anew, and what is told goes on."""
    registry = CollectorRegistry()
    publisher = Publisher(registry)
    for number in (3, 1, 2):
        count(*["tokens_refused"] * number)
        publisher.publish()
        publisher.publish()  # nothing new: nothing is told twice
        pop_stats()
    assert registry.get_sample_value("replica_router_tokens_refused_total") == 6


def read_folder(folder: Path) -> Exported:
    """Return what is told of the files of all processes."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))
    return scrape(registry)
