"""The caches that sites have, in a real server process under ASGI: valkey-py's, and behind a Sentinel."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from django.contrib.auth.models import User
from django_redis.cache import RedisCache
from django_redis.pool import ConnectionFactory

from django_replica_router.errors import StoreError
from django_replica_router.stores import redis as redis_client
from django_replica_router.stores.store import RedisStore, open_store
from testproject.cluster import Cluster, ValkeyServer
from testproject.cluster.binaries import find_valkey
from testproject.cluster.workspace import Workspace
from testproject.notes.models import Note
from tests.conftest import stand_still, wait_until, wait_until_known
from tests.programs import serving
from tests.site import PASSWORD
from tests.test_cache_clients import RECORD, VALKEY

NAME = "mine"


class SentinelServer(ValkeyServer):
    """A Sentinel, which names the master among a server and its replicas, and replaces it."""

    def __init__(self, workspace: Workspace, program: Path, master: ValkeyServer) -> None:
        super().__init__(workspace, program, "sentinel")
        self._master = master

    def _command(self) -> list[str]:
        # Sentinels keep what they learn in their file: so each start begins anew.
        file = self.data_directory / "sentinel.conf"
        settings = {
            "port": str(self.port),
            "bind": self.host,
            "dir": str(self.data_directory),
            "sentinel monitor": f"{NAME} {self._master.host} {self._master.port} 1",
            "sentinel down-after-milliseconds": f"{NAME} 2000",
            "sentinel failover-timeout": f"{NAME} 3000",
        }
        file.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        if self._workspace.account.is_other:
            os.chown(file, self._workspace.account.uid, self._workspace.account.gid)
        return [str(self._program), str(file), "--sentinel"]


class Trio:
    """A master, its replica, and a Sentinel that looks at them."""

    def __init__(self, workspace: Workspace) -> None:
        program = find_valkey(workspace)
        self.master = ValkeyServer(workspace, program, "master")
        self.master.settings["repl-diskless-sync-delay"] = "0"
        self.replica = ValkeyServer(workspace, program, "replica")
        self.sentinel = SentinelServer(workspace, program, self.master)

    def start(self) -> None:
        """Start all, and return when the Sentinel knows whom it could make the master."""
        self.master.start()
        self.replica.start()
        self.replica.command("REPLICAOF", self.master.host, self.master.port)
        self.sentinel.start()
        wait_until(
            lambda: len(self.sentinel.command("SENTINEL", "REPLICAS", NAME)) == 1,
            "the Sentinel to know the replica",
        )
        wait_until(
            lambda: self.replica.command("INFO", "replication")["master_link_status"] == "up",
            "the replica to follow",
        )

    def fail_over(self) -> None:
        """Kill the master, and return when the replica has taken its place."""
        self.master.kill()
        wait_until(self._is_replaced, "the Sentinel to replace it")

    def name_another(self) -> None:
        """Have the Sentinel name the replica, while the master knows nothing of it."""
        self.replica.command("REPLICAOF", "NO", "ONE")
        self.sentinel.command("SENTINEL", "REMOVE", NAME)
        self.sentinel.command("SENTINEL", "MONITOR", NAME, self.replica.host, self.replica.port, 1)
        wait_until(self._is_replaced, "the Sentinel to name it")

    def _is_replaced(self) -> bool:
        address = (self.sentinel.host, self.sentinel.port)
        with contextlib.suppress(redis.ConnectionError):  # none that may serve, at the moment
            return bool(redis.Sentinel([address]).discover_master(NAME)[1] == self.replica.port)
        return False

    def stop(self) -> None:
        """End all."""
        for server in (self.sentinel, self.replica, self.master):
            server.kill()

    @property
    def settings(self) -> dict[str, Any]:
        """Return what a site writes into CACHES."""
        return {
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": f"redis://{NAME}/0",
            "OPTIONS": {
                "CLIENT_CLASS": "django_redis.client.SentinelClient",
                "CONNECTION_FACTORY": "django_redis.pool.SentinelConnectionFactory",
                "SENTINELS": [[self.sentinel.host, self.sentinel.port]],
            },
        }


@pytest.fixture
def trio() -> Iterator[Trio]:
    """A master, its replica and a Sentinel, of this test alone."""
    workspace = Workspace()
    trio = Trio(workspace)
    try:
        trio.start()
        yield trio
    finally:
        trio.stop()
        workspace.remove()


def valkey_settings(cluster: Cluster) -> dict[str, Any]:
    """Return what a site writes into CACHES for Valkey's own client, with a long time-out of its own."""
    assert cluster.cache is not None
    return {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": cluster.cache.url.replace("redis://", "valkey://"),
        "OPTIONS": {**VALKEY, "SOCKET_TIMEOUT": 3.0},
    }


class Site:
    """A browser that has signed in at a server process.

    Args:
        client: the browser.
        note: what it edits.
    """

    def __init__(self, client: httpx.Client, note: Note) -> None:
        self._client = client
        self._path = f"/notes/{note.pk}/edit/"
        self._api = f"/api/notes/{note.pk}/"

    def sign_in(self) -> None:
        """Send the form of the login page."""
        token = self._client.get("/login/").cookies["csrftoken"]
        data = {"username": "ann", "password": PASSWORD, "csrfmiddlewaretoken": token}
        assert self._client.post("/login/", data=data).status_code == 302

    def edit(self, title: str) -> None:
        """Give the note a title."""
        token = self._client.cookies["csrftoken"]
        data = {"title": title, "body": "", "csrfmiddlewaretoken": token}
        assert self._client.post(self._path, data=data).status_code == 302

    def read(self) -> tuple[str, set[str]]:
        """Return the title that is shown, and the aliases that it was read from."""
        answer = self._client.get(self._api).json()
        assert answer["username"] == "ann"
        return answer["title"], set(answer["reads"])

    def is_on_replica(self) -> bool:
        """Tell whether a replica serves."""
        reads = self.read()[1]
        return bool(reads) and "default" not in reads


@contextlib.contextmanager
def site_with(
    cluster: Cluster,
    cache: dict[str, Any],
    ann: User,
    log: Path,
    *,
    timeout: float = 10.0,
    without: str = "",
) -> Iterator[Site]:
    """Run the site under ASGI with that cache, and sign in."""
    note = Note.objects.create(owner=ann, title="first")
    wait_until_known(cluster)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTS_CACHE", json.dumps(cache))
        patch.setenv("TESTS_TIMEOUT", str(timeout))
        patch.setenv("TESTS_WITHOUT", without)
        with serving(cluster, "uvicorn", log, settings="tests.cache_settings") as client:
            site = Site(client, note)
            site.sign_in()
            yield site


def write_under_lag(cluster: Cluster, site: Site, title: str) -> None:
    """See an own write while no replica has it; and a replica serve when all have it."""
    stand_still(cluster)
    site.edit(title)
    for _ in range(4):
        assert site.read() == (title, {"default"})
    for replica in cluster.replicas:
        replica.resume()
    wait_until(site.is_on_replica, "a replica to serve")
    assert site.read()[0] == title


def test_tokens_of_valkeys_client_work_over_http(
    cluster: Cluster, ann: User, tmp_path: Path
) -> None:
    """Through django-redis, under ASGI, with scripts that the server does not know yet."""
    assert cluster.cache is not None
    cluster.cache.command("SCRIPT", "FLUSH")
    with site_with(cluster, valkey_settings(cluster), ann, tmp_path / "log") as site:
        write_under_lag(cluster, site, "second")
        write_under_lag(cluster, site, "third")


def test_without_telling_errors_by_name_no_replica_serves(
    cluster: Cluster, ann: User, tmp_path: Path
) -> None:
    """Control: no token is kept, and every read stays on the primary."""
    assert cluster.cache is not None
    cluster.cache.command("SCRIPT", "FLUSH")
    cache = valkey_settings(cluster)
    with site_with(cluster, cache, ann, tmp_path / "log", without="names") as site:
        site.edit("second")
        wait_until_known(cluster)
        assert {alias for _ in range(40) for alias in site.read()[1]} == {"default"}


def longest_read(server: ValkeyServer, site: Site) -> float:
    """Return how many seconds reads take at most while a server of the cache stands still."""
    site.edit("second")
    wait_until(site.is_on_replica, "a replica to serve")
    server.suspend()
    seconds = []
    try:
        for _ in range(2):
            began = time.monotonic()
            assert site.read()[0] == "second"
            seconds.append(time.monotonic() - began)
    finally:
        server.resume_process()
    return max(seconds)


def stop_valkeys_cache(cluster: Cluster, ann: User, log: Path, without: str = "") -> float:
    """Have a site with Valkey's own client read while its cache stands still."""
    cache = valkey_settings(cluster)
    assert cluster.cache is not None
    with site_with(cluster, cache, ann, log, timeout=0.25, without=without) as site:
        return longest_read(cluster.cache, site)


def test_a_stopped_cache_of_valkeys_client_holds_nobody_for_long(
    cluster: Cluster, ann: User, tmp_path: Path
) -> None:
    """STORE_TIMEOUT is 0.25 s, and the site's own time-out 3."""
    assert stop_valkeys_cache(cluster, ann, tmp_path / "log") < 2.0


def test_without_the_bound_a_stopped_cache_holds_the_reader(
    cluster: Cluster, ann: User, tmp_path: Path
) -> None:
    """Control: for as long as the site's own time-out."""
    assert stop_valkeys_cache(cluster, ann, tmp_path / "log", without="bound") > 2.5


def test_tokens_behind_a_sentinel_survive_a_failover(
    cluster: Cluster, ann: User, tmp_path: Path, trio: Trio
) -> None:
    """The new master may lack some: its readers need all that there is, and go on by tokens."""
    with site_with(cluster, trio.settings, ann, tmp_path / "log") as site:
        write_under_lag(cluster, site, "second")
        stand_still(cluster)
        site.edit("third")
        trio.fail_over()
        for _ in range(4):
            assert site.read() == ("third", {"default"})
        for replica in cluster.replicas:
            replica.resume()
        wait_until(site.is_on_replica, "a replica to serve")
        write_under_lag(cluster, site, "fourth")


def test_a_stopped_master_behind_a_sentinel_holds_nobody_for_long(
    cluster: Cluster, ann: User, tmp_path: Path, trio: Trio
) -> None:
    """Until the Sentinel has replaced it, and without any time-out of the site's own."""
    with site_with(cluster, trio.settings, ann, tmp_path / "log", timeout=0.25) as site:
        assert longest_read(trio.master, site) < 2.0


@contextlib.contextmanager
def store_behind(trio: Trio, timeout: float) -> Iterator[RedisStore]:
    """Open a store of this process behind the Sentinel, with a long time-out of the site's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConnectionFactory, "_pools", {})
        patch.setattr(redis_client, "_servers", [])
        settings = trio.settings
        options = {**settings["OPTIONS"], "SOCKET_TIMEOUT": 3.0}
        store = open_store(RedisCache(settings["LOCATION"], {"OPTIONS": options}), timeout)
        assert isinstance(store, RedisStore)
        yield store
        store._server.close()


def ask_behind(trio: Trio, role: str) -> float:
    """Return how many seconds who asks the cache is held while a server stands still, for 4 at most."""
    stopped: ValkeyServer = getattr(trio, role)
    with store_behind(trio, 0.25) as store:
        store.merge({"a": RECORD}, {"a": 60.0})
        assert store.load(["a"]) == [RECORD]
        store._server.close()
        store._client.connection_pool.disconnect()  # so that a new one has to be led
        stopped.suspend()
        resumed = threading.Timer(4.0, stopped.resume_process)
        resumed.start()
        began = time.monotonic()
        try:
            with contextlib.suppress(StoreError):
                store.load(["a"])
            return time.monotonic() - began
        finally:
            resumed.cancel()
            stopped.resume_process()


@pytest.mark.parametrize("role", ["master", "sentinel"])
def test_whoever_stands_still_behind_a_sentinel_is_not_waited_for(trio: Trio, role: str) -> None:
    """Neither the server, nor who names it: a new connection has to ask both."""
    assert ask_behind(trio, role) < 2.0


@pytest.mark.parametrize("role", ["master", "sentinel"])
def test_without_the_bound_both_are_waited_for(
    trio: Trio, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: for as long as the site's own time-out, or longer."""
    monkeypatch.setattr(redis_client, "can_be_bounded", lambda pool: False)
    assert ask_behind(trio, role) > 2.5


def meet_another_master(trio: Trio) -> int:
    """Return how many connections rest once another master has answered than the one before."""
    with store_behind(trio, 10.0) as store:
        server, life = store._server, store.life()
        old = server._open_line()
        old.ask("PING")
        assert old.find_life() == life
        trio.name_another()
        # Two requests at the same time: one had to open a connection.
        server._resting.extend([old, server._open_line()])
        with pytest.raises(StoreError, match="started anew, or is another one"):
            store.load(["a"])
        assert store.life() not in ("", life)
        return len(server._resting)


def test_a_master_that_was_replaced_and_still_answers_is_left(trio: Trio) -> None:
    """As from another side of a net that is cut in two: its connections are closed."""
    assert meet_another_master(trio) == 0


def test_without_closing_them_it_is_asked_on(trio: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: both would be taken for the server, in turn."""
    monkeypatch.setattr(redis_client.RedisServer, "close", lambda self: None)
    assert meet_another_master(trio) == 2
