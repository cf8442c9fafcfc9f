"""Objects that were read from a replica and are saved: noticed, and learned from."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.core.cache import caches
from django.db import transaction
from django.db.models import F
from django.http import HttpRequest
from django.test import AsyncClient, Client

from django_replica_router import get_stats, pop_stats, scope, use_primary, use_replica
from django_replica_router.conf import get_config
from django_replica_router.errors import StaleSaveError
from django_replica_router.recording import learning, stale_saves
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.conftest import learn_nothing, stand_still, wait_until
from tests.controls import fail_without, name_of
from tests.programs import serving
from tests.site import avisit, visit

pytestmark = pytest.mark.usefixtures("test_site")


@pytest.fixture(autouse=True)
def _counted_anew(cluster: Cluster) -> Iterator[None]:
    """Nothing counted or learned by another test."""
    pop_stats()
    yield
    learn_nothing()


@pytest.fixture
def edited(note: Note, cluster: Cluster) -> Note:
    """A note that somebody else has edited on the primary, which no replica shows."""
    stand_still(cluster)
    edit(cluster, "edited")
    return note


def edit(cluster: Cluster, body: str) -> None:
    """Change the note as somebody else does, past this process."""
    cluster.primary.execute("UPDATE notes_note SET body = %s", [body], dbname="app")


def body() -> str:
    """Return what the primary has."""
    return Note.objects.using("default").get().body


def save_what_was_read(request: HttpRequest | None = None) -> str:
    """Count a visit as many views do."""
    found = Note.objects.get()
    origin = str(found._state.db)
    found.version += 1
    found.save()
    return origin


def new_process() -> None:
    """Have this process know no more than one that has just begun."""
    learn_nothing()


def settle_saves(settings: Any, value: str) -> None:
    """Set ``STALE_SAVES``."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "STALE_SAVES": value}


def test_a_view_that_saves_what_it_read_reads_from_the_primary_the_next_time(
    edited: Note, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """The first edit is lost and told of, the next one is kept."""
    assert visit(Client(), save_what_was_read).startswith("replica")
    assert body() == ""
    assert get_stats()["saved_from_replica"] == 1
    (line,) = [r.getMessage() for r in caplog.records if "is saved in" in r.getMessage()]
    assert line.startswith("notes.Note was read from the replica 'replica")
    assert f"{__file__}:{save_what_was_read.__code__.co_firstlineno + 5}" in line
    assert "From now on tests.site.run reads from the primary." in line
    edit(cluster, "edited again")
    assert visit(Client(), save_what_was_read) == "default"
    assert body() == "edited again"
    assert get_stats()["saved_from_replica"] == 1
    assert get_stats()["reads_learned"] == 1


def test_another_process_learns_of_the_view_through_the_cache(
    edited: Note, cluster: Cluster
) -> None:
    """A process that begins later loses no edit at all."""
    visit(Client(), save_what_was_read)
    edit(cluster, "edited again")
    new_process()
    assert visit(Client(), save_what_was_read) == "default"
    assert body() == "edited again"


def test_server_processes_learn_of_the_view_that_another_one_has_found(
    note: Note, cluster: Cluster, settings: Any, tmp_path: Path
) -> None:
    """Within seconds where they run already, and then no edit is lost there."""
    settings.ROOT_URLCONF = "tests.worker_site"
    log = tmp_path / "log"
    with serving(cluster, "gunicorn sync", log, settings="tests.worker_settings") as server:
        wait_until(
            lambda: "default" not in {server.get("/visited/").text for _ in range(10)},
            "replicas to serve",
        )
        stand_still(cluster)
        assert Client().get("/visited/?save").content.startswith(b"replica")
        latest: dict[str, str] = {}

        def both_know() -> bool:
            # At the same time, so that no worker has them all.
            with ThreadPoolExecutor(4) as pool:
                for answer in pool.map(lambda _: server.get("/visited/"), range(8)):
                    latest[answer.headers["X-Worker"]] = answer.text
            return list(latest.values()) == ["default"] * 2

        wait_until(both_know, "both workers to know")
        edit(cluster, "edited again")
        assert server.get("/visited/?save").text == "default"
        assert body() == "edited again"


def test_a_process_that_runs_learns_of_the_view_after_a_while(
    edited: Note, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks into the cache every few seconds, and not before."""
    now = [1000.0]
    monkeypatch.setattr(learning.time, "monotonic", lambda: now[0])
    assert visit(Client(), lambda request: str(Note.objects.get()._state.db)) != "default"
    mine = learning._known
    new_process()
    visit(Client(), save_what_was_read)
    learning._known = mine
    edit(cluster, "edited again")

    def read(request: HttpRequest) -> str:
        return str(Note.objects.get()._state.db)

    assert visit(Client(), read).startswith("replica")
    now[0] += learning.LOOK_SECONDS + 1
    assert visit(Client(), read) == "default"


def test_a_view_is_not_forgotten_with_the_cache(edited: Note, cluster: Cluster) -> None:
    """Whoever knows of it puts it there again."""
    visit(Client(), save_what_was_read)
    caches["default"].clear()
    learning._known.looked_at.clear()
    visit(Client(), lambda request: Note.objects.count())
    new_process()
    assert "tests.site.run" not in learning._known.names
    with scope() as here:
        learning.is_learned(here, get_config())
    assert "tests.site.run" in learning._known.names


@pytest.mark.parametrize(
    "garbage", ["", "{", "[1]", "null", '{"tests.site.run": true}', '{"tests.site.run": "x"}', "{}"]
)
def test_garbage_in_the_cache_is_learned_by_nobody(garbage: str, note: Note) -> None:
    """It leaves every view as it is."""
    learning.get_store("default").save_text(learning.KEY, garbage, 60.0)
    new_process()
    assert visit(Client(), lambda request: str(Note.objects.get()._state.db)) != "default"


def test_a_name_in_the_cache_ends(note: Note) -> None:
    """A view that was mended is read from replicas again, once its time is over."""
    ended = {"tests.site.run": 1}
    learning.get_store("default").save_text(learning.KEY, json.dumps(ended), 60.0)
    new_process()
    assert visit(Client(), lambda request: str(Note.objects.get()._state.db)) != "default"


def test_a_view_that_goes_on_saving_is_kept_in_mind(
    edited: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each save renews the memory of it, where more than half of its time is over."""
    visit(Client(), save_what_was_read)
    end = learning._known.names["tests.site.run"]
    clock = learning.wall_clock_ms
    later = round(learning.LIFE * 600)
    monkeypatch.setattr(learning, "wall_clock_ms", lambda: clock() + later)
    assert visit(Client(), save_what_was_read) == "default"
    assert learning._known.names["tests.site.run"] >= end + later


def test_a_post_under_use_replica_is_learned_as_well(edited: Note, cluster: Cluster) -> None:
    """Having lost an edit, such a view is given the primary whatever it asks for."""
    view = use_replica(save_what_was_read)
    assert visit(Client(), view, "post").startswith("replica")
    assert body() == ""
    edit(cluster, "edited again")
    assert visit(Client(), view, "post") == "default"
    assert body() == "edited again"


def test_a_task_is_learned_by_the_code_that_opens_its_scope(edited: Note, cluster: Cluster) -> None:
    """And another task that does nothing of the kind goes on reading from a replica."""

    def task() -> str:
        with scope():
            return save_what_was_read()

    assert task().startswith("replica")
    edit(cluster, "edited again")
    assert task() == "default"
    assert body() == "edited again"
    with scope():
        assert str(Note.objects.get()._state.db).startswith("replica")


@use_replica
def decorated() -> str:
    """Read from a replica and save, as a task does."""
    return save_what_was_read()


def in_block() -> str:
    """Do it in a block."""
    with use_replica():
        return save_what_was_read()


def in_stack() -> str:
    """Do it in a scope that is opened by way of a stack."""
    with ExitStack() as stack:
        stack.enter_context(scope())
        return save_what_was_read()


@pytest.mark.parametrize("task", [decorated, in_block, in_stack], ids=lambda task: task.__name__)
def test_code_outside_a_request_is_learned_however_it_reads_from_a_replica(
    task: Callable[[], str], edited: Note, cluster: Cluster
) -> None:
    """By the function that opens the block, and no other."""
    others = {decorated, in_block, in_stack} - {task}
    assert task().startswith("replica")
    edit(cluster, "edited again")
    assert task() == "default"
    assert body() == "edited again"
    for other in others:
        assert other().startswith("replica")


class ReadingMiddleware:
    """Reads the note before the view is known."""

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        request.note = Note.objects.get()
        if request.headers.get("X-Elsewhere"):
            request.urlconf = "tests.elsewhere"
        return self.get_response(request)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["usual urlconf", "urlconf of its own"])
def test_what_a_middleware_has_read_before_the_view_is_known_is_learned_of(
    elsewhere: bool, edited: Note, cluster: Cluster, settings: Any
) -> None:
    """The path tells which view will save it."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.ReadingMiddleware"]
    extra = {"HTTP_X_ELSEWHERE": "1"} if elsewhere else {}

    def action(request: Any) -> str:
        origin = str(request.note._state.db)
        request.note.save()
        return origin

    assert visit(Client(), action, **extra).startswith("replica")
    edit(cluster, "edited again")
    new_process()
    assert visit(Client(), action, **extra) == "default"
    assert body() == "edited again"


def test_a_request_for_no_view_is_read_as_usual(
    note: Note, cluster: Cluster, settings: Any
) -> None:
    """Where something is learned, and the path leads nowhere."""
    stand_still(cluster)
    visit(Client(), save_what_was_read)
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.ReadingMiddleware"]
    assert Client().get("/nowhere/").status_code == 404


def test_an_async_view_is_learned_as_well(edited: Note, cluster: Cluster) -> None:
    """What ``asave()`` writes in a thread belongs to the request."""

    async def action(request: HttpRequest) -> str:
        found = await Note.objects.aget()
        origin = str(found._state.db)
        await found.asave()
        return origin

    assert async_to_sync(avisit)(AsyncClient(), action).startswith("replica")
    assert get_stats()["saved_from_replica"] == 1
    assert async_to_sync(avisit)(AsyncClient(), action) == "default"


def test_a_save_is_refused_where_the_setting_says_so(edited: Note, settings: Any) -> None:
    """With a sentence that names the model, the caller's line, and the right ways."""
    settle_saves(settings, "raise")

    def action(request: HttpRequest) -> str:
        found = Note.objects.get()
        with pytest.raises(
            StaleSaveError, match=r"^notes\.Note .* select_for_update\(\)"
        ) as raised:
            found.save()
        return str(raised.value)

    said = visit(Client(), action)
    assert __file__ in said
    assert body() == "edited"
    assert get_stats()["saved_from_replica"] == 1


def test_a_save_is_only_told_of_where_the_setting_says_so(
    edited: Note, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for a line, and counted each time."""
    settle_saves(settings, "warn")
    for _ in range(2):
        with scope():
            assert save_what_was_read().startswith("replica")
    assert get_stats()["saved_from_replica"] == 2
    assert sum("is saved in" in record.getMessage() for record in caplog.records) == 1


def test_a_save_is_ignored_where_the_setting_says_so(edited: Note, settings: Any) -> None:
    """Not even counted."""
    settle_saves(settings, "ignore")
    with scope():
        assert save_what_was_read().startswith("replica")
    assert "saved_from_replica" not in get_stats()


def from_primary() -> None:
    """Save what was read in a ``use_primary`` block."""
    with use_primary():
        Note.objects.get().save()


def locked() -> None:
    """Save what was read under a lock."""
    with transaction.atomic():
        Note.objects.select_for_update().get().save()


def refreshed() -> None:
    """Save what was read anew, having been related to something before."""
    found = Note.objects.get()
    found.tags.add(Tag.objects.using("default").create(name="new"))
    found.refresh_from_db(using="default")
    found.save()


def twice() -> None:
    """Save again what the primary has."""
    found = Note.objects.using("default").get()
    found.save()
    found.save()


def copied() -> None:
    """Save as a new row."""
    found = Note.objects.get()
    found.pk = None
    found.save()


def created() -> None:
    """Save what is new, of an owner that is from a replica."""
    Note.objects.create(owner=User.objects.get(), title="new")


def upserted() -> None:
    """Update or create."""
    Note.objects.update_or_create(title="first", defaults={"title": "new"})


def updated() -> None:
    """Update by a statement."""
    Note.objects.filter(pk=Note.objects.get().pk).update(title="new")


def computed() -> None:
    """Save only what the database computes."""
    found = Note.objects.get()
    found.version = F("version") + 1
    found.save(update_fields=["version", "updated"])


def deleted() -> None:
    """Delete what a replica has."""
    Note.objects.get().delete()


RIGHT = [
    from_primary,
    locked,
    refreshed,
    twice,
    copied,
    created,
    upserted,
    updated,
    computed,
    deleted,
]


@pytest.mark.parametrize("way", RIGHT, ids=lambda way: way.__name__)
def test_what_overwrites_nothing_is_not_counted(
    way: Callable[[], None], edited: Note, settings: Any
) -> None:
    """Negative: nothing is counted, and nothing raised, where no value comes from a replica."""
    settle_saves(settings, "raise")
    with scope():
        assert str(Note.objects.get()._state.db).startswith("replica")
        way()
    assert "saved_from_replica" not in get_stats()


def related(found: Note) -> None:
    found.tags.add(Tag.objects.using("default").create(name="new"))
    found.save()


def by_name(found: Note) -> None:
    found.save(using="default")


def in_part(found: Note) -> None:
    found.save(update_fields=["title"])


def in_part_computed(found: Note) -> None:
    found.version = F("version") + 1
    found.save()


def stored(found: Note) -> None:
    pickle.loads(pickle.dumps(found)).save()  # noqa: S301 - made just now


def stored_when_related(found: Note) -> None:
    found.tags.add(Tag.objects.using("default").create(name="new"))
    stored(found)


WRONG = [related, by_name, in_part, in_part_computed, stored_when_related]


@pytest.mark.parametrize("way", WRONG, ids=lambda way: way.__name__)
def test_every_way_of_saving_what_a_replica_showed_is_counted(
    way: Callable[[Note], None], edited: Note
) -> None:
    """Also where Django, or the package, has let the object be the primary's meanwhile."""
    with scope():
        found = Note.objects.get()
        assert str(found._state.db).startswith("replica")
        way(found)
    assert get_stats()["saved_from_replica"] == 1
    assert "reinserted_from_replica" not in get_stats()


def test_what_comes_out_of_a_cache_is_not_counted(edited: Note) -> None:
    """It is as old as that cache, with any router, and no longer of a replica."""
    with scope():
        stored(Note.objects.get())
    assert "saved_from_replica" not in get_stats()


def test_a_row_that_was_deleted_meanwhile_and_comes_back_is_counted(
    note: Note, cluster: Cluster
) -> None:
    """Django inserts what it finds no row of."""
    stand_still(cluster)
    cluster.primary.execute("DELETE FROM notes_note", dbname="app")
    with scope():
        save_what_was_read()
    assert Note.objects.using("default").count() == 1
    assert get_stats()["reinserted_from_replica"] == 1


def test_a_cache_that_is_away_fails_no_save(
    edited: Note, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """This process has learned all the same, and says that the others have not."""

    def fail(*args: Any) -> None:
        raise OSError("away")

    monkeypatch.setattr(type(learning.get_store("default")), "_save_text", fail)
    visit(Client(), save_what_was_read)
    assert "is not known from other processes" in caplog.text
    assert visit(Client(), save_what_was_read) == "default"


def remember_nothing(patch: pytest.MonkeyPatch) -> None:
    """Take out that this process knows what it has learned."""
    patch.setattr(learning._Known, "add", lambda self, names: None)


def tell_nobody(patch: pytest.MonkeyPatch) -> None:
    """Take out that the cache is told."""
    patch.setattr(type(learning.get_store("default")), "save_text", lambda *args: None)


def adopt_without_a_mark(patch: pytest.MonkeyPatch) -> None:
    """Take out that an object remembers where it was read."""
    patch.setattr(stale_saves, "find_origin", lambda instance, config: _alias(instance, config))


def _alias(instance: Any, config: Any) -> str | None:
    alias: str = instance._state.db
    return alias if config.topology.is_replica(alias) else None


def see_no_origin(patch: pytest.MonkeyPatch) -> None:
    """Take out that the save is seen."""
    patch.setattr(stale_saves, "find_origin", lambda *args: None)


def lift_by_use_replica(patch: pytest.MonkeyPatch) -> None:
    """Take out that the rule stands above ``use_replica``."""
    from django_replica_router import policy
    from django_replica_router.routing import deciding, reads

    original = policy.decide_at_once
    patch.setattr(
        reads,
        "decide_at_once",
        lambda s: original(s._replace(learned=s.learned and not s.asked_for_replica)),
    )
    patch.setattr(deciding, "is_learned", lambda *args: False)


NEXT_TIME = test_a_view_that_saves_what_it_read_reads_from_the_primary_the_next_time
CONTROLS: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[..., None], dict[str, Any]]] = [
    (remember_nothing, NEXT_TIME, {}),
    (see_no_origin, NEXT_TIME, {}),
    (see_no_origin, test_a_save_is_refused_where_the_setting_says_so, {}),
    (adopt_without_a_mark, NEXT_TIME, {}),
    (
        adopt_without_a_mark,
        test_every_way_of_saving_what_a_replica_showed_is_counted,
        {"way": related},
    ),
    (tell_nobody, test_another_process_learns_of_the_view_through_the_cache, {}),
    (lift_by_use_replica, test_a_post_under_use_replica_is_learned_as_well, {}),
]


@pytest.mark.parametrize("control", CONTROLS, ids=name_of)
def test_the_test_of_a_rule_fails_without_the_rule(
    control: tuple[Callable[[pytest.MonkeyPatch], None], Callable[..., None], dict[str, Any]],
    request: pytest.FixtureRequest,
) -> None:
    """Negative control: a test that cannot fail would prove nothing."""
    fail_without(*control, request)
