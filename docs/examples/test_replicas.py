"""Three tests that each site on replicas should have. Copy this file, and change what stands above the tests.

They run by ``manage.py test`` and by pytest-django, with one database.
"""

from __future__ import annotations

from django.contrib.auth.models import User
from django.test import TestCase
from orders.models import Order  # a model of yours

from django_replica_router.testing import assert_reads_from, lagging_replicas, stale_prone

# A POST by which a user saves something, and a text that the next page must show.
WRITE = ("/orders/", {"text": "three teapots"})
SHOWN = "three teapots"

# Pages that should be read from replicas, each with the model whose rows it shows.
PAGES = {"/orders/": Order}


class ReplicaTests(TestCase):
    """What users see while replicas lag."""

    def setUp(self) -> None:
        """Sign somebody in."""
        self.client.force_login(User.objects.create_user("ann"))

    def test_who_has_written_sees_it_on_the_next_page(self) -> None:
        """Also while no replica has it."""
        with lagging_replicas():
            response = self.client.post(*WRITE, follow=True)
            self.assertContains(response, SHOWN)

    def test_pages_are_read_from_replicas(self) -> None:
        """Of somebody who has written nothing."""
        for page, model in PAGES.items():
            with self.subTest(page=page), assert_reads_from("replica", of=model):
                self.client.get(page)

    def test_nothing_would_break_under_lag(self) -> None:
        """Whatever a visit does. For all tests of the site see docs/testing.md."""
        with stale_prone():
            self.client.post(*WRITE, follow=True)
            for page in PAGES:
                self.client.get(page)
