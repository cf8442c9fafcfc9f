"""What the views show and move: the one stage of this process."""

from __future__ import annotations

from dataclasses import dataclass

from testproject.window.controls import Controls
from testproject.window.stories import Stories
from testproject.window.watching import Watcher


@dataclass(frozen=True, slots=True)
class Stage:
    """The servers, those who move them, and the visitors of the three sites."""

    watcher: Watcher
    controls: Controls
    stories: Stories


_stages: list[Stage] = []


def set_stage(stage: Stage) -> None:
    """Have the views of this process work on a stage."""
    _stages[:] = [stage]


def stage() -> Stage:
    """Return the stage that was set."""
    return _stages[0]
