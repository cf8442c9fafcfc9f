"""System checks of the setting."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core import checks
from django.db import connections
from django.test import override_settings

import django_replica_router.checks
from django_replica_router.checks import check_settings
from django_replica_router.conf import Config
from tests.checking import ALIASES, FILES, HEALTHY, LOCMEM, run, the_only


def test_healthy_project_is_told_nothing() -> None:
    """Replicas, a router, a first middleware and Redis leave nothing to say."""
    assert run() == []


def test_checks_are_registered() -> None:
    """Django runs the check, and finds it by the app's label."""
    assert check_settings in checks.registry.registry.get_checks()
    with override_settings(**HEALTHY, REPLICA_ROUTER={"NOPE": 1}):
        found = checks.run_checks(apps.get_app_configs(), tags=["django_replica_router"])
    assert [message.id for message in found] == ["django_replica_router.E002"]


@pytest.mark.parametrize("backend", [LOCMEM, FILES])
def test_a_cache_for_development_is_told_of_at_deployment_only(
    backend: str, tmp_path: Path
) -> None:
    """A plain ``check`` is silent on a developer's machine, where one process is all there is."""
    caches = {"default": {"BACKEND": backend, "LOCATION": str(tmp_path)}}

    def found(*, is_deployment: bool) -> list[str]:
        messages = checks.run_checks(
            apps.get_app_configs(),
            tags=["django_replica_router"],
            include_deployment_checks=is_deployment,
        )
        return [str(message.id)[-4:] for message in messages]

    with override_settings(**(HEALTHY | {"CACHES": caches})):
        assert found(is_deployment=False) == []
        assert found(is_deployment=True) == ["W003" if backend == LOCMEM else "W004"]


@pytest.mark.parametrize(
    ("setting", "number", "message", "hint"),
    [
        (
            ["default"],
            "E001",
            "REPLICA_ROUTER should be a dict, not list.",
            "Write REPLICA_ROUTER = {} to use the defaults.",
        ),
        (
            {"WAIT": "1"},
            "E003",
            "REPLICA_ROUTER['WAIT'] should be a number of seconds, 0 or more, not '1'.",
            "Correct the value, or remove the key to use the default.",
        ),
        (
            {"TOKEN_TTL": 5},
            "E006",
            "REPLICA_ROUTER['TOKEN_TTL'] (5 s) should be more than MAX_LAG plus WAIT plus 1 s "
            "(10 s + 0.05 s + 1 s).",
            "A token that expires while a replica may still lag behind it protects nobody: raise "
            "TOKEN_TTL or lower MAX_LAG.",
        ),
        (
            {"DISCOVERY": {"default": {"NAME": "replicas.test"}}},
            "E013",
            "REPLICA_ROUTER['DISCOVERY'] names 'default', which is no replica.",
            "Name the alias of a replica: each server that is found gets its settings.",
        ),
        (
            {"DISCOVERY": {"replica9": {"NAME": "replicas.test"}}},
            "E013",
            "REPLICA_ROUTER['DISCOVERY'] names 'replica9', which is no replica.",
            "Name the alias of a replica: each server that is found gets its settings.",
        ),
        (
            {"CLUSTERS": {"default": ["replica9"]}},
            "E004",
            "REPLICA_ROUTER['CLUSTERS'] names 'replica9', which is not in DATABASES.",
            f"Use one of: {ALIASES}.",
        ),
        (
            {"CLUSTERS": {"nowhere": {"replica1": 1}}},
            "E004",
            "REPLICA_ROUTER['CLUSTERS'] names 'nowhere', which is not in DATABASES.",
            f"Use one of: {ALIASES}.",
        ),
        (
            {"CLUSTERS": {"default": ["default"]}},
            "E005",
            "REPLICA_ROUTER['CLUSTERS'] makes 'default' a replica of itself.",
            "Name the alias of its primary.",
        ),
        (
            {"CLUSTERS": {"default": ["replica1"], "replica1": ["replica2"]}},
            "E005",
            "REPLICA_ROUTER['CLUSTERS'] makes 'replica1' a replica of 'default' and a primary as "
            "well.",
            "Name the primary at the head of the chain for every replica of it.",
        ),
        (
            {"CLUSTERS": {"default": ["replica1"], "replica2": ["replica1"]}},
            "E005",
            "REPLICA_ROUTER['CLUSTERS'] makes 'replica1' a replica of both 'default' and "
            "'replica2'.",
            "Name it under the one primary that it follows.",
        ),
        (
            {"BALANCER": "nowhere.fastest"},
            "E007",
            "REPLICA_ROUTER['BALANCER'] names 'nowhere.fastest', which cannot be imported: No "
            "module named 'nowhere'.",
            "Give the dotted path of a callable.",
        ),
        (
            {"BALANCER": "round-robin"},
            "E007",
            "REPLICA_ROUTER['BALANCER'] names 'round-robin', which cannot be imported: "
            "round-robin doesn't look like a module path.",
            "Give the dotted path of a callable.",
        ),
        (
            {"IDENTITY": "math.pie"},
            "E007",
            "REPLICA_ROUTER['IDENTITY'] names 'math.pie', which cannot be imported: Module "
            '"math" does not define a "pie" attribute/class.',
            "Give the dotted path of a callable.",
        ),
        (
            {"IDENTITY": "math.pi"},
            "E007",
            "REPLICA_ROUTER['IDENTITY'] names 'math.pi', which is not callable.",
            "Give the dotted path of a callable.",
        ),
        (
            {"BALANCER": "math.pi"},
            "E007",
            "REPLICA_ROUTER['BALANCER'] names 'math.pi', which is not callable.",
            "Give the dotted path of a callable.",
        ),
        *(
            (
                {key: [label]},
                "E008",
                f"REPLICA_ROUTER[{key!r}] names {label!r}, which is no app and no model.",
                "Give the label of an app ('auth') or of a model ('auth.User').",
            )
            for key in ("PRIMARY_ONLY", "IGNORED_WRITES")
            for label in ("nothing", "auth.Nobody", "nothing.User", "django.contrib.auth", "auth.")
        ),
        (
            {"CACHE": "tokens"},
            "E009",
            "REPLICA_ROUTER['CACHE'] names 'tokens', which is not in CACHES.",
            "Use one of: default.",
        ),
    ],
    ids=repr,
)
def test_setting_that_does_harm_is_an_error(
    setting: Any, number: str, message: str, hint: str
) -> None:
    """A setting that cannot work is an error that names it and says what to do."""
    assert the_only(run(setting)) == (number, message, hint)


def test_unknown_key_is_an_error() -> None:
    """A key that does not exist is an error that lists those that do."""
    number, message, hint = the_only(run({"MAXLAG": 1}))
    assert (number, message) == ("E002", "REPLICA_ROUTER has the unknown key 'MAXLAG'.")
    assert hint is not None
    assert re.fullmatch(r"Use one of: ([A-Z_]+, )+[A-Z_]+\.", hint)
    assert "MAX_LAG" in hint


def test_form_comes_before_meaning() -> None:
    """While the setting cannot be read only that is reported, all of it at once."""
    found = run({"WAIT": -1, "NOPE": 1, "CACHE": "tokens"}, MIDDLEWARE=[], DATABASE_ROUTERS=[])
    assert [str(message.id)[-4:] for message in found] == ["E003", "E002"]


@pytest.mark.parametrize(
    "setting",
    [
        {"TOKEN_TTL": 11.051},
        {"TOKEN_TTL": 6, "MAX_LAG": 4, "WAIT": 0.9},
        {"CLUSTERS": {"default": ["replica1", "replica2"]}},
        {"CLUSTERS": {"default": {"replica2": 0.5}}},
        {"CLUSTERS": {"default": ["replica1", "replica1"]}},
        {"BALANCER": "least_in_flight"},
        {"BALANCER": "random.choice"},
        {"IDENTITY": "os.path.join"},
        {"PRIMARY_ONLY": ["auth", "auth.User", "notes.note"]},
        {"PRIMARY_ONLY": ["AUTH", "Auth.uSER", "NOTES.Note"]},
        {"IGNORED_WRITES": ["auth", "NOTES.Note"]},
    ],
    ids=repr,
)
def test_setting_that_works_is_no_error(setting: dict[str, Any]) -> None:
    """Values at the edge of what is allowed, names and paths are left alone."""
    assert run(setting) == []


@pytest.mark.parametrize(("ttl", "is_error"), [(11.05, True), (11.0501, False), (10.5, True)])
def test_token_must_outlive_lag_and_wait(ttl: float, is_error: bool) -> None:
    """A time to live that equals lag, wait and the error of ages is too short, one above is enough."""
    found = [message.id for message in run({"TOKEN_TTL": ttl})]
    assert found == (["django_replica_router.E006"] if is_error else [])


@pytest.mark.parametrize(
    "label", ["auth", "AUTH", "auth.user", "Auth.User", "auth.", "users", "auth.x"]
)
def test_what_the_setting_reserves_is_what_the_check_accepts(label: str) -> None:
    """The check of PRIMARY_ONLY and its reading agree on every label, in any case."""
    ordinary = [model for model in apps.get_models() if not Config().is_primary_only(model)]
    reserves_any = any(Config(PRIMARY_ONLY=[label]).is_primary_only(model) for model in ordinary)
    assert [message.id for message in run({"PRIMARY_ONLY": [label]})] == (
        [] if reserves_any else ["django_replica_router.E008"]
    )


def test_several_faults_are_all_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults of different kinds do not hide one another."""
    monkeypatch.setitem(connections.settings["replica2"], "ATOMIC_REQUESTS", True)
    found = run(
        {
            "CLUSTERS": {"default": ["replica1", "replica2", "replica9"]},
            "TOKEN_TTL": 1,
            "BALANCER": "nowhere.fastest",
            "IDENTITY": "nowhere.identify",
            "PRIMARY_ONLY": ["nothing", "auth", "nobody"],
        },
        CACHES={"default": {"BACKEND": LOCMEM}},
        DATABASE_ROUTERS=[],
        MIDDLEWARE=[],
    )
    assert Counter(str(message.id)[-4:] for message in found) == {
        "E004": 1,
        "E006": 1,
        "E007": 2,
        "E008": 2,
        "W003": 1,
        "W005": 1,
        "W006": 1,
        "W009": 1,
    }


def test_every_id_is_tested_here() -> None:
    """No id can be added to the code without a test of it, and no test outlives its id."""
    package = Path(django_replica_router.checks.__file__).parent
    code = "".join((package / name).read_text() for name in ("checks.py", "conf.py", "packages.py"))
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("test_checks*.py"))
    assert set(re.findall(r'"([EW]\d{3})"', code)) == set(re.findall(r'"([EW]\d{3})"', tests))


def test_one_id_stands_for_one_fault() -> None:
    """No two functions of the checks use one id."""
    code = Path(django_replica_router.checks.__file__).read_text()
    homes: dict[str, set[str]] = {}
    for function in re.split(r"^def ", code, flags=re.MULTILINE)[1:]:
        for number in re.findall(r'"([EW]\d{3})"', function):
            homes.setdefault(number, set()).add(function.partition("(")[0])
    assert {number: names for number, names in homes.items() if len(names) > 1} == {}
