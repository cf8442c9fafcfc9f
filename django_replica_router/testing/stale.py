"""Tests that fail where the code in them would break under lag."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

from django.conf import settings
from django.test import override_settings

from django_replica_router.conf import SETTING, get_config
from django_replica_router.errors import ConfigurationError
from django_replica_router.testing.blocks import block
from django_replica_router.testing.findings import KINDS, Finding, Watch, noticing_names
from django_replica_router.testing.mirrors import routing_at_work
from django_replica_router.testing.watching import watching


@block
def stale_prone(*, ignore: Collection[str] = ()) -> Iterator[Watch]:
    """Fail where the code in the block would break under lag, also if no replica lags in the test.

    - ``read_after_write``: a table is read from a replica that the code names, after a request or task has written it.
    - ``saved_from_replica``: an object is read from a replica, and saved without the primary's row.
    - ``task_too_soon``: a task is published before the commit that it may need.
    - ``session_too_soon``: a session is read from a replica in a scope that does not know whose it is.
    - ``queryset_left_block``: a queryset is made in ``use_primary``, and evaluated outside.

    The routing rules are at work in the block, as by ``mirrors_are_replicas()``.

    Args:
        ignore: names of kinds that are not looked for.

    Yields:
        Watch: what is found so far, in ``findings``.

    Raises:
        AssertionError: lists each finding: what, line, how to mend it. Where the block raises an error of its
            own, that has the list as a note.
        ConfigurationError: there is no such kind, or the rules cannot be at work.
    """
    _demand_kinds(ignore)
    with ExitStack() as stack:
        stack.enter_context(routing_at_work())
        stack.enter_context(_learning_nothing())
        watch = stack.enter_context(watching(Watch))
        stack.enter_context(noticing_names())
        try:
            yield watch
        except BaseException as error:
            found = _select(watch, ignore)
            if found:
                error.add_note(_tell(found))
            raise
    found = _select(watch, ignore)
    if found:
        raise AssertionError(_tell(found))


def _demand_kinds(names: Collection[str]) -> None:
    unknown = (
        [name for name in names if name not in KINDS] if not isinstance(names, str) else [names]
    )
    if unknown:
        message = (
            f"stale_prone() looks for no {', '.join(map(repr, unknown))}: ignore= expects a list of names out "
            f"of {', '.join(KINDS)}."
        )
        raise ConfigurationError(message)


def _learning_nothing() -> AbstractContextManager[Any]:
    """Have a view that saves what it reads do so again in the next test, and not read from the primary."""
    if get_config().STALE_SAVES == "raise":
        return nullcontext()
    values = {**getattr(settings, SETTING, {}), "STALE_SAVES": "warn"}
    return override_settings(**{SETTING: values})


def _select(watch: Watch, ignore: Collection[str]) -> list[Finding]:
    return [finding for finding in watch.findings if finding.kind not in ignore]


def _tell(findings: list[Finding]) -> str:
    listed = "\n\n".join(f"{number}. {finding}" for number, finding in enumerate(findings, 1))
    first = findings[0].kind
    return (
        f"This would break where replicas lag:\n\n{listed}\n\n"
        f'Where one is meant to be so: stale_prone(ignore=["{first}"]).'
    )
