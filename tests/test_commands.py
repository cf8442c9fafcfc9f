"""Management commands that are given a replica by name: each reads there, or is refused."""

from __future__ import annotations

import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import django.contrib
import django.core.management.commands
import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.core.management.base import BaseCommand
from django.core.management.commands.migrate import Command as Migrate
from django.db import InternalError, connections, router, transaction
from django.db.backends.postgresql.client import DatabaseClient
from django.db.migrations.recorder import MigrationRecorder
from django.db.models.signals import pre_migrate

from django_replica_router import commands, receivers, routers
from django_replica_router.commands import guard_commands
from django_replica_router.routers import ReplicaRouter
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.helpers import Served
from tests.programs import environment

ROOT = Path(__file__).resolve().parent.parent

REFUSED: dict[str, tuple[Any, ...]] = {
    "changepassword": ("ann",),
    "createcachetable": ("cache_table",),
    "createsuperuser": ("--username=bob", "--email=bob@example.org", "--noinput"),
    "flush": ("--noinput",),
    "loaddata": ("notes",),
    "migrate": (),
    "remove_stale_contenttypes": ("--noinput",),
}
"""What each command that writes is called with."""

READS: dict[str, tuple[tuple[Any, ...], str]] = {
    "check": ((), "System check identified"),
    "createcachetable --dry-run": (("cache_table",), "CREATE TABLE"),
    "dumpdata": (("notes.note",), '"model": "notes.note"'),
    "inspectdb": (("notes_note",), "class NotesNote(models.Model)"),
    "migrate --plan": ((), "No planned migration operations"),
    "migrate --check": ((), ""),
    "showmigrations": (("notes",), "[X] 0001_initial"),
    "sqlflush": ((), "TRUNCATE"),
    "sqlmigrate": (("notes", "0001"), "CREATE TABLE"),
    "sqlsequencereset": (("notes",), "pg_get_serial_sequence"),
}
"""What each command that reads is called with, and what it prints."""

CALLED_ELSEWHERE = {"dbshell"}


def refusal(command: str) -> str:
    """Return the sentence that a command ends with that would write to a replica."""
    return (
        f"'replica1' is a replica of 'default', which {command!r} cannot write to: run it with "
        f"--database=default, and the replica receives what is written there."
    )


def run(command: str, *args: Any) -> str:
    """Run a command, options and all, on the replica, and return what it prints."""
    out = StringIO()
    name, *options = command.split()
    call_command(name, *args, *options, "--database=replica1", stdout=out, stderr=out)
    return out.getvalue()


def modules_of_commands() -> Iterator[str]:
    """Return the module of every command of Django and of its contrib apps."""
    packages = [django.core.management.commands.__name__]
    for app in pkgutil.iter_modules(django.contrib.__path__):
        folder = Path(django.contrib.__path__[0]) / app.name / "management" / "commands"
        if folder.is_dir():
            packages.append(f"django.contrib.{app.name}.management.commands")
    for package in packages:
        for found in pkgutil.iter_modules(import_module(package).__path__):
            yield f"{package}.{found.name}"


def commands_with_a_database() -> set[str]:
    """Return the names of all commands of Django's that take ``--database``."""
    names = set()
    for module in modules_of_commands():
        name = module.rpartition(".")[2]
        try:
            command = import_module(module).Command()
        except ImproperlyConfigured:  # a library is missing, as GDAL
            spec = find_spec(module)
            assert spec is not None
            assert "--database" not in Path(str(spec.origin)).read_text()
            continue
        if "--database" in command.create_parser("manage.py", name)._option_string_actions:
            names.add(name)
    return names


def test_every_command_of_django_is_in_the_tables() -> None:
    """None that takes a database is left out of what is tested, and of what is guarded."""
    reads = {command.split()[0] for command in READS} | CALLED_ELSEWHERE
    assert commands_with_a_database() == reads | REFUSED.keys()
    assert commands.WRITERS.keys() == REFUSED.keys()


def test_the_document_has_the_same_table() -> None:
    """It tells of each command what the tests have seen it do."""
    text = (ROOT / "docs" / "commands.md").read_text()
    expected = dict.fromkeys(CALLED_ELSEWHERE, "reads")
    for command in READS:
        name, *options = command.split()
        if not options:
            expected[name] = "reads"
    for name in REFUSED:
        harmless = [f"`{c.split()[1]}`" for c in READS if c.startswith(f"{name} ")]
        expected[name] = "refused" + ("; reads with " + ", ".join(harmless) if harmless else "")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.MULTILINE)
    assert rows == sorted(expected.items())


def test_the_document_shows_the_sentence() -> None:
    """What it shows as the answer is the answer."""
    text = " ".join((ROOT / "docs" / "commands.md").read_text().split())
    assert f"CommandError: {refusal('loaddata')}" in text


@pytest.mark.parametrize("command", READS)
def test_reading_by_name_reads(command: str, note: Note, served: Served) -> None:
    """A command that reads prints what the replica has, and asks the primary nothing."""
    args, expected = READS[command]
    served.clear()
    assert expected in run(command, *args)
    assert served.aliases() <= {"replica1"}, served.statements


def test_a_dump_of_a_replica_holds_the_rows_of_the_replica(note: Note, cluster: Cluster) -> None:
    """What it has not replayed is not in it."""
    cluster.replicas[0].pause()
    Note.objects.create(owner=note.owner, title="later")
    assert [row["fields"]["title"] for row in json.loads(run("dumpdata", "notes.note"))] == [
        "first"
    ]


def test_a_shell_of_a_replica_is_opened(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """``dbshell`` leads to the server that was named."""
    ports = []
    client = DatabaseClient

    def run_shell(self: Any, parameters: Any) -> None:
        ports.append(self.connection.settings_dict["PORT"])

    monkeypatch.setattr(client, "runshell", run_shell)
    run("dbshell")
    assert ports == [connections["replica1"].settings_dict["PORT"]]


@pytest.mark.parametrize("command", REFUSED)
def test_writing_to_a_replica_is_refused(command: str, ann: User, served: Served) -> None:
    """In one sentence, which names the primary, before any statement is sent to anybody."""
    served.clear()
    with pytest.raises(CommandError) as caught:
        run(command, *REFUSED[command])
    assert str(caught.value) == refusal(command)
    assert served.statements == []


def test_pruning_is_a_write_also_where_it_only_checks(cluster: Cluster, served: Served) -> None:
    """``migrate --check --prune`` deletes rows of the migrations' table."""
    served.clear()
    with pytest.raises(CommandError, match="cannot write to"):
        run("migrate --check --prune", "notes")
    assert served.statements == []


def test_another_apps_version_of_a_command_is_refused(cluster: Cluster) -> None:
    """A command is known by its name, whichever app it is from, and whatever it does first."""

    class Command(Migrate):
        def handle(self, *args: Any, **options: Any) -> None:
            pytest.fail("it was run")

    Command.__module__ = "another.management.commands.migrate"
    with pytest.raises(CommandError) as caught:
        call_command(Command(), database="replica1")
    assert str(caught.value) == refusal("migrate")


def test_code_that_migrates_without_the_command_is_refused(cluster: Cluster) -> None:
    """Before the first operation, by the signal."""
    with pytest.raises(CommandError, match="which 'migrate' cannot write to"):
        pre_migrate.send(sender=None, using="replica1")


def migrated() -> set[tuple[str, str]]:
    """Return which migrations the primary has noted."""
    return set(MigrationRecorder(connections["default"]).applied_migrations())


@pytest.mark.usefixtures("cluster")
def test_a_migration_is_never_noted_for_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with nothing but the server to refuse it, the primary's migrations stay as they are."""
    before = migrated()
    monkeypatch.setattr(commands, "_primary_behind", lambda alias: None)
    with pytest.raises(Exception, match=r"read-only transaction|cannot write to"):
        run("migrate --fake", "notes", "zero")
    assert migrated() == before


class Report(BaseCommand):
    """A command that nobody knows, and that does what the test says."""

    action: Callable[[str], Any]

    def add_arguments(self, parser: Any) -> None:
        """Take a database."""
        parser.add_argument("--database", default="default")

    def handle(self, *args: Any, database: str = "default", **options: Any) -> str:
        """Do it."""
        return str(type(self).action(database))


Report.__module__ = "shop.management.commands.report"


def report(action: Callable[[str], Any], database: str = "replica1") -> Any:
    """Run the command with the action."""
    Report.action = staticmethod(action)
    return call_command(Report(), database=database, stdout=StringIO())


def test_any_other_command_may_read_a_replica(note: Note, served: Served) -> None:
    """What it reads there is what the replica has."""
    served.clear()
    assert report(lambda alias: Note.objects.using(alias).get().title) == "first"
    assert served.only_replicas("notes_note")


def test_any_other_command_that_writes_there_ends_with_the_sentence(note: Note) -> None:
    """The standby refuses the statement, the command tells it, and nothing is written."""

    def write(alias: str) -> None:
        with transaction.atomic(using=alias):
            Note.objects.using(alias).count()
            Note.objects.using(alias).update(title="changed")

    with pytest.raises(CommandError) as caught:
        report(write)
    assert str(caught.value) == refusal("report")
    assert caught.value.__cause__ is not None
    assert Note.objects.get().title == "first"


def test_what_such_a_command_writes_by_name_is_written_nowhere(note: Note) -> None:
    """Nor outside a transaction: the primary does not take what was sent to its replica."""
    with pytest.raises(CommandError) as caught:
        report(lambda alias: Note.objects.using(alias).create(owner_id=note.owner_id, title="lost"))
    assert str(caught.value) == refusal("report")
    assert Note.objects.get() == note


def test_an_object_that_such_a_command_saves_goes_to_the_primary(note: Note) -> None:
    """It names no database, so it is saved as everywhere."""

    def save(alias: str) -> None:
        found = Note.objects.using(alias).get()
        found.title = "changed"
        found.save()

    report(save)
    assert Note.objects.using("default").get().title == "changed"


def test_another_error_of_a_command_is_its_own(cluster: Cluster) -> None:
    """Only what a standby has refused is told as that."""

    def fail(alias: str) -> None:
        message = "no report today"
        raise ValueError(message)

    with pytest.raises(ValueError, match="no report today"):
        report(fail)


def test_a_mirror_in_a_test_run_is_the_primary(note: Note, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the alias is the primary's own database, every command may do everything."""
    address = connections["default"].settings_dict
    connections["replica1"].close()
    for part in ("HOST", "PORT", "NAME"):
        monkeypatch.setitem(connections["replica1"].settings_dict, part, address[part])
    run("migrate")
    run("remove_stale_contenttypes", "--noinput")
    connections["replica1"].close()


def test_the_primary_and_strangers_are_left_alone(cluster: Cluster) -> None:
    """Commands on any other alias, or on several, run as they do without the package."""
    out = StringIO()
    call_command("migrate", database="default", stdout=out)
    assert "No migrations to apply" in out.getvalue()
    call_command("check", databases=["default", "replica1"], stdout=out)
    call_command("createcachetable", stdout=out)


def test_commands_are_guarded_once(cluster: Cluster) -> None:
    """An app that is made ready again wraps nothing anew."""
    before = BaseCommand.execute
    guard_commands()
    assert BaseCommand.execute is before


def test_a_router_is_asked_for_the_tables_of_the_primary(cluster: Cluster, settings: Any) -> None:
    """A replica has the tables that another router gives its primary."""

    class NoNotes:
        def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
            return False if db == "default" and app_label == "notes" else None

    settings.DATABASE_ROUTERS = [ReplicaRouter(), NoNotes()]
    assert router.allow_migrate_model("replica1", Note) is False
    assert router.allow_migrate_model("replica1", User) is True


def test_a_command_line_ends_with_the_sentence(cluster: Cluster) -> None:
    """``manage.py`` prints it alone, with an exit code that is not zero."""
    done = subprocess.run(
        [sys.executable, "-m", "django", "flush", "--noinput", "--database=replica1"],
        env=environment(cluster),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"CommandError: {refusal('flush')}\n"


# Negative controls


def unguarded(patch: pytest.MonkeyPatch) -> None:
    """Take out the rule that a command is refused before it begins."""
    patch.setattr(commands, "WRITERS", {})


@pytest.mark.parametrize("command", ["changepassword", "createsuperuser", "migrate"])
def test_control_of_refusing(command: str, ann: User, served: Served) -> None:
    """Without the rule a command does begin."""
    with pytest.MonkeyPatch.context() as patch:
        unguarded(patch)
        patch.setattr(receivers, "refuse_replica", lambda *args: None)
        patch.setattr("getpass.getpass", lambda prompt: "correct horse 2")
        patch.setenv("DJANGO_SUPERUSER_PASSWORD", "correct horse 2")
        with pytest.raises(pytest.fail.Exception):
            _must_fail(test_writing_to_a_replica_is_refused, command, ann, served)


def test_control_of_reading(note: Note, served: Served) -> None:
    """Where the router denies the tables, a dump is empty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplicaRouter, "allow_migrate", lambda self, db, app_label, **hints: False)
        with pytest.raises(pytest.fail.Exception):
            _must_fail(test_reading_by_name_reads, "dumpdata", note, served)


def test_control_of_reading_relations_there_too(note: Note, served: Served) -> None:
    """Where a command's replica is not remembered, the relations of its objects come from elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routers, "get_named_replica", lambda: None)
        with pytest.raises(pytest.fail.Exception):
            _must_fail(test_reading_by_name_reads, "dumpdata", note, served)


def test_control_of_telling_the_refusal(note: Note) -> None:
    """Where nothing tells that the standby has refused it, the error is the driver's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "is_refused_write", lambda error: False)
        with pytest.raises(InternalError, match="read-only transaction"):
            test_what_such_a_command_writes_by_name_is_written_nowhere(note)


def _must_fail(test: Callable[..., None], *args: Any) -> None:
    try:
        test(*args)
    except (AssertionError, pytest.fail.Exception) as error:
        pytest.fail(str(error))
