"""The benchmarks in their quick form: that each of them runs, and finds what it looks for."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from benchmarks.__main__ import read_results
from benchmarks.figures import cell_text
from benchmarks.harness import Result, find_benchmarks, from_json
from benchmarks.load.kinds import QUICK as QUICK_SITES
from benchmarks.load.variants import DEFAULT
from testproject.cluster.programs import ROOT
from tests.benchmarked import rows


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the quick form of all benchmarks has written, each run once."""
    directory = tmp_path_factory.mktemp("benchmarks")
    file = directory / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--quick"]
    done = subprocess.run(
        [*command, "--json", str(file), "--report", str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (directory / "performance.md").exists()
    return read_results([file])


@pytest.mark.parametrize("name", find_benchmarks())
def test_quick_form(quick: dict[str, Any], name: str) -> None:
    """Each benchmark runs, has something to say of its target, and no table is empty."""
    found = from_json(quick[name])
    assert quick[name]["quick"]
    assert found.verdicts
    assert all(table.rows for table in found.tables)
    names = {str(row[0]) for table in found.tables for row in table.rows}
    assert any("package" in name for name in names)


def test_round_trips(quick: dict[str, Any]) -> None:
    """The counts of the quick form are exact: without a router all goes to the primary, once."""
    [trips, _] = from_json(quick["roundtrips"]).tables
    rows = {(str(row[0]), str(row[1])): [cell_text(cell) for cell in row[2:]] for row in trips.rows}
    assert rows["none", "read, anonymous"][:4] == ["5", "0", "0", "5"]
    assert rows["none", "write in a transaction"][:4] == ["6", "0", "0", "6"]
    assert rows["package", "write in a transaction"][0] == "7"
    assert rows["package", "write"][0] == "5"
    assert rows["package+backend", "write in a transaction"][0] == "6"
    assert rows["package+backend", "write"][0] == rows["none", "write"][0] == "4"


@pytest.fixture
def offloaded(quick: dict[str, Any]) -> Result:
    """The quick form, at a lag of 100 ms."""
    return from_json(quick["offload"])


def test_the_package_shows_nobody_old_data(offloaded: Result) -> None:
    """And most of its reads are on replicas."""
    table = rows(offloaded.tables[1])
    package = next(row for row in table if row["contender"] == DEFAULT.name)
    assert package["reads"] > 0
    assert (package["stale: own writes"], package["stale: taken back"]) == (0, 0)
    assert package["errors"] == 0
    assert package["on replicas, %"] > 0


def test_who_routes_at_random_is_found_out(offloaded: Result) -> None:
    """Negative control: stale reads are noticed where there are some."""
    table = rows(offloaded.tables[1])
    others = [row for row in table if row["contender"] == "random"]
    assert sum(row["stale: own writes"] for row in others) > 0


def test_the_oracle_does_not_serve_everything(offloaded: Result) -> None:
    """Right after a write no replica has it, at that lag."""
    [row] = rows(offloaded.tables[0])
    assert 0 < row["oracle, %"] < 100


def test_a_sample_is_measured_over_http(offloaded: Result) -> None:
    """With the same users and the same oracle."""
    [row] = rows(offloaded.tables[-1])
    assert row["reads"] > 0
    assert row["stale"] == 0


def test_sites_of_the_package_show_nobody_old_data(quick: dict[str, Any]) -> None:
    """Nor do they log anybody out, or fail, behind an endpoint either."""
    table = rows(from_json(quick["sites"]).tables[0])
    packages = [row for row in table if row["contender"] == "package"]
    can_run = [site for site in QUICK_SITES if site.contender == "package" and not site.missing]
    assert [row["site"] for row in packages] == [site.name for site in can_run]
    for row in packages:
        assert row["SELECTs"] > 0
        assert (row["stale: own writes"], row["log-outs"], row["errors"]) == (0, 0, 0)


def test_a_site_that_routes_at_random_is_found_out(quick: dict[str, Any]) -> None:
    """Negative control: log-outs are noticed where there are some."""
    table = rows(from_json(quick["sites"]).tables[0])
    [row] = [row for row in table if row["contender"] == "random"]
    assert row["log-outs"] > 0


def test_freshness_runs(quick: dict[str, Any]) -> None:
    """Each trial ends with a read on a replica that shows the write."""
    result = from_json(quick["freshness"])
    for row in rows(result.tables[0]):
        assert row["never, or old"] == 0
        assert row["commit to read"].median > 0


def test_scaling_runs(quick: dict[str, Any]) -> None:
    """Clients are answered, with and without a replica."""
    result = from_json(quick["scaling"])
    by_replicas = {row["replicas"]: row for row in rows(result.tables[0])}
    assert set(by_replicas) == {0, 1}
    assert all(row["requests/s"].median > 0 and row["errors"] == 0 for row in by_replicas.values())
    assert by_replicas[0]["reads on replicas, %"].median == 0


def test_failover_runs_without_an_error(quick: dict[str, Any]) -> None:
    """No read of the package fails."""
    result = from_json(quick["failover"])
    table = rows(result.tables[0])
    assert len(table) == 4
    assert all(row["errors"] == 0 for row in table)
    assert result.verdicts[0].reached
