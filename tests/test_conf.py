"""The setting: defaults, what is refused and how, and when it is read."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import threading
from dataclasses import FrozenInstanceError, fields
from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import Group, User
from django.test import override_settings

from django_replica_router.conf import Config, SettingError, find_problems, get_config
from django_replica_router.errors import ConfigurationError, ReplicaRouterError
from django_replica_router.values import rules
from testproject.notes.models import Note


def test_defaults() -> None:
    """Without the setting every key has its documented default."""
    for value in ({}, None):
        with override_settings(REPLICA_ROUTER=value):
            assert get_config() == Config(
                ENABLED=True,
                CLUSTERS=None,
                DISCOVERY=None,
                MAX_LAG=10.0,
                WAIT=0.05,
                FALLBACK_LAG=None,
                PRIMARY_SHARE=1.0,
                PRIMARY_DOWN="fail",
                CONNECT_TIMEOUT=0.5,
                TOKEN_TTL=60.0,
                SESSION_TTL=86400.0,
                INTERVAL=1.0,
                STORE_TIMEOUT=0.25,
                COOKIE=False,
                CACHE="default",
                PRIMARY_ONLY=(),
                IGNORED_WRITES=(),
                MONOTONIC_READS=True,
                MONOTONIC_SHARE=0.05,
                SAFE_METHODS=("GET", "HEAD", "OPTIONS", "TRACE"),
                BALANCER="rendezvous",
                IDENTITY=None,
                DEBUG=False,
            )
            assert list(find_problems()) == []


def test_setting_may_be_missing(settings: Any) -> None:
    """A project without REPLICA_ROUTER gets the defaults."""
    del settings.REPLICA_ROUTER
    assert get_config() == Config()


def test_every_key_has_a_rule_and_a_field() -> None:
    """No key can be set that is not checked, and none is checked that does nothing."""
    assert set(rules.RULES) == {field.name for field in fields(Config)}


def test_defaults_keep_their_own_rules() -> None:
    """Every default is a value that the rule of its key allows."""
    for field in fields(Config):
        is_valid, _ = rules.RULES[field.name]
        assert is_valid(field.default), field.name


def test_config_cannot_be_changed() -> None:
    """Who holds the settings cannot change them for others."""
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'MAX_LAG'"):
        get_config().MAX_LAG = 1.0  # type: ignore[misc]


NO_SECONDS: list[Any] = [-1, -0.001, "1", None, True, False, math.nan, math.inf, -math.inf, 1j, [1]]
NO_TEXTS: list[Any] = ["GET", None, 1, [1], [""], ["GET", None], {"GET": 1}, b"GET", [b"GET"]]
SECONDS = "a number of seconds, 0 or more"
POSITIVE = "a number of seconds above 0"
TEXTS = "a list of strings"
BALANCER = (
    "one of rendezvous, random, round_robin, least_in_flight, or the dotted path of a callable"
)
CLUSTERS = (
    "a dict of primary alias to a list of replica aliases, or to a dict of replica alias to a "
    "weight above 0"
)
DISCOVERY = (
    "None or a dict of replica alias to a dict with NAME (a DNS name) and, where it should not be the "
    "default, TYPE ('A', 'AAAA' or 'SRV'), NAMESERVER (an IP address), PORT (1 to 65535) and INTERVAL "
    "(seconds above 0)"
)

WRONG: list[tuple[str, Any, str]] = [
    *(
        (key, value, "True or False")
        for key in ("ENABLED", "COOKIE", "MONOTONIC_READS", "DEBUG")
        for value in (0, 1, None, "True", [])
    ),
    *(("WAIT", value, SECONDS) for value in NO_SECONDS),
    *(
        (key, value, POSITIVE)
        for key in (
            "MAX_LAG",
            "CONNECT_TIMEOUT",
            "TOKEN_TTL",
            "SESSION_TTL",
            "INTERVAL",
            "STORE_TIMEOUT",
        )
        for value in [*NO_SECONDS, 0, 0.0]
    ),
    *(
        ("FALLBACK_LAG", value, "None or a number of seconds above 0")
        for value in [*(value for value in NO_SECONDS if value is not None), 0, 0.0]
    ),
    *(
        (share, value, "a number from 0 to 1")
        for share in ("PRIMARY_SHARE", "MONOTONIC_SHARE")
        for value in [*NO_SECONDS, 1.001, 2, 100]
    ),
    *(
        ("PRIMARY_DOWN", value, "'fail' or 'replicas'")
        for value in ("", "primary", "FAIL", None, True, 1, [], ["fail"], {"fail": 1})
    ),
    *(
        ("STALE_SAVES", value, "'learn', 'warn', 'raise' or 'ignore'")
        for value in ("", "LEARN", None, True, 1, ["learn"], {"learn": 1})
    ),
    *(("CACHE", value, "the alias of a cache") for value in ("", None, 1, b"default", ["default"])),
    *(
        ("IDENTITY", value, "None or the dotted path of a callable")
        for value in ("", 1, False, print, ["a.b"])
    ),
    *(("BALANCER", value, BALANCER) for value in ("", None, 1, print)),
    *(
        (key, value, TEXTS)
        for key in ("PRIMARY_ONLY", "IGNORED_WRITES", "SAFE_METHODS")
        for value in NO_TEXTS
    ),
    *(
        ("CLUSTERS", value, CLUSTERS)
        for value in (
            [],
            ["default"],
            "default",
            0,
            {"default": None},
            {"default": "replica1"},
            {"default": [1]},
            {"default": [""]},
            {"default": [None]},
            {"": ["replica1"]},
            {1: ["replica1"]},
            {"default": {"replica1": 0}},
            {"default": {"replica1": -1.0}},
            {"default": {"replica1": True}},
            {"default": {"replica1": math.nan}},
            {"default": {"replica1": math.inf}},
            {"default": {"replica1": "1"}},
            {"default": {"": 1}},
            {"default": {1: 1}},
            {"default": ["replica1"], "other": 3},
        )
    ),
    *(
        ("DISCOVERY", value, DISCOVERY)
        for value in (
            [],
            "replicas.test",
            {"replica1": "replicas.test"},
            {"": {"NAME": "replicas.test"}},
            {1: {"NAME": "replicas.test"}},
            {"replica1": {}},
            {"replica1": {"TYPE": "A"}},
            {"replica1": {"NAME": "replicas.test", "HOST": "10.0.0.1"}},
            {"replica1": {"NAME": "replicas.test"}, "replica2": None},
            *(
                {"replica1": {"NAME": "replicas.test", **wrong}}
                for wrong in (
                    *({"NAME": value} for value in ("", None, 1, "a b", ".", "a..b", "a" * 64)),
                    *({"TYPE": value} for value in ("", None, "a", "CNAME", ["A"])),
                    *({"NAMESERVER": value} for value in ("", None, 1, "localhost", "10.0.0.1:53")),
                    *({"PORT": value} for value in (0, -1, 65536, "53", 53.0, True, None)),
                    *({"INTERVAL": value} for value in (*NO_SECONDS, 0)),
                )
            ),
        )
    ),
]


@pytest.mark.parametrize(("key", "value", "expected"), WRONG, ids=repr)
def test_value_that_cannot_be_used_is_refused(key: str, value: Any, expected: str) -> None:
    """A wrong value raises a sentence with the key, what is expected, the value, and what to do."""
    message = f"REPLICA_ROUTER[{key!r}] should be {expected}, not {value!r}."
    hint = "Correct the value, or remove the key to use the default."
    with override_settings(REPLICA_ROUTER={key: value}):
        with pytest.raises(ConfigurationError, match=f"^{re.escape(f'{message} {hint}')}$"):
            get_config()
        (problem,) = find_problems()
    assert (problem.code, problem.message, problem.hint) == ("E003", message, hint)


@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["huge", "minus huge"])
@pytest.mark.parametrize("key", ["WAIT", "MAX_LAG"])
def test_number_too_large_for_a_float_is_refused(key: str, value: int) -> None:
    """An integer that is no float is refused as a value, and does not break the check itself."""
    with override_settings(REPLICA_ROUTER={key: value}):
        (problem,) = find_problems()
    assert problem.code == "E003"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("WAIT", 0),
        ("WAIT", 0.0),
        ("MAX_LAG", 3),
        ("MAX_LAG", 1e-9),
        ("FALLBACK_LAG", 30),
        ("FALLBACK_LAG", None),
        ("PRIMARY_SHARE", 0),
        ("PRIMARY_SHARE", 0.25),
        ("PRIMARY_SHARE", 1),
        ("MONOTONIC_SHARE", 0),
        ("MONOTONIC_SHARE", 1),
        ("PRIMARY_DOWN", "fail"),
        ("PRIMARY_DOWN", "replicas"),
        *(("STALE_SAVES", value) for value in ("learn", "warn", "raise", "ignore")),
        ("PRIMARY_ONLY", []),
        ("PRIMARY_ONLY", {"auth"}),
        ("PRIMARY_ONLY", frozenset({"auth"})),
        ("IGNORED_WRITES", ["axes"]),
        ("SAFE_METHODS", ("GET",)),
        ("IDENTITY", None),
        ("IDENTITY", "site.identify"),
        ("BALANCER", "site.balance"),
        ("CLUSTERS", None),
        ("CLUSTERS", {}),
        ("CLUSTERS", {"default": []}),
        ("CLUSTERS", {"default": ("replica1",), "other": {"replica2": 2}}),
        ("DISCOVERY", None),
        ("DISCOVERY", {}),
        ("DISCOVERY", {"replica1": {"NAME": "replicas"}}),
        (
            "DISCOVERY",
            {
                "replica1": {
                    "NAME": "_postgresql._tcp.db.test.",
                    "TYPE": "SRV",
                    "NAMESERVER": "fd00::1",
                    "PORT": 8600,
                    "INTERVAL": 5,
                }
            },
        ),
    ],
    ids=repr,
)
def test_value_that_can_be_used_is_kept(key: str, value: Any) -> None:
    """A right value is what the configuration holds, and the other keys keep their defaults."""
    with override_settings(REPLICA_ROUTER={key: value}):
        config = get_config()
        assert list(find_problems()) == []
    assert getattr(config, key) == value
    assert {
        field.name for field in fields(Config) if getattr(config, field.name) != field.default
    } <= {key}


@pytest.mark.parametrize("value", [[], (), "", 0, False, ["ENABLED"], "off", 1, True], ids=repr)
def test_setting_that_is_no_dict_is_refused(value: Any) -> None:
    """Anything but a dict raises a sentence, even what is false: it would not switch off."""
    message = (
        f"REPLICA_ROUTER should be a dict, not {type(value).__name__}. "
        f"Write REPLICA_ROUTER = {{}} to use the defaults."
    )
    with override_settings(REPLICA_ROUTER=value):
        with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
            get_config()
        assert [problem.code for problem in find_problems()] == ["E001"]


@pytest.mark.parametrize("key", ["MAXLAG", "max_lag", "", 1, None], ids=repr)
def test_unknown_key_is_refused(key: Any) -> None:
    """A key that does not exist raises a sentence that lists those that do."""
    names = ", ".join(sorted(field.name for field in fields(Config)))
    message = f"REPLICA_ROUTER has the unknown key {key!r}. Use one of: {names}."
    with (
        override_settings(REPLICA_ROUTER={key: 1}),
        pytest.raises(SettingError, match=f"^{re.escape(message)}$") as caught,
    ):
        get_config()
    assert caught.value.code == "E002"


def test_every_problem_is_found() -> None:
    """One wrong key does not hide another."""
    with override_settings(REPLICA_ROUTER={"WAIT": -1, "NOPE": 1, "MAX_LAG": 3, "DEBUG": 1}):
        codes = [(problem.code, problem.message.split()[0]) for problem in find_problems()]
    assert codes == [
        ("E003", "REPLICA_ROUTER['WAIT']"),
        ("E002", "REPLICA_ROUTER"),
        ("E003", "REPLICA_ROUTER['DEBUG']"),
    ]


def test_errors_are_of_the_package_and_values() -> None:
    """A site can catch the package's errors, and code that knows none of it a ValueError."""
    assert issubclass(SettingError, ConfigurationError)
    assert issubclass(ConfigurationError, ReplicaRouterError)
    assert issubclass(ConfigurationError, ValueError)


def test_setting_is_read_when_it_is_needed() -> None:
    """An override holds inside its block and not behind it, nested and after an error."""
    with override_settings(REPLICA_ROUTER={"MAX_LAG": 3}):
        assert get_config().MAX_LAG == 3
        with override_settings(REPLICA_ROUTER={"WAIT": 0}):
            assert (get_config().MAX_LAG, get_config().WAIT) == (10.0, 0)
        assert (get_config().MAX_LAG, get_config().WAIT) == (3, 0.05)
        with override_settings(REPLICA_ROUTER={"MAX_LAG": -3}), pytest.raises(ConfigurationError):
            get_config()
        assert get_config().MAX_LAG == 3
    assert get_config().MAX_LAG == 10.0


def test_setting_is_read_once() -> None:
    """The same dict is parsed once, since every query asks."""
    with override_settings(REPLICA_ROUTER={"MAX_LAG": 3}):
        assert get_config() is get_config()


def test_another_dict_is_read_without_being_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new dict is read at once, also where nobody sends Django's signal."""
    monkeypatch.setattr(django_settings, "REPLICA_ROUTER", {"MAX_LAG": 3})
    first = get_config()
    monkeypatch.setattr(django_settings, "REPLICA_ROUTER", {"MAX_LAG": 4})
    assert (first.MAX_LAG, get_config().MAX_LAG) == (3, 4)


def test_threads_get_one_configuration() -> None:
    """Threads that ask at the same time are given equal settings."""
    with override_settings(REPLICA_ROUTER={"MAX_LAG": 3}):
        found: list[Config] = []
        barrier = threading.Barrier(8)

        def ask() -> None:
            barrier.wait()
            found.append(get_config())

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [config.MAX_LAG for config in found] == [3] * 8


@pytest.mark.parametrize(
    ("interval", "max_lag", "expected"),
    [(1.0, 10.0, 1.0), (1.0, 4.0, 1.0), (1.0, 2.0, 0.5), (5.0, 10.0, 2.5), (0.1, 10.0, 0.1)],
)
def test_interval_is_at_most_a_quarter_of_the_lag(
    interval: float, max_lag: float, expected: float
) -> None:
    """Readings are frequent enough to prove the lag that is allowed."""
    assert Config(INTERVAL=interval, MAX_LAG=max_lag).interval == expected


# Models read from the primary


@pytest.mark.parametrize(
    ("labels", "note", "user", "group"),
    [
        ((), False, False, False),
        (("auth",), False, True, True),
        (("AUTH",), False, True, True),
        (("auth.User",), False, True, False),
        (["auth.user", "notes.NOTE"], True, True, False),
        ({"notes"}, True, False, False),
        (("user",), False, False, False),
        (("auth.",), False, False, False),
    ],
    ids=repr,
)
def test_models_are_reserved_for_the_primary_by_app_or_name(
    labels: Any, note: bool, user: bool, group: bool
) -> None:
    """A label of an app stands for all of its models, a label of a model for that, in any case."""
    config = Config(PRIMARY_ONLY=labels)
    for _ in range(2):  # the second answer comes from memory
        assert [config.is_primary_only(model) for model in (Note, User, Group)] == [
            note,
            user,
            group,
        ]


def test_table_of_the_database_cache_is_read_from_the_primary() -> None:
    """Django's database cache is never read from a replica, whatever the setting."""
    model = type(
        "CacheEntry",
        (),
        {"_meta": SimpleNamespace(app_label="django_cache", model_name="cacheentry")},
    )
    assert Config().is_primary_only(model)


def test_the_defaults_are_told_without_settings_of_djangos() -> None:
    """As to a program that is no site."""
    told = "from django_replica_router.conf import Config; print(Config(MAX_LAG=2.0).interval)"
    done = subprocess.run(
        [sys.executable, "-c", told],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("0.5\n", 0), done.stderr
