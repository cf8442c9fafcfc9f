"""The page of the admin that tells how the servers are, and the same as JSON."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Permission, User
from django.core.cache import caches
from django.core.management import call_command
from django.db import connection, models
from django.test import Client
from django.test.utils import CaptureQueriesContext

from django_replica_router import scope
from django_replica_router.contrib.status.admin import ReplicasAdmin
from django_replica_router.contrib.status.charts import draw_lags, draw_positions
from django_replica_router.contrib.status.models import Replicas
from django_replica_router.policy import Reason, ReplicaState
from django_replica_router.replicas import registry
from django_replica_router.replicas.census import Census, ProcessCounts, own_census, read_census
from django_replica_router.replicas.registry import find_monitor, find_trail, stop_monitors
from django_replica_router.replicas.telling import Trails
from django_replica_router.stats import count
from django_replica_router.status.servers import LAGS, look
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import wait_until, wait_until_known

PAGE = "/admin/replica_router_status/replicas/"
DOCUMENT = "/replicas/status.json"


@pytest.fixture
def operator(cluster: Cluster) -> Client:
    """A browser of a member of the staff who has the permission, and no other."""
    user = User.objects.create_user("op", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_replicas"))
    client = Client()
    client.force_login(user)
    wait_until_known(cluster)  # no request has signed in: no token tells of the session
    return client


@pytest.fixture
def shared(settings: Any, cluster: Cluster) -> Iterator[Census]:
    """The counts of another process, of all that tell theirs."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "SHARE_COUNTS": True}
    stop_monitors()
    own_census.begin_anew()
    yield Census()
    stop_monitors()


def note_now() -> None:
    """Have this process note how the servers are, and tell it, as it does every few seconds."""
    registry._registry.tellers["default"].tell()


def told_by_both(other: Census) -> bool:
    """Have both processes tell what they have counted; tell whether both are known of.

    Two that write the index at the same moment may take each other out of it until they tell again.
    """
    other.tell("default")
    note_now()
    return len(read_census("default")) == 2


def text_of(client: Client, address: str = PAGE, **extra: Any) -> str:
    """Return the page."""
    response = client.get(address, **extra)
    assert response.status_code == 200, response.content
    return response.content.decode()


# Who sees it, and what it costs.


def test_staff_with_the_permission_see_it(operator: Client) -> None:
    """In the admin's index, and by the same permission as JSON."""
    assert PAGE in text_of(operator, "/admin/")
    page = text_of(operator)
    assert 'role="img"' in page
    assert "<script" not in page.partition('<div id="content-main"')[2].partition("</main>")[0]
    document = operator.get(DOCUMENT).json()
    assert [server["alias"] for server in document["clusters"]["default"]] == [
        "default",
        "replica1",
        "replica2",
    ]
    assert document["verdict"]["serve"] is True


def test_others_do_not(cluster: Cluster) -> None:
    """Staff without the permission, users who are no staff, and nobody at all."""
    permission = Permission.objects.get(codename="view_replicas")
    staff = User.objects.create_user("staff", is_staff=True)
    user = User.objects.create_user("user")
    user.user_permissions.add(permission)
    for who, status in ((staff, 403), (user, 302), (None, 302)):
        client = Client()
        if who is not None:
            client.force_login(who)
            wait_until_known(cluster)
        assert client.get(PAGE).status_code == status
        assert client.get(DOCUMENT).status_code == 403
        assert "127.0.0.1" not in client.get(DOCUMENT).content.decode()


def test_nothing_can_be_done_to_it(operator: Client) -> None:
    """There are no such pages, and a superuser has no such buttons."""
    User.objects.filter(username="op").update(is_superuser=True)
    for action in ("add/", "1/change/", "1/delete/", "1/history/"):
        assert operator.get(PAGE + action).status_code == 404
    assert f"{PAGE}add/" not in text_of(operator, "/admin/")


def test_there_is_no_table(operator: Client, cluster: Cluster) -> None:
    """None is made, none is asked, and none is missed by whoever goes through all models."""
    table = Replicas._meta.db_table
    assert table not in connection.introspection.table_names()
    with CaptureQueriesContext(connection) as log:
        text_of(operator)
        call_command("dumpdata", "replica_router_status", "--all", stdout=io.StringIO())
        assert list(Replicas.objects.all()) == []
    assert not [query for query in log.captured_queries if table in query["sql"]]


def test_no_site_makes_a_migration_for_it(cluster: Cluster) -> None:
    """Whatever its own default for keys is."""
    call_command("makemigrations", "--check", "replica_router_status", verbosity=0)
    call_command("migrate", "--check", verbosity=0)
    key = Replicas._meta.pk
    assert type(key) is models.BigAutoField


def test_minutes_are_kept_only_where_the_app_is_there(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it no process has a thread for that."""
    assert apps.is_installed("django_replica_router.contrib.status")
    stop_monitors()
    look("default", 0.0)
    assert find_trail("default") is not None
    monkeypatch.setattr(Trails, "are_kept", False)
    stop_monitors()
    look("default", 0.0)
    assert find_trail("default") is None


# What it tells of servers.


def test_a_replica_whose_replay_is_paused_is_told_of(
    operator: Client, healed: Cluster, note: Note, settings: Any
) -> None:
    """As one that lags, with its reason, and as such in what was kept."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "MAX_LAG": 2.0}
    wait_until(lambda: look("default", 1.0).servers[1].serves, "it to serve")
    healed.replicas[0].pause()
    Note.objects.filter(pk=note.pk).update(title="new")
    healed.primary.flush()

    def is_late() -> bool:
        (_, late, _) = operator.get(DOCUMENT).json()["clusters"]["default"]
        return late["state"] == "LAGGING" and "its replay is paused" in late["sentence"]

    wait_until(is_late, "the replica to lag")
    note_now()
    page = text_of(operator)
    assert "This site serves, and some servers do not" in page
    (reason,) = operator.get("/replicas/health/").json()["reasons"]
    assert reason["sentence"] == LAGS  # of which no detail is told to everybody
    assert "rr-state rr-lags" in page
    (*_, last) = operator.get(DOCUMENT).json()["past"]["default"]["points"]
    assert last["servers"]["replica1"]["condition"] == "LAGGING"
    assert last["servers"]["replica1"]["lsn"] < last["servers"]["default"]["lsn"]
    assert last["servers"]["replica1"]["seconds"] > 2.0
    assert last["servers"]["replica2"]["condition"] == "STREAMING"


def test_a_replica_that_was_out_leaves_a_gap(operator: Client, healed: Cluster) -> None:
    """While it is, and in its line afterwards; the other one's has none."""
    stop_monitors()
    look("default", 60.0)
    note_now()
    healed.replicas[0].stop()
    monitor = find_monitor("default")
    assert monitor is not None
    is_out = lambda: monitor.health.replica("replica1").state is ReplicaState.UNREACHABLE  # noqa: E731
    wait_until(is_out, "the monitor to know")
    note_now()
    page = text_of(operator)
    assert "rr-state rr-out" in page
    assert 'class="rr-span rr-out"' in page
    healed.replicas[0].start()
    wait_until(lambda: look("default", 1.0).servers[1].serves, "it to serve")
    note_now()
    trail = find_trail("default")
    assert trail is not None
    now = monitor.clock()
    # As if they had been noted one after the other in the usual time.
    points = [
        point._replace(at=5.0 * place - 10.0) for place, point in enumerate(trail.points(now))
    ]
    lines = {line.name: line.path.count("M") for line in draw_lags(points, 10.0).lines}
    assert lines == {"replica1": 2, "replica2": 1}
    lines = {line.name: line.path.count("M") for line in draw_positions(points).lines}
    assert lines == {"default": 1, "replica1": 2, "replica2": 1}


def test_the_page_says_when_the_site_cannot_serve(
    operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its first line, with the server whose fault it is."""
    monitor = find_monitor("default")
    assert monitor is not None
    monkeypatch.setattr(type(monitor.health), "primary_condition", lambda self: "DOWN")
    page = text_of(operator)
    assert "This site cannot serve" in page
    assert "does not answer, or is a standby" in page


# What it tells of all processes.


def test_all_processes_are_summed_up(operator: Client, shared: Census) -> None:
    """Reads by server and by reason, retries and tokens, and how old that is."""
    wait_until(lambda: not look("default", 1.0).out_of_service, "replicas to serve")
    for _ in range(2):
        with scope():
            list(Note.objects.all())
    count("retried_replica_fault", "tokens_stored", "something_new")
    wait_until(lambda: told_by_both(shared), "both processes to be told of")
    document = operator.get(DOCUMENT).json()
    assert (document["all_processes"], document["why_alone"]) == (True, "")
    assert len(document["processes"]) == 2
    assert all(process["age"] < 20 for process in document["processes"])
    assert document["counts"]["last_minute"]["retried_replica_fault"] == 2
    page = text_of(operator)
    assert "Told by 2 processes" in page
    assert document["reads"]["by_reason"]
    for reason in document["reads"]["by_reason"]:
        assert Reason[reason].value in page
    assert "run again on the primary: the replica failed" in page
    assert "something_new" in page
    assert "SHADOW" not in page


def test_what_going_live_would_bring_is_told(operator: Client, shared: Census) -> None:
    """Where SHADOW or ROLLOUT has reads judged that are not routed yet: apart from those that are."""
    shadow = {"reads_shadow": 4, "shadow_reads_from_replica1": 3, "shadow_reads_from_default": 1}
    for event, number in {**shadow, "shadow_reads_caught_up": 3, "shadow_reads_wrote": 1}.items():
        count(*[event] * number)
    shared.tell("default")
    page = text_of(operator)
    assert "not routed yet (SHADOW, ROLLOUT)" in page
    assert "<strong>replica1</strong> 75 %" in page
    assert Reason.WROTE.value in page
    assert "shadow_reads" not in page


def test_tokens_that_were_written_are_counted(
    cluster: Cluster, note: Note, ann: User, operator: Client
) -> None:
    """One for each scope that stored what its user has written; a scope that only reads stores none."""
    own_census.begin_anew()
    before = own_census.own().counts.get("tokens_stored", 0)
    with scope(user=ann):
        Note.objects.filter(pk=note.pk).update(title="new")
    assert own_census.own().counts["tokens_stored"] == before + 1
    with scope():
        list(Note.objects.all())
    assert own_census.own().counts["tokens_stored"] == before + 1


def test_one_process_tells_of_itself_alone_and_how_to_see_all(operator: Client) -> None:
    """Where SHARE_COUNTS is off."""
    page = text_of(operator)
    assert "Of this process alone: SHARE_COUNTS is off." in page
    assert "Set SHARE_COUNTS to True" in page
    assert operator.get(DOCUMENT).json()["all_processes"] is False


def test_a_site_without_replicas_has_the_page_as_well(operator: Client, settings: Any) -> None:
    """It tells of the primary."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "CLUSTERS": {}}
    page = text_of(operator)
    assert "0 of 0" in page
    assert "takes writes" in page


def test_a_cache_that_is_down_is_told_of(
    operator: Client,
    shared: Census,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The page tells what this process knows, and the log why."""

    def fail(*args: object) -> Any:
        raise ConnectionError

    for name in ("reads.read_census", "overview.read_trail"):
        monkeypatch.setattr(f"django_replica_router.status.{name}", fail)
    caplog.set_level(logging.INFO, "django_replica_router")
    page = text_of(operator)
    assert "Of this process alone: the cache does not answer." in page
    assert "counts_unread" in [vars(record).get("event") for record in caplog.records]
    assert "takes writes" in page


def test_another_view_of_a_server_is_told(
    operator: Client, shared: Census, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process may reach what another does not. What it has told is text, whatever it is."""
    strange = ProcessCounts("<b>host", 1.0, {"<i>": 1}, {}, 0.0, {"replica1": "UNREACHABLE"})
    monkeypatch.setattr("django_replica_router.status.reads.read_census", lambda cache: [strange])
    page = text_of(operator)
    assert "as 1 of 1 processes know it." in page
    assert "The clocks of their hosts differ" in page
    assert "&lt;b&gt;host" in page
    assert "<b>host" not in page
    assert "<i>" not in page


def test_minutes_are_those_that_one_process_has_told(operator: Client, shared: Census) -> None:
    """Through the cache; without it, those that this one has seen."""
    look("default", 60.0)
    for _ in range(3):
        note_now()
    past = operator.get(DOCUMENT).json()["past"]["default"]
    assert past["process"] == own_census.own().name
    assert len(past["points"]) == 3
    assert past["points"][-1]["servers"]["default"]["condition"] == "PRIMARY"
    caches["default"].clear()
    assert len(operator.get(DOCUMENT).json()["past"]["default"]["points"]) == 4  # and now


# How it is read.


def test_it_loads_itself_again_only_when_asked(operator: Client) -> None:
    """And no more often than is offered."""
    assert '<meta http-equiv="refresh" content="5">' in text_of(operator, f"{PAGE}?refresh=5")
    for query in ("", "?refresh=1", "?refresh=x"):
        assert 'http-equiv="refresh"' not in text_of(operator, PAGE + query)


def test_it_speaks_the_language_of_the_reader(operator: Client, settings: Any) -> None:
    """Sentences of states as well, and of variants of a language."""
    words = {
        "en": "takes writes",
        "es": "acepta escrituras",
        "es-mx": "acepta escrituras",
        "pt": "aceita escritas",
        "pt-br": "aceita escritas",
    }
    for language, sentence in words.items():
        settings.LANGUAGE_CODE = language
        page = text_of(operator)
        assert sentence in page, language
        # Places in a drawing are not the reader's numbers, but SVG's.
        paths = [piece.partition('"')[0] for piece in page.split('d="M')[1:]]
        assert paths
        assert not any("," in path for path in paths)


def test_the_admin_needs_no_other_page() -> None:
    """The one address is that of the list."""
    from django.contrib.admin import site

    (pattern,) = ReplicasAdmin(Replicas, site).get_urls()
    assert pattern.name == "replica_router_status_replicas_changelist"
