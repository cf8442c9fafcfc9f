"""Merging records: in Python, and in the script that runs inside the cache server."""

from __future__ import annotations

from random import Random
from typing import Any

from django.core.cache import caches

from django_replica_router.stores.store import RedisStore, open_store
from django_replica_router.values.tokens import Record
from tests.fuzz.records import draw_record
from tests.fuzz.surface import BrokenError, Surface, Tally, require

PREFIX = "fuzz:"
_TOLERANCE_MS = 30_000


def binding(record: Record) -> Record:
    """Return a record without its owner: of two owners the later one wins, in no other order."""
    return record._replace(owner="")


def binds(record: Record, other: Record) -> bool:
    """Tell whether a record binds at least as much as another."""
    return (
        record.position >= other.position
        and max(record.position, record.seen) >= max(other.position, other.seen)
        and record.expires_ms >= other.expires_ms
        and record.pinned_until_ms >= other.pinned_until_ms
    )


def check(a: Record, b: Record, c: Record) -> None:
    """Require that merging is monotone, commutative, associative and idempotent."""
    merged = a.merge(b)
    require(binds(merged, a) and binds(merged, b), f"{merged} binds less than before")
    require(binding(merged) == binding(b.merge(a)), "the order makes a difference")
    require(merged.merge(c) == a.merge(b.merge(c)), "the grouping makes a difference")
    require(a.merge(a) == a and merged.merge(b) == merged, "a second time makes a difference")
    require((a.encode()[1:25] < b.encode()[1:25]) == (a[:2] < b[:2]), "text has another order")


class Merging(Surface):
    """The same merges in Python and in the server, on top of whatever is there."""

    name = "merging"
    what = "merges, in Python and in the cache server"
    share = 0.15
    per_call = 16
    needs = "cluster"

    def __init__(self, random: Random, tally: Tally) -> None:
        super().__init__(random, tally)
        store = open_store(caches["default"], 10.0)
        if not isinstance(store, RedisStore):
            raise BrokenError("the cache of this run is no Redis and no Valkey")
        self.store = store
        self.client = store._client
        self.names = [f"{PREFIX}{n}" for n in range(2 * self.per_call)]
        self.keys = [store._cache.make_key(name) for name in self.names]

    def case(self) -> None:
        """Put something under keys, merge two records in both orders, and look."""
        count = self.per_call
        first = [draw_record(self.draw) for _ in range(count)]
        second = [draw_record(self.draw) for _ in range(count)]
        there = [self._there(*pair) for pair in zip(first, second, strict=True)]
        self.present = (there, first, second)
        pipeline = self.client.pipeline(transaction=False)
        pipeline.delete(*self.keys)
        for place, value in enumerate(there):
            for key in (self.keys[place], self.keys[count + place]):
                if isinstance(value, list):
                    pipeline.rpush(key, *value)
                elif value is not None:
                    pipeline.set(key, value, px=self.random.choice((None, 20_000, 900_000)))
        pipeline.execute()
        self._compare_loading()
        lives = {name: self.random.choice((60.0, 600.0)) for name in self.names}
        for one, other in ((first, second), (second, first)):
            self.store.merge(dict(zip(self.names, one + other, strict=True)), lives)
        # Once more: that must change nothing.
        again = zip(self.names, second + first, strict=True)
        self.store.merge(dict(again), lives)
        pipeline.mget(self.keys)
        for key in self.keys:
            pipeline.pttl(key)
        values, *lefts = pipeline.execute()
        for place in range(count):
            self.present = (there[place], first[place], second[place])
            check(first[place], second[place], Record.decode(there[place]) or Record())
            self._compare(place, values[place], first[place], second[place], there[place])
            twin = values[count + place]
            self._compare(count + place, twin, second[place], first[place], there[place])
            for at in (place, count + place):
                least = lives[self.names[at]] * 1000 - _TOLERANCE_MS
                require(lefts[at] >= least, f"is kept for {lefts[at]} ms only")

    def _compare_loading(self) -> None:
        """Require that the script which follows owners finds what single questions find."""
        names = [name.removeprefix(PREFIX) for name in self.names]
        found = self.store.load_with_owners(PREFIX, names)
        single = self.store.load(self.names)
        owners = sorted({record.owner for record in single if record and record.owner})
        expected = dict(zip(names, single, strict=True))
        if owners:  # of no key there is no question to ask
            records = self.store.load([PREFIX + owner for owner in owners])
            expected |= dict(zip(owners, records, strict=True))
        require(found == expected, f"{found} is loaded, not {expected}")

    def _there(self, first: Record, second: Record) -> Any:
        draw = self.draw
        way = self.random.randrange(6)
        self.tally.kinds[("nothing", "record", "record", "changed", "anything", "list")[way]] += 1
        if way == 0:
            return None
        if way == 1:
            return draw_record(draw).encode()
        if way == 2:
            return self.random.choice((first, second)).encode()
        if way == 3:
            # Also with the width of a record, and what is none of its digits.
            text = draw_record(draw).encode()
            text = text.replace("-", ".") if draw.chance(0.3) else draw.changed(text)
            return text.encode("utf-8", "surrogatepass")
        return draw.bytes() if way == 4 else [draw.bytes()]

    def _compare(self, place: int, value: Any, one: Record, other: Record, there: Any) -> None:
        old = Record.decode(there)
        if old is not None:
            one = old.merge(one)
        elif there is not None:
            one = one.as_written()  # what was there before, nobody knows
        expected = one.merge(other)
        found = Record.decode(value)
        require(found == expected, f"the server has {value!r}, not {expected.encode()!r}")

    def end(self) -> None:
        """Leave nothing behind."""
        self.client.delete(*self.keys)
