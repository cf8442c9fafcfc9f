"""`python -m benchmarks` measures, `python -m benchmarks report FILE ...` writes the report."""

from __future__ import annotations

import json
import signal
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark, Options, find_benchmarks, to_json
from benchmarks.machine import describe_run
from benchmarks.report import write_report
from benchmarks.visits import VisitError
from testproject.cluster import ClusterError

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if arguments[:1] == ["report"]:
            return _report(arguments[1:])
        return _run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ClusterError, ReportError, VisitError) as error:
        print(error, file=sys.stderr)
        return 1


class ReportError(Exception):
    """A file of results cannot be used."""


def _run(arguments: list[str]) -> int:
    benchmarks = find_benchmarks()
    parser = _parser(benchmarks)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in benchmarks]
    if unknown:
        parser.error(f"There is no benchmark {unknown[0]!r}. Choose from: {', '.join(benchmarks)}.")
    chosen = [benchmarks[name] for name in options.names or benchmarks]
    documents = read_results([options.json]) if options.json and options.json.exists() else {}
    # A path says something of one machine, and nothing of the run.
    command = " ".join(["python -m benchmarks", *(Path(part).name for part in arguments)])
    for benchmark in chosen:
        documents[benchmark.name] = _measure(benchmark, _options(options), command)
        if options.json:
            # After each, so that an interruption loses one benchmark and not all.
            options.json.write_text(json.dumps({"results": documents}, indent=1) + "\n")
    if options.report:
        print(write_report(documents, options.report))
    if not options.json and not options.report:
        print(json.dumps({"results": documents}, indent=1))
    return 0


def _measure(benchmark: Benchmark, options: Options, command: str) -> Any:
    options.log(f"{benchmark.name}: {benchmark.measures}")
    began = time.monotonic()
    result = benchmark.run(options)
    seconds = time.monotonic() - began
    options.log(f"{benchmark.name}: done in {seconds:.0f} s")
    return {**to_json(benchmark, options, result, seconds), "run": describe_run(command)}


def _options(options: Namespace) -> Options:
    rounds = options.rounds or (1 if options.quick else 5)
    return Options(options.quick, rounds, options.seed, options.beside)


def read_results(files: list[Path]) -> dict[str, Any]:
    """Return the results of several files, by benchmark; a later file replaces an earlier one."""
    found: dict[str, Any] = {}
    for file in files:
        try:
            found |= json.loads(file.read_text())["results"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"{file} holds no results of benchmarks: {error!r}."
            raise ReportError(message) from error
    return found


def _report(arguments: list[str]) -> int:
    parser = ArgumentParser(prog="python -m benchmarks report", description=_report.__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="written by --json")
    parser.add_argument("--report", type=Path, default=Path("docs"), metavar="DIR")
    options = parser.parse_args(arguments)
    print(write_report(read_results(options.files), options.report))
    return 0


def _checkout(text: str) -> Path:
    path = Path(text).resolve()
    if not (path / "django_replica_router").is_dir():
        message = f"There is no package in {text!r}."
        raise ArgumentTypeError(message)
    return path


def _parser(benchmarks: dict[str, Benchmark]) -> ArgumentParser:
    lines = [f"{item.name}: {item.measures}" for item in benchmarks.values()]
    parser = ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="Benchmarks: " + " ".join(lines),
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="add the results to this file, by benchmark"
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write performance.md and its plots there"
    )
    parser.add_argument(
        "--quick", action="store_true", help="see that everything runs; the figures mean nothing"
    )
    parser.add_argument("--rounds", type=int, help="turns of each contender (default: 5)")
    parser.add_argument(
        "--beside",
        type=_checkout,
        metavar="DIR",
        help="let costing measure the package of another build as well, from a checkout of it",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the order of turns")
    return parser


if __name__ == "__main__":
    sys.exit(main())
