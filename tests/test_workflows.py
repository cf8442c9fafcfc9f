"""The workflows of the forge run what is pinned, on what is supported."""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CI = (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def matrix(key: str) -> list[str]:
    """Return the versions that the tests are run on."""
    found = re.search(rf"^ {{8}}{key}: \[(.*)\]$", CI, re.MULTILINE)
    assert found
    return re.findall(r'"([\d.]+)"', found[1])


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.name)
def test_each_action_is_pinned(workflow: Path) -> None:
    """By its full commit, with the version for who reads it: a tag may be moved."""
    for used in re.findall(r"uses: (?!\./)(.+)", workflow.read_text()):
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), used


def test_the_tests_run_on_what_is_supported() -> None:
    """On each Python and Django of the classifiers, but on no Django that its Python cannot have; as by tox."""
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    told = "\n".join(classifiers)
    assert matrix("python") == re.findall(r":: Python :: (3\.\d+)$", told, re.MULTILINE)
    assert matrix("django") == re.findall(r":: Django :: (\d\.\d)$", told, re.MULTILINE)

    excluded = set(re.findall(r'- \{ python: "([\d.]+)", django: "([\d.]+)" \}', CI))
    pairs = {(p, d) for p in matrix("python") for d in matrix("django")} - excluded
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    named = set()
    for line in tox["tox"]["env_list"].split():
        pythons, _, djangos = line.removeprefix("py").partition("-django")
        for python in pythons.strip("{}").split(","):
            named |= {(python, django) for django in djangos.strip("{}").split(",") if django}
    assert {(p.replace(".", ""), d.replace(".", "")) for p, d in pairs} == named


def test_what_is_published_is_what_was_tested() -> None:
    """The release builds nothing itself: it takes what CI has built, once CI is green."""
    release = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    publish = release.split("  publish:")[1]
    assert "needs: ci" in publish
    assert "download-artifact" in publish
    assert "-m build" not in release
    assert CI.count("python -m build") == 1
