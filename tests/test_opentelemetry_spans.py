"""Spans of statements tell which server was chosen, and why."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections
from django.http import HttpRequest
from django.test import AsyncClient, Client
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from django_replica_router import scope
from django_replica_router.contrib.opentelemetry.spans import ReplicaSpanProcessor
from django_replica_router.observations import observers
from django_replica_router.observing import tell_reasons, telling
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.conftest import wait_until_known
from tests.reading import browser, note
from tests.site import avisit, visit

__all__ = ["browser", "note"]

MIDDLEWARE = "django_replica_router.contrib.opentelemetry.spans.ReplicaSpanMiddleware"


@pytest.fixture
def exporter(test_site: None) -> Iterator[InMemorySpanExporter]:
    """What gets the spans of psycopg's own instrumentation."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(ReplicaSpanProcessor())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    connections.close_all()
    PsycopgInstrumentor().instrument(tracer_provider=provider)
    try:
        yield exporter
    finally:
        PsycopgInstrumentor().uninstrument()
        tell_reasons(is_on=False)
        connections.close_all()
        assert not observers.present


def told(exporter: InMemorySpanExporter, text: str) -> set[tuple[Any, Any]]:
    """Return server and reason of each span whose statement has a text in it."""
    return {
        (_attribute(span, "replica_router.alias"), _attribute(span, "replica_router.reason"))
        for span in exporter.get_finished_spans()
        if text in str(_attribute(span, "db.statement"))
    }


def _attribute(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {}).get(name)


def read(request: HttpRequest) -> None:
    """Read, write, and read."""
    list(Note.objects.all())
    Tag.objects.create(name="mine")
    list(Tag.objects.all())


def test_the_spans_of_a_request_tell_server_and_reason(
    browser: Client, note: Note, cluster: Cluster, settings: Any, exporter: InMemorySpanExporter
) -> None:
    """Of a replica, of a write, and of the primary after that."""
    settings.MIDDLEWARE = [MIDDLEWARE, *settings.MIDDLEWARE]
    browser.handler.load_middleware()
    visit(browser, read)
    ((alias, reason),) = told(exporter, 'FROM "notes_note"')
    assert (alias[:7], reason) == ("replica", "CAUGHT_UP")
    assert told(exporter, "INSERT") == {("default", "WRITE")}
    assert told(exporter, 'FROM "notes_tag"') == {("default", "WROTE")}


def test_the_spans_of_an_asynchronous_request_do(
    note: Note, cluster: Cluster, settings: Any, exporter: InMemorySpanExporter
) -> None:
    """Their statements run in threads, which begin the spans."""
    settings.MIDDLEWARE = [MIDDLEWARE, *settings.MIDDLEWARE]
    wait_until_known(cluster)
    asyncio.run(avisit(AsyncClient(), sync_to_async(lambda request: Note.objects.count())))
    assert {alias[:7] for alias, _ in told(exporter, "COUNT")} == {"replica"}


def test_the_span_of_what_is_run_again_tells_the_primary(
    note: Note, cluster: Cluster, exporter: InMemorySpanExporter
) -> None:
    """Beside that of the attempt on the replica."""
    tell_reasons()
    with scope(), telling():
        list(Note.objects.raw("SELECT notes_note.*, notes_touch(id) FROM notes_note"))
    found = dict(told(exporter, "notes_touch"))
    assert found.pop("default") == "INSTEAD"
    assert list(found.values()) == ["CAUGHT_UP"]


def test_without_the_middleware_spans_are_as_they_were(
    browser: Client, note: Note, cluster: Cluster, exporter: InMemorySpanExporter
) -> None:
    """Nothing is put on them, and nobody observes."""
    visit(browser, read)
    assert told(exporter, "notes_note") == {(None, None)}
    assert not observers.present
