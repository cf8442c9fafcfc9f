"""A TCP proxy that can refuse, swallow and reset, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import ExitStack

from testproject.cluster.programs import LineProgram
from testproject.cluster.server import LOOPBACK, free_port

MODES = ("pass", "refuse", "blackhole", "reset")
"""Relay; take no connection and end those there are; take all and answer nothing; reset all."""

CHUNK = 65_536
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Pair:
    """A client's connection and the one to the server for it."""

    def __init__(self, route: Route, client: socket.socket, server: socket.socket) -> None:
        self.route = route
        self.sockets = (client, server)

    def other(self, side: socket.socket) -> socket.socket:
        """Return the other end."""
        client, server = self.sockets
        return server if side is client else client


class Route:
    """One listening port, and the port that it leads to."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.target = target
        self.mode = "pass"
        self.pairs: set[Pair] = set()
        self.listener = socket.socket()


class Proxy:
    """The loop of the proxy process: one thread, for as many connections as there are."""

    def __init__(self, routes: Mapping[str, tuple[int, int]]) -> None:
        self._selector = selectors.DefaultSelector()
        self._routes = {name: Route(port, target) for name, (port, target) in routes.items()}
        for route in self._routes.values():
            self._open(route)

    def _open(self, route: Route) -> None:
        route.listener.close()
        route.listener = socket.socket()
        route.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        route.listener.bind((LOOPBACK, route.port))
        if route.mode == "refuse":
            return  # bound but not listening: refused, and nobody else takes the port
        route.listener.listen(128)
        if route.mode != "blackhole":
            # Else the kernel takes the connection, and nobody ever answers.
            route.listener.setblocking(False)
            self._selector.register(route.listener, selectors.EVENT_READ, route)

    def command(self, name: str, mode: str, target: int | None) -> None:
        """Change the mode or the target of a route."""
        route = self._routes[name]
        if target is not None:
            route.target = target
            self._reset(route)
        if mode != route.mode:
            self._change(route, mode)

    def _change(self, route: Route, mode: str) -> None:
        was_silent = route.mode == "blackhole"
        if not was_silent and route.mode != "refuse":
            self._selector.unregister(route.listener)
        if mode in {"refuse", "reset"}:
            self._reset(route)
        for pair in route.pairs:
            for side in pair.sockets:
                if mode == "blackhole":
                    self._selector.unregister(side)
                elif was_silent:
                    self._selector.register(side, selectors.EVENT_READ, pair)
        route.mode = mode
        if was_silent and mode == "pass":
            # Not opened anew: who waits in the queue gets through, as when a network is mended.
            route.listener.setblocking(False)
            self._selector.register(route.listener, selectors.EVENT_READ, route)
        else:
            self._open(route)

    def _reset(self, route: Route) -> None:
        for pair in list(route.pairs):
            self._drop(pair, abruptly=True)

    def _drop(self, pair: Pair, *, abruptly: bool) -> None:
        pair.route.pairs.discard(pair)
        for side in pair.sockets:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(side)
            if abruptly:
                with contextlib.suppress(OSError):
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            side.close()

    def _accept(self, route: Route) -> None:
        try:
            client, _ = route.listener.accept()
        except OSError:
            return
        if route.mode == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            client.close()
            return
        try:
            # Loopback: it is taken or refused at once, unless the server's queue is full.
            server = socket.create_connection((LOOPBACK, route.target), timeout=0.2)
        except OSError:
            client.close()
            return
        pair = Pair(route, client, server)
        route.pairs.add(pair)
        for side in pair.sockets:
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Blocking, for sendall; the selector says when there is something to receive. Messages
            # are small, so that a send waits only where the other end has stopped reading.
            side.settimeout(1.0)
            self._selector.register(side, selectors.EVENT_READ, pair)

    def _relay(self, pair: Pair, side: socket.socket) -> None:
        if pair not in pair.route.pairs:
            return  # dropped by an event before this one
        try:
            data = side.recv(CHUNK)
            if data:
                pair.other(side).sendall(data)
                return
        except OSError:
            pass
        self._drop(pair, abruptly=False)

    def run(self) -> None:
        """Relay until standard input ends; a line there is a command, and is answered by a line."""
        self._selector.register(sys.stdin.buffer, selectors.EVENT_READ, None)
        while True:
            for key, _ in self._selector.select():
                if isinstance(key.data, Pair):
                    if isinstance(key.fileobj, socket.socket):
                        self._relay(key.data, key.fileobj)
                elif isinstance(key.data, Route):
                    self._accept(key.data)
                else:
                    # Unanswered commands never pile up, so that a line is all there is to read.
                    line = sys.stdin.buffer.readline()
                    if not line:
                        return
                    self.command(*json.loads(line))
                    _answer()


class ProxyProcess(LineProgram):
    """The proxy process, as the test sees it.

    A process of its own, so that relaying takes no turn of the interpreter from those who measure.

    Args:
        targets: the port that each name leads to.
    """

    def __init__(self, targets: Mapping[str, int]) -> None:
        self.ports = {name: free_port() for name in targets}
        routes = {name: (self.ports[name], port) for name, port in targets.items()}
        super().__init__([sys.executable, "-m", "tests.torture.proxy", json.dumps(routes)])

    def _open(self, stack: ExitStack) -> None:
        super()._open(stack)
        self.receive()

    def set_mode(self, name: str, mode: str) -> None:
        """Change the mode of a route, and return when it is in force."""
        self.ask([name, mode, None])

    def set_target(self, name: str, port: int) -> None:
        """Let a route lead elsewhere, end its connections and put it to pass."""
        self.ask([name, "pass", port])


def main() -> None:
    """Run the proxy process."""
    proxy = Proxy(json.loads(sys.argv[1]))
    _answer()
    proxy.run()


def _answer() -> None:
    sys.stdout.write("null\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
