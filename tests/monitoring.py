"""What is exported, as whoever scrapes it reads it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

Exported = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(page: str) -> Exported:
    """Return the value of each series of a page of metrics."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def scrape(registry: CollectorRegistry) -> Exported:
    """Return the value of each series of a registry."""
    return parse(generate_latest(registry).decode())


def values(exported: Exported, name: str, **labels: str) -> list[float]:
    """Return the values of a metric's series that have these labels."""
    wanted = labels.items()
    return [value for (one, has), value in exported.items() if one == name and wanted <= has]


def value(exported: Exported, name: str, **labels: str) -> float | None:
    """Return the value of the one series that has these labels, or None where there is none."""
    found = values(exported, name, **labels)
    assert len(found) < 2, found
    return found[0] if found else None


def names(exported: Iterable[Any]) -> set[str]:
    """Return the names of the package's metrics among what is exported."""
    return {name for name, labels in exported if name.startswith("replica_router_")}
