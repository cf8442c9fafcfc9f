"""Statements that are no writes: what the ORM sends, and others."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.postgres import aggregates as pg
from django.contrib.postgres.expressions import ArraySubquery
from django.contrib.postgres.functions import RandomUUID, TransactionNow
from django.contrib.postgres.search import (
    SearchHeadline,
    SearchQuery,
    SearchRank,
    SearchVector,
    TrigramSimilarity,
    TrigramWordSimilarity,
)
from django.db import connections, models
from django.db.models import aggregates
from django.db.models import functions as fn
from django.db.models.expressions import RawSQL
from django.db.models.sql.query import ExplainInfo

from django_replica_router.values.statements import might_write
from testproject.notes.models import Comment, Event, Note, Tag
from tests.statement_kinds import is_write_command

AT = datetime.datetime(2025, 1, 2, tzinfo=datetime.UTC)


@pytest.fixture
def postgres() -> Any:
    """Return a connection object that knows its server's version and is never opened."""
    postgres: Any = connections.create_connection("default")
    postgres.pg_version = 180000
    postgres.get_autocommit = lambda: False  # SELECT ... FOR UPDATE is compiled in a transaction
    return postgres


# Reads

# Since Django 6.1 these are no longer PostgreSQL's own.
bit: Any = aggregates if hasattr(aggregates, "BitAnd") else pg
window = models.Window
newest = Note.objects.filter(owner=models.OuterRef("pk")).order_by("-created")
ORM_QUERIES: list[Callable[[], models.QuerySet[Any]]] = [
    lambda: Note.objects.all(),
    lambda: Note.objects.select_related("owner").filter(owner__username__icontains="ann"),
    lambda: Note.objects.filter(title__contains=models.F("body")),
    lambda: Note.objects.filter(title__istartswith=models.F("owner__username")),
    lambda: Note.objects.filter(title__iregex="^a", body__regex="b$", title__iexact="c"),
    lambda: Note.objects.filter(pk__in=[1, 2, 3]).exclude(tags__name__in=["delete", "update"]),
    lambda: Note.objects.filter(pk__in=Comment.objects.filter(text="x").values("object_id")),
    lambda: Note.objects.filter(models.Q(title="a") | ~models.Q(body="b") ^ models.Q(version=1)),
    lambda: Note.objects.filter(pk__range=(1, 9), version__gte=models.F("version") + 1),
    lambda: Note.objects.filter(created__date="2025-01-01", created__time__gt="10:00"),
    lambda: Note.objects.filter(created__year=2025, created__week_day=1, created__iso_year=2024),
    lambda: Note.objects.filter(created__second=3, created__quarter=2, created__hour=1),
    lambda: Note.objects.none() | Note.objects.filter(pk=1),
    lambda: Note.objects.distinct().order_by("owner__username", "-created"),
    lambda: Note.objects.order_by("owner", "-created").distinct("owner"),
    lambda: Note.objects.order_by(fn.Lower("title").desc(nulls_last=True), "?"),
    lambda: Note.objects.order_by(models.F("version") + models.F("id")),
    lambda: Note.objects.defer("body").only("title")[3:9],
    lambda: Note.objects.select_for_update(),
    lambda: Note.objects.select_for_update(nowait=True, of=("self",)).select_related("owner"),
    lambda: Note.objects.select_for_update(skip_locked=True, no_key=True),
    lambda: Note.objects.filter(pk=1).union(Note.objects.filter(pk=2), all=True),
    lambda: Note.objects.filter(pk=1).intersection(Note.objects.filter(pk=2)).order_by("pk"),
    lambda: Note.objects.filter(pk=1).difference(Note.objects.filter(pk=2)),
    lambda: Note.objects.values("owner").annotate(n=models.Count("pk", distinct=True)),
    lambda: Note.objects.values("owner").annotate(n=models.Count("pk")).filter(n__gt=2),
    lambda: Note.objects.annotate(
        sum=models.Sum("version", filter=models.Q(title="x")),
        avg=models.Avg("version"),
        low=models.Min("created"),
        high=models.Max("created"),
        deviation=models.StdDev("version", sample=True),
        variance=models.Variance("version"),
    ),
    lambda: Note.objects.annotate(
        row=window(fn.RowNumber(), partition_by="owner", order_by="-created"),
        rank=window(fn.Rank(), order_by=[fn.Length("title"), "pk"]),
        dense=window(fn.DenseRank()),
        percent=window(fn.PercentRank(), order_by="pk"),
        dist=window(fn.CumeDist(), order_by="pk"),
        lag=window(fn.Lag("version", 2, 0), order_by="pk"),
        lead=window(fn.Lead("version"), order_by="pk"),
        first=window(fn.FirstValue("title"), order_by="pk"),
        last=window(fn.LastValue("title"), order_by="pk"),
        nth=window(fn.NthValue("title", 2), order_by="pk"),
        tile=window(fn.Ntile(4), order_by="pk"),
    ),
    lambda: Note.objects.annotate(
        total=window(
            models.Sum("version"), order_by="pk", frame=models.RowRange(start=None, end=0)
        ),
        span=window(
            models.Sum("version"), order_by="pk", frame=models.ValueRange(start=None, end=0)
        ),
    ).filter(total__gt=3),
    lambda: Note.objects.annotate(
        kind=models.Case(
            models.When(title="a", then=models.Value("x")),
            models.When(owner__isnull=True, then=fn.Concat("title", models.Value(" (b)"))),
            default=models.Value("delete from notes_note; nextval('s')"),
        )
    ),
    lambda: User.objects.annotate(
        newest=models.Subquery(newest.values("title")[:1]),
        has=models.Exists(newest),
        hasnt=~models.Exists(newest.filter(title="x")),
        all=ArraySubquery(newest.values("pk")),
    ).filter(models.Exists(newest)),
    lambda: Note.objects.annotate(
        a=fn.Cast("version", models.CharField(max_length=10)),
        b=fn.Cast("title", models.DecimalField(max_digits=8, decimal_places=2)),
        c=fn.Cast("title", models.JSONField()),
        d=fn.Coalesce("title", "owner__username"),
        e=fn.Greatest("created", "updated"),
        f=fn.Least("created", "updated"),
        g=fn.NullIf("title", "owner__username"),
        h=fn.Collate("title", "C"),
    ),
    lambda: Note.objects.annotate(
        a=fn.Upper(fn.Trim(fn.LTrim(fn.RTrim("title")))),
        b=fn.Substr("title", 1, 3),
        c=fn.StrIndex("title", models.Value("x")),
        d=fn.Replace("title", models.Value("a"), models.Value("b")),
        e=fn.Repeat("title", 3),
        f=fn.Reverse("title"),
        g=fn.LPad("title", 9, models.Value("x")),
        h=fn.RPad("title", 9),
        i=fn.Left("title", 2),
        j=fn.Right("title", 2),
        k=fn.Chr("version"),
        l=fn.Ord("title"),
        m=fn.MD5("title"),
        n=fn.SHA256(fn.SHA1("title")),
        o=fn.SHA512("title"),
        p=fn.Concat("title", "owner__username", models.Value("x")),
    ),
    lambda: Note.objects.annotate(
        **{
            function.__name__: function("version")
            for function in (
                fn.Abs,
                fn.ACos,
                fn.ASin,
                fn.ATan,
                fn.Ceil,
                fn.Cos,
                fn.Cot,
                fn.Degrees,
                fn.Exp,
                fn.Floor,
                fn.Ln,
                fn.Radians,
                fn.Round,
                fn.Sign,
                fn.Sin,
                fn.Sqrt,
                fn.Tan,
            )
        },
        two=fn.ATan2("version", "pk"),
        log=fn.Log("version", "pk"),
        mod=fn.Mod("version", 2),
        power=fn.Power("version", 2),
        pi=fn.Pi(),
        random=fn.Random(),
    ),
    lambda: Note.objects.annotate(
        now=fn.Now(),
        month=fn.TruncMonth("created"),
        day=fn.TruncDate("created"),
        hour=fn.TruncHour("created", tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
        week=fn.ExtractWeek("created"),
        time=fn.TruncTime("created"),
        age=fn.Now() - models.F("created"),
    ),
    lambda: Note.objects.annotate(
        array=fn.JSONArray("title", models.Value(3)),
        object=fn.JSONObject(a="title", b=fn.Lower("body")),
    ),
    lambda: Note.objects.annotate(
        data=fn.Cast(models.Value("{}"), models.JSONField()),
    ).filter(data__a__b=1, data__has_key="a", data__contains={"a": [1]}, data__c__isnull=False),
    lambda: User.objects.annotate(
        ids=pg.ArrayAgg("notes", filter=models.Q(notes__version=1)),
        json=pg.JSONBAgg("notes__title"),
        bits=bit.BitAnd("notes__version"),
        other=bit.BitXor("notes__version"),
        some=pg.BoolOr(models.Q(notes__version=1)),
        every=pg.BoolAnd(models.Q(notes__version=1)),
        corr=pg.Corr("notes__version", "pk"),
        covar=pg.CovarPop("notes__version", "pk", sample=True),
        slope=pg.RegrSlope("notes__version", "pk"),
        r2=pg.RegrR2("notes__version", "pk"),
    ),
    lambda: Note.objects.annotate(
        vector=SearchVector("title", weight="A") + SearchVector("body", config="english"),
        rank=SearchRank(SearchVector("title"), SearchQuery("cat", search_type="websearch")),
        head=SearchHeadline("body", SearchQuery("cat & dog", search_type="raw")),
        near=TrigramSimilarity("title", "x"),
        word=TrigramWordSimilarity("x", "title"),
    ).filter(vector=SearchQuery("cat") | SearchQuery("big dog", search_type="phrase")),
    lambda: Note.objects.annotate(uuid=RandomUUID(), start=TransactionNow()),
    lambda: Event.objects.filter(at__gte=AT).reverse(),
    lambda: Note.objects.filter(tags__in=Tag.objects.filter(name="x")).dates("created", "month"),
    lambda: Note.objects.datetimes("created", "hour"),
    lambda: Note.objects.extra(where=["version > %s"], params=[1]),
    lambda: Note.objects.annotate(raw=RawSQL("(version + %s)", [1])),
    lambda: Note.objects.filter(
        models.expressions.ExpressionWrapper(
            models.Q(version__gt=1), output_field=models.BooleanField()
        )
    ),
]

# What later versions of Django have in addition.
if hasattr(models, "AnyValue"):
    ORM_QUERIES += [
        lambda: User.objects.annotate(
            some=models.AnyValue("notes__title"),
            all=models.StringAgg("notes__title", models.Value("; "), order_by="-notes__created"),
        )
    ]
if hasattr(fn, "UUID7"):
    ORM_QUERIES += [lambda: Note.objects.annotate(a=fn.UUID4(), b=fn.UUID7())]


@pytest.mark.parametrize("number", range(len(ORM_QUERIES)))
def test_what_the_orm_reads_is_no_write(number: int, postgres: Any) -> None:
    """No query of the ORM is taken for a write, neither plain nor counted nor explained."""
    query = ORM_QUERIES[number]().query
    explained = query.clone()
    explained.explain_info = ExplainInfo("text", {"verbose": True})
    for variant in (query, query.exists(), explained):
        statement, _ = variant.get_compiler(connection=postgres).as_sql()
        assert not might_write(statement), statement
        assert not is_write_command(statement)


READS = [
    'SELECT "delete", "update", "insert into", "nextval" FROM "drop" WHERE "f""(" = 1',
    "SELECT 'delete from notes_note; select nextval(''s'')', 'it''s'",
    "SELECT 1 -- DELETE FROM notes_note; SELECT f()",
    "/* DELETE; f() ' */ SELECT 1 /* it's */",
    "-- it's\nSELECT 1",
    "  \n\t(SELECT 1) UNION ALL (SELECT 2);  ",
    "select count(*) from notes_note",
    "SELECT pg_catalog.count(*), PG_CATALOG . lower('A') FROM pg_catalog.pg_class",
    "SELECT E'\\\\', e'it\\'s; DELETE', 'a'||E'\\n'",
    "SELECT x'41', b'1', n'a', U&'a', 'a'\n'b'",
    "SELECT t.a, (t).b, t.c[1] FROM t WHERE a IN (1, 2) AND b = ANY (ARRAY[1]) AND c <> ALL (SELECT 1)",
    "SELECT a::varchar(10), CAST(b AS numeric(10, 2)), c::character varying(9), d::bit varying(3)",
    "SELECT * FROM a JOIN (SELECT 1) b ON (a.x = b.x) LEFT JOIN LATERAL (SELECT 2) c ON TRUE",
    "SELECT * FROM a CROSS JOIN (SELECT 1 AS one) b WHERE a.x LIKE (SELECT 'y')",
    "SELECT count(*) FILTER (WHERE a > 1) OVER (PARTITION BY (b) ORDER BY (c)) FROM t",
    "SELECT rank() OVER w FROM t WINDOW w AS (ORDER BY a)",
    "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY a) FROM t",
    "SELECT a, sum(b) FROM t GROUP BY ROLLUP (a)",
    "SELECT a, sum(b) FROM t GROUP BY GROUPING SETS ((a), ())",
    "WITH x AS (SELECT 1) SELECT * FROM x",
    "WITH x AS MATERIALIZED (SELECT 1), y AS NOT MATERIALIZED (SELECT 2) SELECT * FROM x, y",
    "WITH RECURSIVE tree (id, parent) AS (SELECT 1, 2 UNION SELECT 3, 4), "
    '"rank" ("a", b) AS (VALUES (1, 2)) SELECT * FROM tree',
    "WITH x(a) AS MATERIALIZED (WITH y AS (SELECT 1) TABLE y) SELECT a FROM x",
    "SELECT lower(r), isempty(r), upper_inc(r), akeys(h), any_value(a), uuidv7() FROM t",
    "SELECT encode(digest('a', 'sha1'), 'hex'), gen_random_uuid()",
    "SELECT a FROM t FOR UPDATE",
    "SELECT a FROM t FOR NO KEY UPDATE OF t SKIP LOCKED",
    "SELECT a FROM t FOR SHARE NOWAIT",
    "SELECT a FROM t FOR KEY SHARE",
    "SELECT pg_current_wal_insert_lsn(), pg_is_in_recovery(), set_config('a', 'b', false)",
    "TABLE notes_note",
    "VALUES (1, 'x'), (2, 'y;')",
    "EXPLAIN SELECT 1",
    "EXPLAIN (FORMAT JSON, VERBOSE) SELECT 1",
    'EXPLAIN (SELECT "a" FROM t) UNION (SELECT 2)',
    "EXPLAIN DELETE FROM notes_note",
    "EXPLAIN (VERBOSE) INSERT INTO t VALUES ('analyze')",
    "BEGIN",
    "START TRANSACTION READ WRITE",
    "COMMIT;",
    "COMMIT AND CHAIN",
    "END",
    "ROLLBACK TO SAVEPOINT s1",
    'SAVEPOINT "s1"',
    'RELEASE SAVEPOINT "s1"',
    "SET LOCAL statement_timeout = 100",
    "SET application_name = 'x; DELETE'",
    "RESET ALL",
    "SHOW server_version",
    "LISTEN news",
    "NOTIFY news, 'something (new)'",
    "LOCK TABLE notes_note IN SHARE MODE",
    "FETCH 10 FROM cursor",
    "CLOSE cursor",
    "DISCARD ALL",
    b"SELECT 1",
    "SELECT '\u00e9t\u00e9(1)'".encode("latin-1"),
]


@pytest.mark.parametrize("statement", READS, ids=repr)
def test_harmless_statement_is_no_write(statement: str | bytes) -> None:
    """A statement that changes no row is not taken for a write, whatever its names and strings say."""
    assert not might_write(statement)
    assert not is_write_command(statement)
