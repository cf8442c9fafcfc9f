"""A real name server, whose answers the tests choose."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM

import dns.exception
import dns.message
import dns.query
import pytest

from testproject.cluster.server import Server
from testproject.cluster.workspace import Workspace

VARIABLE = "REPLICA_ROUTER_DNSMASQ"
PATHS = ("/usr/sbin/dnsmasq", "/usr/local/sbin/dnsmasq")

NAME = "replicas.test"


def require_dnsmasq() -> str:
    """Return the path of dnsmasq; skip aloud where there is none, and in CI fail."""
    named = os.environ.get(VARIABLE)
    candidates = [named] if named else [*PATHS, shutil.which("dnsmasq") or ""]
    for path in candidates:
        if Path(path).is_file():
            return path
    message = f"there is no dnsmasq; install it (dnsmasq-base), or set {VARIABLE} to its path"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


class Dnsmasq(Server):
    """Answers for ``.test``, over UDP and TCP, and refuses to answer for any other domain."""

    def __init__(self, workspace: Workspace, program: str) -> None:
        super().__init__(workspace, "dnsmasq")
        self._program = program
        self._lines: list[str] = []
        self._file = self.data_directory / "dnsmasq.conf"

    def _command(self) -> list[str]:
        lines = [
            f"port={self.port}",
            f"listen-address={self.host}",
            "bind-interfaces",
            "keep-in-foreground",
            "log-facility=-",
            "no-resolv",
            "no-hosts",
            "local=/test/",
            "pid-file=",
            *self._lines,
        ]
        self._file.write_text("\n".join([*lines, ""]))
        return [self._program, f"--conf-file={self._file}"]

    def _is_ready(self, pid: int) -> bool:
        # Asked as its clients ask: that it accepts a connection does not tell that it answers.
        with contextlib.suppress(OSError, dns.exception.Timeout):
            dns.query.udp(dns.message.make_query(NAME, "A"), self.host, 1.0, self.port)
            return True
        return False

    def stop(self) -> None:
        """Stop the server; do nothing if it does not run."""
        self._stop_by(SIGTERM)

    def answer(self, *lines: str) -> None:
        """Answer by these lines of its configuration from now on. It is away for a moment."""
        self.stop()
        self._lines = list(lines)
        self.start()

    def lead(self, *addresses: str, name: str = NAME, ttl: int = 0) -> None:
        """Answer with these addresses when it is asked for the name."""
        # A name that is known by another record only has no address.
        self.answer(
            f"local-ttl={ttl}",
            f"txt-record={name},known",
            *(f"host-record={name},{address}" for address in addresses),
        )

    def serve(self, *targets: tuple[str, str, int], name: str = NAME) -> None:
        """Answer with SRV records: for each target its name, its address, and the port."""
        self.answer(
            *(f"host-record={target},{address}" for target, address, _ in targets if address),
            *(f"srv-host={name},{target},{port}" for target, _, port in targets),
        )


@contextmanager
def running_dnsmasq(workspace: Workspace) -> Iterator[Dnsmasq]:
    """Run a name server that knows no name."""
    server = Dnsmasq(workspace, require_dnsmasq())
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.data_directory)
