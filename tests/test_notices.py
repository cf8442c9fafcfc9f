"""The third-party notices name what a site may have installed beside the package, and under which licence."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
FOR_WORK = {"demo", "docs", "test", "bench", "applications", "lint"}
"""Extras that no site needs."""

NOT_IN_THE_TESTS = {"hiredis"}
"""What one of the two runs of the tests does without: its licence was read by hand."""

CLASSIFIERS = {
    "BSD License": "BSD-",
    "MIT License": "MIT",
    "Apache Software License": "Apache-2.0",
    "GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
}
MIT = "Permission is hereby granted, free of charge"

ROWS = re.findall(
    r"^\| ([\w-]+) \| ([\w. -]+) \| (?:the package|`\[([\w-]+)\]`) \|$",
    (ROOT / "THIRD_PARTY_NOTICES.md").read_text(),
    re.MULTILINE,
)


def test_each_package_that_a_site_may_need_is_named() -> None:
    """In the order of pyproject.toml: what the package needs, and each extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {"": project["dependencies"], **project["optional-dependencies"]}
    named = [
        (Requirement(line).name, extra)
        for extra, lines in needed.items()
        if extra not in FOR_WORK
        for line in lines
    ]
    assert [(package, extra) for package, _, extra in ROWS] == named


@pytest.mark.parametrize(
    ("package", "licence"),
    [(package, licence) for package, licence, _ in ROWS if package not in NOT_IN_THE_TESTS],
)
def test_each_licence_is_the_one_that_its_package_tells(package: str, licence: str) -> None:
    """By its metadata, or by the text that comes with it where that names none."""
    told = metadata.metadata(package)
    expression = told.get("License-Expression")
    classifiers = [
        line.split(" :: ")[-1]
        for line in told.get_all("Classifier") or []
        if line.startswith("License ::") and not line.endswith("OSI Approved")
    ]
    if expression:
        assert licence == expression
    elif classifiers:
        assert licence.startswith(CLASSIFIERS[classifiers[0]])
    elif told.get("License"):
        assert licence == told["License"]
    else:
        files = [file for file in metadata.files(package) or [] if file.name == "LICENSE"]
        assert licence == "MIT"
        assert MIT in files[0].read_text()
