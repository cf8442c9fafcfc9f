"""The tutorial, done as it is written: its commands, its files, and what its reader then sees."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from testproject.cluster.programs import running_program
from testproject.cluster.server import free_port, wait_until
from tests.documents import DOCS, ROOT, blocks, commands

PAGE = DOCS / "tutorial.md"
LANGUAGES = ["es", "pt"]

# The reader makes an environment; the tests run in one that has the same.
NOT_RUN = ("python3 -m venv", ". .venv/bin/activate", "pip install")
TIMEOUT = 60.0
LATER = "From replica: NO_TOKEN, nothing has to be waited for."  # where the migration is long past


class Reader:
    """Somebody who does what the tutorial says, in a folder of their own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.root = self.folder = folder
        self.stack = stack
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        del self.environment["DJANGO_SETTINGS_MODULE"]

    def follow(self) -> None:
        """Do all of it, from the first block to the last."""
        for block in blocks(PAGE):
            if block.note.startswith("not run: "):
                continue
            if block.language == "console":
                for command, output in commands(block.text):
                    self.run(command, output)
            else:
                self.write(block.file, block.text)

    def write(self, name: str, text: str) -> None:
        """Put lines at the end of a file, which may be a new one."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text((file.read_text() if file.exists() else "") + text)

    def run(self, command: str, output: list[str]) -> None:
        """Run a command as in a terminal, and see that it prints what the tutorial shows."""
        if command.startswith(NOT_RUN):
            return
        if command.startswith("cd "):
            self.folder = self.folder / command.removeprefix("cd ")
            return
        arguments = shlex.split(command)
        if arguments[0] == "django-admin":
            arguments[:1] = ["python", "-m", "django"]
        arguments[0] = sys.executable
        if "cluster" in arguments:
            self.start(arguments, output)
        elif "runserver" in arguments:
            self.start([*arguments, str(self.port), "--noreload"], [])
        else:
            done = subprocess.run(
                arguments,
                cwd=self.folder,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines()[-len(output) :] == output or not output, done.stdout

    def start(self, arguments: list[str], output: list[str]) -> None:
        """Start what the tutorial leaves running, and return when it has printed what is shown."""
        process = self.stack.enter_context(
            running_program(
                arguments,
                timeout=TIMEOUT,
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE if output else subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        for line in output:
            assert process.stdout is not None
            assert process.stdout.readline().rstrip("\n") == line


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Somebody who has come to the end of the commands, with the site running."""
    with ExitStack() as stack:
        reader = Reader(tmp_path_factory.mktemp("tutorial"), stack)
        reader.follow()
        yield reader


def promised() -> list[str]:
    """Return what the page tells of its server each time, whichever replica that is."""
    text = PAGE.read_text()
    return [_any_replica(told) for told in re.findall(r"^> (From .*)$", text, re.MULTILINE)]


def _any_replica(told: str) -> str:
    return re.sub(r"replica\d", "replica", told)


def shown(client: httpx.Client) -> tuple[str, list[str]]:
    """Return what the page tells of its server, and its entries."""
    text = client.get("/").raise_for_status().text
    (told,) = re.findall(r"<p>(.*)</p>", text)
    return _any_replica(told), re.findall(r"<li>(.*?)</li>", text)


def sign(client: httpx.Client, text: str) -> None:
    """Send the form, and let the browser follow later."""
    page = client.get("/").text
    (token,) = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
    answer = client.post("/", data={"text": text, "csrfmiddlewaretoken": token})
    assert answer.status_code == 302


def test_the_tutorial_ends_with_what_it_shows(reader: Reader) -> None:
    """A replica serves; then the primary serves who has written, and a replica others; then a replica all."""
    at_first, after_writing, in_the_end = promised()
    with httpx.Client(base_url=reader.url) as ann, httpx.Client(base_url=reader.url) as bob:

        def is_served() -> bool:
            try:
                return shown(ann)[0] in (at_first, LATER)
            except httpx.TransportError:
                return False  # it is still starting

        wait_until(is_served, timeout=TIMEOUT, failure=lambda: f"At first: {shown(ann)}.")
        sign(ann, "Ann was here")
        assert shown(ann) == (after_writing, ["Ann was here"])
        told, entries = shown(bob)
        assert told in (at_first, LATER)
        assert not entries
        wait_until(
            lambda: shown(ann)[0] == in_the_end,
            timeout=TIMEOUT,
            failure=lambda: f"Ann is told: {shown(ann)}.",
        )
        assert shown(ann)[1] == ["Ann was here"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_tutorial_has_the_same_code_in_each_language(language: str) -> None:
    """But for the comments of its code, which nobody runs."""
    translated = blocks(DOCS / language / "tutorial.md")
    original = blocks(PAGE)
    assert [(block.language, block.text) for block in translated] == [
        (block.language, block.text) for block in original
    ]
    assert re.findall(r"^> (From .*)$", (DOCS / language / "tutorial.md").read_text(), re.M) == (
        re.findall(r"^> (From .*)$", PAGE.read_text(), re.M)
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_first_page_has_the_same_code_in_each_language(language: str) -> None:
    """That of the README's first screen."""
    screen = ROOT / "README.md"
    end = screen.read_text().split("## See it work")[0].count("\n")
    original = [block for block in blocks(screen) if block.line <= end]
    assert original
    assert [
        block.text
        for block in blocks(DOCS / language / "index.md")
        if block.language != "{toctree}"
    ] == [block.text for block in original]
