"""Use Wagtail, django-oscar and django CMS on replicas that lag, and compare each page with one database."""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from applications.application import Application
from applications.cms import CMS
from applications.oscar import OSCAR
from applications.running import Outcome, Plan, run
from applications.wagtail import WAGTAIL
from testproject.cluster import ClusterError

APPLICATIONS: dict[str, Application] = {one.name: one for one in [WAGTAIL, OSCAR, CMS]}
ENOUGH = 0.7


def main() -> int:
    """Run what the command line names; the exit status is 1 where a page differs or replicas serve too little."""
    parser = _parser()
    options = parser.parse_args()
    for name in options.names:
        if name not in APPLICATIONS:
            parser.error(f"{name!r} is none of: {', '.join(APPLICATIONS)}.")
    with tempfile.TemporaryDirectory() as directory:
        plan = Plan(
            lag=options.lag,
            pace=options.pace,
            environments=options.environments or Path(directory),
            has_recipe=not options.without_recipes,
        )
        try:
            outcomes = [run(APPLICATIONS[name], plan) for name in options.names or APPLICATIONS]
        except ClusterError as error:
            print(error, file=sys.stderr)
            return 2
    return _tell(outcomes, options)


def _tell(outcomes: list[Outcome], options: Namespace) -> int:
    if options.json:
        print(json.dumps([_document(outcome) for outcome in outcomes], indent=2))
    else:
        Console().print(_table(outcomes))
    failed = False
    for outcome in outcomes:
        for sentence in [*outcome.failures(), *outcome.differences()]:
            print(f"{outcome.name}: {sentence}", file=sys.stderr)
            failed = True
        failed |= outcome.share() < ENOUGH
    return 1 if failed else 0


def _document(outcome: Outcome) -> dict[str, object]:
    return {
        "application": outcome.name,
        "steps": len(outcome.routed),
        "differences": outcome.differences(),
        "errors": outcome.failures(),
        "selects": dict(outcome.reads()),
        "replica_share": round(outcome.share(), 3),
    }


def _table(outcomes: list[Outcome]) -> Table:
    table = Table("application", "steps", "pages that differ", "errors", "SELECTs on replicas")
    for outcome in outcomes:
        table.add_row(
            outcome.name,
            str(len(outcome.routed)),
            str(len(outcome.differences())),
            str(len(outcome.failures())),
            f"{outcome.share():.0%} of {outcome.reads().total()}",
        )
    return table


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m applications", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"of: {', '.join(APPLICATIONS)}; all where none is named",
    )
    parser.add_argument("--lag", type=float, default=2.0, help="seconds that replicas are behind")
    parser.add_argument("--pace", type=float, default=1.0, help="seconds from a step to the next")
    parser.add_argument("--environments", type=Path, help="where to keep what is installed")
    parser.add_argument(
        "--without-recipes", action="store_true", help="the README's settings alone"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
