"""What there is to know of an application: how it is installed, set up, and used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from applications.environments import run
from applications.visit import Visit


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where one run of an application takes place.

    Args:
        directory: of its project; empty at first.
        python: of its environment.
        environ: of its processes.
    """

    directory: Path
    python: Path
    environ: dict[str, str]

    def django(self, *arguments: str) -> str:
        """Run a management command, and return what it prints."""
        command = [str(self.python), "-m", "django", *arguments]
        return run(command, env=self.environ, cwd=self.directory)

    def write(self, path: str, text: str) -> None:
        """Write a file of the project."""
        target = self.directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


@dataclass(frozen=True, slots=True)
class Application:
    """An application of others.

    Args:
        name: of it.
        requirements: what is installed, as pip takes it, with versions.
        settings: the module of its settings.
        wsgi: the module of its WSGI application.
        create: makes the project, as the application's own documentation says.
        fill: prepares the database, on the primary.
        walk: uses it, as people do.
        page: one that answers when it is up.
        recipe: what it needs in ``REPLICA_ROUTER`` beside the README's settings.
        recipe_of_its_own: what it needs in settings of its own.
    """

    name: str
    requirements: tuple[str, ...]
    settings: str
    wsgi: str
    create: Callable[[Workplace], None]
    fill: Callable[[Workplace], None]
    walk: Callable[[Visit], None]
    page: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_of_its_own: Mapping[str, Any] = field(default_factory=dict)
