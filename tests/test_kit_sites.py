"""The kit in a site of its own: Django's test cases by ``manage.py test``, and pytest-django with pytest-xdist."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from django_replica_router import testing
from django_replica_router.testing.findings import KINDS
from testproject.cluster import Cluster
from tests.kit_project import ROOT, make_project, outcomes, plugin, run
from tests.test_package import run_python


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A site whose databases are on a server of their own."""
    settings = {"autovacuum": "off", "fsync": "off"}
    with Cluster(replicas=0, cache=False, databases=("app",), settings=settings) as cluster:
        yield make_project(cluster, tmp_path_factory.mktemp("site"))


def check(output: str, *, tests: int) -> None:
    """See that all tests have passed but those that must fail, which all have failed."""
    found = outcomes(output)
    wrong = {
        name: end
        for name, end in found.items()
        if (end == "PASSED") is name.split(".")[-1].startswith("test_breaks_")
    }
    assert not wrong, output
    assert len(found) == tests, output


def test_the_test_cases_of_django(site: Path) -> None:
    """TestCase, TransactionTestCase and LiveServerTestCase, with the template; warnings are errors."""
    output = run(
        site,
        *"-W error manage.py test -v 2 --noinput orders.test_kinds orders.test_template orders.test_lag".split(),
    )
    check(output, tests=41)
    for text in (
        # In a TestCase, whose data nobody else sees, and in one that commits.
        "Couldn't find 'milk' in the following response\nb'tea (0)'",
        "1. read_after_write: orders_order is read from 'replica1', which the code names, after it was "
        "written in orders/views.py:21.\n   orders/views.py:15\n   To mend: ",
        "1. saved_from_replica: an object that was read from a replica is saved: ",
        "1. queryset_left_block: a queryset of orders.Order is made in use_primary, and evaluated",
        "Statements: 1 on the primary, expected 0; 2 on the replica, expected 0.\n\n  1. default: ",
    ):
        assert output.count(text) >= 2, output
    assert "ConfigurationError: In a coroutine enter this block by `async with`." in output
    assert (
        "ConfigurationError: This test may not use 'replica1': name the replicas, too, as in databases = "
        "{'default', 'replica1'} of the test's class, or " in output
    )


def test_pytest_django_and_xdist(site: Path) -> None:
    """Fixtures and the marker, in two processes, each with its own databases."""
    files = [f"orders/test_{name}.py" for name in ("fixtures", "template", "lag")]
    output = run(site, "-m", "pytest", "-n", "2", "-rA", *plugin(), *files)
    check(output, tests=14)
    assert output.count("1. saved_from_replica: an object that was read from a replica") == 4


def test_the_plugin_loads_nothing() -> None:
    """It is loaded in every project, also where nobody uses Django; pyproject.toml names it."""
    code = (
        "import sys, django_replica_router.testing.plugin\n"
        "print(*sorted({'django', 'psycopg', 'asgiref'} & set(sys.modules)))"
    )
    assert run_python(code) == ""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (home,) = project["entry-points"]["pytest11"].values()
    assert home == "django_replica_router.testing.plugin"


def test_each_public_name_is_documented() -> None:
    """In the page about testing, as is each kind of finding; and it can be imported by its own name."""
    page = (ROOT / "docs" / "testing.md").read_text()
    assert testing.__all__ == sorted(testing._HOMES)
    for name in testing.__all__:
        assert f"`{name}(" in page
        assert getattr(testing, name).__name__ == name
    assert re.findall(r"^\| `(\w+)` \| [^|]+ \|$", page, re.MULTILINE) == list(KINDS)
    with pytest.raises(AttributeError, match="has no attribute 'assert_read_from'"):
        testing.assert_read_from  # type: ignore[attr-defined]  # noqa: B018
