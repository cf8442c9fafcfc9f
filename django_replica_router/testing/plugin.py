"""The plugin for pytest: fixtures and a marker. Where nobody uses them it loads nothing."""

from __future__ import annotations

import importlib
import unittest
from typing import Any

import pytest

_BLOCKS = ("mirrors_are_replicas", "stale_prone")
"""Fixtures that are a block around the test itself: it begins when the test's database is there."""


def _find(name: str) -> Any:
    """Return what the package of that name offers, which loads Django."""
    return getattr(importlib.import_module("django_replica_router.testing"), name)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    line = "stale_prone(ignore=()): fail where the code would break under lag; see django-replica-router"
    config.addinivalue_line("markers", line)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: Any) -> None:
    """Put a test into the blocks that it asks for.

    Not the whole call: of a ``TestCase`` that would begin before its transaction.
    """
    names = getattr(item, "fixturenames", ())
    marker = item.get_closest_marker("stale_prone")
    options = {} if marker is None else marker.kwargs
    for name in reversed(_BLOCKS):
        if name in names or (name == "stale_prone" and marker is not None):
            _put_into(item, _find(name)(**(options if name == "stale_prone" else {})))


def _put_into(item: Any, block: Any) -> None:
    item.obj = block(item.obj)
    if issubclass(item.cls or object, unittest.TestCase):
        setattr(item.instance, item.name, item.obj)  # pytest-django calls that, and not the item's


@pytest.fixture
def assert_reads_from() -> Any:
    """Return ``django_replica_router.testing.assert_reads_from``."""
    return _find("assert_reads_from")


@pytest.fixture
def assert_queries() -> Any:
    """Return ``django_replica_router.testing.assert_queries``."""
    return _find("assert_queries")


@pytest.fixture
def lagging_replicas() -> Any:
    """Return ``django_replica_router.testing.lagging_replicas``: the block begins where the test has it begin."""
    return _find("lagging_replicas")


@pytest.fixture
def mirrors_are_replicas() -> None:
    """Let reads go to mirrors in this test, as ``django_replica_router.testing.mirrors_are_replicas()`` does."""


@pytest.fixture
def stale_prone() -> None:
    """Fail where the code of this test would break under lag: ``django_replica_router.testing.stale_prone()``."""
