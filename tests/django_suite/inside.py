"""Runs in a process of its own: Django's ``runtests.py``, with one mode's settings."""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import sys
from importlib import import_module
from pathlib import Path

from tests.django_suite import outcomes
from tests.django_suite.modes import Mode


def _mode(text: str) -> Mode:
    return Mode(**json.loads(text))


def main() -> int:
    """Run the labels, write what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", type=_mode, required=True, help="its fields, as JSON")
    parser.add_argument("--tests", type=Path, required=True)
    parser.add_argument("--settings", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--parallel", type=int, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    parser.add_argument("labels", nargs="*")
    options = parser.parse_args()
    mode: Mode = options.mode

    # Shows where a run hangs, just before the process that started it puts an end to it.
    faulthandler.dump_traceback_later(options.timeout * 0.95)
    # Workers must inherit what is changed here. From Python 3.14 on they would not.
    multiprocessing.set_start_method("fork", force=True)
    # Some tests of the suite look how it was started, and expect a script.
    sys.modules["__main__"].__spec__ = None
    os.chdir(options.tests)
    sys.path.insert(0, str(options.tests))
    os.environ["DJANGO_SETTINGS_MODULE"] = options.settings

    # Imported, not run as a script, since its lists of apps and middleware replace whatever the
    # settings module says.
    runtests = import_module("runtests")
    runtests.ALWAYS_INSTALLED_APPS.extend(mode.apps)
    runtests.ALWAYS_MIDDLEWARE[:0] = mode.middleware
    # After runtests, which turns warnings into errors before anything of Django is loaded.
    from tests.django_suite import committing, scoping
    from tests.django_suite.recording import RecordingRunner

    RecordingRunner.mode = mode
    if mode.is_committed:
        committing.commit_test_data()
        committing.count_queries_of_both()
    if mode.is_scoped:
        scoping.open_scopes(is_replicated=mode.is_replicated)
    runtests.django_tests(
        verbosity=1,
        interactive=False,
        failfast=False,
        keepdb=False,
        reverse=False,
        test_labels=options.labels or None,
        debug_sql=False,
        parallel=options.parallel,
        tags=None,
        exclude_tags=None,
        test_name_patterns=None,
        start_at=None,
        start_after=None,
        pdb=False,
        buffer=False,
        timing=False,
        shuffle=False,
    )
    if RecordingRunner.recorded is not None:
        outcomes.dump(options.output, RecordingRunner.recorded)
    return 0


if __name__ == "__main__":
    sys.exit(main())
