"""Several primaries, each with replicas of its own; and an API of Django REST framework."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.http import HttpRequest
from django.test import Client

from testproject.cluster import Cluster
from testproject.cluster.programs import ROOT, run_django
from testproject.notes.models import Note
from tests.conftest import wait_until_known
from tests.programs import environment
from tests.site import visit

SCRIPT = """
import time
import django
django.setup()
from django.conf import settings
from django.core.management import call_command
from django.db import connections, router
from django_replica_router import scope
from django_replica_router.scopes.keys import digest
from django_replica_router.stores.store import get_store
from testproject.notes.models import Note, Tag

class TagsInArchive:
    def db_for_read(self, model, **hints):
        return "archive" if model is Tag else None
    db_for_write = db_for_read

router.routers.append(TagsInArchive())
call_command("migrate", database="archive", verbosity=0)

def where(model):
    with scope(user=7):
        return model.objects.all().db

deadline = time.monotonic() + 20
while {where(Note), where(Tag)} != {"replica1", "archive_replica"}:
    assert time.monotonic() < deadline, (where(Note), where(Tag))

with scope(user=8):
    Tag.objects.create(name="red")
    assert Tag.objects.all().db == "archive"
    # A write to one cluster leaves the other free.
    assert Note.objects.all().db == "replica1"
    assert router.db_for_write(Tag) == "archive"
    assert router.allow_migrate("archive_replica", "notes") is False

key = digest("user", "8")
of_archive, of_default = get_store("default").load([f"rr:archive:{key}", f"rr:default:{key}"])
assert of_archive is not None and of_archive.position.lsn > 0
assert of_default is None
print("done")
"""


def test_several_primaries_each_have_their_replicas(tmp_path: Any) -> None:
    """Tokens, replicas and writes of two clusters have nothing to do with each other."""
    with (
        Cluster(replicas=1, cache=True, databases=("app",)) as first,
        Cluster(replicas=1, cache=False, databases=("app",)) as second,
    ):
        variables = environment(first)
        databases = json.loads(variables["TESTPROJECT_DATABASES"])
        others = second.django_databases("app")
        databases["archive"] = others["default"]
        databases["archive_replica"] = {**others["replica1"], "TEST": {"MIRROR": "archive"}}
        variables["TESTPROJECT_DATABASES"] = json.dumps(databases)
        run_django(variables, "migrate", "-v0")
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=variables,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.usefixtures("test_site")
def test_rest_framework_clients_see_what_they_wrote(ann: User, cluster: Cluster) -> None:
    """Credentials in a header; REST framework sets the user late, in the midst of the view."""
    from rest_framework.authentication import BasicAuthentication
    from rest_framework.decorators import api_view, authentication_classes
    from rest_framework.request import Request
    from rest_framework.response import Response

    @api_view(["GET", "POST"])
    @authentication_classes([BasicAuthentication])
    def notes(request: Request) -> Response:
        if request.method == "POST":
            Note.objects.create(owner=request.user, title=request.data["title"])
        return Response(
            {
                "result": [
                    request.user.first_name,
                    list(Note.objects.values_list("title", flat=True)),
                    Note.objects.all().db,
                ]
            }
        )

    # ann:correct horse
    headers = {"authorization": "Basic YW5uOmNvcnJlY3QgaG9yc2U="}
    client = Client()

    def ask(request: HttpRequest) -> Any:
        return notes(request).render()

    # The first time nobody knows whose credential it is: the primary shows the row.
    visit(client, ask, headers=headers)
    wait_until_known(cluster)
    name, titles, database = visit(client, ask, headers=headers)
    assert (titles, database[:7]) == ([], "replica")
    for replica in cluster.replicas:
        replica.pause()
    visit(client, ask, "post", headers=headers, data={"title": "first"})
    name, titles, database = visit(client, ask, headers=headers)
    assert (titles, database) == (["first"], "default")
    # The same user by another credential: known from the user alone.
    User.objects.filter(pk=ann.pk).update(first_name="Anna")
    visit(client, ask, "post", headers=headers, data={"title": "second"})
    other = {"authorization": "Basic  YW5uOmNvcnJlY3QgaG9yc2U="}
    name, titles, database = visit(Client(), ask, headers=other)
    assert (name, titles, database) == ("Anna", ["second", "first"], "default")
