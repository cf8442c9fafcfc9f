"""The values of the setting: of other types, out of range, beyond what a clock can wait."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User

from django_replica_router import conf
from django_replica_router.conf import Config, find_problems, get_config
from django_replica_router.errors import ConfigurationError
from django_replica_router.recording.floors import expiry_ms
from django_replica_router.values.tokens import Record
from tests.fuzz.surface import Surface, require

DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Config)}
DURATIONS = ("MAX_LAG", "WAIT", "CONNECT_TIMEOUT", "TOKEN_TTL", "SESSION_TTL", "INTERVAL")
DURATIONS = (*DURATIONS, "STORE_TIMEOUT")
CLUSTERS = ({"default": ["replica1"]}, {"default": {"replica1": 2}}, {"default": []}, {})


def check(value: Any) -> bool:
    """Require that a setting is refused with a sentence, or gives values that can be used."""
    conf.parsed.config = None
    settings.REPLICA_ROUTER = value
    problems = list(find_problems())
    for problem in problems:
        require(bool(problem.code and problem.message and problem.hint), "says nothing")
    try:
        config = get_config()
    except ConfigurationError:
        require(bool(problems), "is refused without a problem")
        return False
    require(not problems, "is taken with a problem")
    for name in DURATIONS:
        seconds = getattr(config, name)
        # What no clock can wait for, and no cache can keep, raises where it is used.
        is_usable = math.isfinite(seconds) and 0 <= seconds <= threading.TIMEOUT_MAX
        require(is_usable, f"{name} is {seconds!r}")
    require(0 <= config.interval <= config.MAX_LAG, f"looks every {config.interval!r} s")
    require(0 <= config.PRIMARY_SHARE <= 1, f"PRIMARY_SHARE is {config.PRIMARY_SHARE!r}")
    expires = expiry_ms(config)
    record = Record.decode(Record(expires_ms=expires).encode())
    require(record is not None and record.expires_ms == expires, "tokens never expire")
    for primary, weights in config.topology.clusters.items():
        weighable = all(0 < weight < math.inf for weight in weights.values())
        require(weighable and isinstance(primary, str), f"clusters are {config.topology.clusters}")
    require(config.is_primary_only(User) in (True, False), "models cannot be told apart")
    return True


@contextmanager
def restored() -> Iterator[None]:
    """Put the setting back after the block."""
    before = settings.REPLICA_ROUTER
    try:
        yield
    finally:
        settings.REPLICA_ROUTER = before
        conf.parsed.config = None


class Configs(Surface):
    """Reading the setting."""

    name = "configs"
    what = "the values of the setting"
    share = 0.1

    def _open(self, stack: ExitStack) -> None:
        stack.enter_context(restored())

    def case(self) -> None:
        """Read one setting."""
        draw, random = self.draw, self.random
        if draw.chance(0.02):
            value = draw.value()
        else:
            value = {}
            for name in random.sample(list(DEFAULTS), random.choice((1, 1, 2, 4))):
                value[name] = self._value(name)
            if draw.chance(0.05):
                value[random.choice(("NOPE", "max_lag", 1, None, ()))] = draw.value()
        self.present = value
        is_taken = check(value)
        self.tally.kinds["taken" if is_taken else "refused"] += 1

    def _value(self, name: str) -> Any:
        draw, default = self.draw, DEFAULTS[name]
        if draw.chance(0.3):
            return default
        if name == "CLUSTERS" and draw.chance(0.6):
            chosen = dict(self.random.choice(CLUSTERS))
            if draw.chance(0.5):
                chosen[draw.text(8)] = draw.value()
            return chosen
        if isinstance(default, float) and draw.chance(0.7):
            return draw.number()
        return draw.value()
