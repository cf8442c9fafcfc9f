"""Token stores on a real Valkey server: every backend behaves the same, and no token falls."""

from __future__ import annotations

import itertools
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from django.core.cache import caches
from django.core.cache.backends.redis import RedisCache

from django_replica_router.errors import StoreError
from django_replica_router.stores import store as stores
from django_replica_router.stores.redis import RedisServer
from django_replica_router.stores.store import (
    GenericStore,
    LocMemStore,
    RedisStore,
    TokenStore,
    get_store,
    open_store,
)
from django_replica_router.values.tokens import NOWHERE, Position, Record
from testproject.cluster import Cluster, ValkeyServer
from testproject.cluster.binaries import find_valkey
from testproject.cluster.programs import LineProgram
from testproject.cluster.workspace import Workspace

OWNER = "-09AZ_az" * 2

BACKENDS = {
    "django_redis": "django_redis.cache.RedisCache",
    "django": "django.core.cache.backends.redis.RedisCache",
    "locmem": "django.core.cache.backends.locmem.LocMemCache",
    "file": "django.core.cache.backends.filebased.FileBasedCache",
}


@pytest.fixture(params=BACKENDS)
def store(
    request: pytest.FixtureRequest, cluster: Cluster, settings: Any, tmp_path: Any
) -> Iterator[TokenStore]:
    """A store in each of the caches that Django sites use."""
    assert cluster.cache is not None
    location = cluster.cache.url if "redis" in BACKENDS[request.param] else str(tmp_path)
    settings.CACHES = {
        **settings.CACHES,
        "tokens": {"BACKEND": BACKENDS[request.param], "LOCATION": location},
    }
    yield get_store("tokens")
    caches["tokens"].clear()


def told_of_caches(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the caches of which the log tells that tokens in them stay in the process."""
    return [
        vars(one)["cache"] for one in caplog.records if vars(one).get("event") == "tokens_unshared"
    ]


@pytest.mark.parametrize(
    ("kind", "debug", "tested", "told"),
    [
        ("locmem", False, False, ["tokens"]),
        ("locmem", True, False, []),
        ("locmem", False, True, []),
        ("file", False, False, []),
        ("django_redis", False, False, []),
    ],
)
def test_tokens_that_stay_in_the_process_are_told_once(
    cluster: Cluster,
    settings: Any,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    debug: bool,
    tested: bool,
    told: list[str],
) -> None:
    """Where a site is at work: nobody who has not asked ``check --deploy`` knows."""
    assert cluster.cache is not None
    location = cluster.cache.url if "redis" in kind else str(tmp_path)
    tokens = {"BACKEND": BACKENDS[kind], "LOCATION": location}
    settings.CACHES, settings.DEBUG = {**settings.CACHES, "tokens": tokens}, debug
    monkeypatch.setattr(stores, "_told", set())
    monkeypatch.setattr(stores, "is_under_test", lambda: tested)
    for _ in range(2):
        get_store("tokens")
        caches["tokens"].__dict__.pop("_replica_router_store", None)  # as another thread's has none
    assert told_of_caches(caplog) == told


def test_each_backend_has_its_store(store: TokenStore, request: pytest.FixtureRequest) -> None:
    """Redis and Valkey are merged by a script, the memory of the process under a lock."""
    expected = {"locmem": LocMemStore, "file": GenericStore}
    kind = request.node.callspec.params["store"]
    assert type(store) is expected.get(kind, RedisStore)
    assert store.is_atomic == (kind != "file")
    assert store.is_shared == (kind != "locmem")


def test_what_was_merged_is_loaded(store: TokenStore) -> None:
    """In the order of the keys; None where there is nothing."""
    record = Record(Position(3, 1 << 63), 1 << 41, 7, OWNER)
    store.merge({"a": record}, {"a": 60.0})
    assert store.load(["b", "a"]) == [None, record]


def test_each_field_only_rises(store: TokenStore) -> None:
    """The higher position, expiry and pin survive, whichever comes last; an owner stays."""
    high = Record(Position(2, 5), 10, 0, OWNER)
    low = Record(Position(1, 900), 3, 20, "")
    for records in ([high, low], [low, high]):
        for record in records:
            store.merge({"k": record}, {"k": 60.0})
        assert store.load(["k"]) == [Record(Position(2, 5), 10, 20, OWNER)]
        caches["tokens"].clear()


def test_what_was_seen_is_kept_apart_from_what_was_written(store: TokenStore) -> None:
    """It only rises, and stands there where it lies behind what was written."""
    high, low = Position(2, 5), Position(1, 900)
    store.merge({"k": Record(low, 7, 0, OWNER)}, {"k": 60.0})
    for seen in (high, low, NOWHERE):
        store.merge({"k": Record(seen=seen)}, {"k": 60.0})
        assert store.load(["k"]) == [Record(low, 7, 0, OWNER, high)]
    store.merge({"k": Record(pinned_until_ms=9)}, {"k": 60.0})
    assert store.load(["k"]) == [Record(low, 7, 9, OWNER, high)]
    store.merge({"k": Record(high)}, {"k": 60.0})
    assert store.load(["k"]) == [Record(high, 7, 9, OWNER)]


def test_what_was_seen_by_whom_the_cache_cannot_have_dropped_is_no_write(
    cluster: Cluster,
) -> None:
    """Where a record is missing it has expired: nothing was written since."""
    store = get_store("default")
    assert not store.may_forget()
    store.merge({"k": Record(seen=Position(1, 5))}, {"k": 60.0})
    assert store.load(["k"]) == [Record(seen=Position(1, 5))]


def test_what_was_seen_counts_as_written_where_a_record_may_have_been_dropped(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was under the key, nobody knows; where there is something, that tells."""
    monkeypatch.setattr(RedisServer, "drops_keys", lambda self: True)
    store = get_store("default")
    store.merge({"a": Record(Position(1, 2))}, {"a": 60.0})
    seen = Record(seen=Position(1, 5))
    store.merge({"a": seen, "b": seen}, {"a": 60.0, "b": 60.0})
    expected = [Record(Position(1, 2), seen=Position(1, 5)), Record(Position(1, 5))]
    assert store.load(["a", "b"]) == expected


def test_a_position_is_compared_as_a_number_of_64_bits(store: TokenStore) -> None:
    """Also beyond what the script's floating point could tell apart."""
    lsn = (1 << 60) + 1
    store.merge({"k": Record(Position(1, lsn))}, {"k": 60.0})
    store.merge({"k": Record(Position(1, lsn - 1))}, {"k": 60.0})
    assert store.load(["k"]) == [Record(Position(1, lsn))]


class DanishServer(ValkeyServer):
    """A server to whose locale "aa" is a letter behind "z"."""

    def _command(self) -> list[str]:
        locales = self._workspace.path
        return ["env", f"LOCPATH={locales}", "LC_ALL=da_DK.UTF-8", *super()._command()]


@pytest.fixture
def danish_server() -> Iterator[DanishServer]:
    """A server that was started in a Danish locale, which is compiled for it."""
    localedef = shutil.which("localedef")
    if localedef is None:
        pytest.skip("there is no localedef to make a Danish locale with")
    workspace = Workspace()
    server = DanishServer(workspace, find_valkey(workspace))
    try:
        locale = workspace.path / "da_DK.UTF-8"
        subprocess.run([localedef, "-i", "da_DK", "-f", "UTF-8", locale], check=False)
        server.start()
        if server.command("EVAL", "return tostring('aa' > 'z')", 0) != b"true":
            pytest.skip("the server or the system knows no Danish locale")
        yield server
    finally:
        server.stop()
        workspace.remove()


def test_no_token_falls_whatever_the_locale_of_the_server(danish_server: DanishServer) -> None:
    """Lua's own comparison goes by the locale, in which "aa" may come after "z"."""
    store = open_store(RedisCache(danish_server.url, {}), 10.0)
    draw = random.Random(7)
    texts = ["2" + "".join(draw.choices("aAzZ", k=32)) for _ in range(12)]
    texts += ["3" + "".join(draw.choices("aAzZ", k=48)) for _ in range(24)]
    records = [record for record in map(Record.decode, texts) if record is not None]
    assert len({record.seen for record in records}) > 6
    for place, (one, other) in enumerate(itertools.permutations(records, 2)):
        key = str(place)
        store.merge({key: one}, {key: 60.0})
        store.merge({key: other}, {key: 60.0})
        assert store.load([key]) == [one.merge(other)]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x80garbage",
        "1:00000003:00000016b374d848:018bcfe56800:000000000000:",  # a record of version 1
        "3" + "z" * 24,
        "3" + "z" * 40,  # it would have seen no more than it has written
        "3" + "-" * 24 + "z" * 16 + "-" * 8,
        "3" + "-" * 24 + "z" * 15,
        "4" + "-" * 24 + "z" * 16,
        "2" + "z" * 16,
        "2" + "z" * 24 + "-" * 8,
        "2" + "z" * 24 + "-" * 8 + OWNER,
        "2" + "z" * 24 + "!" * 8,
        "2" + "z" * 56,
    ],
)
def test_garbage_is_no_record_and_is_overwritten(store: TokenStore, garbage: Any) -> None:
    """A value of somebody else's, or of another version, does not stand in the way."""
    key = caches["tokens"].make_key("k")
    if isinstance(store, RedisStore):
        store._client.set(key, garbage)
    else:
        caches["tokens"].set("k", garbage)
    assert store.load(["k"]) == [None]
    # What was written before is not known, so this counts as written.
    store.merge({"k": Record(seen=Position(1, 1))}, {"k": 60.0})
    assert store.load(["k"]) == [Record(Position(1, 1))]


def test_a_key_of_another_type_is_overwritten(cluster: Cluster) -> None:
    """A list under the key, however it came there, does not make the script fail."""
    store = get_store("default")
    assert isinstance(store, RedisStore)
    store._client.lpush(caches["default"].make_key("k"), "x")
    store.merge({"k": Record(Position(1, 1))}, {"k": 60.0})
    assert store.load(["k"]) == [Record(Position(1, 1))]


def test_a_record_lives_as_long_as_the_longest_merge_asks(cluster: Cluster) -> None:
    """A short-lived token does not shorten the memory of a session."""
    store = get_store("default")
    assert isinstance(store, RedisStore)
    store.merge({"k": Record()}, {"k": 1000.0})
    store.merge({"k": Record()}, {"k": 10.0})
    assert 990_000 < store._client.pttl(caches["default"].make_key("k")) <= 1_000_000


def test_a_store_that_is_down_says_so(cluster: Cluster, settings: Any) -> None:
    """Never an empty answer: that would read as "no token". IGNORE_EXCEPTIONS does not hide it."""
    settings.CACHES = {
        **settings.CACHES,
        "tokens": {
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": "redis://127.0.0.1:1/0",
            "OPTIONS": {"IGNORE_EXCEPTIONS": True},
        },
    }
    with pytest.raises(StoreError, match=r"^The token store could not be read: "):
        get_store("tokens").load(["k"])
    with pytest.raises(StoreError, match=r"^The token store could not be written: "):
        get_store("tokens").merge({"k": Record()}, {"k": 60.0})


def test_a_store_without_its_cache_says_so() -> None:
    """An alias that is not in CACHES."""
    with pytest.raises(StoreError, match="could not be opened: The connection 'nowhere'"):
        get_store("nowhere")


WRITER = """
import sys
from django.conf import settings
backend, location, seed = sys.argv[1:]
settings.configure(
    CACHES={"tokens": {"BACKEND": backend, "LOCATION": location}},
    REPLICA_ROUTER={"STORE_TIMEOUT": 10.0},
)
import random
from django_replica_router.stores.store import get_store
from django_replica_router.values.tokens import Position, Record
draw = random.Random(int(seed))
store = get_store("tokens")
sys.stdin.readline()
highest = 0
for _ in range(400):
    lsn = draw.randrange(1, 1 << 60)
    highest = max(highest, lsn)
    store.merge({"k": Record(Position(1, lsn))}, {"k": 60.0})
    (seen,) = store.load(["k"])
    assert seen.position.lsn >= highest, "the token fell"
print(highest)
"""


@pytest.mark.parametrize("backend", ["django_redis", "django"])
def test_processes_that_merge_at_the_same_time_lose_nothing(cluster: Cluster, backend: str) -> None:
    """Of all tokens of all processes the highest stays, and no process ever sees it fall."""
    assert cluster.cache is not None
    command = [sys.executable, "-c", WRITER, BACKENDS[backend], cluster.cache.url]
    with ExitStack() as stack:
        writers = [stack.enter_context(LineProgram([*command, str(seed)])) for seed in range(4)]
        for writer in writers:
            writer.send("go")
        highest = max(writer.receive(60.0) for writer in writers)
        for writer in writers:
            assert writer.process.wait(60.0) == 0
    record = Record.decode(cluster.cache.command("GET", caches["default"].make_key("k")))
    assert record is not None
    assert record.position.lsn == highest
