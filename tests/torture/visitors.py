"""The users: each with two devices and three tabs, which read and write at the same time."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

from tests.torture.browser import SESSION_COOKIE, Answer, Client, Jar
from tests.torture.history import GLOBAL, Kind, Op, Recorder, SessionKey

ACTIONS: dict[str, float] = {
    "read": 76.0,
    "raise_own": 9.0,
    "raise_global": 3.0,
    "raise_by_get": 2.0,
    "remember": 4.0,
    "renew_session": 1.0,
    "read_after_logout": 1.0,
    "dawdle": 0.5,
}
READ_ONLY_ACTIONS = {"read": 98.0, "renew_session": 0.3, "dawdle": 0.5}

OK = 200
OTHER_DEVICE_SHARE = 0.6
ASYNC_SHARE = 0.15
WAYS = {"orm": 0.5, "function": 0.2, "statement": 0.3}
DAWDLING_SHARE = 0.15
KEPT_SHARE = 0.2
COUNTED_SHARE = 0.2


class Gate:
    """Lets requests through, unless somebody wants that there are none for a while."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._is_open = True

    @contextmanager
    def passed(self) -> Iterator[None]:
        """Wait until the gate is open, and hold whoever wants to close it."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_open)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Close the gate, wait until nobody is inside, and open it at the end of the block."""
        with self._changed:
            self._is_open = False
            self._changed.wait_for(lambda: self._inside == 0)
        try:
            yield
        finally:
            with self._changed:
                self._is_open = True
                self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class Habits:
    """What visitors do, and how fast.

    Args:
        times: how often one request reads each register, at most.
        pause: seconds that a tab rests between two requests, on average.
        asynchronous: some writes commit asynchronously.
        dawdles: some reads take long.
        write_share: how much more often users write than by default.
    """

    times: int = 12
    pause: float = 0.02
    asynchronous: bool = True
    dawdles: bool = True
    write_share: float = 1.0


class Device:
    """A browser of a user, and what is known of its session."""

    def __init__(self, user: str, name: str) -> None:
        self.user = user
        self.name = name
        self.jar = Jar()
        # Requests that change the session come one after another: Django saves a session whole,
        # and of two at the same time one would be lost, on one server, too.
        self.lock = threading.Lock()
        self.old_sessions: list[tuple[str, str]] = []
        self._generations = itertools.count(1)
        self._values = itertools.count(1)

    @property
    def session(self) -> str:
        """Return the name of the present session, or nothing."""
        return self.jar.session

    def new_session(self) -> str:
        """Return the name of the next session."""
        return f"{self.name}#{next(self._generations)}"

    def next_value(self) -> int:
        """Return a number that the session has not held yet."""
        return next(self._values)


class User:
    """Who owns a register and several devices."""

    def __init__(self, name: str, register: int, *, is_read_only: bool) -> None:
        self.name = name
        self.register = register
        self.is_read_only = is_read_only
        self.devices = [Device(name, f"{name}.{letter}") for letter in "ab"]


class Tab:
    """One window of a device: sends one request after another.

    Args:
        user: whose.
        device: on which.
        is_first: the tab that also signs in and out.
        port: of the site.
        gate: to pass before doing anything.
        write_gate: to pass before a write, inside of the other.
        recorder: is told of every request.
        habits: what visitors do.
        random: decides.
        ended: set when the time is over.
        dawdling: set while long reads are wanted.
    """

    def __init__(
        self,
        user: User,
        device: Device,
        *,
        is_first: bool,
        port: int,
        gate: Gate,
        write_gate: Gate,
        recorder: Recorder,
        habits: Habits,
        random: Random,
        ended: threading.Event,
        dawdling: threading.Event,
    ) -> None:
        self._user = user
        self._device = device
        self._is_first = is_first
        self._gate = gate
        self._write_gate = write_gate
        self._recorder = recorder
        self._ops = recorder.new_list()
        self._habits = habits
        self._random = random
        self._ended = ended
        self._dawdling = dawdling
        self._client = Client(port, random)
        weights = READ_ONLY_ACTIONS if user.is_read_only else ACTIONS
        self._actions = [name for name in weights if habits.dawdles or name != "dawdle"]
        self._weights = [
            weights[name] * (habits.write_share if name.startswith(("raise", "rem")) else 1)
            for name in self._actions
        ]

    def run(self) -> None:
        """Do one thing after another until the time is over."""
        try:
            while not self._ended.is_set():
                with self._gate.passed():
                    self._act()
                # The load paces itself; nothing waits for this.
                self._ended.wait(self._random.expovariate(1 / self._habits.pause))
        finally:
            self._client.close()

    def _act(self) -> None:
        if self._recorder.has_lost(self._device.session):
            self._device.jar.end_session()  # as who is asked to sign in again
        if not self._device.session:
            if self._is_first:
                self._sign_in()
            return
        (name,) = self._random.choices(self._actions, self._weights)
        if self._dawdling.is_set() and self._random.random() < DAWDLING_SHARE:
            name = "dawdle"
        action: Callable[[], None] = getattr(self, f"_{name}")
        action()

    # 1. Reading ------------------------------------------------------------------------------

    def _read(self, device: Device | None = None) -> None:
        times = self._random.choice([1, self._habits.times])
        kept = ""
        if self._random.random() < KEPT_SHARE:
            kept = f"&kept={self._random.choice(['any', 'replica'])}"
        counted = int(self._random.random() < COUNTED_SHARE)
        path = f"/read?own={self._user.register}&times={times}{kept}&count={counted}"
        self._send("read", device or self._device, "GET", path)

    def _dawdle(self) -> None:
        path = f"/dawdle?own={self._user.register}&seconds=0.3"
        self._send("read", self._device, "GET", path)

    def _read_after_logout(self) -> None:
        if not self._device.old_sessions:
            return
        session, cookies = self._random.choice(self._device.old_sessions)
        path = f"/read?own={self._user.register}"
        answer = self._client.send("GET", path, cookies)
        self._record("read", self._device, session, answer, path)

    # 2. Writing ------------------------------------------------------------------------------

    def _raise_own(self, method: str = "POST") -> None:
        [way] = self._random.choices(list(WAYS), WAYS.values())
        self._raise(method, self._user.register, way)
        self._look_after_write()

    def _raise_by_get(self) -> None:
        self._raise_own("GET")

    def _raise_global(self) -> None:
        self._raise("POST", 0, "orm")
        self._look_after_write()

    def _raise(self, method: str, register: int, way: str) -> None:
        asynchronous = self._habits.asynchronous and self._random.random() < ASYNC_SHARE
        counted = int(self._random.random() < COUNTED_SHARE)
        path = f"/raise?register={register}&way={way}&async={int(asynchronous)}&count={counted}"
        with self._write_gate.passed():
            self._send("write", self._device, method, path)

    def _look_after_write(self) -> None:
        """Read at once what was written, mostly on the other device."""
        if self._random.random() < OTHER_DEVICE_SHARE:
            others = [other for other in self._user.devices if other is not self._device]
            device = self._random.choice(others)
            if device.session:
                self._read(device)
        else:
            self._read()

    def _remember(self) -> None:
        device = self._device
        with device.lock, self._write_gate.passed():
            if not device.session:
                return
            value = device.next_value()
            answer = self._send("write", device, "POST", f"/remember?value={value}", value=value)
            if answer.status != OK:
                # It may take effect late, and undo a later one: no more of this session.
                device.jar.end_session()
                return
        self._read()

    # 3. Signing in and out ---------------------------------------------------------------------

    def _sign_in(self) -> None:
        device = self._device
        with device.lock, self._write_gate.passed():
            if device.session:
                return
            session = device.new_session()
            path = f"/login?user={self._user.name}"
            _, cookies = device.jar.open()
            answer = self._client.send("POST", path, cookies)
            if answer.status == OK:
                self._note_key(session, answer)
                device.jar.begin_session(answer, session)
            self._record("login", device, session, answer, path)
        if answer.status == OK:
            self._read()

    def _note_key(self, session: str, answer: Answer) -> None:
        for cookie in answer.cookies:
            if cookie.name == SESSION_COOKIE:
                self._recorder.sessions[session] = SessionKey(cookie.value, answer.start)

    def _renew_session(self) -> None:
        """Sign out, see that this has ended the session, and sign in again."""
        device = self._device
        if not self._is_first:
            return
        with device.lock, self._write_gate.passed():
            session, cookies = device.jar.open()
            if not session:
                return
            answer = self._client.send("POST", "/logout", cookies)
            device.jar.take(answer)
            device.jar.end_session()
            self._record("logout", device, session, answer, "/logout")
            if answer.status == OK:
                device.old_sessions = [*device.old_sessions[-3:], (session, cookies)]
        self._read_after_logout()
        self._sign_in()

    # 4. Sending ------------------------------------------------------------------------------

    def _send(
        self, kind: Kind, device: Device, method: str, path: str, *, value: int | None = None
    ) -> Answer:
        session, cookies = device.jar.open()
        answer = self._client.send(method, path, cookies)
        device.jar.take(answer)
        self._record(kind, device, session, answer, path, safe=method == "GET", value=value)
        return answer

    def _record(
        self,
        kind: Kind,
        device: Device,
        session: str,
        answer: Answer,
        path: str,
        *,
        safe: bool = True,
        value: int | None = None,
    ) -> None:
        reads, written = self._registers(session, answer, path)
        if value is not None:
            written = (f"session {session}", value)
        op = Op(
            kind,
            self._user.name,
            session,
            answer.start,
            answer.end,
            answer.status,
            tuple(reads),
            signed_in=answer.values.get("user"),
            aliases=answer.aliases,
            reasons=answer.reasons,
            worker=answer.worker,
            safe=safe and kind not in {"login", "logout"},
            slow_reads=answer.slow_reads,
            detail=path if not answer.problem else f"{path} {answer.problem}",
        )
        if op.is_answered:
            op = op._replace(written=written)
        self._ops.append(op)
        before = answer.values.get("before")
        if before is not None:
            # What a request read before it wrote is a read like any other, and not after its write.
            self._ops.append(
                op._replace(
                    kind="read",
                    written=None,
                    reads=((f"own {op.user}", before),),
                    slow_reads=(),
                )
            )

    def _registers(
        self, session: str, answer: Answer, path: str
    ) -> tuple[list[tuple[str, int]], tuple[str, int] | None]:
        own = f"own {self._user.name}"
        reads: list[tuple[str, int]] = []
        written = None
        values = answer.values
        # Nobody's session holds nothing; whether that is right, another rule says.
        if session and values.get("user"):
            value = values.get("session")
            reads.append((f"session {session}", 0 if value is None else value))
        for mine, everybodys in values.get("values", ()):
            reads += [(own, mine), (GLOBAL, everybodys)]
        if "written" in values:
            register = GLOBAL if "register=0&" in path else own
            written = (register, values["written"])
            reads.append((register, values["after"]))
        return reads, written
