"""The check on Django's own tests: what it counts, what it compares, when it fails."""

from __future__ import annotations

import json
import subprocess
import unittest
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import django
import pytest
from django.test.runner import ParallelTestSuite

from testproject.cluster import Cluster
from tests.django_suite import __main__ as command
from tests.django_suite import expected, modes, outcomes, server, source
from tests.django_suite.outcomes import Outcome, Run, compare
from tests.django_suite.recording import RecordingRemoteRunner, RecordingResult
from tests.django_suite.running import RunError, Suite, write_settings
from tests.django_suite.server import Server

PRIMARY = Server(host="127.0.0.1", port=5001, user="tester")
STANDBY = Server(host="127.0.0.1", port=5002, user="tester")


def run_of(reads: Mapping[str, int] | None = None, **kinds: str) -> Run:
    """Return a run of tests with these names and outcomes."""
    found = {name: Outcome(kind, is_test=True) for name, kind in kinds.items()}
    return Run(found, reads or {})


# Outcomes


def test_a_failure_that_the_baseline_has_too_is_not_new() -> None:
    """Only what fails with the package and not without it counts."""
    baseline = run_of(a=outcomes.PASSED, b=outcomes.FAILED)
    comparison = compare(baseline, run_of(a=outcomes.ERROR, b=outcomes.ERROR))
    assert comparison.new_failures == ("a",)
    assert not comparison.is_clean


def test_a_test_that_is_skipped_because_of_the_package_is_missing() -> None:
    """To skip a test is to break it, and to run one that was skipped is a difference."""
    baseline = run_of(a=outcomes.PASSED, b=outcomes.SKIPPED)
    comparison = compare(baseline, run_of(a=outcomes.SKIPPED, b=outcomes.PASSED))
    assert comparison.missing == ("a",)
    assert comparison.extra == ("b",)
    assert not comparison.is_clean


def test_an_expected_failure_is_named_and_does_not_count() -> None:
    """What cannot pass anywhere is listed apart, and only where it did fail."""
    baseline = run_of(a=outcomes.PASSED, b=outcomes.PASSED)
    run = run_of(a=outcomes.FAILED, b=outcomes.PASSED)
    comparison = compare(baseline, run, expected=["a", "b"])
    assert comparison.expected == ("a",)
    assert comparison.is_clean


def test_the_subtests_of_an_expected_failure_are_expected() -> None:
    """And neither those of another test, nor the set-up of a class."""
    bad = ["m.C.a", "m.C.a (x=1)", "m.C.b (x=1)", "setUpClass (m.C)"]
    run = Run({test_id: Outcome(outcomes.FAILED, is_test=True) for test_id in bad})
    comparison = compare(run_of(), run, expected=["m.C.a", "setUpClass"])
    assert comparison.expected == ("m.C.a", "m.C.a (x=1)")
    assert comparison.new_failures == ("m.C.b (x=1)", "setUpClass (m.C)")


def test_equal_runs_are_clean() -> None:
    """Nothing new, nothing missing, nothing extra."""
    run = run_of(a=outcomes.PASSED, b=outcomes.SKIPPED, c=outcomes.EXPECTED_FAILURE)
    assert compare(run, run).is_clean


def test_reads_are_counted_by_alias() -> None:
    """The reasons of one alias add up."""
    run = run_of({"replica WAITED": 2, "replica CAUGHT_UP": 3, "default WROTE": 5})
    assert run.reads_from("replica") == 5
    assert run.reads_from("other") == 0


def test_addresses_do_not_make_two_ids_of_one_subtest() -> None:
    """A parameter's address differs from process to process."""
    first = outcomes.normalise("t (x=<object object at 0x7f12ab34cd00>)")
    assert first == outcomes.normalise("t (x=<object object at 0x7f12ab34ffff>)")


def test_a_run_survives_being_written_and_read(tmp_path: Path) -> None:
    """The parent process sees what the suite's process has recorded."""
    run = run_of({"replica WAITED": 2}, a=outcomes.FAILED, b=outcomes.PASSED)
    outcomes.dump(tmp_path / "run.json", run)
    assert outcomes.load(tmp_path / "run.json", run.seconds) == run


# Recording


class Sample(unittest.TestCase):
    """One test of each kind. Run by the tests below and not by pytest."""

    __test__ = False

    def runTest(self) -> None:
        """Satisfy the loader."""

    def passes(self) -> None:
        """Pass."""

    def fails(self) -> None:
        """Fail."""
        self.fail("no")

    def errs(self) -> None:
        """Raise what cannot be pickled."""

        class LocalError(Exception):
            pass

        raise LocalError

    def skips(self) -> None:
        """Skip."""
        self.skipTest("why not")

    @unittest.expectedFailure
    def fails_as_expected(self) -> None:
        """Fail, which is expected."""
        self.fail("no")

    @unittest.expectedFailure
    def passes_unexpectedly(self) -> None:
        """Pass, which is not expected."""

    def has_subtests(self) -> None:
        """Fail in the second of two subtests, whose parameter cannot be pickled."""
        for number, function in enumerate([len, lambda: None]):
            with self.subTest(number=number, function=function):
                assert function is len


class Unset(unittest.TestCase):
    """A class whose set-up fails."""

    __test__ = False

    @classmethod
    def setUpClass(cls) -> None:
        """Fail."""
        raise RuntimeError("no set-up")

    def never_runs(self) -> None:
        """Pass, if it came to that."""


KINDS = {
    "passes": outcomes.PASSED,
    "fails": outcomes.FAILED,
    "errs": outcomes.ERROR,
    "skips": outcomes.SKIPPED,
    "fails_as_expected": outcomes.EXPECTED_FAILURE,
    "passes_unexpectedly": outcomes.UNEXPECTED_SUCCESS,
    "has_subtests": outcomes.FAILED,
}


def sample() -> unittest.TestSuite:
    """Return a suite with one test of each kind."""
    return unittest.TestSuite(map(Sample, KINDS))


def new_result() -> RecordingResult:
    """Return a result that prints nowhere."""

    class Nowhere:
        def __getattr__(self, name: str) -> Any:
            return lambda *args: None

    return RecordingResult(Nowhere(), False, 0)


def run_here(suite: unittest.TestSuite) -> RecordingResult:
    """Run the suite in this process."""
    result = new_result()
    suite.run(result)
    return result


def run_remotely(suite: unittest.TestSuite) -> RecordingResult:
    """Run the suite as a worker does, and handle its events as the parent does."""
    result = new_result()
    tests: list[Any] = list(suite)
    # As a worker is sent a suite: the parent's own tests never run.
    remote = RecordingRemoteRunner().run(unittest.TestSuite(tests))
    parallel = ParallelTestSuite([suite], 2)
    for event in remote.events:
        parallel.handle_event(result, tests, event)
    return result


@pytest.mark.parametrize("run", [run_here, run_remotely])
def test_every_kind_of_outcome_is_recorded(run: Any) -> None:
    """In this process and through the events of another, exceptions that cannot travel too."""
    found = run(sample()).outcomes
    prefix = f"{__name__}.Sample."
    kinds = {
        test_id.removeprefix(prefix): outcome.kind
        for test_id, outcome in found.items()
        if outcome.is_test
    }
    assert kinds == KINDS
    (subtest,) = (outcome for outcome in found.values() if not outcome.is_test)
    assert subtest.kind == outcomes.FAILED
    assert "LocalError" in found[f"{prefix}errs"].detail


@pytest.mark.parametrize("run", [run_here, run_remotely])
def test_a_failed_class_set_up_is_a_failure_with_an_id(run: Any) -> None:
    """None of its tests has run, so the set-up itself must be seen."""
    found = Run(run(unittest.TestSuite([Unset("never_runs")])).outcomes)
    assert found.bad == {f"setUpClass ({__name__}.Unset)"}
    assert not found.tests


# Settings and sources


def settings_of(tmp_path: Path, mode: modes.Mode, server: Server) -> dict[str, Any]:
    """Return what the generated settings module defines."""
    path = tmp_path / "generated.py"
    write_settings(path, server, mode)
    namespace: dict[str, Any] = {}
    exec(path.read_text(), namespace)  # noqa: S102 - it is ours
    return namespace


def test_the_baseline_has_the_same_databases_and_no_router(tmp_path: Path) -> None:
    """What the package is compared with differs in nothing but the package."""
    baseline = settings_of(tmp_path, modes.BASELINE, PRIMARY)
    installed = settings_of(tmp_path, modes.INSTALLED, PRIMARY)
    assert baseline["DATABASE_ROUTERS"] == []
    assert installed["DATABASE_ROUTERS"] == ["django_replica_router.ReplicaRouter"]
    assert baseline["DATABASES"] == installed["DATABASES"]
    assert installed["DATABASES"]["replica"]["TEST"] == {"MIRROR": "default"}
    assert installed["DATABASES"]["replica"]["PORT"] == "5001"


def test_the_replica_is_the_standby_only_where_the_mode_asks_for_it(tmp_path: Path) -> None:
    """A server with a standby serves the other modes as well."""
    both = Server(host=PRIMARY.host, port=PRIMARY.port, user=PRIMARY.user, standby=STANDBY)
    replicated = settings_of(tmp_path, modes.REPLICATED, both)["DATABASES"]
    assert replicated["replica"]["PORT"] == "5002"
    assert replicated["default"]["PORT"] == "5001"
    scoped = settings_of(tmp_path, modes.SCOPED, both)["DATABASES"]
    assert scoped["replica"]["PORT"] == "5001"


def test_each_kind_of_server_and_data_has_one_control() -> None:
    """A control that fails on a mirror proves nothing about a standby."""
    chosen = [modes.INSTALLED, modes.SCOPED, modes.REPLICATED]
    controls = command._controls(chosen)
    assert [(mode.is_committed, mode.is_replicated) for mode in controls] == [
        (False, False),
        (True, True),
    ]
    assert not any(mode.apps or mode.is_scoped for mode in controls)


def test_a_source_that_is_there_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One download serves all later runs, and a file put there by hand any run."""
    monkeypatch.setattr(subprocess, "run", None)
    kept = tmp_path / "django-5.2.tar.gz"
    kept.touch()
    assert source.fetch("5.2", tmp_path) == kept


def test_a_source_that_cannot_be_had_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has pip's words and the way around."""
    done = subprocess.CompletedProcess([], 1, "", "no network")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: done)
    with pytest.raises(source.SourceError, match=r"no network\nPut django-5\.2\.tar\.gz into "):
        source.fetch("5.2", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_standby_of_somebody_elses_server_is_refused() -> None:
    """A server named by its DSN has none that could be used."""
    with (
        pytest.raises(server.ServerError, match="needs a standby"),
        server.running("host=localhost", needs_standby=True),
    ):
        pass


def test_the_server_of_a_dsn_is_used() -> None:
    """Its parts are what the settings need."""
    with server.running("host=::1 port=5433 user=me", needs_standby=False) as given:
        assert given == Server(host="::1", port=5433, user="me")


def test_a_server_on_which_not_all_apps_can_run_is_refused(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was built without the collation which some tables name."""
    primary = cluster.primary
    given = Server(host=primary.host, port=primary.port, user=primary.user)
    monkeypatch.setattr(server, "COLLATION", "C")
    server.require_collation(given)
    monkeypatch.setattr(server, "COLLATION", "no-such")
    with pytest.raises(server.ServerError, match=r"no collation 'no-such'.*POSTGRES_BIN"):
        server.require_collation(given)


# The command


@contextmanager
def no_server(dsn: str | None, *, needs_standby: bool) -> Iterator[Server]:
    """Stand in for a server."""
    yield PRIMARY


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Run]:
    """The runs, by name of the mode, that the command meets in the place of real ones."""
    good = run_of({"replica NO_TOKEN": 1}, a=outcomes.PASSED)
    known = dict.fromkeys([*modes.BASELINES, *modes.CHOICES], good)
    known |= {
        modes.control(mode).name: run_of(a=outcomes.FAILED) for mode in modes.CHOICES.values()
    }

    def run(suite: Suite, mode: modes.Mode) -> Run:
        return known[mode.name]

    monkeypatch.setattr(source, "fetch", lambda version, cache: cache)
    monkeypatch.setattr(source, "unpack", lambda archive, directory: directory)
    monkeypatch.setattr(server, "running", no_server)
    monkeypatch.setattr(Suite, "run", run)
    return known


def test_nothing_broken_is_success(runs: dict[str, Run], tmp_path: Path) -> None:
    """Exit code 0, and a result that says so."""
    result = tmp_path / "result.json"
    assert command.main(["--control", "--json", str(result)]) == 0
    content = json.loads(result.read_text())
    assert content["clean"] is True
    assert content["modes"]["installed"]["new_failures"] == []


def test_a_new_failure_is_named(runs: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and the id of the broken test."""
    runs["installed"] = run_of(a=outcomes.FAILED)
    assert command.main(["--mode", "installed"]) == 1
    assert "broken   a" in capsys.readouterr().out


def test_the_table_counts_what_was_broken_and_what_cannot_pass(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A test that is skipped is broken, and one that fails anyway is not."""
    passed, failed, skipped = outcomes.PASSED, outcomes.FAILED, outcomes.SKIPPED
    monkeypatch.setattr(expected, "WITH_ANY_ROUTER", {"c": "why not"})
    monkeypatch.setattr(expected, "BY_THEMSELVES", {"d": "it is so"})
    runs["baseline"] = run_of(a=passed, b=passed, c=passed, d=failed, e=skipped)
    runs["installed"] = run_of(a=failed, b=skipped, c=failed, d=failed, e=skipped)
    assert command.main(["--mode", "installed"]) == 1
    out = capsys.readouterr().out
    assert f"| {django.__version__} | installed | 5 | 2 | 1 | 2 | 1 | 0 |" in out
    assert "fails by itself  d: it is so" in out
    assert "cannot pass here  c: why not" in out


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("baseline", run_of()),
        ("scoped", run_of(a=outcomes.PASSED)),
        ("BlindRouter installed", run_of(a=outcomes.PASSED)),
    ],
    ids=["nothing was run", "nothing was read from the replica", "a blind router breaks nothing"],
)
def test_a_run_that_proves_nothing_is_no_success(runs: dict[str, Run], name: str, run: Run) -> None:
    """A check that could not have failed has shown nothing."""
    if name == "baseline":
        runs.update(dict.fromkeys(runs, run))
    runs[name] = run
    mode = "scoped" if name == "scoped" else "installed"
    assert command.main(["--mode", mode, "--control"]) == 1


def test_a_suite_that_does_not_end_says_nothing_about_the_package(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and what the suite printed."""

    def run(suite: Suite, mode: modes.Mode) -> Run:
        raise RunError("out of disk")

    monkeypatch.setattr(Suite, "run", run)
    assert command.main([]) == 2
    assert "out of disk" in capsys.readouterr().out
