"""What an integration needs, told where it is not installed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from django_replica_router.contrib.extras import needs

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = [
    "celery", "channels", "debug-toolbar", "dramatiq", "httpx", "huey", "opentelemetry", "prometheus", "requests", "rq",
    "strawberry",
]  # fmt: skip
PACKAGES = {"debug-toolbar": "debug_toolbar", "prometheus": "prometheus_client"}
MISSING = """
import sys

class Missing:
    def find_spec(name, path=None, target=None):
        if name == {0!r}:
            raise ModuleNotFoundError("No module named {0}", name=name)

sys.meta_path.insert(0, Missing)
import django_replica_router.contrib.{1}
"""
MODULES = {
    "celery": ["celery.results", "celery.runs"],
    "debug-toolbar": ["debug_toolbar"],
    "prometheus": ["prometheus.apps as apps; apps.PrometheusConfig.ready(None)"],
}


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("extra", EXTRAS)
def test_integration_without_its_package_names_the_extra(extra: str) -> None:
    """Each module of the integration ends in the one sentence that says what to run, and in no chain of errors."""
    name = extra.replace("-", "_")
    for module in MODULES.get(extra, [extra]):
        package = PACKAGES.get(extra, extra)
        done = run(MISSING.format(package, module))
        assert done.stderr.splitlines()[-1] == (
            f"ModuleNotFoundError: django_replica_router.contrib.{name} needs {package}, which is not installed: "
            f"run 'pip install \"django-replica-router[{extra}]\"'."
        )
        assert done.stderr.count("Traceback") == 1


def test_each_extra_that_is_named_exists() -> None:
    """What the sentence says to run can be run."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) <= set(declared["optional-dependencies"])


def test_what_is_missing_inside_of_a_package_is_told_as_it_is() -> None:
    """A package that is installed and cannot be imported is not said to be missing."""
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'kombu'$"), needs("celery"):
        raise ModuleNotFoundError("No module named 'kombu'", name="kombu")


def test_tasks_without_a_package_of_tasks_name_one() -> None:
    """The app for Django's tasks says so where neither Django nor anything else brings them."""
    code = (
        "from django_replica_router.contrib.django_tasks import receivers\n"
        "receivers.find_spec = lambda name: None\n"
        "receivers.connect()"
    )
    done = run(code)
    assert done.stderr.splitlines()[-1].endswith("run 'pip install django-tasks'.")
