"""The token store on caches in memory: what others do meanwhile, and caches that fail."""

from __future__ import annotations

import random
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.cache import caches
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st

from django_replica_router.errors import ReplicaRouterError, StoreError
from django_replica_router.stores import owners
from django_replica_router.stores.store import (
    GenericStore,
    LocMemStore,
    RedisStore,
    TokenStore,
    get_store,
    open_store,
)
from django_replica_router.values.tokens import NOWHERE, Position, Record

LOCMEM = "django.core.cache.backends.locmem.LocMemCache"
DUMMY = "django.core.cache.backends.dummy.DummyCache"
REDIS = "django.core.cache.backends.redis.RedisCache"
OWNER = "a" * 16

records = st.builds(
    Record,
    st.builds(Position, st.integers(0, 3), st.integers(0, 99)),
    st.integers(0, 99),
    st.integers(0, 99),
    st.sampled_from(["", "a" * 16, "b" * 16]),
    st.just(NOWHERE),
)


def at(lsn: int, timeline: int = 1) -> Record:
    """Return a record of that position."""
    return Record(Position(timeline, lsn), 10**12)


class MemoryCache(BaseCache):
    """A cache in a dict that lets a test act between two of its operations."""

    def __init__(self) -> None:
        super().__init__({})
        self.values: dict[str, Any] = {}
        self.lives: dict[str, Any] = {}
        self.calls: list[str] = []
        self.before_set: Callable[[], None] = lambda: None
        self.after_set: Callable[[], None] = lambda: None

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        self.calls.append("get")
        return self.values.get(key, default)

    def set(
        self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> None:
        self.calls.append("set")
        self.before_set()
        self.values[key] = value
        self.lives[key] = timeout
        self.after_set()


class ForgetfulCache(MemoryCache):
    """A cache that keeps nothing."""

    def set(self, key: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""


class BrokenCache(BaseCache):
    """A cache whose server is away."""

    def __init__(self, error: Exception) -> None:
        super().__init__({})
        self.error = error

    def get(self, *args: Any, **kwargs: Any) -> Any:
        raise self.error

    get_many = set = get


def once(action: Callable[[], None]) -> Callable[[], None]:
    """Return a function that acts the first time only."""
    actions = [action]
    return lambda: actions.pop()() if actions else None


# Merging


@pytest.fixture(params=["generic", "locmem"])
def store(request: Any) -> TokenStore:
    """Return an empty store of each kind."""
    cache = MemoryCache() if request.param == "generic" else LocMemCache(uuid.uuid4().hex, {})
    store = open_store(cache, 1.0)
    assert type(store) is {"generic": GenericStore, "locmem": LocMemStore}[request.param]
    return store


def merge(store: TokenStore, key: str, record: Record, life: float = 60.0) -> None:
    """Merge one record."""
    store.merge({key: record}, {key: life})


def test_unknown_key_has_no_record(store: TokenStore) -> None:
    """What was never stored is None, in the place of its key."""
    merge(store, "b", at(5))
    assert store.load(["a", "b", "c"]) == [None, at(5), None]
    assert store.load([]) == []


def test_owners_may_be_forgotten_by_another_thread_at_any_moment(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whom a session belonged to is a guess, which may be gone as soon as it was looked for."""

    class Emptied(dict[str, str]):
        def __contains__(self, key: object) -> bool:
            found = super().__contains__(key)
            self.clear()
            return found

    monkeypatch.setattr(owners, "_last", Emptied({"p:a": OWNER}))
    merge(store, "p:a", at(5))
    assert store.load_with_owners("p:", ["a"]) == {"a": at(5)}


def test_stored_record_never_falls(store: TokenStore) -> None:
    """A lower record changes nothing, a higher one raises, field by field."""
    merge(store, "a", Record(Position(1, 50), 5, 70, OWNER))
    merge(store, "a", Record(Position(1, 40), 6, 60))
    assert store.load(["a"]) == [Record(Position(1, 50), 6, 70, OWNER)]
    merge(store, "a", Record(Position(2, 1), 0, 0))
    assert store.load(["a"]) == [Record(Position(2, 1), 6, 70, OWNER)]


def test_what_was_seen_is_kept_apart_from_what_was_written(store: TokenStore) -> None:
    """It only rises, and stands there where it lies behind what was written."""
    merge(store, "a", at(50))
    merge(store, "a", Record(seen=Position(1, 70)))
    merge(store, "a", Record(seen=Position(1, 60)))
    assert store.load(["a"]) == [at(50)._replace(seen=Position(1, 70))]
    merge(store, "a", at(80))
    assert store.load(["a"]) == [at(80)]


def test_what_was_seen_counts_as_written_where_a_record_may_have_been_dropped(
    store: TokenStore,
) -> None:
    """These caches drop keys to make room: what was under this one, nobody knows."""
    assert store.may_forget()
    merge(store, "a", Record(seen=Position(1, 70), expires_ms=5))
    assert store.load(["a"]) == [Record(Position(1, 70), 5)]


def test_several_keys_are_merged_at_once(store: TokenStore) -> None:
    """Each key has its own record."""
    merge(store, "a", at(50))
    store.merge({"a": at(40), "b": at(60)}, {"a": 60.0, "b": 60.0})
    assert store.load(["b", "a"]) == [at(60), at(50)]


def test_nothing_to_merge_is_nothing_to_do(store: TokenStore) -> None:
    """An empty mapping is allowed."""
    store.merge({}, {})


@given(st.lists(records, min_size=1, max_size=6), st.randoms())
def test_order_of_merging_does_not_matter(parts: list[Record], order: random.Random) -> None:
    """Records in any order, with repeats, end as their maximum."""
    stored = GenericStore(MemoryCache())
    shuffled = parts + order.sample(parts, len(parts) // 2)
    order.shuffle(shuffled)
    for record in shuffled:
        merge(stored, "a", record)
    (found,) = stored.load(["a"])
    assert found is not None
    assert found.position == max(record.position for record in parts)
    assert found.expires_ms == max(record.expires_ms for record in parts)
    assert found.pinned_until_ms == max(record.pinned_until_ms for record in parts)


@pytest.mark.parametrize(
    "rubbish", ["", "rubbish", b"\xff", 5, None, {"a": 1}, "1:0:0:0:0:", "2"], ids=repr
)
def test_rubbish_in_the_cache_is_no_record(rubbish: Any) -> None:
    """What cannot be read is unknown, and is overwritten by the next record."""
    cache = MemoryCache()
    cache.values["a"] = rubbish
    stored = GenericStore(cache)
    assert stored.load(["a"]) == [None]
    merge(stored, "a", at(5))
    assert stored.load(["a"]) == [at(5)]


def test_value_in_the_cache_is_text() -> None:
    """The cache holds text, which no version of the package has to unpickle."""
    cache = MemoryCache()
    merge(GenericStore(cache), "a", at(5), life=12.5)
    assert cache.values == {"a": at(5).encode()}
    assert cache.lives == {"a": 12.5}


def test_record_that_is_known_is_not_written_again() -> None:
    """Merging what is stored already costs one look and no write."""
    cache = MemoryCache()
    stored = GenericStore(cache)
    merge(stored, "a", at(5))
    cache.calls.clear()
    merge(stored, "a", at(4))
    assert cache.calls == ["get"]


# Others that write at the same time


def test_record_that_another_process_overwrote_is_written_again() -> None:
    """Where another process writes a lower record behind ours, ours is merged into that."""
    cache = MemoryCache()
    cache.after_set = once(lambda: cache.values.update(a=at(30)._replace(owner=OWNER).encode()))
    stored = GenericStore(cache)
    merge(stored, "a", at(50))
    assert stored.load(["a"]) == [at(50)._replace(owner=OWNER)]


def test_record_that_another_process_removed_is_written_again() -> None:
    """Where the key vanishes right after it was written, it is written again."""
    cache = MemoryCache()
    cache.after_set = once(cache.values.clear)
    stored = GenericStore(cache)
    merge(stored, "a", at(50))
    assert stored.load(["a"]) == [at(50)]


def test_record_that_another_process_raised_stays() -> None:
    """Where another process has written a higher record meanwhile, that stays."""
    cache = MemoryCache()
    cache.after_set = once(lambda: cache.values.update(a=at(90).encode()))
    stored = GenericStore(cache)
    merge(stored, "a", at(50))
    assert stored.load(["a"]) == [at(90)]


def test_two_that_read_before_either_writes_end_at_the_maximum() -> None:
    """Of two processes that interleave get, get, set, set both looks afterwards see the maximum."""
    cache = MemoryCache()
    stored = GenericStore(cache)

    def other_writes_first_and_looks_later() -> None:
        cache.values["a"] = at(90).encode()  # set by a process whose look comes after ours

    cache.before_set = once(other_writes_first_and_looks_later)
    merge(stored, "a", at(50))
    merge(stored, "a", at(90))  # that look
    assert stored.load(["a"]) == [at(90)]


@pytest.mark.parametrize("times", [1, 4])
def test_writers_that_quarrel_for_a_while_come_to_an_end(times: int) -> None:
    """Up to four times in a row another process may undo what was merged."""
    cache = MemoryCache()
    undone: list[int] = []

    def undo() -> None:
        if len(undone) < times:
            undone.append(1)
            cache.values["a"] = at(1).encode()

    cache.after_set = undo
    stored = GenericStore(cache)
    merge(stored, "a", at(50))
    assert len(undone) == times
    assert stored.load(["a"]) == [at(50)]


def test_last_look_may_find_that_all_is_well() -> None:
    """After the last write there is a look that accepts what it finds."""
    cache = MemoryCache()
    sets: list[int] = []

    def undo_all_but_the_fifth() -> None:
        sets.append(1)
        if len(sets) < 5:
            cache.values["a"] = at(1).encode()

    cache.after_set = undo_all_but_the_fifth
    merge(GenericStore(cache), "a", at(50))
    assert Record.decode(cache.values["a"]) == at(50)


@pytest.mark.parametrize(
    "make", [ForgetfulCache, lambda: DummyCache("", {})], ids=["forgetful", "dummy"]
)
def test_cache_that_keeps_nothing_is_an_error(make: Callable[[], BaseCache]) -> None:
    """A record that is not kept is an error with a sentence: the user has to be protected otherwise."""
    message = "The token store could not be written: The cache did not keep the record of 'a'."
    with pytest.raises(StoreError, match=f"^{re.escape(message)}$"):
        merge(GenericStore(make()), "a", at(50))


def test_cache_that_is_overwritten_without_end_is_an_error() -> None:
    """Another process that undoes each write is noticed, and there is no endless loop."""
    cache = MemoryCache()
    cache.after_set = lambda: cache.values.update(a=at(1).encode())
    with pytest.raises(StoreError, match="did not keep the record of 'a'"):
        merge(GenericStore(cache), "a", at(50))
    assert cache.calls.count("set") == 5


def test_threads_end_at_the_maximum() -> None:
    """Eight threads that merge random records at the same time, each with its own cache object, lose none."""
    name = uuid.uuid4().hex
    seed = random.Random(7)
    keys = ["a", "b"]
    parts = [
        [
            (
                seed.choice(keys),
                Record(
                    Position(seed.randint(1, 3), seed.randint(0, 9999)),
                    seed.randint(0, 9999),
                    seed.randint(0, 9999),
                ),
            )
            for _ in range(150)
        ]
        for _ in range(8)
    ]
    barrier = threading.Barrier(8)

    def work(mine: list[tuple[str, Record]]) -> None:
        stored = open_store(LocMemCache(name, {}), 1.0)
        barrier.wait()
        for key, record in mine:
            merge(stored, key, record)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key, found in zip(keys, open_store(LocMemCache(name, {}), 1.0).load(keys), strict=True):
        mine = [record for part in parts for name_, record in part if name_ == key]
        assert found == Record(
            max(record.position for record in mine),
            max(record.expires_ms for record in mine),
            max(record.pinned_until_ms for record in mine),
        )


def test_lock_makes_the_merge_in_memory_atomic() -> None:
    """While one thread is between its look and its write, no other one gets in between."""
    name = uuid.uuid4().hex
    entered, leave, done = threading.Event(), threading.Event(), threading.Event()

    class SlowCache(LocMemCache):
        def set(self, *args: Any, **kwargs: Any) -> None:
            entered.set()
            assert leave.wait(5.0)
            super().set(*args, **kwargs)

    def other() -> None:
        merge(LocMemStore(LocMemCache(name, {})), "a", at(90))
        done.set()

    slow = threading.Thread(target=merge, args=(LocMemStore(SlowCache(name, {})), "a", at(50)))
    slow.start()
    assert entered.wait(5.0)
    fast = threading.Thread(target=other)
    fast.start()
    assert not done.wait(0.02)  # it waits for the lock
    leave.set()
    slow.join()
    fast.join()
    assert LocMemStore(LocMemCache(name, {})).load(["a"]) == [at(90)]


# Caches that fail


@pytest.mark.parametrize(
    "error",
    [ConnectionError("server is away"), TimeoutError("timed out"), KeyError("key"), ValueError("")],
    ids=repr,
)
def test_cache_that_fails_is_an_error_with_a_sentence(error: Exception) -> None:
    """Whatever a cache raises becomes one kind of error, which says what could not be done and why."""
    stored = GenericStore(BrokenCache(error))
    with pytest.raises(
        StoreError, match=f"^{re.escape(f'The token store could not be read: {error}')}$"
    ) as read:
        stored.load(["a"])
    with pytest.raises(
        StoreError, match=f"^{re.escape(f'The token store could not be written: {error}')}$"
    ) as written:
        merge(stored, "a", at(5))
    assert read.value.__cause__ is error
    assert written.value.__cause__ is error
    assert issubclass(StoreError, ReplicaRouterError)


def test_store_that_failed_is_left_alone_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second long nobody waits again for a store that did not answer; writing is tried anyway."""
    now = [1000.0]
    monkeypatch.setattr(
        "django_replica_router.stores.store.time", SimpleNamespace(monotonic=lambda: now[0])
    )
    cache = BrokenCache(TimeoutError("timed out"))
    stored = GenericStore(cache)
    away = "^The token store could not be read: timed out$"
    with pytest.raises(StoreError, match=away):
        stored.load(["a"])
    for moment in (1000.0, 1000.49):
        now[0] = moment
        with pytest.raises(StoreError, match=r"^The token store did not answer a moment ago\.$"):
            stored.load(["a"])
    with pytest.raises(StoreError, match="could not be written: timed out"):
        merge(stored, "a", at(5))
    now[0] = 1000.5
    with pytest.raises(StoreError, match=away):
        stored.load(["a"])
    now[0] = 1001.0
    monkeypatch.setattr(BrokenCache, "get_many", lambda *args: {})
    assert stored.load(["a"]) == [None]
    assert stored.load(["a"]) == [None]


def test_interrupt_is_not_swallowed() -> None:
    """What is no failure of the cache, such as a key press, passes."""

    class Interrupting(MemoryCache):
        def get(self, *args: Any, **kwargs: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GenericStore(Interrupting()).load(["a"])


# Which store


class SiteCache(MemoryCache):
    """Stand for a cache of a site's own."""


class SiteLocMemCache(LocMemCache):
    """Stand for a site's own version of the cache in memory."""


@pytest.mark.parametrize(
    ("cache", "kind", "is_shared", "is_atomic"),
    [
        (SiteCache(), GenericStore, True, False),
        (DummyCache("", {}), GenericStore, True, False),
        (LocMemCache("x", {}), LocMemStore, False, True),
        (SiteLocMemCache("x", {}), LocMemStore, False, True),
    ],
    ids=["generic", "dummy", "memory", "subclass"],
)
def test_store_suits_the_cache(
    cache: BaseCache, kind: type[TokenStore], is_shared: bool, is_atomic: bool
) -> None:
    """The store says of itself what the cache can do."""
    store = open_store(cache, 1.0)
    assert type(store) is kind
    assert (store.is_shared, store.is_atomic) == (is_shared, is_atomic)


@pytest.fixture
def _caches() -> Iterator[None]:
    """Some caches by alias."""
    described = {
        "default": {"BACKEND": LOCMEM, "LOCATION": uuid.uuid4().hex},
        "redis": {"BACKEND": REDIS, "LOCATION": "redis://127.0.0.1:1"},
        "dummy": {"BACKEND": DUMMY},
        "broken": {"BACKEND": "nowhere.Cache"},
        "unusable": {"BACKEND": REDIS, "LOCATION": "nonsense://127.0.0.1"},
    }
    with override_settings(CACHES=described):
        yield


@pytest.mark.usefixtures("_caches")
def test_store_is_kept_with_its_cache() -> None:
    """The same thread gets the same store, another thread its own, as Django does with caches."""
    first = get_store("default")
    assert get_store("default") is first
    assert first._cache is caches["default"]
    found: list[TokenStore] = []
    thread = threading.Thread(target=lambda: found.append(get_store("default")))
    thread.start()
    thread.join()
    assert found[0] is not first
    merge(first, "a", at(5))
    assert found[0].load(["a"]) == [at(5)]


@pytest.mark.usefixtures("_caches")
def test_redis_gets_its_own_store_without_being_asked() -> None:
    """Opening a store on Redis connects to nothing; using it when the server is away is an error."""
    store = get_store("redis")
    assert type(store) is RedisStore
    assert (store.is_shared, store.is_atomic) == (True, True)
    with pytest.raises(StoreError, match=r"^The token store could not be read: "):
        store.load(["a"])
    with pytest.raises(StoreError, match=r"^The token store could not be written: "):
        merge(store, "a", at(5))


@pytest.mark.usefixtures("_caches")
def test_a_store_on_redis_leaves_djangos_object_alone() -> None:
    """Django closes those that a thread has used after each request; a store of another kind uses one of them."""
    store = get_store("redis")
    assert get_store("redis") is store
    assert caches.all(initialized_only=True) == []
    assert get_store("default")._cache in caches.all(initialized_only=True)


@pytest.mark.usefixtures("_caches")
def test_a_store_on_redis_is_of_the_present_settings() -> None:
    """Also where they are changed in between, and changed back."""
    first = get_store("redis")
    for kind, location in [(RedisStore, "redis://127.0.0.1:2"), (LocMemStore, "a")]:
        backend = REDIS if kind is RedisStore else LOCMEM
        with override_settings(CACHES={"redis": {"BACKEND": backend, "LOCATION": location}}):
            other = get_store("redis")
            assert type(other) is kind
            assert other is get_store("redis") is not first
    assert type(get_store("redis")) is RedisStore


@pytest.mark.usefixtures("_caches")
@pytest.mark.parametrize(
    ("alias", "reason"),
    [
        ("nowhere", "The connection 'nowhere' doesn't exist."),
        ("broken", "Could not find backend 'nowhere.Cache': No module named 'nowhere'"),
        ("unusable", "Redis URL must specify one of the following schemes"),
    ],
)
def test_cache_that_cannot_be_made_is_an_error_with_a_sentence(alias: str, reason: str) -> None:
    """A cache which does not exist or cannot be made is an error that says why."""
    message = f"The token store could not be opened: {reason}"
    with pytest.raises(StoreError, match=f"^{re.escape(message)}"):
        get_store(alias)
