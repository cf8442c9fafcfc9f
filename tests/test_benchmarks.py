"""The benchmarks: their figures and report, and that each of them runs. No time is asserted."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.__main__ import main, read_results
from benchmarks.children import Child
from benchmarks.contenders import ALL, BY_NAME, Contender, left_out, present
from benchmarks.costing import BESIDE, CASES, Process, result_of
from benchmarks.figures import Spread, cell_text, percentile, text_of
from benchmarks.harness import (
    MODULES,
    Benchmark,
    Options,
    Plot,
    Result,
    Table,
    Verdict,
    find_benchmarks,
    from_json,
    take_turns,
    to_json,
)
from benchmarks.plots import draw
from benchmarks.report import markdown_table, write_report
from benchmarks.visits import Connection, VisitError
from benchmarks.wire import CountingProxy, TurnCounter, application_name
from testproject.cluster import Cluster, ProgramError

USAGE_ERROR = 2


def result() -> Result:
    """Return a result with something of everything."""
    table = Table("Time (ns)", ["contender", "case", "time"], note="A note.")
    table.add("package", "a|b", Spread(2.0, 1.0, 3.0, 3))
    table.add("random", "c", None)
    plot = Plot("time", "Time", "users", "ns")
    plot.add("package", 1, Spread(2.0, 1.0, 3.0, 3))
    plot.add("package", 10, 4.0)
    bars = Plot("bars", "Time", "", "ns", kind="bar", ticks=["a"])
    bars.add("package", 0, 1.0)
    bars.add("random", 0, 2.0)
    verdicts = [
        Verdict("fast", "2 ns", True),
        Verdict("small", "9 MB", False),
        Verdict("new", "", None),
    ]
    return Result([table], [plot, bars], verdicts, ["How."], {"pin": "it is absent"})


def document(*, quick: bool = False) -> dict[str, Any]:
    """Return what a file holds of such a result."""
    benchmark = Benchmark("decision", "What it costs.", "Little.", run=lambda options: result())
    run = {
        "command": "python -m benchmarks",
        "date": "2026-01-01",
        "commit": "abc",
        "machine": {"processor": "CPU", "cores": 2, "memory_gb": 4.0, "system": "Linux"},
        "versions": {"Python": "3.11"},
    }
    return {**to_json(benchmark, Options(quick=quick), result(), 1.0), "run": run}


class TestFigures:
    def test_spread(self) -> None:
        """A spread is the median with the extremes, whatever the order."""
        assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)

    def test_spread_of_nothing(self) -> None:
        """No figure is an error, not a zero."""
        with pytest.raises(ValueError, match="at least one value"):
            Spread.of([])

    def test_ratios_are_taken_within_rounds(self) -> None:
        """A round in which all was slow leaves the ratio as it is."""
        assert Spread.of_ratios([1.0, 10.0], [2.0, 20.0]) == Spread(0.5, 0.5, 0.5, 2)

    def test_ratio_to_nothing(self) -> None:
        """A base of 0 gives infinity, which nobody takes for a good figure."""
        assert Spread.of_ratios([1.0], [0.0]).median == float("inf")

    def test_ratios_need_pairs(self) -> None:
        """A round that one side has missed is an error."""
        with pytest.raises(ValueError, match="shorter"):
            Spread.of_ratios([1.0, 2.0], [1.0])

    @given(st.lists(st.floats(0, 1e9), min_size=1), st.floats(0.01, 1.0))
    def test_percentile(self, values: list[float], share: float) -> None:
        """At least the share of values lies at or below, and less does below."""
        found = percentile(values, share)
        assert sum(value <= found for value in values) >= share * len(values)
        assert sum(value < found for value in values) < share * len(values)

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0, "0"),
            (1234567.0, "1,234,567"),
            (123.4, "123"),
            (12.34, "12.3"),
            (2.0, "2"),
            (0.01234, "0.0123"),
            (float("inf"), "inf"),
        ],
    )
    def test_numbers(self, value: float, text: str) -> None:
        """Numbers have three digits that count, and no exponent."""
        assert text_of(value) == text

    def test_cells(self) -> None:
        """A spread shows its extremes, what was not measured a dash, and a bar is escaped."""
        cells = [Spread(2.0, 1.0, 3.0, 3), Spread(2.0, 2.0, 2.0, 1), None, "a|b", 1000, 1.5]
        assert list(map(cell_text, cells)) == ["2 (1-3)", "2", "-", "a\\|b", "1,000", "1.5"]


class TestTurns:
    def test_each_once_a_round(self) -> None:
        """In each round everybody comes once, in an order that is not always the same."""
        order: list[str] = []
        take_turns(["a", "b", "c"], order.append, rounds=20, seed=1)
        rounds = [tuple(order[start : start + 3]) for start in range(0, 60, 3)]
        assert {tuple(sorted(names)) for names in rounds} == {("a", "b", "c")}
        assert len(set(rounds)) > 1

    def test_seed(self) -> None:
        """The same seed gives the same order."""
        orders: list[list[str]] = [[], []]
        for order in orders:
            take_turns(["a", "b", "c"], order.append, rounds=5, seed=7)
        assert orders[0] == orders[1]

    def test_values_stay_with_their_contender(self) -> None:
        """What a turn returns is kept under the name of who took it, round by round."""
        found = take_turns(["a", "b"], lambda name: f"{name}!", rounds=2)
        assert found == {"a": ["a!", "a!"], "b": ["b!", "b!"]}


class TestResults:
    def test_json_keeps_everything(self) -> None:
        """A result comes back from a file as it went in."""
        found = from_json(json.loads(json.dumps(document())))
        assert dataclasses.asdict(found.tables[0]) == dataclasses.asdict(result().tables[0])
        assert found.verdicts == result().verdicts
        assert (found.notes, found.left_out) == (result().notes, result().left_out)
        assert [list(map(tuple, points)) for points in found.plots[0].series.values()] == [
            [(1, 2.0, 1.0, 3.0), (10, 4.0, 4.0, 4.0)]
        ]

    def test_row_must_fit(self) -> None:
        """A row with a cell too few is an error."""
        with pytest.raises(ValueError, match="do not fit"):
            Table("", ["a", "b"]).add("x")

    def test_files_are_merged(self, tmp_path: Path) -> None:
        """Benchmarks come from several files, the same one from the last of them."""
        for name, results in [("1", {"a": 1, "b": 1}), ("2", {"b": 2})]:
            (tmp_path / name).write_text(json.dumps({"results": results}))
        assert read_results([tmp_path / "1", tmp_path / "2"]) == {"a": 1, "b": 2}

    def test_file_of_something_else(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A file that holds no results is named in the message."""
        (tmp_path / "x.json").write_text("[]")
        assert main(["report", str(tmp_path / "x.json"), "--report", str(tmp_path)]) == 1
        assert "x.json holds no results" in capsys.readouterr().err

    def test_unknown_name(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A benchmark that does not exist is refused, with the names of those that do."""
        with pytest.raises(SystemExit) as caught:
            main(["speed"])
        assert caught.value.code == USAGE_ERROR
        assert "Choose from: decision" in capsys.readouterr().err


class TestReport:
    def test_page(self, tmp_path: Path) -> None:
        """The page has verdicts, tables, plots, notes, who is missing, machine and command."""
        page = write_report({"decision": document()}, tmp_path).read_text()
        for part in [
            "| decision | fast | 2 ns | yes |",
            "| decision | small | 9 MB | **no** |",
            "| decision | new |  | not measured |",
            "| package | a\\|b | 2 (1-3) |",
            "![Time](performance/decision-time.svg)",
            "Not measured here: `pin`: it is absent.",
            "- Machine: CPU, 2 cores",
            "- Command: `python -m benchmarks`",
        ]:
            assert part in page
        assert "mean nothing" not in page
        assert (tmp_path / "performance" / "decision-bars.svg").stat().st_size > 0

    def test_quick_figures_are_marked(self, tmp_path: Path) -> None:
        """Figures of the quick form are not taken for real ones."""
        page = write_report({"decision": document(quick=True)}, tmp_path).read_text()
        assert "**From the quick form, whose figures mean nothing: decision.**" in page

    def test_plots_are_repeatable(self, tmp_path: Path) -> None:
        """The same figures give the same file, so that a commit shows what has changed."""
        for name in ("1.svg", "2.svg"):
            draw(result().plots[0], tmp_path / name)
        assert (tmp_path / "1.svg").read_bytes() == (tmp_path / "2.svg").read_bytes()

    @pytest.mark.parametrize("kind", ["line", "bar"])
    def test_zero_on_a_logarithmic_axis(self, tmp_path: Path, kind: str) -> None:
        """A figure of 0 is drawn, without a warning, where the axes are logarithmic."""
        plot = Plot("zero", "Zero", "x", "y", kind=kind, ticks=["a", "b"], log="xy")
        plot.add("package", 0, 0.0)
        plot.add("package", 1, 5.0)
        draw(plot, tmp_path / "zero.svg")
        assert (tmp_path / "zero.svg").stat().st_size > 0

    def test_table(self) -> None:
        """A table is one of Markdown."""
        table = Table("", ["a", "b"], [["x", 1]])
        assert markdown_table(table) == "| a | b |\n|---|---|\n| x | 1 |"


class TestCosting:
    def test_ratios_are_taken_within_turns(self) -> None:
        """Of several processes the mean counts, and a turn in which all was slow leaves the ratio."""
        times = {
            Process("random", 0): [80.0, 800.0, 90.0],
            Process("random", 1): [120.0, 1200.0, 110.0],
            Process("package", 0): [110.0, 1000.0, 130.0],
            Process("package", 1): [130.0, 1400.0, 130.0],
        }
        [table] = result_of({CASES[0]: times}).tables
        assert [row[2:] for row in table.rows] == [
            [Spread(100.0, 100.0, 1000.0, 3), None, None],
            [Spread(130.0, 120.0, 1200.0, 3), Spread(1.2, 1.2, 1.3, 3), 30.0],
        ]

    def test_what_is_added_is_compared_with_the_build_beside(self) -> None:
        """Not the times, most of which are Django's; and that build's own ratio is nobody's target."""
        times = {
            Process("random", 0): [100.0, 100.0],
            Process("package", 0): [130.0, 132.0],
            Process(BESIDE, 0): [200.0, 200.0],
        }
        result = result_of({CASES[0]: times}, dict.fromkeys(times, 50.0))
        [_, share] = result.verdicts
        assert (share.figure, share.reached) == ("0.31 (31 and 100 us)", True)
        assert [row[0] for row in result.tables[1].rows] == ["random", "package", BESIDE]


class TestContenders:
    def test_peers_take_part(self) -> None:
        """The packages of the extra are installed where the tests run: none is missing unseen."""
        peers = {"multidb-router", "replicated", "rw-router", "database-routing"}
        assert peers <= {contender.name for contender in present()}

    def test_missing_one_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that cannot be imported is left out, with the reason."""
        absent = dataclasses.replace(BY_NAME["random"], name="absent", modules=["no_such_module"])
        monkeypatch.setattr("benchmarks.contenders.ALL", (*ALL, absent))
        assert left_out("absent") == {"absent": "`no_such_module` is not installed"}
        assert present("absent") == []

    def test_replicas_are_put_in(self) -> None:
        """A contender's settings get the aliases of the replicas, as a list or the first."""
        contender = Contender(
            name="x", title="", settings={"A": "{replicas}", "B": {"c": {"d": "{replica}"}}, "E": 1}
        )
        assert contender.settings_for(["r1", "r2"]) == {
            "A": ["r1", "r2"],
            "B": {"c": {"d": "r1"}},
            "E": 1,
        }


class TestChildren:
    def environment(self) -> dict[str, str]:
        """Return the environment of a process that reaches no server."""
        return BY_NAME["none"].environment_for({"default": {"ENGINE": ""}}, None)

    def test_answer_and_error(self) -> None:
        """A process returns what a function returns, and its traceback when it raises."""
        with Child(self.environment()) as child:
            with pytest.raises(ProgramError, match="AttributeError"):
                child.call("benchmarks.crowding:no_such_function")
            assert child.call("benchmarks.crowding:private_kb") == 0.0

    def test_end(self) -> None:
        """A process that has ended is noticed at the next question."""
        with Child(self.environment()) as child, pytest.raises(ProgramError, match="has ended"):
            child.call("os:abort")


class TestWire:
    @given(st.lists(st.tuples(st.booleans(), st.integers(1, 3))))
    def test_counts_however_it_is_cut(self, talk: list[tuple[bool, int]]) -> None:
        """A client that speaks after it was answered has waited; its next words are part of the same."""
        counter = TurnCounter()
        speakers = [is_client for is_client, parts in talk for _ in range(parts)]
        for is_client in speakers:
            if is_client:
                counter.sent(b"anything")
            else:
                counter.answered()
        before = [False, *speakers]
        assert counter.count == sum(
            is_client and not last for last, is_client in zip(before, speakers, strict=False)
        )

    def test_real_talk(self, real_cluster: Cluster) -> None:
        """What is sent at once is one round trip, and takes as long as one."""
        server = real_cluster.primary
        with CountingProxy(server.host, server.port) as proxy:
            params = {"port": proxy.port, "sslmode": "disable", "gssencmode": "disable"}
            with psycopg.connect(server.dsn(), autocommit=True, **params) as raw:
                counts = [proxy.round_trips()[""]]
                for statement in ("SELECT 1", "SELECT 1; SELECT 2"):
                    raw.execute(statement)
                    counts.append(proxy.round_trips()[""])
                with raw.pipeline():
                    raw.execute("SELECT 1")
                    raw.execute("SELECT 2")
                counts.append(proxy.round_trips()[""])
                proxy.delay = 0.2
                began = time.monotonic()
                raw.execute("SELECT 1; SELECT 2")
                assert time.monotonic() - began >= 0.2
            # Nobody waits for the message that ends a connection.
            assert proxy.round_trips()[""] == counts[-1] + 1
        assert counts == [1, 2, 3, 4]

    def test_application_name(self) -> None:
        """A connection is known by the name that it gives itself."""
        body = b"user\0postgres\0application_name\0monitor\0database\0app\0\0"
        assert application_name(bytes(8) + body) == "monitor"
        assert application_name(bytes(8) + b"user\0postgres\0\0") == ""


class TestConnection:
    def answers(self, *parts: bytes) -> Connection:
        """Return a connection to a server that sends these parts after the request, and closes."""
        listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            with listener, listener.accept()[0] as peer:
                peer.recv(65536)
                for part in parts:
                    peer.sendall(part)

        threading.Thread(target=serve, daemon=True).start()
        return Connection(f"http://127.0.0.1:{listener.getsockname()[1]}", "/", None)

    def test_body_in_parts(self) -> None:
        """A response counts when all of its body is there."""
        connection = self.answers(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab", b"cd")
        assert connection.get().startswith(b"HTTP/1.1 200")
        connection.close()

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 500 Oh\r\nContent-Length: 1\r\n\r\nx",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab",
            b"",
        ],
    )
    def test_what_is_no_answer(self, answer: bytes) -> None:
        """An error, no length, half of a body and a closed connection are never counted."""
        connection = self.answers(answer)
        with pytest.raises(VisitError):
            connection.get()
        connection.close()


def test_benchmarks_are_found() -> None:
    """Modules are found by their names, and each is called what its module is called."""
    found = find_benchmarks()
    assert {"decision", "request", "roundtrips", "growth"} <= set(found) <= set(MODULES)
    assert [benchmark.name for benchmark in found.values()] == list(found)
