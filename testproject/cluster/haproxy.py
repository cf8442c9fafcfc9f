"""HAProxy in TCP mode: one address in front of several servers."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

from testproject.cluster.errors import ClusterError
from testproject.cluster.server import LOOPBACK, Server, wait_until
from testproject.cluster.workspace import Workspace, last_lines

BALANCES = ("roundrobin", "leastconn")
ADMIN_TIMEOUT = 5.0


class HAProxyServer(Server):
    """Listens on one port of some addresses of loopback, and leads each to its servers.

    Args:
        workspace: where its files are.
        program: the path of HAProxy.
        name: of its directory and log.
        listeners: for each address, the port of each server on loopback, by its name.
        balance: which server a connection is led to: "roundrobin" or "leastconn".
    """

    def __init__(
        self,
        workspace: Workspace,
        program: Path,
        name: str,
        *,
        listeners: Mapping[str, Mapping[str, int]],
        balance: str = "roundrobin",
    ) -> None:
        if balance not in BALANCES:
            raise ClusterError(
                f"There is no balance {balance!r} here. Use one of {', '.join(BALANCES)}."
            )
        super().__init__(workspace, name)
        self._program = program
        self._listeners = listeners
        self._balance = balance
        self._configuration = self.data_directory / "haproxy.cfg"
        self._socket = self.data_directory / "admin.sock"

    def _command(self) -> list[str]:
        self._write_configuration()
        return [str(self._program), "-db", "-f", str(self._configuration)]

    def _write_configuration(self) -> None:
        lines = [
            "global",
            f"  stats socket {self._socket} level admin",
            "defaults",
            "  mode tcp",
            "  timeout connect 1s",
            "  timeout client 1h",
            "  timeout server 1h",
            # A server that has just died is not met twice by one connection.
            "  retries 1",
            "  option redispatch 1",
        ]
        for host, servers in self._listeners.items():
            lines += [
                f"listen {host}",
                f"  bind {host}:{self.port}",
                f"  balance {self._balance}",
                *(
                    f"  server {name} {LOOPBACK}:{port} check inter 100ms fall 2 rise 1"
                    for name, port in servers.items()
                ),
            ]
        self._configuration.write_text("\n".join([*lines, ""]))

    def _is_ready(self, pid: int) -> bool:
        # The process id tells the answer from one of another process that has taken the port.
        with contextlib.suppress(OSError):
            return f"\nPid: {pid}\n" in self.ask("show info")
        return False

    def ask(self, command: str) -> str:
        """Run a command of HAProxy's "Runtime API", and return what it answers."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ADMIN_TIMEOUT)
            connection.connect(str(self._socket))
            connection.sendall(f"{command}\n".encode())
            answer = b""
            while part := connection.recv(65_536):
                answer += part
        return answer.decode()

    def states(self) -> dict[str, str]:
        """Return whether each server is "UP", "DOWN", "MAINT" or else, by its name."""
        rows = [line.split(",") for line in self.ask("show stat").splitlines()]
        head = rows[0]
        name, status = head.index("svname"), head.index("status")
        return {
            row[name]: row[status].split()[0]
            for row in rows[1:]
            if len(row) > status and row[name] not in {"FRONTEND", "BACKEND"}
        }

    def take_out(self, server: str) -> None:
        """Lead no new connection to a server; those that are open go on."""
        self._set_state(server, "maint", "MAINT")

    def put_back(self, server: str) -> None:
        """Lead new connections to a server again."""
        self._set_state(server, "ready", "UP")

    def _set_state(self, server: str, state: str, shown: str) -> None:
        for host, servers in self._listeners.items():
            if server in servers:
                self.ask(f"set server {host}/{server} state {state}")
        self.wait_for_state(server, shown)

    def wait_for_state(self, server: str, shown: str) -> None:
        """Return when HAProxy takes a server for "UP", "DOWN" or "MAINT"."""
        wait_until(
            lambda: self.states().get(server) == shown,
            timeout=ADMIN_TIMEOUT,
            failure=lambda: f"{self.name}: {server} is not {shown}. {last_lines(self.log_path)}",
        )

    def stop(self) -> None:
        """Stop HAProxy, ending all connections; do nothing if it does not run."""
        self._stop_by(signal.SIGTERM)

    def remove(self) -> None:
        """Stop HAProxy and remove its files."""
        self.stop()
        shutil.rmtree(self.data_directory)
