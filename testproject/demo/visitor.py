"""A visitor: acts on their own notes from two devices, and knows what they must see."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from threading import Event

from testproject.demo.browser import LOGIN, Answer, Browser, NoAnswerError
from testproject.demo.site import PASSWORD, Account
from testproject.demo.tally import Tally, total

# Beyond the lag before a user counts as one who has written nothing: a replica applies a commit
# some milliseconds after its delay is over, and readings of it are some more milliseconds old.
QUIET_TOLERANCE = 0.2
# People click through a few pages, and then read one of them.
THINK_SECONDS = (0.02, 0.08)
READING_SHARE = 0.15
READING_SECONDS = (1.3, 2.2)
NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class Persona:
    """How a visitor behaves.

    Args:
        returning: is signed in since another day, as most visitors of a site are.
        write_share: the part of the actions that write.
        pause_share: the part of the writes that are followed by a pause longer than the lag.
    """

    returning: bool
    write_share: float
    pause_share: float


BUSY = Persona(returning=False, write_share=0.1, pause_share=0.0)
PAUSING = Persona(returning=False, write_share=0.1, pause_share=0.6)
RETURNING = Persona(returning=True, write_share=0.02, pause_share=0.0)
PERSONAS = [BUSY, PAUSING, RETURNING]


class Device:
    """One of the visitor's browsers, and what only its session knows."""

    def __init__(self, url: str) -> None:
        self.tally = Tally()
        self.browser = Browser(url, self.tally)
        self.remembered = -1
        self.seen: dict[int, int] = {}


class Visitor:
    """One user on two devices.

    Args:
        account: who it is; nobody else writes to that account's notes.
        others: the notes of other visitors, to read now and then.
        lag: the replicas' lag in seconds, which the visitor only uses to pause.
        ended: set when the time is over.
    """

    def __init__(
        self,
        url: str,
        account: Account,
        *,
        others: list[int],
        persona: Persona,
        lag: float,
        seed: str,
        ended: Event,
    ) -> None:
        self._account = account
        self._others = others
        self._persona = persona
        self._lag = lag
        self._random = random.Random(seed)
        self._ended = ended
        self._devices = [Device(url), Device(url)]
        self._acknowledged = dict.fromkeys(account.notes, 1)
        self._wrote_at: float | None = None
        self._numbers = count(1)

    # 1. The day of a visitor -------------------------------------------------------------------

    def live(self) -> Tally:
        """Sign in, then read and write until the time is over."""
        try:
            self._arrive()
            while not self._ended.is_set():
                self._act()
                reads = self._random.random() < READING_SHARE
                pause = READING_SECONDS if reads else THINK_SECONDS
                self._ended.wait(self._random.uniform(*pause))
        finally:
            for device in self._devices:
                device.browser.close()
        return total(device.tally for device in self._devices)

    def _arrive(self) -> None:
        if self._persona.returning:
            for device, session in zip(self._devices, self._account.sessions, strict=True):
                device.browser.resume_session(session)
            return
        for device in self._devices:
            self._guarded(self._sign_in, device)
        # Whoever signs in has come to do something.
        self._guarded(self._write, self._devices[0])

    def _act(self) -> None:
        writes = self._random.random() < self._persona.write_share
        first, second = self._devices
        device = second if self._random.random() < 0.2 else first
        self._guarded(self._write if writes else self._read, device)

    def _guarded(self, action: Callable[[Device], None], device: Device) -> None:
        """Do something; a failure is counted, not raised, as a person would go on too."""
        try:
            action(device)
        except NoAnswerError as error:
            device.tally.errors += 1
            device.tally.note_example(f"Error: {error}")

    # 2. Signing in -----------------------------------------------------------------------------

    def _sign_in(self, device: Device) -> None:
        """Sign in and follow the redirect; where that shows the sign-in page again, wait and see."""
        answer = self._send_sign_in(device, follow=True)
        if answer.signed_in_as != self._account.name:
            self._count_logout(device, answer)
            self._sign_in_patiently(device)

    def _sign_in_patiently(self, device: Device) -> None:
        """Sign in and ask for no page before the lag is over: the best a visitor could do."""
        self._send_sign_in(device, follow=False)
        self._ended.wait(self._lag + QUIET_TOLERANCE)

    def _send_sign_in(self, device: Device, *, follow: bool) -> Answer:
        device.remembered = -1
        try:
            return device.browser.post(
                LOGIN, {"username": self._account.name, "password": PASSWORD}, follow=follow
            )
        finally:
            self._wrote_at = time.monotonic()

    def _count_logout(self, device: Device, answer: Answer) -> None:
        device.tally.logouts += 1
        device.tally.note_example(f"Logged out: {self._account.name} asked for {answer.asked}.")

    # 3. Reading --------------------------------------------------------------------------------

    def _read(self, device: Device) -> None:
        (page,) = self._random.choices(
            [
                self._read_home,
                self._read_note,
                self._read_other,
                self._read_overview,
                self._read_me,
            ],
            weights=[25, 35, 15, 15, 10],
        )
        page(device)

    def _read_home(self, device: Device) -> None:
        self._check_list(device, self._get(device, "/"))

    def _read_note(self, device: Device, note: int | None = None) -> None:
        if note is None:
            (note,) = self._choose_notes(1)
        path = self._random.choice([f"/notes/{note}/", f"/api/notes/{note}/"])
        self._check_notes(device, self._get(device, path), [note])

    def _read_other(self, device: Device) -> None:
        note = self._random.choice(self._others)
        self._check_notes(device, self._get(device, f"/api/notes/{note}/"), [note])

    def _read_overview(self, device: Device) -> None:
        self._check_signed_in(device, self._get(device, "/overview/"))

    def _read_me(self, device: Device) -> None:
        self._check_remembered(device, self._get(device, "/api/me/"))

    def _get(self, device: Device, path: str) -> Answer:
        return device.browser.get(path, quiet=self._is_quiet())

    def _is_quiet(self) -> bool:
        """Return whether the user has written nothing for longer than the lag."""
        if self._wrote_at is None:
            return True
        return time.monotonic() - self._wrote_at > self._lag + QUIET_TOLERANCE

    # 4. Writing --------------------------------------------------------------------------------

    def _write(self, device: Device) -> None:
        (write,) = self._random.choices(
            [self._edit, self._edit_two_at_once, self._touch, self._create, self._remember],
            weights=[40, 10, 15, 15, 20],
        )
        write(device)
        if self._random.random() < self._persona.pause_share:
            self._ended.wait(self._lag + QUIET_TOLERANCE + self._random.uniform(0, 0.3))

    def _edit(self, device: Device) -> None:
        (note,) = self._choose_notes(1)
        self._edit_note(device, note)
        self._look_from_either_device(note)

    def _edit_two_at_once(self, device: Device) -> None:
        """Change a note from each device at the same time; each must then see both changes."""
        first, second = self._devices
        notes = self._choose_notes(2)
        with ThreadPoolExecutor(1) as helper:
            other = helper.submit(self._guarded, partial(self._edit_note, note=notes[1]), second)
            self._edit_note(first, notes[0])
            other.result()
        self._read_note(first, notes[1])
        self._read_note(second, notes[0])

    def _edit_note(self, device: Device, note: int) -> None:
        title = f"Note {note}, change {next(self._numbers)}"
        self._change(device, note, f"/notes/{note}/edit/", {"title": title})

    def _touch(self, device: Device) -> None:
        (note,) = self._choose_notes(1)
        self._change(device, note, f"/notes/{note}/touch/", {})
        self._look_from_either_device(note)

    def _choose_notes(self, number: int) -> list[int]:
        return self._random.sample(list(self._acknowledged), number)

    def _change(self, device: Device, note: int, path: str, form: dict[str, object]) -> None:
        """Send a change of one note, then read it where the redirect leads."""
        answer = self._post(device, path, form)
        if answer.accepted:
            self._acknowledged[note] += 1
        self._check_notes(device, answer, [note])

    def _create(self, device: Device) -> None:
        answer = self._post(device, "/notes/new/", {"title": f"New note {next(self._numbers)}"})
        created = answer.note_redirected_to
        if created is None:
            self._check_signed_in(device, answer)
            return
        self._acknowledged[created] = 1
        self._check_notes(device, answer, [created])
        self._look_from_either_device(created)

    def _remember(self, device: Device) -> None:
        number = next(self._numbers)
        answer = self._post(device, "/session/", {"value": number})
        if answer.accepted:
            device.remembered = number
        self._check_remembered(device, answer)

    def _post(self, device: Device, path: str, form: dict[str, object]) -> Answer:
        try:
            return device.browser.post(path, form)
        finally:
            self._wrote_at = time.monotonic()

    def _look_from_either_device(self, note: int) -> None:
        if self._random.random() < 0.4:
            self._read_note(self._random.choice(self._devices), note)

    # 5. Checking -------------------------------------------------------------------------------

    def _check_signed_in(self, device: Device, answer: Answer) -> bool:
        """Count a log-out, and sign in again."""
        if answer.signed_in_as == self._account.name or answer.status == NOT_FOUND:
            return True
        if answer.signed_in_as is not None:
            raise NoAnswerError(f"{answer.asked}: answered to {answer.signed_in_as!r}.")
        self._count_logout(device, answer)
        self._sign_in(device)
        return False

    def _check_list(self, device: Device, answer: Answer) -> None:
        """Every own note must be in the list."""
        self._check_notes(device, answer, list(self._acknowledged))

    def _check_notes(self, device: Device, answer: Answer, expected: list[int]) -> None:
        """Each note must be there, no older than acknowledged, and no older than seen before."""
        if not self._check_signed_in(device, answer):
            return
        versions = answer.versions()
        for note in expected:
            version = versions.get(note, 0)
            if version < self._acknowledged.get(note, 1):
                self._count_stale(
                    device, "own", answer, note, version, self._acknowledged.get(note, 1)
                )
            elif version < device.seen.get(note, 0):
                self._count_stale(device, "seen", answer, note, version, device.seen[note])
            device.seen[note] = max(version, device.seen.get(note, 0))

    def _check_remembered(self, device: Device, answer: Answer) -> None:
        if not self._check_signed_in(device, answer):
            return
        if answer.remembered() < device.remembered:
            device.tally.stale["own"] += 1
            device.tally.note_example(
                f"Stale: the session of {self._account.name} remembers {answer.remembered()}, "
                f"not {device.remembered}."
            )

    def _count_stale(
        self, device: Device, kind: str, answer: Answer, note: int, shown: int, known: int
    ) -> None:
        device.tally.stale[kind] += 1
        device.tally.note_example(
            f"Stale: {answer.asked} showed version {shown} of note {note} to "
            f"{self._account.name}, who knew of version {known}."
        )
