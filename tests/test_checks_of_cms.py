"""System checks of what django CMS keeps for everybody."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from django_replica_router import use_primary
from tests.checking import NOTES, install, run

NOT_KEPT = {"menus": 0, "content": 0, "permissions": 0}


def install_cms(
    monkeypatch: pytest.MonkeyPatch, *, hooks: list[str], load: Callable[[], list[str]] = list
) -> None:
    """Have an app like django CMS, with apphooks, and what loads their addresses."""
    install(monkeypatch, "cms")
    install(monkeypatch, "menus")
    pool = SimpleNamespace(get_apphooks=lambda: hooks)
    for name, module in [
        ("cms", SimpleNamespace()),
        ("cms.apphook_pool", SimpleNamespace(apphook_pool=pool)),
        ("cms.appresolver", SimpleNamespace(get_app_patterns=load)),
    ]:
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("router", "more", "is_told"),
    [
        ({}, {}, True),
        ({}, {"CMS_CACHE_DURATIONS": {**NOT_KEPT, "menus": 60}}, True),
        ({}, {"CMS_CACHE_DURATIONS": {**NOT_KEPT, "content": 60}}, True),
        ({}, {"CMS_CACHE_DURATIONS": NOT_KEPT}, False),
        (NOTES, {}, False),
    ],
)
def test_cms_that_keeps_what_it_reads_is_told_of(
    monkeypatch: pytest.MonkeyPatch, router: dict[str, Any], more: dict[str, Any], is_told: bool
) -> None:
    """Menus for an hour, and pages and their addresses for a minute, unless they come from the primary."""
    assert run(router, **more) == []
    install_cms(monkeypatch, hooks=[])
    assert [str(message.id)[-4:] for message in run(router, **more)] == ["W023"] * is_told


@pytest.mark.parametrize(
    ("router", "hooks", "load", "is_told"),
    [
        ({}, ["Prices"], list, True),
        ({}, ["Prices"], use_primary(lambda: []), False),
        ({}, [], list, False),
        (NOTES, ["Prices"], list, False),
    ],
)
def test_apphooks_that_are_loaded_from_replicas_are_told_of(
    monkeypatch: pytest.MonkeyPatch,
    router: dict[str, Any],
    hooks: list[str],
    load: Callable[[], list[str]],
    is_told: bool,
) -> None:
    """A process would keep them as they were."""
    install_cms(monkeypatch, hooks=hooks, load=load)
    found = run(router, CMS_CACHE_DURATIONS=NOT_KEPT)
    assert [str(message.id)[-4:] for message in found] == ["W024"] * is_told


@pytest.mark.parametrize("labels", [["cms"], ["menus"], ["cms", "menus"]])
def test_apps_of_the_site_are_not_taken_for_the_cms(
    monkeypatch: pytest.MonkeyPatch, labels: list[str]
) -> None:
    """Nothing is imported that is not there."""
    for label in labels:
        install(monkeypatch, label)
    assert run(CMS_CACHE_DURATIONS=NOT_KEPT) == []
