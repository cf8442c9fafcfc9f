"""With the package's database backend a COMMIT brings the token along, and tells what was written."""

from __future__ import annotations

import logging
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError, IntegrityError, connection, connections, transaction
from django.http import HttpRequest, HttpResponseRedirect
from django.test import Client, override_settings
from psycopg.adapt import Loader
from psycopg.rows import dict_row

from django_replica_router import note_write, scope, use_primary, use_replica
from django_replica_router.backends.mixin import TokenMixin
from django_replica_router.context import ClusterScope, WriteMark
from testproject.cluster import Cluster
from testproject.notes.models import Comment, Note, Tag
from tests.conftest import PATIENT, stand_still, wait_until, wait_until_known, wait_until_seen
from tests.site import sign_in, visit
from tests.test_writes import note, record_of, signed_in, wrote  # noqa: F401 - fixtures
from tests.torture.proxy import ProxyProcess

OWN = "django_replica_router.backends.postgresql"
DJANGO = "django.db.backends.postgresql"


@contextmanager
def engine(name: str, **options: Any) -> Iterator[None]:
    """Have all connections of this process made by a database backend, with these settings."""
    before = {alias: dict(connections.settings[alias]) for alias in connections}
    try:
        for alias in before:
            connections[alias].close()
            del connections[alias]
            connections.settings[alias].update(ENGINE=name, **options)
        yield
    finally:
        for alias, settings in before.items():
            connections[alias].close()
            connections[alias].close_pool()  # type: ignore[attr-defined]
            del connections[alias]
            connections.settings[alias].clear()
            connections.settings[alias].update(settings)


@pytest.fixture(autouse=True)
def _own_engine(cluster: Cluster, test_site: None) -> Iterator[None]:
    with engine(OWN):
        assert isinstance(connections["default"], TokenMixin)
        yield


@pytest.fixture
def only_writes(settings: Any) -> None:
    """A site that remembers what its users have written, and not what they have seen."""
    settings.REPLICA_ROUTER = {**PATIENT, "MONOTONIC_READS": False}


@pytest.fixture
def touching_view(cluster: Cluster, note: Note) -> Iterator[str]:  # noqa: F811
    """A view that writes to the note, as no text of a statement tells."""
    cluster.primary.execute(
        f"CREATE VIEW touching AS SELECT notes_touch({note.pk}) AS touched", dbname="app"
    )
    yield "SELECT * FROM touching"
    cluster.primary.execute("DROP VIEW touching", dbname="app")


class Wire:
    """The messages that were sent over the connection to the primary."""

    trace = ""

    @property
    def sent(self) -> list[str]:
        """Return the statements that were sent, one text a message."""
        messages = re.split(r"^[^\t\n]*\t([FB])\t\d+\t", self.trace, flags=re.MULTILINE)[1:]
        return [
            text.removeprefix("Query\t ").strip()
            for sender, text in zip(messages[::2], messages[1::2], strict=True)
            if sender == "F"
        ]


@contextmanager
def wire() -> Iterator[Wire]:
    """Have the driver write down every message."""
    wire = Wire()
    connection.ensure_connection()
    pgconn = connection.connection.pgconn
    with tempfile.TemporaryFile("r+") as file:
        pgconn.trace(file.fileno())
        try:
            yield wire
        finally:
            pgconn.untrace()
            file.seek(0)
            wire.trace = file.read()


def execute(statement: str, params: Any = None) -> list[Any]:
    """Run a statement on the primary, past the ORM."""
    with connection.cursor() as cursor:
        cursor.execute(statement, params)
        return cursor.fetchall() if cursor.description else []


def is_pinned(user: User) -> bool:
    """Tell whether the user reads from the primary, because of a write with no position."""
    record = record_of(user)
    return record is not None and record.pinned_until_ms > 0


def tag_and_leave(request: HttpRequest) -> HttpResponseRedirect:
    """Do what most forms do: write, and send the browser elsewhere."""
    with transaction.atomic():
        Tag.objects.create(name="blue")
    return HttpResponseRedirect("/")


# Round trips --------------------------------------------------------------------------------------


def messages_of_a_form(ann: User) -> list[str]:
    """Return what a form sends to the primary, by a browser that the token store knows."""
    client = sign_in(ann)
    visit(client, lambda request: note_write(), "post")
    with wire() as sent:
        assert visit(client, tag_and_leave, "post").status_code == 302
    return sent.sent


def test_a_token_costs_no_message(ann: User) -> None:
    """A form that writes in a transaction sends as many messages as without the package."""
    messages = messages_of_a_form(ann)
    wrote(ann)
    Tag.objects.all().delete()
    with engine(DJANGO), override_settings(REPLICA_ROUTER={"ENABLED": False}):
        *others, commit = messages_of_a_form(ann)
    assert commit == '"COMMIT"'
    assert [text.split()[0] for text in messages[:-1]] == [text.split()[0] for text in others]
    assert "pg_current_wal_insert_lsn" in messages[-1]


def test_without_the_backend_it_costs_one_message(ann: User) -> None:
    """What is saved: the question for the position, after the COMMIT."""
    with engine(DJANGO):
        *_, commit, question = messages_of_a_form(ann)
    assert commit == '"COMMIT"'
    assert "pg_current_wal_insert_lsn" in question


def test_what_was_seen_inside_a_transaction_costs_no_message(
    ann: User,
    note: Note,  # noqa: F811
    cluster: Cluster,
) -> None:
    """Where the user has only read, the COMMIT tells up to where."""

    def action(request: HttpRequest) -> None:
        assert request.user.is_authenticated
        with transaction.atomic():
            Note.objects.get(pk=note.pk)

    client = sign_in(ann)
    visit(client, action, "post")
    before = wrote(ann)
    cluster.primary.execute("UPDATE notes_note SET title = 'new'", dbname="app")
    with wire() as sent:
        visit(client, action, "post")
    assert "COMMIT" in sent.sent[-1]
    assert wrote(ann).position > before.position


def test_use_replica_after_a_write_costs_no_message(
    ann: User,
    note: Note,  # noqa: F811
    cluster: Cluster,
) -> None:
    """The position that came with the COMMIT tells which replica may serve, too."""
    with scope(user=ann), wire() as sent:
        with transaction.atomic():
            Note.objects.filter(pk=note.pk).update(body="new")
        wait_until_known(cluster)
        with use_replica():
            found = Note.objects.get(pk=note.pk)
    assert (found.body, found._state.db in {"replica1", "replica2"}) == ("new", True)
    assert len(sent.sent) == 3


@pytest.mark.parametrize("way", ["no scope", "switched off", "a replica"])
def test_elsewhere_a_commit_is_a_plain_one(ann: User, settings: Any, way: str) -> None:
    """Where there is nothing to learn, nothing is asked."""
    if way == "switched off":
        settings.REPLICA_ROUTER = {"ENABLED": False}
    elif way == "a replica":
        settings.REPLICA_ROUTER = {"CLUSTERS": {"replica1": ["default"]}}
    block: Any = nullcontext() if way == "no scope" else scope(user=ann)
    with wire() as sent, block, transaction.atomic(using="default"):
        execute("SELECT 1")
    assert sent.sent[-1] == '"COMMIT"'


# What is known of writes --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["on", "off", "local", "remote_apply"])
def test_the_token_is_behind_the_commit(
    signed_in: Client,  # noqa: F811
    ann: User,
    note: Note,  # noqa: F811
    cluster: Cluster,
    mode: str,
) -> None:
    """A replica that has replayed up to the token shows the write, however it was committed."""
    before: list[int] = []

    @transaction.atomic
    def write(request: HttpRequest) -> None:
        execute(f"SET LOCAL synchronous_commit = {mode}")
        Note.objects.filter(pk=note.pk).update(body=str(len(before)))
        ((lsn,),) = execute("SELECT pg_current_wal_insert_lsn() - '0/0'")
        before.append(int(lsn))

    for number in range(10):
        visit(signed_in, write, "post")
        token = wrote(ann).position.lsn
        # There, or behind it, begins the record of the commit.
        assert token > before[-1]
        cluster.replicas[0].wait_replayed(token)
        ((body,),) = cluster.replicas[0].execute(
            "SELECT body FROM notes_note WHERE id = %s", [note.pk], dbname="app"
        )
        assert body == str(number)


def matched_nothing(note: Note) -> None:  # noqa: F811
    with transaction.atomic():
        assert not Note.objects.filter(pk=-1).update(body="new")


def rolled_back(note: Note) -> None:  # noqa: F811
    with transaction.atomic():
        note.save()
        transaction.set_rollback(True)


def failed_unnoticed(note: Note) -> None:  # noqa: F811
    with transaction.atomic():
        note.save()
        # Past Django, which therefore commits. The server answers ROLLBACK.
        with pytest.raises(Exception, match="nowhere"):
            connection.connection.execute("SELECT * FROM nowhere")


def failed_at_commit(note: Note) -> None:  # noqa: F811
    with pytest.raises(IntegrityError) as caught, transaction.atomic():
        Comment.objects.create(author_id=0, target=note, text="of nobody")
    constraint = caught.value.__cause__.diag.constraint_name  # type: ignore[union-attr]
    assert constraint.startswith("notes_comment_author_id")
    assert connection.is_usable()
    assert connection.get_autocommit()


NO_WRITES = {
    way.__name__: way for way in (matched_nothing, rolled_back, failed_unnoticed, failed_at_commit)
}


@pytest.mark.parametrize("way", NO_WRITES.values(), ids=NO_WRITES)
def test_a_transaction_that_wrote_nothing_leaves_the_user_free(
    signed_in: Client,  # noqa: F811
    ann: User,
    note: Note,  # noqa: F811
    only_writes: None,
    way: Callable[[Note], None],
) -> None:
    """Statements that might have written, and have not, make no token."""
    visit(signed_in, lambda request: way(note), "post")
    assert record_of(ann) is None


@pytest.mark.parametrize("way", NO_WRITES.values(), ids=NO_WRITES)
def test_what_such_a_transaction_has_shown_is_remembered(
    signed_in: Client,  # noqa: F811
    ann: User,
    note: Note,  # noqa: F811
    way: Callable[[Note], None],
) -> None:
    """That an update matches nothing is something a user may have seen."""
    before = record_of(ann)
    assert before is None

    def action(request: HttpRequest) -> None:
        assert request.user.is_authenticated
        way(note)

    visit(signed_in, action, "get")
    wrote(ann)


def test_a_write_that_no_statement_tells_of_is_noticed(
    signed_in: Client,  # noqa: F811
    ann: User,
    touching_view: str,
    only_writes: None,
) -> None:
    """A view may call a function that writes: the transaction's number tells."""

    def action(request: HttpRequest) -> None:
        with transaction.atomic():
            execute(touching_view)

    visit(signed_in, action)
    wrote(ann)


def test_the_request_itself_reads_what_no_statement_tells_of(
    signed_in: Client,  # noqa: F811
    note: Note,  # noqa: F811
    touching_view: str,
    lagging: Cluster,
) -> None:
    """From then on the request has written, whatever was decided for it before."""

    def action(request: HttpRequest) -> list[int]:
        first = Note.objects.get(pk=note.pk)
        with transaction.atomic():
            execute(touching_view)
        return [first.version, Note.objects.get(pk=note.pk).version]

    first, second = visit(signed_in, action)
    assert second > first


def by_copy() -> None:
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY notes_tag (name) FROM STDIN") as rows,
    ):
        rows.write_row(("blue",))


def by_procedure() -> None:
    with connection.cursor() as cursor:
        cursor.callproc("notes_touch", [Note.objects.get().pk])


def by_driver() -> None:
    connection.connection.execute("INSERT INTO notes_tag (name) VALUES ('blue')")


@pytest.mark.parametrize("way", [by_copy, by_procedure, by_driver])
def test_what_goes_past_the_statements_is_noticed(
    signed_in: Client,  # noqa: F811
    ann: User,
    note: Note,  # noqa: F811
    only_writes: None,
    way: Callable[[], None],
) -> None:
    """In a transaction nothing needs to be told by note_write()."""
    visit(signed_in, lambda request: transaction.atomic(way)())
    wrote(ann)


@pytest.mark.parametrize("is_rolled_back", [False, True])
def test_savepoints(
    signed_in: Client,  # noqa: F811
    ann: User,
    cluster: Cluster,
    only_writes: None,
    is_rolled_back: bool,
) -> None:
    """The outermost COMMIT counts, whatever became of a part of the transaction."""

    def action(request: HttpRequest) -> None:
        with transaction.atomic(durable=True):
            Tag.objects.create(name="kept")
            try:
                with transaction.atomic():
                    Tag.objects.create(name="inner")
                    if is_rolled_back:
                        raise RuntimeError
            except RuntimeError:
                pass

    before = cluster.primary.insert_lsn()
    visit(signed_in, action, "post")
    assert wrote(ann).position.lsn > before
    assert Tag.objects.count() == 2 - is_rolled_back


def test_a_transaction_that_the_code_ends_itself_stays_a_write(
    signed_in: Client,  # noqa: F811
    ann: User,
    only_writes: None,
) -> None:
    """A raw COMMIT inside a transaction of Django's is not taken back by what follows it."""

    def action(request: HttpRequest) -> None:
        with transaction.atomic():
            Tag.objects.create(name="kept")
            execute("COMMIT")
            execute("SELECT 1")
            transaction.set_rollback(True)

    visit(signed_in, action, "post")
    wrote(ann)


def test_hooks_and_atomic_requests(
    signed_in: Client,  # noqa: F811
    ann: User,
    cluster: Cluster,
    only_writes: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hook runs after the COMMIT, and what it writes has a token as well."""
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    ran: list[int] = []

    def hook() -> None:
        ran.append(cluster.primary.insert_lsn())
        Tag.objects.create(name="by the hook")

    def action(request: HttpRequest) -> None:
        Tag.objects.create(name="by the view")
        transaction.on_commit(hook)

    visit(signed_in, action, "post")
    assert ran
    assert wrote(ann).position.lsn > ran[0]


def test_a_write_after_the_commit_is_behind_the_token(
    signed_in: Client,  # noqa: F811
    ann: User,
    cluster: Cluster,
    only_writes: None,
) -> None:
    """Outside a transaction a write brings no position: it is asked for, as without the backend."""
    between: list[int] = []

    def action(request: HttpRequest) -> None:
        with transaction.atomic():
            Tag.objects.create(name="first")
        between.append(cluster.primary.insert_lsn())
        Tag.objects.create(name="second")

    visit(signed_in, action, "post")
    assert wrote(ann).position.lsn > between[0]


def test_a_commit_covers_what_was_written_before_it(ann: User, only_writes: None) -> None:
    """A write outside any transaction needs no question where a COMMIT follows."""
    with wire() as sent, scope(user=ann):
        Tag.objects.create(name="first")
        with transaction.atomic():
            Tag.objects.create(name="second")
        list(Tag.objects.using("default"))
    assert len(sent.sent) == 5  # INSERT, BEGIN, INSERT, COMMIT, SELECT
    wrote(ann)


def test_of_transactions_that_overlap_the_last_one_counts(
    ann: User, cluster: Cluster, only_writes: None
) -> None:
    """Whichever thread of the scope commits last, the token is behind that."""
    has_written, may_commit = threading.Event(), threading.Event()

    def other() -> None:
        try:
            with transaction.atomic():
                Tag.objects.create(name="other")
                has_written.set()
                assert may_commit.wait(15)
        finally:
            connection.close()

    with scope(user=ann):
        thread = threading.Thread(target=copy_context().run, args=(other,))
        thread.start()
        assert has_written.wait(15)
        with transaction.atomic():
            Tag.objects.create(name="mine")
        between = cluster.primary.insert_lsn()
        may_commit.set()
        thread.join(15)
    assert wrote(ann).position.lsn > between


def test_a_scope_inside_another_hands_its_write_over(
    ann: User, cluster: Cluster, only_writes: None
) -> None:
    """What the inner scope has written is behind the token of the outer one's user, too."""
    ben = User.objects.create_user("ben")
    before = cluster.primary.insert_lsn()
    with scope(user=ben), scope(user=ann), transaction.atomic():
        Tag.objects.create(name="blue")
    for user in (ann, ben):
        assert wrote(user).position.lsn > before


# What was seen ------------------------------------------------------------------------------------


def test_what_the_primary_showed_after_the_commit_is_not_taken_back(
    ann: User,
    note: Note,  # noqa: F811
    cluster: Cluster,
) -> None:
    """A position that came with the COMMIT does not cover what was read later."""
    client = sign_in(ann)
    wait_until_known(cluster)

    def title(request: HttpRequest) -> str:
        return Note.objects.get(pk=note.pk).title

    def action(request: HttpRequest) -> str:
        with transaction.atomic():
            Tag.objects.create(name="blue")
        stand_still(cluster)
        cluster.primary.execute("UPDATE notes_note SET title = 'new'", dbname="app")
        return Note.objects.get(pk=note.pk).title

    assert visit(client, action, "post") == "new"
    assert visit(client, title) == "new"


def test_where_nothing_was_seen_since_the_replicas_serve(
    ann: User,
    note: Note,  # noqa: F811
    cluster: Cluster,
) -> None:
    """The token is no higher than it must be: what others write later binds nobody."""
    client = sign_in(ann)
    wait_until_known(cluster)

    def action(request: HttpRequest) -> int:
        with transaction.atomic():
            Tag.objects.create(name="blue")
        position = cluster.primary.flush()
        for replica in cluster.replicas:
            replica.wait_replayed(position)
            replica.pause()
        cluster.primary.execute("UPDATE notes_note SET title = 'new'", dbname="app")
        return position

    visit(client, lambda request: note_write(), "post")
    wait_until_seen(visit(client, action, "post"))
    assert visit(client, lambda request: Note.objects.get(pk=note.pk).title) == "first"


# When things go wrong -----------------------------------------------------------------------------


def test_a_connection_lost_at_commit_pins_though_no_write_was_noticed(
    signed_in: Client,  # noqa: F811
    ann: User,
    touching_view: str,
    cluster: Cluster,
) -> None:
    """Whether it was committed, and whether anything was written, is unknown."""

    @transaction.atomic
    def touch() -> None:
        execute(touching_view)
        ((pid,),) = execute("SELECT pg_backend_pid()")
        cluster.primary.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    def action(request: HttpRequest) -> None:
        with pytest.raises(DatabaseError):
            touch()

    visit(signed_in, action)
    assert is_pinned(ann)
    assert visit(signed_in, lambda request: Note.objects.db) == "default"


@pytest.mark.not_pooled("which server connection it has is known to the pooler")
def test_an_answer_to_a_commit_that_is_lost_pins(ann: User, cluster: Cluster) -> None:
    """The server has committed, and the line is cut before it says so."""

    @transaction.atomic
    def tag() -> None:
        Tag.objects.create(name="blue")
        # The record of the commit is written, and nobody is told until such a standby has it.
        cluster.primary.configure(synchronous_standby_names="nobody")
        pid = connection.connection.info.backend_pid
        cutters.append(threading.Thread(target=_cut, args=(cluster, proxy, pid)))
        cutters[0].start()

    cutters: list[threading.Thread] = []
    with (
        ProxyProcess({"primary": cluster.primary.port}) as proxy,
        engine(OWN, PORT=str(proxy.ports["primary"])),
    ):
        try:
            with scope(user=ann), pytest.raises(DatabaseError):
                tag()
        finally:
            for cutter in cutters:
                cutter.join(30)
            cluster.primary.configure(synchronous_standby_names=None)
    assert is_pinned(ann)
    wait_until(
        lambda: cluster.primary.execute("SELECT name FROM notes_tag", dbname="app") == [("blue",)],
        "the server to show what it has committed",
    )


def _cut(cluster: Cluster, proxy: ProxyProcess, pid: int) -> None:
    _wait_for_commit(cluster, pid)
    proxy.set_mode("primary", "reset")


def _wait_for_commit(cluster: Cluster, pid: int) -> None:
    question = "SELECT wait_event FROM pg_stat_activity WHERE pid = %s"
    wait_until(
        lambda: cluster.primary.execute(question, [pid]) == [("SyncRep",)], "the commit to wait"
    )


@pytest.mark.not_pooled("which server connection it has is known to the pooler")
def test_a_commit_that_was_interrupted_pins(ann: User, cluster: Cluster, only_writes: None) -> None:
    """Nobody knows what became of a COMMIT that the process did not wait for."""

    @transaction.atomic
    def tag() -> None:
        Tag.objects.create(name="blue")
        cluster.primary.configure(synchronous_standby_names="nobody")
        interrupter.start()

    def interrupt() -> None:
        try:
            _wait_for_commit(cluster, pid)
        finally:  # else who commits would wait for ever
            signal.raise_signal(signal.SIGINT)

    connection.ensure_connection()
    pid = connection.connection.info.backend_pid
    interrupter = threading.Thread(target=interrupt)
    # A shell has processes that it starts in the background ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with scope(user=ann), pytest.raises(KeyboardInterrupt):
            tag()
    finally:
        interrupter.join(30)
        signal.signal(signal.SIGINT, before)
        cluster.primary.configure(synchronous_standby_names=None)
    assert is_pinned(ann)
    assert connection.get_autocommit()
    assert execute("SELECT name FROM notes_tag") == [("blue",)]


@contextmanager
def plain_role(cluster: Cluster, function: str) -> Iterator[None]:
    """Work as a role that may not call a function."""
    cluster.primary.execute(
        f"CREATE ROLE plain; GRANT ALL ON ALL TABLES IN SCHEMA public TO plain; "
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO plain; "
        f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC",
        dbname="app",
    )
    try:
        execute("SET ROLE plain")
        yield
    finally:
        connection.close()
        cluster.primary.execute(
            f"GRANT EXECUTE ON FUNCTION {function} TO PUBLIC; DROP OWNED BY plain; DROP ROLE plain",
            dbname="app",
        )


@pytest.mark.not_pooled("a role is set for the session")
def test_a_position_that_is_refused_fails_no_commit(
    ann: User, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """What the package asks for may fail; the transaction was committed all the same."""
    with plain_role(cluster, "pg_walfile_name(pg_lsn)"), scope(user=ann):
        with transaction.atomic():
            Tag.objects.create(name="blue")
        assert execute("SELECT count(*) FROM notes_tag") == [(1,)]
    assert is_pinned(ann)
    assert "told no position with a COMMIT" in caplog.text


@pytest.mark.not_pooled("a role is set for the session")
def test_an_error_in_front_of_the_commit_is_an_error(ann: User, cluster: Cluster) -> None:
    """Nothing is taken for committed that is not."""
    with plain_role(cluster, "pg_current_xact_id_if_assigned()"), scope(user=ann):
        with pytest.raises(DatabaseError, match="permission denied"), transaction.atomic():
            Tag.objects.create(name="blue")
        assert execute("SELECT count(*) FROM notes_tag") == [(0,)]


# Other ways of using the driver -------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "server-side binding": {"OPTIONS": {"server_side_binding": True, "prepare_threshold": 0}},
    "pool": {"OPTIONS": {"pool": {"min_size": 1, "max_size": 2}}, "CONN_MAX_AGE": 0},
    "serializable": {"OPTIONS": {"isolation_level": 4}},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_of_the_connection(
    ann: User, cluster: Cluster, only_writes: None, options: dict[str, Any]
) -> None:
    """However the driver is set up, the position comes with the COMMIT."""
    with engine(OWN, **options):
        before = cluster.primary.insert_lsn()
        with scope(user=ann):
            with transaction.atomic():
                Tag.objects.create(name="blue")
            state = current_state()
            assert state.checkpoint is not None
        assert wrote(ann).position.lsn > before
        with scope(user=ann), transaction.atomic():
            assert not Note.objects.filter(pk=-1).update(body="new")


def current_state() -> Any:
    """Return what the present scope knows of the primary."""
    from django_replica_router import current_scope

    present = current_scope()
    assert present is not None
    return present.cluster("default")


def test_a_row_factory_of_the_connection_disturbs_nothing(ann: User, only_writes: None) -> None:
    """Rows of another kind are the site's own business."""
    with scope(user=ann):
        with transaction.atomic():
            Tag.objects.create(name="blue")
            connection.connection.row_factory = dict_row
        assert current_state().checkpoint is not None
    wrote(ann)


class Foreign(Loader):
    """Makes of every value something of the site's own."""

    def load(self, data: Any) -> Any:
        return ("foreign", bytes(data))


def test_types_of_the_sites_own_are_nothing_to_go_by(ann: User, only_writes: None) -> None:
    """What cannot be read is no position, and no sign that nothing was written."""
    with scope(user=ann):
        with transaction.atomic():
            Tag.objects.create(name="blue")
            for name in ("text", "bool"):
                connection.connection.adapters.register_loader(name, Foreign)
        assert current_state().checkpoint is None
    connection.close()
    assert is_pinned(ann)
    assert Tag.objects.count() == 1


def test_a_pipeline_commits_plainly(ann: User, cluster: Cluster, only_writes: None) -> None:
    """A pipeline takes one statement a message: the position is asked for at the end."""
    before = cluster.primary.insert_lsn()
    with scope(user=ann):
        with transaction.atomic():
            Tag.objects.create(name="blue")
            pipeline = connection.connection.pipeline()
            pipeline.__enter__()
        assert current_state().checkpoint is None
        pipeline.__exit__(None, None, None)
    assert wrote(ann).position.lsn > before


def test_logs_and_counts_are_those_without_the_backend(
    ann: User, caplog: pytest.LogCaptureFixture, django_assert_num_queries: Any
) -> None:
    """The message is one COMMIT for whoever counts or logs."""
    with (
        caplog.at_level(logging.DEBUG, "django.db.backends"),
        scope(user=ann),
        django_assert_num_queries(3) as captured,
        transaction.atomic(),
    ):
        Tag.objects.create(name="blue")
    assert [query["sql"].split()[0] for query in captured] == ["BEGIN", "INSERT", "COMMIT"]
    messages = [record.getMessage() for record in caplog.records]
    assert sum("COMMIT" in message for message in messages) == 1
    assert not any("wal" in message for message in messages)


def test_the_server_has_nothing_to_remark(ann: User, note: Note) -> None:  # noqa: F811
    """The message raises no notice of its own, and passes on those of the transaction."""
    notices: list[str] = []
    with scope(user=ann), transaction.atomic():
        connection.connection.add_notice_handler(
            lambda diagnostic: notices.append(diagnostic.message_primary)
        )
        execute("DO $$ BEGIN RAISE NOTICE 'from the transaction'; END $$")
    assert notices == ["from the transaction"]


def test_use_primary_and_the_rest_stay_as_they_are(ann: User, note: Note) -> None:  # noqa: F811
    """Inside a transaction and after it, the primary serves who has written."""
    with scope(user=ann):
        with transaction.atomic():
            note.save()
            assert Note.objects.get()._state.db == "default"
        assert Note.objects.get()._state.db == "default"
        with use_primary():
            assert Note.objects.get()._state.db == "default"


# What the transaction's own log does not show ------------------------------------------------------


def write_elsewhere(note: Note) -> None:  # noqa: F811
    """Write by a connection of the driver's own."""
    params = {**connection.get_connection_params(), "autocommit": True}
    for name in ("cursor_factory", "context", "prepare_threshold"):
        params.pop(name, None)
    with psycopg.connect(**params) as raw:
        raw.execute("UPDATE notes_note SET title = 'NEW' WHERE id = %s", [note.pk])


def noted(note: Note) -> None:  # noqa: F811
    with transaction.atomic():
        assert Note.objects.count() == 1
        write_elsewhere(note)
        note_write()


def noted_and_rolled_back(note: Note) -> None:  # noqa: F811
    with transaction.atomic():
        write_elsewhere(note)
        note_write()
        transaction.set_rollback(True)


def by_dblink(note: Note) -> None:  # noqa: F811
    with transaction.atomic():
        execute("SELECT dblink_exec(%s, 'UPDATE notes_note SET title = ''NEW''')", [own_dsn()])


def by_held_cursor(note: Note) -> None:  # noqa: F811
    with transaction.atomic():
        execute(
            "DECLARE held CURSOR WITH HOLD FOR "
            f"SELECT dblink_exec('{own_dsn()}', 'UPDATE notes_note SET title = ''NEW''')"
        )
    connection.connection.execute("CLOSE held")


def by_foreign_table(note: Note) -> None:  # noqa: F811
    with transaction.atomic():
        execute("UPDATE far.notes_note SET title = 'NEW'")


def own_dsn() -> str:
    """Return what another server would reach this primary by."""
    params = connection.get_connection_params()
    return " ".join(f"{key}={params[key]}" for key in ("host", "port", "dbname", "user"))


PAST = {
    way.__name__: way
    for way in (noted, noted_and_rolled_back, by_dblink, by_held_cursor, by_foreign_table)
}


@pytest.fixture
def far(cluster: Cluster) -> Iterator[None]:
    """The primary's own tables as foreign ones, and ``dblink``."""
    params = connection.get_connection_params()
    cluster.primary.execute("CREATE EXTENSION dblink", dbname="app")
    cluster.primary.execute("CREATE EXTENSION postgres_fdw", dbname="app")
    for statement in (
        "CREATE SERVER itself FOREIGN DATA WRAPPER postgres_fdw OPTIONS "
        f"(host '{params['host']}', port '{params['port']}', dbname '{params['dbname']}')",
        f"CREATE USER MAPPING FOR public SERVER itself OPTIONS (user '{params['user']}')",
        "CREATE SCHEMA far",
        "IMPORT FOREIGN SCHEMA public LIMIT TO (notes_note) FROM SERVER itself INTO far",
        # Its function does not find its tables by the search path of such a session.
        "ALTER TABLE notes_note DISABLE TRIGGER USER",
    ):
        cluster.primary.execute(statement, dbname="app")
    try:
        yield
    finally:
        connection.close()
        for statement in (
            "ALTER TABLE notes_note ENABLE TRIGGER USER",
            "DROP SCHEMA far CASCADE",
            "DROP SERVER itself CASCADE",
            "DROP EXTENSION postgres_fdw",
            "DROP EXTENSION dblink",
        ):
            cluster.primary.execute(statement, dbname="app")


@pytest.mark.parametrize("way", PAST.values(), ids=PAST)
def test_what_was_written_past_a_transaction_is_seen(
    signed_in: Client,  # noqa: F811
    note: Note,  # noqa: F811
    far: None,
    cluster: Cluster,
    only_writes: None,
    way: Callable[[Note], None],
) -> None:
    """A transaction without a number of its own may have written all the same, and been told so."""
    stand_still(cluster)
    visit(signed_in, lambda request: way(note), "post")
    assert visit(signed_in, lambda request: Note.objects.get().title) == "NEW"


@pytest.mark.parametrize("way", PAST.values(), ids=PAST)
def test_without_the_rule_a_write_past_a_transaction_is_missed(
    signed_in: Client,  # noqa: F811
    note: Note,  # noqa: F811
    far: None,
    cluster: Cluster,
    only_writes: None,
    way: Callable[[Note], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Control: where the number alone tells, the test above fails."""
    add = ClusterScope.add_write

    def forget(state: ClusterScope, mark: WriteMark) -> None:
        mark.noted, mark.changed = [], []
        add(state, mark)

    monkeypatch.setattr(ClusterScope, "add_write", forget)
    with pytest.raises(AssertionError, match="first"):
        test_what_was_written_past_a_transaction_is_seen(
            signed_in, note, far, cluster, only_writes, way
        )
