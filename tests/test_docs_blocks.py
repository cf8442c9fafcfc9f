"""Every block of code in the documents is run, or says in a comment in front of it why it is not.

Python is executed; of commands those exist, with their options, that are named; other formats are parsed. What a test of its
own runs whole, as the tutorial, is left to that.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.contrib.auth.models import User
from django.core.management import get_commands, load_command_class
from django.db import connections
from django.db.models import F
from django.test import override_settings

from django_replica_router.conf import find_problems
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.documents import DOCS, PAGES, ROOT, Block, blocks, commands

# Run whole by the tests named here, which see what comes of it as well.
RUN_BY = {
    "tutorial.md": "test_docs_tutorial.py",
    "from-multidb-router.md": "test_docs_migrations.py",
    "from-random-router.md": "test_docs_migrations.py",
    "from-replicated.md": "test_docs_migrations.py",
    "cqrs.md": "test_examples.py",
    "tasks.md": "test_tasks_examples.py",
    "testing.md": "test_kit_sites.py",
    "tokens.md": "test_examples.py",
}
FILES_RUN_BY = (
    "api_site",
    "asgi_site",
    "channels_site",
    "peer_site",
    "test_apis",
    "test_two_services",
)
ALL = [
    block
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES)
    for block in blocks(page)
    if not block.language.startswith("{")  # a directive of Sphinx, which the build runs
]
PROGRAMS = re.compile(r"\$ |pip |python3? |\.venv/bin/|rm |[A-Z_]+=")
# Programs of others, with whatever arguments.
FOREIGN = {"cd", ".", "curl", "gunicorn", "mkdir", "python3", "rm"}


def is_run_elsewhere(block: Block) -> bool:
    """Tell whether a test of its own runs the block."""
    if block.page.name in RUN_BY:
        return True
    if block.page.name != "http.md" or not block.file:
        return False
    tests = "".join((ROOT / "tests" / f"{name}.py").read_text() for name in FILES_RUN_BY)
    return f'load_example("http.md", "{block.file}")' in tests


def language(block: Block) -> str:
    """Return what a block is written in; of an indented one by its looks."""
    if block.language:
        return block.language
    if PROGRAMS.match(block.text):
        return "console"
    if block.text.startswith("defaults\n"):
        return (
            "haproxy"  # a fence that names it would have Sphinx ask for a lexer that does not exist
        )
    try:
        ast.parse(block.text)
    except SyntaxError:
        return ""
    return "python"


def execute(block: Block) -> None:
    """Execute a block in the middle of a settings file, or of a module of a site."""
    names: dict[str, Any] = {
        "DATABASES": {},
        "F": F,
        "INSTALLED_APPS": [],
        "MIDDLEWARE": [],
        "Menu": Note,
        "Note": Note,
        "Page": Note,
        "User": User,
        "os": os,
    }
    code = compile(block.text, block.name, "exec", dont_inherit=True)
    exec(code, names)  # noqa: S102 - it is the project's own
    if "REPLICA_ROUTER" in names:
        with override_settings(REPLICA_ROUTER=names["REPLICA_ROUTER"]):
            assert not list(find_problems())


def try_commands(block: Block) -> None:
    """See that each command is there, and takes the options that it is given."""
    text = block.text.replace("\\\n", "")
    lines = [command for command, _ in commands(text)] or text.splitlines()
    for line in lines:
        for command in filter(None, re.split(r" && |  #.*", line)):
            _try(shlex.split(command))


def _try(words: list[str]) -> None:
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        variable = words.pop(0).partition("=")[0]
        assert _is_in_code(variable, "django_replica_router", "testproject", "tests"), variable
    words = [word.removeprefix(".venv/bin/") for word in words]
    if not words or words[0] in FOREIGN:
        return
    if words[0] == "psql":
        _ask(*words[1:])
        return
    if words[0] == "pip":
        _try_extras(words)
    elif words[:2] == ["python", "manage.py"]:
        _try_management(words[2], words[3:])
    elif words[:2] == ["python", "-m"]:
        _try_module(words[2], words[3:])
    else:
        assert words[0] == "tox", words
        assert f"[testenv:{words[2]}]" in (ROOT / "tox.ini").read_text()


def _ask(server: str, option: str, sql: str) -> None:
    assert option == "-c"
    with connections[{"$PRIMARY": "default", "$REPLICA": "replica1"}[server]].cursor() as cursor:
        cursor.execute(sql)
        assert None not in cursor.fetchone()


def _is_in_code(text: str, *folders: str) -> bool:
    files = (file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    return any(text in file.read_text() for file in files)


def _try_extras(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"(?:django-replica-router|\.)\[([\w,]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


def _try_management(name: str, arguments: list[str]) -> None:
    command = load_command_class(get_commands()[name], name)
    parser = command.create_parser("manage.py", name)
    parser.called_from_command_line = False  # an error is to be raised, not printed
    parser.parse_args(arguments)


def _try_module(name: str, arguments: list[str]) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None, name
    if name == "pytest":
        for pattern in (word for word in arguments if "/" in word):
            assert list(ROOT.glob(pattern)), pattern
    elif (ROOT / name.replace(".", "/")).exists():
        for option in (word for word in arguments if word.startswith("--")):
            assert _is_in_code(f'"{option}"', *{name.replace(".", "/")}), (name, option)


def parse_haproxy(block: Block) -> None:
    """Have HAProxy itself check its configuration, where it is there."""
    program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("There is no haproxy.")
    done = subprocess.run(
        [program, "-c", "-f", "/dev/stdin"],
        input=block.text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _parse_ini(block: Block) -> None:
    ConfigParser(interpolation=None, inline_comment_prefixes=(";",)).read_string(block.text)


KINDS: dict[str, Callable[[Block], Any]] = {
    "python": execute,
    "console": try_commands,
    "haproxy": parse_haproxy,
    "ini": _parse_ini,
    "toml": lambda block: tomllib.loads(block.text),
    "yaml": lambda block: list(yaml.safe_load_all(block.text)),
}


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=block.name)
        for block in ALL
        if not block.note.startswith("not run: ") and not is_run_elsewhere(block)
    ],
)
def test_the_block_runs(block: Block, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there."""
    monkeypatch.setenv("TOKEN_KEY", "a key in common")
    kind = language(block)
    assert kind in KINDS, (
        f"{block.name} is {kind!r}: say why it is not run, in a comment before it."
    )
    KINDS[kind](block)


def test_blocks_that_are_not_run_say_why() -> None:
    """Few of them, and each with its reason."""
    reasons = [block.note for block in ALL if block.note.startswith("not run: ")]
    assert all(len(reason) > len("not run: ") + 10 for reason in reasons)
    assert len(reasons) < len(ALL) / 5


@pytest.mark.parametrize(("page", "test"), RUN_BY.items())
def test_what_is_run_elsewhere_is_run_there(page: str, test: str) -> None:
    """The test that is named takes its code from that page."""
    text = (ROOT / "tests" / test).read_text()
    assert page in text or page.removesuffix(".md") in text
    assert (DOCS / page).exists()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("python", "from django_replica_router import use_secondary"),
        ("python", 'REPLICA_ROUTER = {"MAX_LAGG": 2.0}'),
        ("console", "$ python manage.py replica_states"),
        ("console", "$ python manage.py replica_wait --timeouts 3"),
        ("console", "python -m testproject --routings random"),
        ("console", 'pip install "django-replica-router[memcached]"'),
        ("console", "python -m pytest tests/test_nothing*.py"),
        ("console", '$ psql "$REPLICA" -c "SELECT pg_current_wal_lsn()"'),
        ("ini", "pool_mode = transaction"),
        ("yaml", "a: [1"),
    ],
)
def test_a_wrong_block_is_found(kind: str, text: str, cluster: Cluster) -> None:
    """Each kind of block is really looked at."""
    with pytest.raises((Exception, SystemExit)) as caught:
        KINDS[kind](Block(Path("a.md"), 1, kind, text))
    assert not isinstance(caught.value, NameError | FileNotFoundError)
