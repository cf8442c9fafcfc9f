"""All surfaces, in the order in which they are run."""

from __future__ import annotations

from tests.fuzz.answers import Answers
from tests.fuzz.configs import Configs
from tests.fuzz.cookies import Cookies
from tests.fuzz.identities import Identities
from tests.fuzz.merging import Merging
from tests.fuzz.records import Records
from tests.fuzz.stack import Stack
from tests.fuzz.surface import Surface

SURFACES: dict[str, type[Surface]] = {
    surface.name: surface
    for surface in (Records, Cookies, Answers, Configs, Merging, Identities, Stack)
}


def shares(names: list[str], cases: int) -> dict[str, int]:
    """Return how many of the cases each surface gets."""
    total = sum(SURFACES[name].share for name in names)
    return {name: max(1, round(cases * SURFACES[name].share / total)) for name in names}
