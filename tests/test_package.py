"""The package from outside: what can be imported, when, and what that does."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps

import django_replica_router

PACKAGE = Path(django_replica_router.__file__).parent
FILES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
    if file != PACKAGE / "__init__.py"
}
MODULES = sorted(FILES)
# What Django itself imports, once there are settings and all apps are known; and the toolbar, which asks for them.
OF_DJANGO = [
    *(f"contrib.status.{name}" for name in ("admin", "migrations.0001_initial", "models", "urls")),
    "contrib.debug_toolbar",
]
ROOT = PACKAGE.parent


def run_python(code: str, **environment: str) -> str:
    """Run code in a process of its own that knows of no settings, and return what it prints."""
    inherited = {
        name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=inherited | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_public_names_stay() -> None:
    """A name that leaves this list breaks somebody's site."""
    assert {
        "ReplicaRouter",
        "current_scope",
        "note_write",
        "scope",
        "use_primary",
        "use_replica",
    } <= set(django_replica_router.__all__)
    assert django_replica_router.__all__ == sorted(django_replica_router.__all__)


@pytest.mark.parametrize("name", django_replica_router.__all__)
def test_public_name_can_be_used(name: str) -> None:
    """Every public name leads to something that can be called, and to the same each time."""
    first = getattr(django_replica_router, name)
    assert callable(first)
    assert getattr(django_replica_router, name) is first
    assert first.__name__ == name


def test_every_public_name_has_its_home_and_no_other() -> None:
    """The list of names, the table of their homes and the imports for type checkers agree."""
    assert sorted(django_replica_router._HOMES) == django_replica_router.__all__
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    guard = next(node for node in tree.body if isinstance(node, ast.If))
    for_checkers = {
        alias.name: node.module
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert for_checkers == django_replica_router._HOMES


@pytest.mark.parametrize("name", ["use_secondary", "Use_primary", "reading", "_HOME", "__path"])
def test_unknown_name_is_an_attribute_error(name: str) -> None:
    """Asking for what is not there raises the error that Python itself raises."""
    message = f"module 'django_replica_router' has no attribute {name!r}"
    with pytest.raises(AttributeError, match=f"^{re.escape(message)}$"):
        getattr(django_replica_router, name)
    assert not hasattr(django_replica_router, name)


def test_unknown_name_cannot_be_imported() -> None:
    """Importing what is not there raises an ImportError that names it."""
    with pytest.raises(ImportError, match="cannot import name 'use_secondary'"):
        from django_replica_router import use_secondary  # type: ignore[attr-defined]  # noqa: F401


def test_names_can_be_imported_before_there_are_settings() -> None:
    """A settings module or a script may import every public name."""
    names = ", ".join(django_replica_router.__all__)
    code = (
        f"from django_replica_router import {names}\n"
        "from django.conf import settings\n"
        f"print(settings.configured, len([{names}]))"
    )
    assert run_python(code) == f"False {len(django_replica_router.__all__)}"


def test_star_import_brings_the_public_names() -> None:
    """A star import works without settings, too."""
    code = "from django_replica_router import *; print(*sorted(n for n in dir() if n[0] != '_'))"
    assert run_python(code) == " ".join(django_replica_router.__all__)


def test_importing_the_package_loads_nothing() -> None:
    """The package alone costs no import of Django or of the driver."""
    code = (
        "import sys, django_replica_router as p\n"
        "print(p.__version__, *sorted({'django', 'psycopg', 'asgiref'} & set(sys.modules)))"
    )
    assert run_python(code) == django_replica_router.__version__


@pytest.mark.parametrize(
    "module",
    [
        "errors",
        "policy",
        "replicas.history",
        "replicas.readings",
        "stats",
        "values.lsn",
        "values.statements",
        "values.tokens",
    ],
)
def test_values_are_free_of_django(module: str) -> None:
    """Modules of plain values and rules load neither Django nor the driver."""
    code = (
        f"import sys, django_replica_router.{module}\n"
        "print(*sorted({'django', 'psycopg'} & set(sys.modules)))"
    )
    assert run_python(code) == ""


def test_every_module_can_be_imported_first() -> None:
    """No module relies on another one having been imported before it, nor on settings or models."""
    modules = [name for name in MODULES if name not in OF_DJANGO]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    for loaded in [m for m in sys.modules if m.startswith('django_replica_router')]:\n"
        "        del sys.modules[loaded]\n"
        "    importlib.import_module(f'django_replica_router.{name}')\n"
        "    print(name)"
    )
    assert run_python(code).splitlines() == modules


def test_decorators_work_without_settings_until_they_route() -> None:
    """A module may decorate its functions before settings exist; use_primary needs none at all."""
    code = (
        "from django_replica_router import use_primary, use_replica\n"
        "from django_replica_router.scopes.scope import current_frame\n"
        "@use_primary\n"
        "def a(): return current_frame.get().override.primary\n"
        "@use_replica(max_lag=5)\n"
        "def b(): pass\n"
        "print(a())"
    )
    assert run_python(code) == "True"


def test_versions_agree() -> None:
    """The version in the code is the version of the distribution."""
    assert importlib.metadata.version("django-replica-router") == django_replica_router.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", django_replica_router.__version__)


def test_package_is_typed() -> None:
    """Type checkers are told to use the package's own types."""
    assert (PACKAGE / "py.typed").is_file()


def test_app_is_what_django_finds() -> None:
    """The app is known by its name, under one label, and brings no models."""
    config = apps.get_app_config("django_replica_router")
    assert (config.name, config.verbose_name) == ("django_replica_router", "Replica router")
    assert list(config.get_models()) == []


def test_router_can_be_named_in_the_settings() -> None:
    """The short path of the README and the long one lead to the same class."""
    from django.utils.module_loading import import_string

    short: Any = import_string("django_replica_router.ReplicaRouter")
    assert short is import_string("django_replica_router.routers.ReplicaRouter")


@pytest.mark.parametrize("module", MODULES)
def test_module_says_what_it_is(module: str) -> None:
    """Every module has a docstring, whose first paragraph is one line."""
    docstring = ast.get_docstring(ast.parse(FILES[module].read_text()))
    assert docstring
    assert "\n" not in docstring.partition("\n\n")[0]


MOST_LINES = {ast.FunctionDef: 40, ast.AsyncFunctionDef: 40, ast.ClassDef: 200}


def long_ones(code: str) -> list[tuple[str, int]]:
    """Return name and lines of each definition that has too many, with decorators and docstring."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            lines = (node.end_lineno or 0) - first + 1
            if lines > MOST_LINES[type(node)]:
                found.append((node.name, lines))
    return found


def test_functions_have_at_most_40_lines_and_classes_200() -> None:
    """What is longer is not understood at one look."""
    found = [
        (str(file.relative_to(PACKAGE)), *one)
        for file in sorted(PACKAGE.rglob("*.py"))
        for one in long_ones(file.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    ("head", "most"), [("def f():", 40), ("async def f():", 40), ("class f:", 200)]
)
def test_a_definition_of_one_line_more_is_found(head: str, most: int) -> None:
    """A decorator counts as a line."""
    code = f"@decorated\n{head}\n" + "    a = 1\n" * (most - 2)
    assert long_ones(code) == []
    assert long_ones(code + "    a = 1\n") == [("f", most + 1)]
