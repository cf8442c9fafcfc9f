"""The dashboard and the alert rules are about what is exported."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from django_replica_router.policy import Reason
from django_replica_router.status.metrics import AT_ONCE, CAUSES, METRICS, Kind, Metric

ROOT = Path(__file__).resolve().parent.parent
MONITORING = ROOT / "docs" / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text())
RULES_FILE = MONITORING / "prometheus-rules.yml"
RULES = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES_FILE.read_text())["groups"]
    for rule in group["rules"]
}
BY_NAME = {metric.prometheus_name: metric for metric in METRICS}
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}
PROMTOOL = shutil.which("promtool")
KNOWN = {
    "reason": {reason.name for reason in Reason if reason not in AT_ONCE},
    "cause": set(CAUSES),
}


def parse(expression: str) -> Any:
    """Return the tree of an expression, of Grafana too; what is no PromQL raises."""
    return promql.parse(re.sub(r"\$__(rate_interval|range)\b", "5m", expression))


def nodes(tree: Any) -> list[Any]:
    """Return all parts of an expression."""
    found: list[Any] = []
    promql.walk(tree, lambda node: found.append(node))
    return found


def metrics_in(expression: str) -> set[Metric]:
    """Return the metrics that an expression is about; one that nobody exports raises."""
    selectors = [
        node for node in nodes(parse(expression)) if isinstance(node, promql.VectorSelector)
    ]
    return {BY_NAME[str(selector.name)] for selector in selectors}


def check(expression: str) -> None:
    """See that an expression is about labels and values that there are, and that only counters have a rate."""
    metrics = metrics_in(expression)
    assert metrics, expression
    labels = {label for metric in metrics for label in metric.labels}
    for node in nodes(parse(expression)):
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            assert set(node.modifier.labels) <= labels, expression
        if isinstance(node, promql.VectorSelector):
            for matcher in node.matchers.matchers:
                assert matcher.name in BY_NAME[str(node.name)].labels, expression
                assert set(matcher.value.split("|")) <= KNOWN[matcher.name], expression
        if isinstance(node, promql.Call) and node.func.name in ("rate", "increase"):
            (selector,) = (one for one in nodes(node) if isinstance(one, promql.VectorSelector))
            assert BY_NAME[str(selector.name)].kind is Kind.COUNTER, expression


def kept_labels(expression: str) -> set[str]:
    """Return the labels that the result of an expression has."""
    return {
        label
        for node in nodes(parse(expression))
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None
        for label in node.modifier.labels
    }


def targets() -> Iterator[dict[str, Any]]:
    """Return the queries of the dashboard."""
    return (target for panel in DASHBOARD["panels"] for target in panel["targets"])


# The dashboard.


@pytest.mark.parametrize("title", PANELS)
def test_each_panel_shows_what_is_exported(title: str) -> None:
    """Its expressions, and the labels that its legends name."""
    panel = PANELS[title]
    assert panel["description"].endswith(".")
    for target in panel["targets"]:
        check(target["expr"])
        named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert named <= kept_labels(target["expr"])


def test_each_metric_is_on_the_dashboard() -> None:
    """None is exported that nobody would look at."""
    shown = set().union(*(metrics_in(target["expr"]) for target in targets()))
    assert shown == set(METRICS)


def test_panels_lie_beside_each_other() -> None:
    """In rows of 24 columns, with ids of their own."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells
        assert max(x for x, y in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len(PANELS) == len(DASHBOARD["panels"])


@pytest.mark.parametrize(
    "expression",
    [
        "sum(rate(replica_router_reads_total[5m])",
        "replica_router_reads",
        "sum by (aliass) (replica_router_reads_total)",
        'replica_router_decisions_total{reason="WROTE"}',
        'replica_router_decisions_total{alias="replica1"}',
        "rate(replica_router_replica_lag_seconds[5m])",
    ],
)
def test_what_is_not_exported_is_found(expression: str) -> None:
    """The control of the tests above: bad syntax, and names, labels and values that there are not."""
    with pytest.raises((AssertionError, KeyError, ValueError)):
        check(expression)


# The alert rules.


@pytest.mark.parametrize("alert", RULES)
def test_each_alert_says_what_it_means_and_what_to_do(alert: str) -> None:
    """A sentence each, about what is exported."""
    rule = RULES[alert]
    check(rule["expr"])
    assert rule["labels"]["severity"] in ("warning", "critical")
    for text in (rule["annotations"]["summary"], rule["annotations"]["description"]):
        assert re.fullmatch(r"[A-Z{].*\.", text), text
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= kept_labels(rule["expr"])


CALM = {
    'replica_router_primary_up{primary="default"}': "1+0x60",
    'replica_router_replica_serves{primary="default",alias="replica1",address="a"}': "1+0x60",
    'replica_router_replica_serves{primary="default",alias="replica2",address="b"}': "1+0x60",
    'replica_router_replica_lag_seconds{primary="default",alias="replica1",address="a"}': "1+0x60",
    'replica_router_decisions_total{reason="CAUGHT_UP"}': "0+600x60",
    'replica_router_decisions_total{reason="LAGGING"}': "0+6x60",
    'replica_router_decisions_total{reason="STORE_ERROR"}': "0+0x60",
    'replica_router_retries_total{cause="refused_write"}': "0+1x60",
    "replica_router_tokens_unstored_total": "0+0x60",
    "replica_router_writes_unlocated_total": "0+0x60",
    "replica_router_connects_failed_total": "0+0x60",
    "replica_router_saved_from_replica_total": "0+0x60",
    "replica_router_fallbacks_refused_total": "0+0x60",
}
"""Series of a site that is well, minute by minute."""

TROUBLE = {
    "ReplicaRouterPrimaryDown": {"primary_up": "1+0x10 0+0x50"},
    "ReplicaRouterNoReplicaServes": {"replica_serves": "1+0x10 0+0x50"},
    "ReplicaRouterReplicaOutOfService": {
        'replica_serves{primary="default",alias="replica2"': "1+0x10 0+0x50"
    },
    "ReplicaRouterReplicaLags": {"replica_lag_seconds": "1+0x10 7+0x50"},
    "ReplicaRouterReadsOnPrimary": {'decisions_total{reason="LAGGING"': "0+600x60"},
    "ReplicaRouterStoreDown": {'decisions_total{reason="STORE_ERROR"': "0+1x60"},
    "ReplicaRouterTokensUnstored": {"tokens_unstored_total": "0+0x55 1+0x5"},
    "ReplicaRouterWritesUnlocated": {"writes_unlocated_total": "0+0x55 1+0x5"},
    "ReplicaRouterStatementsRunAgain": {"retries_total": "0+60x60"},
    "ReplicaRouterConnectionsFail": {"connects_failed_total": "0+4x60"},
    "ReplicaRouterStaleSaves": {"saved_from_replica_total": "0+0x30 1+0x30"},
    "ReplicaRouterReadsRefused": {"fallbacks_refused_total": "0+0x55 1+0x5"},
    "ReplicaRouterNothingTold": {"decisions_total": "_x60"},
}
"""What makes each alert fire: the beginnings of series, and what those are then."""


def series_of(trouble: dict[str, str]) -> list[dict[str, str]]:
    """Return the series of a site in that trouble."""
    found = []
    for series, calm in CALM.items():
        starts = [one for one in trouble if series.startswith(f"replica_router_{one}")]
        found.append({"series": series, "values": trouble[starts[0]] if starts else calm})
    assert (
        found != [{"series": series, "values": calm} for series, calm in CALM.items()]
        or not trouble
    )
    return found


def test_each_alert_fires_in_its_trouble_and_no_other_time(tmp_path: Path) -> None:
    """By Prometheus itself, after an hour; on a site that is well none does."""
    if PROMTOOL is None:
        assert not os.environ.get("CI"), "promtool, of Prometheus, is not installed"
        pytest.skip("promtool, of Prometheus, is not installed")
    shutil.copy(RULES_FILE, tmp_path / "rules.yml")
    tests = []
    for name, trouble in {"calm": {}, **TROUBLE}.items():
        firing = {name} if name in TROUBLE else set()
        if name == "ReplicaRouterNoReplicaServes":
            firing.add("ReplicaRouterReplicaOutOfService")
        checks = [
            {
                "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) > bool 0 or vector(0)',
                "eval_time": "60m",
                "exp_samples": [{"labels": "{}", "value": int(alert in firing)}],
            }
            for alert in RULES
        ]
        tests.append(
            {
                "name": name,
                "interval": "1m",
                "input_series": series_of(trouble),
                "promql_expr_test": checks,
            }
        )
    file = tmp_path / "tests.yml"
    file.write_text(
        yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests})
    )
    command = [PROMTOOL, "test", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_its_trouble() -> None:
    """None is left out of the test above."""
    assert list(TROUBLE) == list(RULES)


# The documents.


def rows(first: str) -> list[tuple[str, ...]]:
    """Return the rows of the table of the document whose first heading that is."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    table = text.split(f"| {first} |")[1].split("\n\n")[0]
    return [
        tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in table.splitlines()[2:]
    ]


def test_each_metric_is_documented() -> None:
    """With its labels and its sentence, in the order of the code."""
    assert rows("metric") == [
        (
            f"`{metric.prometheus_name}`",
            ", ".join(f"`{label}`" for label in metric.labels),
            metric.text,
        )
        for metric in METRICS
    ]


def test_each_cause_and_each_alert_is_documented() -> None:
    """By its name, and an alert with how bad it is."""
    assert {row[0].strip("`") for row in rows("cause")} == set(CAUSES)
    assert [(row[0].strip("`"), row[1]) for row in rows("alert")] == [
        (name, rule["labels"]["severity"]) for name, rule in RULES.items()
    ]
    text = (ROOT / "docs" / "metrics.md").read_text()
    uncounted = text.split("by a rule alone (")[1].split(")")[0]
    assert set(re.findall(r"\w+", uncounted)) == {reason.name for reason in AT_ONCE}
