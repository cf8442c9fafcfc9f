"""What type checkers see of the public API: never run, and checked by mypy and by pyright, both strict.

Where an error is expected the line tells both of them to ignore it, and both complain if there is none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TypeVar, assert_type

import httpx
import requests
from django.http import HttpRequest, HttpResponse
from django.views import View

import django_replica_router
from django_replica_router import (
    ReplicaRouter,
    Token,
    acurrent_token,
    await_for_replicas,
    command,
    current_scope,
    current_token,
    get_stats,
    ignore_writes,
    note_write,
    pop_stats,
    query,
    scope,
    see,
    track,
    use_primary,
    use_replica,
    wait_for_replicas,
)
from django_replica_router.contrib.httpx import AsyncTokenTransport, TokenTransport
from django_replica_router.contrib.requests import carry_tokens
from django_replica_router.cqrs import Query
from django_replica_router.decorators import OpenedScope, Routed
from django_replica_router.errors import TooStale, WriteInQuery
from django_replica_router.scopes.scope import Scope
from django_replica_router.testing import mirrors_are_replicas

# Decorators keep what they decorate, with and without parentheses.

F = TypeVar("F", bound=Callable[..., object])


@use_primary
def plain(pk: int, *, name: str = "") -> list[str]:
    return [name] * pk


@use_primary()
def with_parentheses(pk: int) -> list[str]:
    return [str(pk)]


@use_replica
async def asynchronous(pk: int) -> str:
    return str(pk)


@use_replica(max_lag=2.0, on_stale="wait", timeout=1)
def generator(pk: int) -> Iterator[int]:
    yield pk


@ignore_writes
async def asynchronous_generator(pk: int) -> AsyncIterator[int]:
    yield pk


@command
def changes(pk: int) -> str:
    return str(pk)


@command(atomic=True, using="default")
def changes_atomically(pk: int) -> str:
    return str(pk)


@query
def tells(pk: int) -> str:
    return str(pk)


@query(max_lag=60, on_stale="raise")
async def tells_later(pk: int) -> str:
    return str(pk)


async def functions() -> None:
    assert_type(plain(1, name="a"), list[str])
    assert_type(with_parentheses(1), list[str])
    assert_type(await asynchronous(1), str)
    assert_type(generator(1), Iterator[int])
    assert_type(asynchronous_generator(1), AsyncIterator[int])
    assert_type(changes(1), str)
    assert_type(changes_atomically(1), str)
    assert_type(tells(1), str)
    assert_type(await tells_later(1), str)
    plain("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plain(1, nome="a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


@use_primary
class ListView(View):
    template: str = "list.html"


@query(max_lag=60)
class Demand:
    def handle(self, pk: int) -> dict[int, str]:
        return {pk: ""}


class Orders:
    @use_primary
    def method(self, pk: int) -> str:
        return str(pk)

    @query
    @staticmethod
    def of_the_module(pk: int) -> str:
        return str(pk)

    @staticmethod
    @query
    def of_the_module_too(pk: int) -> str:
        return str(pk)

    @classmethod
    @command(atomic=True)
    def of_the_class(cls, pk: int) -> str:
        return f"{cls}{pk}"

    @property
    @use_replica
    def count(self) -> int:
        return 1


def classes(orders: Orders) -> None:
    assert_type(ListView, type[ListView])
    assert_type(ListView.template, str)
    assert_type(Demand().handle(1), dict[int, str])
    assert_type(orders.method(1), str)
    assert_type(Orders.of_the_module(1), str)
    assert_type(Orders.of_the_module_too(1), str)
    assert_type(Orders.of_the_class(1), str)
    assert_type(orders.count, int)


@use_primary
def view(request: HttpRequest, pk: int) -> HttpResponse:
    return HttpResponse(pk)


handlers: list[Callable[[HttpRequest, int], HttpResponse]] = [view]


def decorated_later(function: F) -> F:
    return use_replica(max_lag=1)(use_primary(function))


# Blocks.


def blocks() -> str:
    with use_primary() as block:
        assert_type(block, Routed)
    with use_replica(max_lag=5, on_stale="primary"), ignore_writes():
        pass
    with query(on_stale="raise", timeout=2.5) as asked:
        assert_type(asked, Query)
    with use_primary():
        return "a block swallows no error: nothing follows"


def wrong_blocks() -> None:
    use_replica(5.0)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    use_replica(on_stale="never")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    use_primary(max_lag=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    with command(atomic=True):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass


async def scopes(user: object, token: Token) -> None:
    with scope(user=user) as work:
        assert_type(work, OpenedScope)
        assert_type(work.token, Token)
    async with scope(users=[user, 7], token=str(token)) as later:
        assert_type(later, OpenedScope)
    assert_type(current_scope(), Scope | None)


# Tokens.


async def tokens() -> None:
    token = current_token()
    assert_type(token, Token)
    assert_type(await acurrent_token(), Token)
    assert_type(token | Token(), Token)
    assert_type(token >= Token(), bool)
    assert_type(Token.read("text"), Token)
    see(token)
    see("text")
    see(key=("order", 1))
    track("order:1")
    note_write()
    note_write(using="default")
    wait_for_replicas(token=token, max_lag=1, timeout=5, using="default")
    await await_for_replicas(token=Token(), timeout=5.0)
    await await_for_replicas(time_out=5.0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# What else a site touches.


def no_such_name() -> None:
    django_replica_router.use_secondary  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]  # noqa: B018


def others(session: requests.Session) -> None:
    assert_type(get_stats(), Mapping[str, int])
    assert_type(pop_stats(), Mapping[str, int])
    assert_type(ReplicaRouter().db_for_read(View), str | None)
    httpx.Client(mounts={"https://orders.internal": TokenTransport(header="X-Token")})
    httpx.AsyncClient(transport=AsyncTokenTransport())
    carry_tokens(session, "https://orders.internal")
    with mirrors_are_replicas():
        pass
    try:
        tells(1)
    except TooStale as error:
        assert_type(error.replicas, Mapping[str, float])
    except WriteInQuery as error:
        assert_type(error.table, str)
