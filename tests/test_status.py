"""What is told of the servers, and of the reads of all processes."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import caches
from django.core.management import CommandError, call_command

from django_replica_router import current_token, scope
from django_replica_router.management.commands import replica_status
from django_replica_router.replicas import census as census_module
from django_replica_router.replicas import telling as telling_module
from django_replica_router.replicas.census import Census, ProcessCounts, read_census
from django_replica_router.replicas.registry import stop_monitors
from django_replica_router.stats import count, pop_stats
from django_replica_router.status.reads import sum_up
from django_replica_router.status.servers import ClusterStatus, look
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import wait_until
from tests.reading import note

__all__ = ["note"]

PATIENCE = 20.0


def run(*arguments: str) -> tuple[int, str]:
    """Return the exit code of a command, and what it prints."""
    out = io.StringIO()
    try:
        call_command(*arguments, stdout=out, stderr=out, no_color=True)
    except SystemExit as error:
        return int(str(error.code)), out.getvalue()
    return 0, out.getvalue()


def lines_of(text: str) -> dict[str, str]:
    """Return the line of each server."""
    return {line.split()[0]: line for line in text.splitlines() if line.split()}


def status() -> ClusterStatus:
    """Return the status of the one cluster, as a process that has just started."""
    stop_monitors()
    return look("default", PATIENCE)


@pytest.fixture
def counting(settings: Any, cluster: Cluster) -> Iterator[Census]:
    """The counts of this process, which begin now."""
    settings.REPLICA_ROUTER = {"SHARE_COUNTS": True}
    pop_stats()
    yield Census()
    pop_stats()


# The servers.


def test_each_server_is_told_of(cluster: Cluster) -> None:
    """By role, address, version, timeline, position, and how far it is behind."""
    primary, *replicas = status().servers
    version = cluster.primary.execute("SHOW server_version")[0][0].split()[0]
    assert (primary.role, primary.alias, primary.serves) == ("primary", "default", True)
    assert [replica.alias for replica in replicas] == ["replica1", "replica2"]
    for server, real in zip(
        (primary, *replicas), (cluster.primary, *cluster.replicas), strict=True
    ):
        assert server.address == f"127.0.0.1:{real.port}"
        assert (server.version, server.timeline) == (version, primary.timeline)
        assert server.serves
        assert server.lsn is not None
    assert all(replica.seconds_behind is not None for replica in replicas)


def test_a_replica_that_is_behind_is_told_of(healed: Cluster, note: Note) -> None:
    """By the bytes that it lacks; one of which nobody knows how late it is does not serve."""
    late = healed.replicas[0]
    late.pause()
    Note.objects.filter(pk=note.pk).update(title="new")
    healed.primary.flush()
    stop_monitors()
    found = look("default", 1.0).servers[1]
    assert (found.state, found.serves) == ("LAGGING", False)
    assert found.bytes_behind is not None
    assert found.bytes_behind > 0
    assert "its replay is paused" in found.sentence
    late.resume()
    wait_until(lambda: look("default", 1.0).servers[1].serves, "it to serve")


@pytest.mark.parametrize(("stopped", "code"), [([], 0), ([0], 1), ([0, 1], 2)])
def test_the_exit_code_tells_whether_all_serve(
    healed: Cluster, stopped: list[int], code: int
) -> None:
    """0 where all do, 1 where one does not, 2 where none does."""
    stop_monitors()
    for place in stopped:
        healed.replicas[place].stop()
    found, text = run("replica_status", "--timeout", str(PATIENCE))
    assert found == code, text
    lines = lines_of(text)
    assert "takes writes" in lines["default"]
    for place, alias in enumerate(["replica1", "replica2"]):
        state = "UNREACHABLE" if place in stopped else "STREAMING"
        assert state in lines[alias]


def test_a_primary_that_is_down_is_told_of(healed: Cluster) -> None:
    """Its replicas serve on, and the code is that of the worst."""
    healed.primary.stop()
    stop_monitors()
    code, text = run("replica_status", "--timeout", "3")
    assert code == 2
    assert "DOWN" in lines_of(text)["default"]


def test_the_document_has_the_same(cluster: Cluster) -> None:
    """For scripts: one JSON document."""
    stop_monitors()
    code, text = run("replica_status", "--json", "--timeout", str(PATIENCE))
    told = json.loads(text)
    assert (code, told["code"]) == (0, 0)
    assert [server["alias"] for server in told["clusters"]["default"]] == [
        "default",
        "replica1",
        "replica2",
    ]
    assert told["reads"] is None  # SHARE_COUNTS is off


def test_it_is_told_again_until_interrupted(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --watch, one document a line."""
    stop_monitors()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(replica_status, "time", SimpleNamespace(sleep=sleep))
    code, text = run("replica_status", "--json", "--watch", "7", "--timeout", str(PATIENCE))
    assert (code, slept) == (0, [7.0, 7.0, 7.0])
    assert [json.loads(line)["code"] for line in text.splitlines()] == [0, 0, 0]


@pytest.mark.parametrize("is_coloured", [True, False])
def test_colours_are_those_of_django(
    healed: Cluster, monkeypatch: pytest.MonkeyPatch, is_coloured: bool
) -> None:
    """Green where a server serves, red where it does not; none where nobody wants any."""
    monkeypatch.delenv("DJANGO_COLORS", raising=False)
    healed.replicas[0].stop()
    stop_monitors()
    out = io.StringIO()
    with pytest.raises(SystemExit):
        call_command(
            "replica_status", stdout=out, force_color=is_coloured, no_color=not is_coloured
        )
    lines = {
        line.lstrip("\x1b[0123456789;m").split()[0]: line
        for line in out.getvalue().splitlines()
        if line
    }
    green, red = ("\x1b[32;1m", "\x1b[31;1m") if is_coloured else ("default", "replica1")
    assert lines["default"].startswith(green)
    assert lines["replica1"].startswith(red)


def test_without_replicas_there_is_nothing_to_tell(settings: Any, cluster: Cluster) -> None:
    """The error says which setting makes one."""
    settings.REPLICA_ROUTER = {"CLUSTERS": {"default": []}}
    with pytest.raises(CommandError, match="No replica is configured"):
        run("replica_status")


# The reads of all processes.


def test_what_processes_have_counted_is_summed_up(counting: Census) -> None:
    """By server and by reason; each process by itself in the cache."""
    with scope():
        list(Note.objects.all())
    Census().tell("default")
    counting.tell("default")
    told = read_census("default")
    assert len(told) == 2
    reads = sum_up(told)
    assert reads.processes == 2
    assert sum(reads.by_alias.values()) == sum(reads.by_reason.values()) == 2
    code, text = run("replica_status", "--timeout", str(PATIENCE))
    assert code == 0
    assert "Reads of the last minute, of 2 processes:" in text
    assert "100%" in text


def test_what_going_live_would_bring_is_told(
    counting: Census, settings: Any, note: Note, cluster: Cluster
) -> None:
    """In shadow: where reads would have gone, and why; and that they have not is a step of the explanation."""
    settings.REPLICA_ROUTER = {"SHARE_COUNTS": True, "SHADOW": True}
    with scope():
        list(Note.objects.all())
    counting.tell("default")
    text = run("replica_status", "--timeout", str(PATIENCE))[1]
    assert re.search(
        r"Of 1 that are not routed yet .* would have been read: replica\d 100%\.", text
    )
    assert "The reasons: CAUGHT_UP 1." in text
    explained = run("replica_explain", "notes.Note")[1]
    assert "Of all readers nobody may be sent to replicas so far" in explained
    assert "-> default  SHADOW" in explained


def test_only_the_last_minute_counts(counting: Census) -> None:
    """What was counted before it has left the sum, and not what was counted in all."""
    now = [1000.0]
    census = Census(lambda: now[0])
    lately = []
    for number in range(30):
        if number in (0, 10):
            count("reads_from_replica1")
        census.tell("default")
        (told,) = read_census("default")
        lately.append(told.lately.get("reads_from_replica1", 0))
        now[0] += census_module.EVERY
    assert told.counts["reads_from_replica1"] == 2
    assert lately == [1] * 10 + [2] * 3 + [1] * 9 + [0] * 8


def test_a_process_that_was_emptied_out_of_the_cache_is_back(counting: Census) -> None:
    """A cache may forget: the next entry brings the name along."""
    now = [1000.0]
    census = Census(lambda: now[0])
    count("reads_from_replica1")
    census.tell("default")
    caches["default"].clear()
    assert read_census("default") == []
    now[0] += 5.0
    census.tell("default")
    assert len(read_census("default")) == 1


def test_a_process_tells_as_long_as_it_has_a_monitor(
    counting: Census, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a thread of its own."""
    for module in (census_module, telling_module):
        monkeypatch.setattr(module, "EVERY", 0.05)
    stop_monitors()
    with scope():
        list(Note.objects.all())
    wait_until(lambda: read_census("default"), "the process to tell")


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "[]",
        '[2,"a",1,{},{}]',
        '[1,"a",1,{},[]]',
        '[1,"a","b",{},{}]',
        '[1,"a",1,{"b":"c"},{}]',
    ],
)
def test_what_is_no_entry_is_ignored(value: object) -> None:
    """Whatever stands there."""
    assert ProcessCounts.decode(value) is None


def test_an_entry_is_read_as_it_was_written() -> None:
    """The control of the test before."""
    counts: Mapping[str, int] = {"reads_from_replica1": 3}
    told = ProcessCounts("host:1", 2.5, counts, {})
    assert ProcessCounts.decode(told.encode()) == told


# Waiting.


def test_a_deployment_waits_for_the_replicas(healed: Cluster, note: Note) -> None:
    """It fails where one is late, and succeeds once it is there."""
    late = healed.replicas[0]
    late.pause()
    Note.objects.filter(pk=note.pk).update(title="new")
    with pytest.raises(CommandError, match="these replicas of 'default' are late: 'replica1'"):
        run("replica_wait", "--timeout", "0.5")
    late.resume()
    assert run("replica_wait", "--timeout", str(PATIENCE)) == (0, "")


def test_it_waits_for_a_token(healed: Cluster, note: Note, ann: User) -> None:
    """For no more than that binds to."""
    with scope(user=ann):
        Note.objects.filter(pk=note.pk).update(title="new")
        token = str(current_token())
    healed.wait_caught_up()
    late = healed.replicas[0]
    late.pause()
    Note.objects.filter(pk=note.pk).update(title="newer")
    assert run("replica_wait", "--token", token, "--timeout", str(PATIENCE))[0] == 0
    with pytest.raises(CommandError, match="late"):
        run("replica_wait", "--timeout", "0.5")


def test_it_tells_which_replica_it_has_not_waited_for(healed: Cluster) -> None:
    """One that is out of service keeps no deployment waiting."""
    healed.replicas[0].stop()
    stop_monitors()
    code, text = run("replica_wait", "--timeout", str(PATIENCE))
    assert code == 0
    assert "'replica1' is out of service, and was not waited for" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--token", "forged"], "--token is none of current_token"),
        (["--database", "replica1"], "using should be the alias of a primary"),
        (["--max-lag", "-1"], "max_lag should be a number of seconds"),
    ],
)
def test_wrong_options_are_told(cluster: Cluster, arguments: list[str], message: str) -> None:
    """In one sentence."""
    with pytest.raises(CommandError, match=message):
        run("replica_wait", *arguments)


# Explaining.


def test_a_read_is_explained(healed: Cluster, note: Note, ann: User) -> None:
    """What the reader must see, which replica has it, and where the read goes."""
    healed.wait_caught_up()
    stop_monitors()
    arguments = ["replica_explain", "notes.Note", "--user", str(ann.pk), "--path", "/overview/"]
    _, text = run(*arguments)
    assert "the view 'overview'" in text
    assert "it may serve" in text
    assert "-> replica" in text
    for replica in healed.replicas:
        replica.pause()
    with scope(user=ann):
        Note.objects.filter(pk=note.pk).update(title="new")
    _, text = run(*arguments)
    assert "The reader must see what was there at " in text
    assert "which lacks" in text
    assert "-> default  LAGGING" in text


def test_an_empty_token_store_is_explained(healed: Cluster) -> None:
    """It is empty where a site begins: the second answer tells where reads go from then on."""
    healed.wait_caught_up()
    caches["default"].clear()
    _, text = run("replica_explain", "notes.Note")
    assert "The token store was empty, as it is at first." in text
    assert "may serve" not in text
    assert "-> default  EMPTY_STORE" in text
    healed.wait_caught_up()
    assert "-> replica" in run("replica_explain", "notes.Note")[1]


def test_a_model_that_is_swapped_has_no_reads_to_explain(cluster: Cluster, settings: Any) -> None:
    """As auth.User, where the site has a model of its own."""
    settings.AUTH_USER_MODEL = "notes.Note"
    with pytest.raises(CommandError, match=r"AUTH_USER_MODEL puts 'notes\.Note' in its"):
        run("replica_explain", "auth.User")


@pytest.mark.parametrize(
    ("options", "router", "told"),
    [
        (["--method", "post"], {}, "-> default  UNSAFE_METHOD"),
        ([], {"PRIMARY_ONLY": ["notes"]}, "-> default  MODEL"),
        ([], {"ENABLED": False}, "-> default  DISABLED"),
        (["--path", "/overview/"], {"PRIMARY_VIEWS": ["overview"]}, "-> default  FORCED"),
        (["--path", "/overview/"], {"REPLICA_VIEWS": ["overview"]}, "REPLICA_VIEWS names the view"),
    ],
)
def test_each_rule_is_told(
    settings: Any, cluster: Cluster, options: list[str], router: dict[str, Any], told: str
) -> None:
    """The one that decides ends the explanation."""
    settings.REPLICA_ROUTER = router
    assert told in run("replica_explain", "notes.Note", *options)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["notes.Nothing"], "'notes.Nothing' is no model"),
        (["nothing"], r"'nothing' is no model\. Give it as app_label\.Model\.$"),
        (["notes.Note", "--path", "/nowhere/"], "no view has the path '/nowhere/'"),
        (["notes.Note", "--user", "0"], "there is no user '0': expected a primary key"),
        (["notes.Note", "--user", "x"], "there is no user 'x'"),
    ],
)
def test_wrong_questions_are_told(cluster: Cluster, arguments: list[str], message: str) -> None:
    """In one sentence."""
    with pytest.raises(CommandError, match=message):
        run("replica_explain", *arguments)
