"""What is released: built, looked at, and installed where there is nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import django
import pytest

import django_replica_router
from testproject.cluster import Cluster

ROOT = Path(__file__).resolve().parent.parent
NAME = f"django_replica_router-{django_replica_router.__version__}"
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in ("PYTHONPATH", "DJANGO_SETTINGS_MODULE")
}

OF_A_SITE = """
import django
from django.conf import settings

apps = ["admin", "auth", "contenttypes", "messages", "sessions"]
settings.configure(
    INSTALLED_APPS=[f"django.contrib.{app}" for app in apps] + ["django_replica_router.contrib.status"],
    ROOT_URLCONF="django_replica_router.contrib.status.urls",
)
django.setup()
"""

IMPORT_EVERYTHING = """
import importlib, pkgutil, django_replica_router as package

for module in pkgutil.walk_packages(package.__path__, "django_replica_router."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(module.name, error, sep=": ")
print(package.__file__)
"""

VIEW = """
from django.contrib.auth.models import User
from django.http import JsonResponse
from django.urls import path
from django_replica_router import get_stats

def users(request):
    rows = User.objects.all()
    return JsonResponse({"users": len(rows), "read from": rows.db, **get_stats()})

urlpatterns = [path("", users)]
"""

READ = """
import time
import shop.wsgi
from django.test import Client

ends = time.monotonic() + 60
while "replica" not in (page := Client().get("/", headers={"host": "localhost"}).json())["read from"]:
    assert time.monotonic() < ends, page
    time.sleep(0.05)
print(page["users"], page["read from"])
"""


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run a program without the environment of these tests, and return what it prints."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist, and with the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Iterator[zipfile.ZipFile]:
    """The wheel."""
    with zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl") as file:
        yield file


@pytest.fixture(scope="module")
def python(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel, without extras, and this Django."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    found = folder / "bin" / "python"
    needed = [dist / f"{NAME}-py3-none-any.whl", "psycopg[binary]", f"django=={django.__version__}"]
    run(sys.executable, "-m", "pip", "--python", found, "install", "--quiet", *needed)
    return found


def metadata(wheel: zipfile.ZipFile) -> Message:
    """Return what the wheel says of itself."""
    return message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))


def test_the_registry_will_take_them(dist: Path) -> None:
    """Metadata and the rendered README have no fault, and no warning."""
    assert len(list(dist.iterdir())) == 2
    run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir())


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """Each file of the package, templates and translations too, its types and its licence; no test, no demonstration."""
    package = ROOT / "django_replica_router"
    files = {
        str(file.relative_to(ROOT))
        for file in package.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    about = {
        f"{NAME}.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")
    }
    about.add(f"{NAME}.dist-info/licenses/LICENSE")
    assert set(wheel.namelist()) == files | about
    assert "django_replica_router/py.typed" in files
    for file in files:
        if file.endswith(".po"):
            assert f"{file.removesuffix('.po')}.mo" in files, "Django reads only what is compiled"


def test_the_wheel_needs_django_and_psycopg_only(wheel: zipfile.ZipFile) -> None:
    """Whatever else is needed comes by an extra."""
    needed = [
        line for line in metadata(wheel).get_all("Requires-Dist", []) if "extra ==" not in line
    ]
    assert sorted(re.split(r"[<>=]", line)[0] for line in needed) == ["django", "psycopg"]


def test_the_sdist_holds_what_git_does(dist: Path) -> None:
    """Nothing that the tests, the lint or a reader needs is left out, and nothing that git ignores is in it."""
    if not (ROOT / ".git").exists():
        pytest.skip("not in a checkout: what an sdist should hold is not known")
    tracked = set(run("git", "ls-files").splitlines())
    new = set(run("git", "ls-files", "--others", "--exclude-standard").splitlines())
    with tarfile.open(dist / f"{NAME}.tar.gz") as file:
        names = {name.removeprefix(f"{NAME}/") for name in file.getnames()}
    assert tracked - names == set()
    assert names - tracked - new == {"PKG-INFO"}


def test_the_tests_can_be_run_from_the_sdist(dist: Path, tmp_path: Path) -> None:
    """Who has the sdist alone runs what needs no server, and the documents are there to be held against the code."""
    with tarfile.open(dist / f"{NAME}.tar.gz") as file:
        file.extractall(tmp_path, filter="data")
    files = ("tests/test_policy.py", "tests/test_docs.py")
    told = run(sys.executable, "-m", "pytest", "-q", *files, cwd=tmp_path / NAME)
    assert re.search(r"^\d+ passed in", told, re.MULTILINE), told


def test_no_extra_is_needed_to_import_it(python: Path, tmp_path: Path) -> None:
    """In an environment without extras each module can be imported, but those that connect another package."""
    *failed, home = run(
        python,
        "-W",
        "error",
        "-c",
        f"{OF_A_SITE}{IMPORT_EVERYTHING}",
        cwd=tmp_path,
    ).splitlines()
    assert Path(home).is_relative_to(python.parent.parent)
    failed.remove(
        "django_replica_router.testing.plugin: No module named 'pytest'"
    )  # which loads it
    for line in failed:
        # The others name their extra: see test_extras.py.
        found = re.match(
            r"django_replica_router\.contrib\.(\w+)(\.\w+)?: .*\[([\w-]+)\]\"'\.$", line
        )
        assert found, line
        assert found[1] == found[3].replace("-", "_")
    assert failed


def test_a_new_site_reads_from_a_replica(cluster: Cluster, python: Path, tmp_path: Path) -> None:
    """The README's settings in a new project, with the wheel and no extra: no check complains, and a replica serves."""
    run(python, "-m", "django", "startproject", "shop", tmp_path)
    settings = tmp_path / "shop" / "settings.py"
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"```python\n(DATABASES = .*?)```", readme, re.DOTALL)
    assert block
    servers = "".join(
        f"DATABASES[{alias!r}].update({database!r})\n"
        for alias, database in cluster.django_databases("app").items()
        if alias != "replica2"
    )
    # Its client comes with an extra, and its server is nowhere.
    cache = 'CACHES["default"]["BACKEND"] = "django.core.cache.backends.locmem.LocMemCache"\n'
    with settings.open("a") as file:
        file.write(block[1] + servers + cache)
    (tmp_path / "shop" / "urls.py").write_text(VIEW)

    checked = run(python, "-W", "error", "manage.py", "check", cwd=tmp_path)
    assert checked == "System check identified no issues (0 silenced)."
    environment = {"DJANGO_SETTINGS_MODULE": "shop.settings"}
    read = run(python, "-W", "error", "-c", READ, cwd=tmp_path, **environment)
    assert read == "0 replica1"
