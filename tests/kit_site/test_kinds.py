"""Tests of the small site in each kind of test case: those named ``test_breaks_...`` must fail."""

from __future__ import annotations

import urllib.request
from contextlib import suppress

from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import connections, transaction
from django.test import AsyncClient, LiveServerTestCase, TestCase, TransactionTestCase
from orders.cases import SiteTestCase
from orders.models import Order

from django_replica_router import scope
from django_replica_router.testing import (
    assert_queries,
    assert_reads_from,
    lagging_replicas,
    mirrors_are_replicas,
    stale_prone,
)


class Shared:
    """What holds in any kind of test case."""

    def setUp(self) -> None:
        """Empty the token store, as many sites do, and have an order that is on all servers."""
        cache.clear()
        self.ann = User.objects.create_user("ann")
        self.client.force_login(self.ann)
        Order.objects.create(customer=self.ann, text="tea")

    def test_reads_come_from_a_replica(self) -> None:
        """And show what the test has set up."""
        with assert_reads_from("replica", of=Order):
            self.assertContains(self.client.get("/orders/"), "tea (0)")

    def test_who_writes_reads_from_the_primary_in_the_same_request(self) -> None:
        """The reason is told."""
        with scope(), assert_reads_from("primary", reason="WROTE"):
            Order.objects.create(customer=self.ann, text="milk")
            assert Order.objects.count() == 2

    def test_under_lag_a_writer_sees_it_and_others_do_not(self) -> None:
        """Until the replicas catch up."""
        with lagging_replicas() as replicas:
            with assert_reads_from("replica", of=Order):
                self.assertContains(self.client.get("/orders/"), "tea (0)")
            self.client.post("/orders/", {"text": "milk"})
            with assert_reads_from("primary", reason="LAGGING", of=Order):
                self.assertContains(self.client.get("/orders/"), "milk")
            self.assertNotContains(self.client_class().get("/named/"), "milk")
            replicas.catch_up()
            with assert_reads_from("replica", of=Order):
                self.assertContains(self.client.get("/orders/"), "milk")
            self.assertContains(self.client.get("/named/"), "milk")

    def test_sound_code_is_not_stale_prone(self) -> None:
        """A write, and the page after it."""
        with stale_prone():
            self.client.post("/orders/", {"text": "milk"}, follow=True)
            self.client.get("/orders/")

    def test_breaks_under_lag_by_a_replica_named_by_hand(self) -> None:
        """The site's own assertion fails."""
        with lagging_replicas():
            self.client.post("/orders/", {"text": "milk"})
            self.assertContains(self.client.get("/named/"), "milk")

    @stale_prone()
    def test_breaks_by_a_replica_named_by_hand(self) -> None:
        """Nothing lags, and it is found."""
        self.client.post("/orders/", {"text": "milk"})
        self.client.get("/named/")

    @stale_prone()
    def test_breaks_by_a_save_of_what_was_read(self) -> None:
        """Each time: the view is not learned."""
        self.client.get("/count/")

    @stale_prone()
    def test_breaks_by_a_save_of_what_was_read_once_more(self) -> None:
        """The view reads from a replica in this test, too."""
        self.client.get("/count/")

    @stale_prone()
    def test_breaks_by_a_queryset_that_leaves_its_block(self) -> None:
        """It is read from a replica."""
        self.client.get("/left/")

    @stale_prone(ignore=["queryset_left_block"])
    def test_what_is_meant_to_be_so_is_not_told(self) -> None:
        """By the name of its kind."""
        self.client.get("/left/")

    def test_breaks_where_there_are_more_queries(self) -> None:
        """Than were expected, of either."""
        with mirrors_are_replicas(), assert_queries(primary=0, replica=0):
            self.client.get("/orders/")

    def test_how_many_queries_there_are_does_not_depend_on_who_answers(self) -> None:
        """So that a suite that counts them stays as it is."""
        with self.assertNumQueries(3):
            self.client.get("/orders/")
        with stale_prone(), self.assertNumQueries(3):
            self.client.get("/orders/")
        with stale_prone(), lagging_replicas(), self.assertNumQueries(3):
            self.client.get("/orders/")
        with self.assertNumQueries(3):
            self.client.get("/orders/")

    def test_a_block_on_a_replica_is_one_of_its_own(self) -> None:
        """What is rolled back there, or closed, leaves the test's data alone."""
        with mirrors_are_replicas():
            with suppress(KeyError), transaction.atomic(using="replica1", durable=True):
                list(Order.objects.using("replica1"))
                raise KeyError
            connections["replica1"].close()
            with transaction.atomic(using="replica1"):
                rows = Order.objects.using("replica1").iterator()
                assert [order.text for order in rows] == ["tea"]
        assert Order.objects.count() == 1

    async def test_an_async_client_reads_from_a_replica(self) -> None:
        """In its own thread."""
        client = AsyncClient()
        await client.aforce_login(self.ann)
        async with assert_reads_from("replica", of=Order):
            self.assertContains(await client.get("/orders/"), "tea")

    @stale_prone()
    async def test_breaks_in_a_coroutine(self) -> None:
        """By whom it is awaited, too."""
        await AsyncClient().get("/count/")

    async def test_breaks_without_async_with(self) -> None:
        """The error says what to write."""
        with assert_reads_from("replica"):
            pass


class InATestCase(Shared, TestCase):
    """All in one transaction."""


class InATransactionTestCase(Shared, TransactionTestCase):
    """What is written is committed."""

    databases = "__all__"


class InALiveServer(LiveServerTestCase):
    """Requests are answered in threads of their own."""

    databases = "__all__"

    def get(self, page: str) -> str:
        """Return a page of the server."""
        with urllib.request.urlopen(self.live_server_url + page) as response:  # noqa: S310
            return response.read().decode()

    def test_a_named_replica_lags_in_its_threads(self) -> None:
        """And shows it once it has caught up."""
        with lagging_replicas() as replicas:
            self.get("/named/")
            Order.objects.create(customer=User.objects.create_user("ann"), text="milk")
            assert "milk" not in self.get("/named/")
            replicas.catch_up()
            assert "milk" in self.get("/named/")

    def test_its_reads_are_told(self) -> None:
        """The block sees the requests of all threads."""
        Order.objects.create(customer=User.objects.create_user("ann"), text="milk")
        with assert_reads_from("replica", of=Order):
            self.get("/left/")

    def test_breaks_in_its_threads(self) -> None:
        """What is prone to break there fails the test."""
        Order.objects.create(customer=User.objects.create_user("ann"), text="milk")
        with stale_prone():
            self.get("/count/")


class InTheClassOfTheSite(SiteTestCase):
    """Which the page about testing has."""

    def test_breaks_by_what_the_class_has_entered(self) -> None:
        """For all of its tests."""
        Order.objects.create(customer=User.objects.create_user("ann"), text="tea")
        self.client.get("/count/")


class WithoutItsReplicas(TransactionTestCase):
    """A class that does not name them."""

    def test_breaks_with_what_to_do(self) -> None:
        """The error says which databases to name."""
        with mirrors_are_replicas():
            pass
