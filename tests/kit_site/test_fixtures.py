"""Tests of the small site by pytest-django: those named ``test_breaks_...`` must fail."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.test import Client, TestCase
from orders.models import Order

COMMITTING = pytest.mark.django_db(transaction=True, databases=["default", "replica1"])
NAMED = pytest.mark.stale_prone(ignore=["read_after_write"])
"""These tests name a replica on purpose: see conftest.py."""


@pytest.fixture
def order(django_user_model: Any) -> Order:
    """An order that is on all servers."""
    cache.clear()
    return Order.objects.create(customer=django_user_model.objects.create_user("ann"), text="tea")


@pytest.fixture
def ann(client: Client, order: Order) -> Client:
    """The browser of who has ordered it."""
    client.force_login(order.customer)
    return client


def check_lag(ann: Client, lagging_replicas: Any, assert_reads_from: Any) -> None:
    """Write under lag, and see who sees it."""
    with lagging_replicas() as replicas:
        ann.post("/orders/", {"text": "milk"})
        with assert_reads_from("primary", reason="LAGGING", of=Order):
            assert b"milk" in ann.get("/orders/").content
        assert b"milk" not in Client().get("/named/").content
        replicas.catch_up()
        assert b"milk" in Client().get("/named/").content


@pytest.mark.django_db
@NAMED
def test_lag_in_one_transaction(ann: Client, lagging_replicas: Any, assert_reads_from: Any) -> None:
    """By copies of the tables."""
    check_lag(ann, lagging_replicas, assert_reads_from)


@COMMITTING
@NAMED
def test_lag_of_what_is_committed(
    ann: Client, lagging_replicas: Any, assert_reads_from: Any
) -> None:
    """By a snapshot."""
    check_lag(ann, lagging_replicas, assert_reads_from)


@pytest.mark.django_db
@pytest.mark.usefixtures("mirrors_are_replicas")
def test_mirrors_are_replicas(ann: Client, assert_queries: Any) -> None:
    """For the whole test."""
    ann.get("/orders/")
    with assert_queries(primary=0, replica=3):
        ann.get("/orders/")


@pytest.mark.django_db
@pytest.mark.stale_prone
def test_breaks_by_a_marker(order: Order, client: Client) -> None:
    """As a failure, not as an error of the fixture."""
    client.get("/count/")


@COMMITTING
@pytest.mark.usefixtures("stale_prone")
def test_breaks_by_a_fixture(order: Order, client: Client) -> None:
    """In a test that commits, too."""
    client.get("/count/")


@pytest.mark.django_db
@pytest.mark.stale_prone(ignore=["saved_from_replica"])
def test_what_is_meant_to_be_so(order: Order, client: Client) -> None:
    """By the name of its kind."""
    client.get("/count/")


@pytest.mark.django_db
@pytest.mark.stale_prone
def test_sound_code(ann: Client) -> None:
    """A write, and the page after it."""
    ann.post("/orders/", {"text": "milk"}, follow=True)


@pytest.mark.stale_prone
def test_no_database() -> None:
    """A test that may use none needs none."""


@pytest.mark.usefixtures("stale_prone")
class ByAClass(TestCase):
    """A class of Django's."""

    def test_breaks_in_a_test_case(self) -> None:
        """In its transaction."""
        customer = User.objects.create_user("ann")
        Order.objects.create(customer=customer, text="tea")
        self.client.get("/count/")


@pytest.mark.django_db
def test_breaks_by_the_conftest(order: Order, client: Client) -> None:
    """Which the page about testing has."""
    client.get("/count/")
