"""What the log tells programs."""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path

import pytest

import django_replica_router
from django_replica_router.logs import fields
from django_replica_router.replicas.registry import stop_monitors
from testproject.cluster import Cluster
from tests.conftest import wait_until, wait_until_routed

PACKAGE = Path(django_replica_router.__file__).parent
DOCS = PACKAGE.parent / "docs"
LEVELS = {"info": "INFO", "warning": "WARNING", "error": "ERROR", "exception": "ERROR"}

Event = tuple[str, str, tuple[str, ...]]


def told_by_the_code() -> list[Event]:
    """Return event, level and fields of each call that logs; a call without them fails."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if ast.unparse(node.func.value) != "logger" or node.func.attr not in LEVELS:
                continue
            extra = {one.arg: one.value for one in node.keywords}.get("extra")
            where = f"{file}:{node.lineno}"
            assert isinstance(extra, ast.Call), f"{where} has no fields"
            assert ast.unparse(extra.func) == "fields", f"{where} makes them by itself"
            event, *error = extra.args
            names = [*(str(one.arg) for one in extra.keywords), *(["error"] if error else [])]
            found.append((str(ast.literal_eval(event)), LEVELS[node.func.attr], tuple(names)))
    return found


def test_each_event_is_documented() -> None:
    """With its level and its fields, and no other one is."""
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \|([^|]*)\| [^|]+ \|$",
        (DOCS / "logging.md").read_text(),
        re.MULTILINE,
    )
    documented = [
        (event, level, tuple(re.findall(r"\w+", fields))) for event, level, fields in rows
    ]
    assert len(documented) == len(set(documented))
    assert set(told_by_the_code()) == set(documented)


@pytest.mark.parametrize("error", [None, ValueError("a"), KeyboardInterrupt()])
def test_fields_are_the_event_the_others_and_the_class_of_the_error(
    error: BaseException | None,
) -> None:
    """That of an error is told only where one was raised."""
    told = {"event": "seen", "alias": "replica1"}
    if error is not None:
        told["error"] = type(error).__name__
    assert fields("seen", error, alias="replica1") == told


def test_no_field_takes_the_place_of_another() -> None:
    """Of those that each record of a log has."""
    taken = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
    assert not taken & {field for event, level, fields in told_by_the_code() for field in fields}


def test_events_that_alert_rules_name_are_there() -> None:
    """Whoever is alerted finds them in the log."""
    rules = (DOCS / "monitoring" / "prometheus-rules.yml").read_text()
    named = re.findall(r"(?:log for|log names the \w+ under) (\w+)", rules)
    assert len(named) >= 3
    assert set(named) <= {event for event, level, fields in told_by_the_code()}


def test_a_replica_that_is_lost_and_comes_back_is_told_of_by_fields(
    healed: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """As is the primary."""
    caplog.set_level(logging.INFO, "django_replica_router")

    def told(event: str) -> list[dict[str, object]]:
        return [vars(record) for record in caplog.records if vars(record).get("event") == event]

    stop_monitors()
    wait_until_routed()
    healed.replicas[0].stop()
    wait_until(lambda: told("replica_lost"), "the loss of the replica to be told")
    lost = told("replica_lost")[0]
    assert (lost["alias"], lost["primary"], lost["levelname"]) == ("replica1", "default", "WARNING")
    assert lost["state"] in ("UNREACHABLE", "SILENT")
    caplog.clear()
    healed.replicas[0].start()
    wait_until(lambda: told("replica_restored"), "its return to be told")
    assert told("replica_restored")[0]["alias"] == "replica1"
    healed.primary.stop()
    wait_until(lambda: told("primary_lost"), "the loss of the primary to be told")
    assert told("primary_lost")[0]["primary"] == "default"
    healed.primary.start()
    wait_until(lambda: told("primary_restored"), "its return to be told")
