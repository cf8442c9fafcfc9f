"""A later request of a user never sees older data than an earlier one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import django
import pytest
from django.contrib.auth.models import User
from django.core.cache.backends.db import DatabaseCache
from django.db import DatabaseError, connection, connections, router
from django.http import HttpRequest
from django.test import Client

from django_replica_router import current_scope, scope, use_primary
from django_replica_router.connections import on_primary
from django_replica_router.policy import ReplicaState
from django_replica_router.recording import finishing, floors
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.replicas.waiting import Waiting
from django_replica_router.routing import choosing, reads
from django_replica_router.scopes.identity import RequestIdentity
from django_replica_router.scopes.scope import Scope
from testproject.cluster import Cluster, ReplicaServer
from testproject.notes.models import Note
from tests.backend import is_pinned
from tests.conftest import (
    PATIENT,
    TIMEOUT,
    empty_store,
    everybodys_key,
    forget_the_server,
    impatient,
    stand_still,
    wait_until,
    wait_until_known,
    wait_until_reachable,
)
from tests.controls import fail_without
from tests.faulty import backend
from tests.helpers import Served
from tests.site import PASSWORD, sign_in, visit

Patch = pytest.MonkeyPatch

pytestmark = pytest.mark.usefixtures("test_site")


@pytest.fixture
def note(ann: User, cluster: Cluster) -> Note:
    """A note of Ann's, on every server."""
    note = Note.objects.create(owner=ann, title="old")
    wait_until_known(cluster)
    return note


def title(request: HttpRequest) -> str:
    """Return what the reader sees of the one note."""
    assert request.user.is_authenticated
    return Note.objects.get().title


def title_alone(request: HttpRequest) -> str:
    """Return the same, and do not ask who reads."""
    return Note.objects.get().title


def by_somebody_else(cluster: Cluster, text: str) -> None:
    """Change the note, for nobody whom the package knows."""
    cluster.primary.execute("UPDATE notes_note SET title = %s", [text], dbname="app")


def lose_primary(cluster: Cluster) -> None:
    """End the connection to the primary, and let the code meet that."""
    cluster.primary.execute("SELECT pg_terminate_backend(%s, 5000)", [backend("default")])
    with pytest.raises(DatabaseError):
        Note.objects.get()


SQL = "SELECT * FROM notes_note"


def by_cursor(request: HttpRequest) -> str:
    """Read on the primary by its connection, as trees of plugins of django CMS do."""
    with connections[router.db_for_write(Note)].cursor() as cursor:
        cursor.execute(SQL.replace("*", "title"))
        return str(cursor.fetchone()[0])


RAW: dict[str, Any] = {
    "cursor": lambda client: visit(client, by_cursor),
    "raw query": lambda client: visit(
        client, lambda r: Note.objects.raw(SQL, using="default")[0].title
    ),
    "by name": lambda client: visit(client, lambda r: Note.objects.using("default").get().title),
}
WAYS: dict[str, Any] = {
    "unsafe method": lambda client: visit(client, title, "post"),
    "use_primary": lambda client: visit(client, use_primary(title)),
    # Nobody asks who it is: the cookie of the session tells.
    "unsafe method, for nobody": lambda client: visit(client, title_alone, "post"),
    "use_primary, for nobody": lambda client: visit(client, use_primary(title_alone)),
    **RAW,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_the_primary_showed_is_not_taken_back(
    ann: User, note: Note, cluster: Cluster, way: Any
) -> None:
    """Having read from the primary, a user is not sent to a replica that lacks what was there."""
    client = sign_in(ann)
    wait_until_known(cluster)
    assert visit(client, title) == "old"
    for replica in cluster.replicas:
        replica.pause()
    by_somebody_else(cluster, "new")
    assert visit(client, title) == "old"
    assert way(client) == "new"
    assert visit(client, title) == "new"


@pytest.mark.skipif(
    django.VERSION < (6, 1), reason="LoginRequiredMiddleware asks who it is, for every view"
)
def test_without_asking_the_store_who_it_was_for_it_is_taken_back(
    ann: User, note: Note, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the view has not asked, and what was seen is nobody's."""
    monkeypatch.setattr(finishing, "_ask_for_owners", lambda *args: set())
    with pytest.raises(AssertionError, match="old"):
        test_what_the_primary_showed_is_not_taken_back(
            ann, note, cluster, WAYS["use_primary, for nobody"]
        )


@pytest.mark.parametrize("way", RAW.values(), ids=RAW)
def test_without_looking_at_statements_it_is_taken_back(
    ann: User, note: Note, cluster: Cluster, way: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: nobody has asked the router for these."""
    monkeypatch.setattr(on_primary, "note_read", lambda *args: None)
    with pytest.raises(AssertionError, match="old"):
        test_what_the_primary_showed_is_not_taken_back(ann, note, cluster, way)


@pytest.fixture
def database_cache(cluster: Cluster) -> Iterator[DatabaseCache]:
    """A cache in a table of the primary."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE cached (cache_key text PRIMARY KEY, value text, expires timestamptz)"
        )
    yield DatabaseCache("cached", {})
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE cached")


def seen_after_bookkeeping(client: Client, cache: DatabaseCache) -> str:
    """Return where a reader has seen something whose request asks the primary for no rows of the site."""

    def action(request: HttpRequest) -> str:
        assert request.user.is_authenticated
        assert cache.get("nothing") is None
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        present = current_scope()
        assert present is not None
        return str(present.cluster("default").seen_elsewhere_on)

    return str(visit(client, action))


@pytest.mark.parametrize("engine", ["db", "cached_db"])
def test_what_shows_nothing_of_the_site_is_not_remembered(
    ann: User,
    note: Note,
    cluster: Cluster,
    database_cache: DatabaseCache,
    settings: Any,
    engine: str,
) -> None:
    """A question whether the server answers, and a cache in the database, keep nobody from replicas."""
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    client = sign_in(ann)
    wait_until_known(cluster)
    assert seen_after_bookkeeping(client, database_cache) == "None"
    empty_store()  # so that the session is read, and nobody knows whose it is
    wait_until_known(cluster)  # it begins to remember by where the primary is
    assert seen_after_bookkeeping(client, database_cache) == "None"


def test_without_telling_it_apart_it_would_be(
    ann: User, note: Note, database_cache: DatabaseCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: each request with a cache in the database would raise the floor of its reader."""
    monkeypatch.setattr(reads, "leave_unseen", lambda connection, model: None)
    assert seen_after_bookkeeping(sign_in(ann), database_cache) == "default"


def replicas_for(
    client: Client, cluster: Cluster, served: Served
) -> tuple[ReplicaServer, ReplicaServer]:
    """Return the replica where somebody reads as a rule, and the other one."""
    visit(client, title)
    (usual,) = served.aliases("notes_note") - {"default"}
    one, other = cluster.replicas
    return (one, other) if one.name == usual else (other, one)


def test_what_one_replica_showed_is_not_taken_back_by_the_other(
    ann: User, note: Note, cluster: Cluster, served: Served, settings: Any
) -> None:
    """Where the usual replica comes back after a failure, it must have what its stand-in showed."""
    client = sign_in(ann)
    wait_until_known(cluster)
    mine, other = replicas_for(client, cluster, served)
    mine.kill()
    by_somebody_else(cluster, "new")
    other.wait_replayed(cluster.primary.flush())
    for _ in range(3):
        assert visit(client, title) == "new"
    mine.start()
    mine.pause()
    monitor = find_monitor("default")
    assert monitor is not None
    wait_until(
        lambda: monitor.known.readings[mine.name].state is ReplicaState.STREAMING,
        "it to be known again",
    )
    for _ in range(3):
        assert visit(client, title) == "new"


def test_leaving_the_usual_replica_does_not_go_back_in_time(
    ann: User, note: Note, cluster: Cluster, served: Served
) -> None:
    """What the usual replica showed is recorded nowhere, and must not be missing on its stand-in."""
    client = sign_in(ann)
    wait_until_known(cluster)
    mine, other = replicas_for(client, cluster, served)
    other.pause()
    by_somebody_else(cluster, "new")
    mine.wait_replayed(cluster.primary.flush())
    assert visit(client, title) == "new"
    mine.kill()
    connections[mine.name].close()  # as a worker that has not met it yet
    try:
        with impatient(cluster, mine.name):
            for _ in range(5):
                assert visit(client, title) == "new"
    finally:
        mine.start()


@pytest.mark.parametrize("balancer", ["random", "round_robin", "least_in_flight"])
def test_another_replica_each_time_does_not_go_back_in_time(
    balancer: str, ann: User, note: Note, cluster: Cluster, settings: Any
) -> None:
    """What one of them has shown the next one must have, where nobody has a replica of their own."""
    own = {"BALANCER": balancer, "MONOTONIC_SHARE": 1.0}
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, **own}
    client = sign_in(ann)
    wait_until_known(cluster)
    mine, other = cluster.replicas
    other.pause()
    by_somebody_else(cluster, "new")
    mine.wait_replayed(cluster.primary.flush())
    wait_until(lambda: visit(client, title) == "new", "the one that has it to be drawn")
    for _ in range(20):
        assert visit(client, title) == "new"


@pytest.mark.parametrize("balancer", ["random", "round_robin"])
def test_without_recording_what_each_has_shown_it_does(
    balancer: str, ann: User, note: Note, cluster: Cluster, settings: Any, monkeypatch: Patch
) -> None:
    """Control: as if whichever was drawn were the reader's own."""
    wish = choosing._wish

    def wish_for_the_first(case: Any, floor: Any) -> Any:
        wished = wish(case, floor)
        return wished._replace(usual=wished.order.first)

    monkeypatch.setattr(choosing, "_wish", wish_for_the_first)
    with pytest.raises(AssertionError, match="old"):
        test_another_replica_each_time_does_not_go_back_in_time(
            balancer, ann, note, cluster, settings
        )


def on_the_primary(request: HttpRequest) -> str:
    """Read in a scope inside that of the request, for nobody, on the primary."""
    with scope(), use_primary():
        return title(request)


def on_the_others_replica(request: HttpRequest) -> str:
    """Read in such scopes, for others, until one of them meets the other replica."""
    assert request.user.is_authenticated
    for pk in range(1000, 1100):
        with scope(user=pk):
            note = Note.objects.get()
        if note.title == "new":
            return note.title
    return "old"


@pytest.mark.parametrize("inside", [on_the_primary, on_the_others_replica])
def test_what_a_scope_inside_has_shown_is_not_taken_back(
    inside: Any, ann: User, note: Note, cluster: Cluster, served: Served
) -> None:
    """Whomever it works for, the reader of the request has seen it."""
    client = sign_in(ann)
    wait_until_known(cluster)
    mine, other = replicas_for(client, cluster, served)
    mine.pause()
    by_somebody_else(cluster, "new")
    other.wait_replayed(cluster.primary.flush())
    assert visit(client, title) == "old"
    assert visit(client, inside) == "new"
    assert visit(client, title) == "new"


@pytest.mark.parametrize("inside", [on_the_primary, on_the_others_replica])
def test_without_handing_it_on_it_is_taken_back(
    inside: Any, ann: User, note: Note, cluster: Cluster, served: Served, monkeypatch: Patch
) -> None:
    """Control: nobody else tells the request's own scope."""
    monkeypatch.setattr(Scope, "inherit_seen", lambda self, inner: None)
    with pytest.raises(AssertionError, match="old"):
        test_what_a_scope_inside_has_shown_is_not_taken_back(inside, ann, note, cluster, served)


# Whom a reader is taken for


ORGANISATIONS: list[str] = []


def organisation(request: HttpRequest) -> list[str]:
    """Name whom else a request is for, as the site's ``IDENTITY``."""
    return ORGANISATIONS


BASIC = {"HTTP_AUTHORIZATION": "Basic c3RhZ2luZzpzdGFnaW5n"}


def alias(request: HttpRequest) -> str:
    """Return where the note is read."""
    return str(Note.objects.get()._state.db)


def alias_for_user(request: HttpRequest) -> str:
    """Return the same, where it is known who reads before anything is read."""
    assert request.session["_auth_user_id"]
    return alias(request)


@pytest.fixture
def _nobody_asks(settings: Any) -> None:
    """A site where the view alone asks who it is, and needs no database for it."""
    asks = "django.contrib.auth.middleware.LoginRequiredMiddleware"
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if name != asks]
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"


@pytest.mark.usefixtures("_nobody_asks")
def test_whom_the_site_names_does_not_change_where_a_user_reads(
    ann: User, note: Note, cluster: Cluster, settings: Any
) -> None:
    """A user reads in one place, whether or not a request has found the user before it reads."""
    settings.REPLICA_ROUTER = {
        **settings.REPLICA_ROUTER,
        "IDENTITY": f"{__name__}.{organisation.__name__}",
    }
    client = sign_in(ann)
    wait_until_known(cluster)
    for number in range(20):
        ORGANISATIONS[:] = [f"organisation:{number}"]
        assert visit(client, alias) == visit(client, alias_for_user) != "default"


@pytest.mark.usefixtures("_nobody_asks")
def test_a_credential_that_all_share_does_not_change_where_a_user_reads(
    ann: User, note: Note, cluster: Cluster
) -> None:
    """As that of a test site: it is taken for whoever was there last."""
    client = sign_in(ann)
    visit(client, alias_for_user, **BASIC)
    wait_until_known(cluster)
    found = {visit(client, alias, **BASIC)}
    for number in range(12):
        other = sign_in(User.objects.create_user(f"bob{number}", password=PASSWORD))
        visit(other, alias_for_user, **BASIC)
        wait_until_known(cluster)
        found.add(visit(client, alias, **BASIC))
    assert len(found) == 1
    assert found != {"default"}


def name_by_the_site(patch: Patch) -> None:
    """Take whom the site names before whom the session does."""
    patch.setattr(RequestIdentity, "owner", lambda self: next(iter(self.users()), ""))


def name_by_the_credential(patch: Patch) -> None:
    """Take whom the credential stands for before whom the session does."""
    owners = floors.known_owners
    patch.setattr(floors, "known_owners", lambda state: owners(state)[::-1])


@pytest.mark.usefixtures("_nobody_asks")
@pytest.mark.parametrize(
    ("take_out", "test"),
    [
        (name_by_the_site, test_whom_the_site_names_does_not_change_where_a_user_reads),
        (
            name_by_the_credential,
            test_a_credential_that_all_share_does_not_change_where_a_user_reads,
        ),
    ],
)
def test_without_the_order_of_names_it_does(
    take_out: Any, test: Any, request: pytest.FixtureRequest
) -> None:
    """Control: each is about whom the reader is taken for."""
    fail_without(take_out, test, {}, request, AssertionError)


@pytest.mark.not_pooled(
    "it notices that a connection at rest has ended, and gives another one of the same server",
    modes=["transaction"],
)
def test_what_the_primary_showed_after_a_fault_is_not_taken_back(
    ann: User, note: Note, cluster: Cluster
) -> None:
    """A read that was run again on the primary counts as one there, also where it was the last."""
    client = sign_in(ann)
    stand_still(cluster)
    by_somebody_else(cluster, "new")

    def action(request: HttpRequest) -> list[str]:
        assert request.user.is_authenticated
        before = Note.objects.get()
        alias = str(before._state.db)
        usual = next(replica for replica in cluster.replicas if replica.name == alias)
        usual.execute("SELECT pg_terminate_backend(%s, 5000)", [backend(alias)])
        return [before.title, Note.objects.get().title]

    assert visit(client, action) == ["old", "new"]
    monitor = find_monitor("default")
    assert monitor is not None
    wait_until(
        lambda: all(r.state is ReplicaState.STREAMING for r in monitor.health.replicas()),
        "both replicas to be in service",
    )
    for _ in range(3):
        assert visit(client, title) == "new"


@pytest.mark.not_pooled("which server connection it has is known to the pooler")
@pytest.mark.parametrize("is_write", [False, True], ids=["read", "write"])
def test_a_connection_to_the_primary_that_was_lost_afterwards_pins_nobody(
    is_write: bool, ann: User, note: Note, cluster: Cluster
) -> None:
    """The next connection tells a position that lies behind whatever was shown, or acknowledged."""
    client = sign_in(ann)
    stand_still(cluster)
    if not is_write:
        by_somebody_else(cluster, "new")

    def action(request: HttpRequest) -> str:
        assert request.user.is_authenticated
        with use_primary():
            if is_write:
                Note.objects.update(title="new")
            shown = Note.objects.get().title
            lose_primary(cluster)
        return shown

    assert visit(client, action) == "new"
    assert not is_pinned(ann)
    assert visit(client, title) == "new"
    for replica in cluster.replicas:
        replica.resume()
    wait_until_known(cluster)
    assert visit(client, lambda request: title(request) + Note.objects.db[:7]) == "newreplica"


@pytest.mark.not_pooled("which server connection it has is known to the pooler")
def test_a_primary_that_is_known_to_be_down_is_not_connected_to_at_the_end(
    ann: User, note: Note, healed: Cluster
) -> None:
    """It might be waited for, and its reader is pinned without it."""
    client = sign_in(ann)
    monitor = find_monitor("default")
    assert monitor is not None
    lost = None

    def action(request: HttpRequest) -> None:
        nonlocal lost
        assert request.user.is_authenticated
        with use_primary():
            Note.objects.get()
            lose_primary(healed)
        lost = connection.connection
        healed.primary.kill()
        wait_until(lambda: monitor.known.primary_is_down, "the loss of the primary to be noticed")

    try:
        visit(client, action)
        assert connection.connection is lost
    finally:
        healed.primary.start()
        wait_until_reachable("default")
    assert is_pinned(ann)


def test_what_was_shown_while_the_cache_hung_is_not_taken_back_on_another_device(
    ann: User,
    note: Note,
    cluster: Cluster,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Nobody could tell the other device's process: so the response waits for the replicas."""
    wait_for_all = Waiting.wait_for_all

    def resume() -> None:
        for replica in cluster.replicas:
            replica.resume()

    def wait(waiting: Waiting, lsn: int, timeout: float, max_lag: float) -> bool:
        resume()
        return wait_for_all(waiting, lsn, TIMEOUT, max_lag)

    monkeypatch.setattr(Waiting, "wait_for_all", wait)
    laptop, phone = sign_in(ann), sign_in(ann)
    for device in (laptop, phone):
        visit(device, title)
    settings.REPLICA_ROUTER = {**PATIENT, "STORE_TIMEOUT": 0.25}
    forget_the_server()
    stand_still(cluster)
    request.addfinalizer(resume)
    by_somebody_else(cluster, "new")
    assert cluster.cache is not None
    cluster.cache.suspend()
    try:
        assert visit(laptop, title) == "new"
    finally:
        cluster.cache.resume_process()
    # The phone is answered by a process that has read nothing meanwhile, and has missed nothing.
    settings.REPLICA_ROUTER = PATIENT
    choosing.unstored.clear()
    forget_the_server()
    assert visit(phone, title) == "new"


def test_all_devices_of_a_user_meet_the_same_replica(
    ann: User, note: Note, cluster: Cluster, served: Served
) -> None:
    """What the laptop has shown is not missing on the phone."""
    devices = [sign_in(ann) for _ in range(4)]
    wait_until_known(cluster)
    for device in devices:
        visit(device, title)
    served.clear()
    for device in devices:
        visit(device, title)
    assert len(served.aliases()) == 1
    assert served.only_replicas()


def test_it_can_be_switched_off(ann: User, note: Note, cluster: Cluster, settings: Any) -> None:
    """A site that prefers replicas to this guarantee says so."""
    settings.REPLICA_ROUTER = {**PATIENT, "MONOTONIC_READS": False}
    client = sign_in(ann)
    stand_still(cluster)
    by_somebody_else(cluster, "new")
    assert visit(client, use_primary(title)) == "new"
    assert visit(client, title) == "old"


def test_nothing_is_remembered_for_nobody(note: Note, cluster: Cluster) -> None:
    """An anonymous reader without a session has no key, and costs the store nothing."""

    def anonymous(request: HttpRequest) -> str:
        return Note.objects.get().title

    visit(Client(), anonymous, "post")
    assert cluster.cache is not None
    assert cluster.cache.command("KEYS", "*") == [everybodys_key()]
