"""The demonstration: `python -m testproject` measures, `serve` shows, `orders` tells who sees what."""

from __future__ import annotations

import json
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from testproject.cluster import ClusterError
from testproject.demo.bare import run_bare
from testproject.demo.orders import broken, picture, walk
from testproject.demo.report import document, examples, failures, table
from testproject.demo.run import Plan, run
from testproject.demo.serve import serve

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says and return the exit status."""
    options = _parser().parse_args(_with_command(sys.argv[1:] if arguments is None else arguments))
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        return COMMANDS[options.command](options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1


def _stop(signum: int, frame: object) -> None:
    # Once is enough: what stops the servers must not be interrupted itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _run(options: Namespace) -> int:
    plan = Plan(
        lags_ms=options.lag,
        seconds=options.seconds,
        users=options.users,
        workers=options.workers,
        replicas=options.replicas,
        seed=options.seed,
    )
    with _progress() as progress:
        cells = run(plan, progress)
    if options.json:
        print(json.dumps(document(plan, cells), indent=2))
    else:
        Console().print(table(cells))
    failed = failures(cells)
    for sentence in failed + examples(cells) if failed else []:
        print(sentence, file=sys.stderr)
    return 1 if failed else 0


def _serve(options: Namespace) -> int:
    serve(
        Console(),
        lag_ms=options.lag,
        port=options.port,
        workers=options.workers,
        replicas=options.replicas,
    )
    return 0


def _orders(options: Namespace) -> int:
    lines = walk(options.routing, options.lag, workers=options.workers, replicas=options.replicas)
    Console().print(picture(lines, options.routing, options.lag))
    failed = broken(lines)
    for sentence in failed:
        print(sentence, file=sys.stderr)
    return 1 if failed else 0


def _cluster(options: Namespace) -> int:
    run_bare(Console(), file=options.write, lag_ms=options.lag, replicas=options.replicas)
    return 0


COMMANDS = {"run": _run, "serve": _serve, "orders": _orders, "cluster": _cluster}


def _progress() -> Progress:
    # On stderr: stdout is for the result alone.
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m testproject", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="measure (what no command means too)")
    running.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    running.add_argument(
        "--seconds", type=_positive_float, default=6.0, help="for each line of the table"
    )
    running.add_argument("--users", type=_positive_int, default=24, help="at the same time")
    running.add_argument(
        "--lag", type=_natural, nargs="+", default=[0, 100, 1000], metavar="MS", help="to try"
    )
    running.add_argument("--seed", type=int, default=1, help="of the visitors' choices")
    serving = commands.add_parser(
        "serve",
        help="open the shop window: three routings side by side, and buttons to break servers",
    )
    serving.add_argument("--port", type=_natural, default=0, help="default: one that is free")
    serving.add_argument("--lag", type=_natural, default=1000, metavar="MS", help="of the replicas")
    ordering = commands.add_parser("orders", help="show who sees an order: commands and queries")
    ordering.add_argument(
        "--lag", type=_natural, default=2000, metavar="MS", help="of the replicas"
    )
    ordering.add_argument("--routing", choices=["package", "random"], default="package")
    bare = commands.add_parser("cluster", help="run the servers alone, for a project of your own")
    bare.add_argument("--lag", type=_natural, default=0, metavar="MS", help="of the replicas")
    bare.add_argument(
        "--write", type=Path, required=True, metavar="FILE", help="module for DATABASES and CACHES"
    )
    for command in [running, serving, ordering]:
        command.add_argument("--workers", type=_positive_int, default=2, help="of the site")
    for command in [running, serving, ordering, bare]:
        command.add_argument("--replicas", type=_positive_int, default=2)
    return parser


def _with_command(arguments: list[str]) -> list[str]:
    """Return the arguments with the default command put in where none is named."""
    named = arguments and arguments[0] in {*COMMANDS, "-h", "--help"}
    return arguments if named else ["run", *arguments]


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is not a whole number, 0 or more.")
    return int(text)


def _positive_int(text: str) -> int:
    if _natural(text) == 0:
        raise ArgumentTypeError(f"{text!r} is not above 0.")
    return int(text)


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if value <= 0.0:
        raise ArgumentTypeError(f"{text!r} is not a number above 0.")
    return value


if __name__ == "__main__":
    sys.exit(main())
