"""Fuzzing: a short run of each surface, shapes by Hypothesis, and controls that must be found."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testproject.cluster import Cluster
from tests.fuzz import answers, configs, cookies, records
from tests.fuzz.controls import CONTROLS, sabotaged
from tests.fuzz.surface import Surface, Tally, run
from tests.fuzz.surfaces import SURFACES, shares

SEED = 20
CASES = {"merging": 800, "identities": 800, "stack": 60}
FEW, MANY = 500, 4000

# Kinds of cases that must have occurred: without them a run of the surface proves nothing.
KINDS = {
    "records": {"genuine", "changed", "anything"},
    "cookies": {"genuine", "changed", "unsigned", "other key", "other salt", "too old", "anything"},
    "answers": {*answers.GENUINE, "looks of the monitor", "taken for healthy"},
    "configs": {"taken", "refused"},
    "merging": {"nothing", "record", "changed", "anything", "list"},
    "identities": {"bound", "bound by nothing", "keys looked through"},
    "stack": {"of a user", "of nobody", "over garbage", "by a replica", "keys looked through"},
}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def run_surface(name: str, cases: int) -> Tally:
    """Run a surface from the seed of these tests."""
    kind: type[Surface] = SURFACES[name]
    return run(kind, SEED, cases)


@pytest.mark.parametrize("name", SURFACES)
def test_nothing_is_found(cluster: Cluster, name: str) -> None:
    """No case of a short run raises, binds whom it must not, or leaves a secret behind."""
    tally = run_surface(name, CASES.get(name, MANY))
    assert tally.findings == []
    assert tally.found == 0
    assert set(tally.kinds) >= KINDS[name]


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_is_found(cluster: Cluster, control: str) -> None:
    """With a rule of the package taken out, its surface finds something."""
    surface = CONTROLS[control].surface
    with sabotaged(control):
        tally = run_surface(surface, CASES.get(surface, MANY))
    assert tally.found


def test_every_surface_has_a_control() -> None:
    """A surface that nothing was ever found by might look at nothing."""
    assert {control.surface for control in CONTROLS.values()} == set(SURFACES) == set(KINDS)


def test_a_seed_gives_the_same_cases_each_time() -> None:
    """A seed decides on all cases, and another on others."""

    def kinds(seed: int) -> Any:
        return run(SURFACES["records"], seed, FEW).kinds

    assert kinds(1) == kinds(1) != kinds(2)


def test_all_cases_are_shared_out() -> None:
    """Each surface gets some, in all about as many as were asked for."""
    counts = shares(list(SURFACES), 1_000_000)
    assert set(counts) == set(SURFACES)
    assert all(counts.values())
    assert abs(sum(counts.values()) - 1_000_000) < len(SURFACES)


@given(anything)
def test_a_value_in_the_cache_of_any_shape_is_a_record_or_none(value: Any) -> None:
    """What is under a key may be of any type."""
    records.check(value)


@given(st.from_regex(r"2[-0-9A-Z_a-z]{23,25}(-{7,9})?([-0-9A-Z_a-z]{8}){0,4}[=.]?\n?"))
def test_a_value_that_looks_like_a_record_is_read_to_the_letter(value: str) -> None:
    """One digit too many, a pin that is none, padding or a line's end make it none."""
    records.check(value)
    records.check(value.encode())


@given(st.text())
def test_a_cookie_of_any_text_says_nothing(value: str) -> None:
    """Who has not been handed a cookie has none."""
    cookies.check(value, {})


@given(anything)
def test_a_signed_cookie_of_any_content_says_no_more_than_records(content: Any) -> None:
    """Signed by this site for whatever reason, it raises nothing."""
    try:
        value = cookies.signed(content)
    except (TypeError, ValueError):  # nothing that JSON can hold
        return
    found = cookies.read_cookie(cookies.request_with(value), cookies.LIFE)
    items = content.items() if isinstance(content, dict) else ()
    decoded = {key: records.expected_record(text) for key, text in items}
    assert found == {key: record for key, record in decoded.items() if record is not None}


@pytest.mark.parametrize("kind", answers.GENUINE)
@given(values=st.lists(anything, max_size=7))
def test_an_answer_of_any_shape_is_understood_or_refused(kind: str, values: list[Any]) -> None:
    """A server that is none of ours may answer anything to any question."""
    answers.check(kind, tuple(values))


@given(
    st.dictionaries(st.sampled_from(sorted(configs.DEFAULTS)) | st.text(max_size=4), anything)
    | anything
)
def test_a_setting_of_any_shape_is_usable_or_refused(value: Any) -> None:
    """A value that is accepted can be waited for, stored, compared and divided by."""
    with configs.restored():
        configs.check(value)
