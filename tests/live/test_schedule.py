"""When to look."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.live.schedule import as_schedule, at, every, geometric


@given(st.integers(1, 50), st.integers(1, 500))
def test_every_is_the_multiples(interval: int, step: int) -> None:
    assert every(interval)(step) == (step in range(interval, 501, interval))


def test_at_is_exactly_these() -> None:
    assert [s for s in range(1, 20) if at([3, 7, 7])(s)] == [3, 7]


@given(
    st.integers(1, 20),
    st.floats(1.05, 4.0),
    st.none() | st.integers(1, 30),
    st.permutations(range(1, 200)),
)
def test_geometric_depends_on_the_step_alone(first, ratio, max_interval, order) -> None:
    due = geometric(first, ratio, max_interval)
    in_order = [s for s in range(1, 200) if due(s)]
    fresh = geometric(first, ratio, max_interval)
    assert sorted(s for s in order if fresh(s)) == in_order
    gaps = [b - a for a, b in itertools.pairwise(in_order)]
    assert all(b >= a for a, b in itertools.pairwise(gaps))
    if max_interval is not None:
        assert all(gap <= max_interval for gap in gaps)


@pytest.mark.parametrize("bad", [0, -5, 2.5, True, "500"])
def test_a_bad_interval_is_refused_by_name(bad: object) -> None:
    with pytest.raises(ConfigurationError, match="`every` to be a whole number"):
        as_schedule(bad)  # type: ignore[arg-type]


def test_other_bad_schedules() -> None:
    for bad in ([], [0], [1.5]):
        with pytest.raises(ConfigurationError, match=r"`steps(\[0\])?`"):
            at(bad)  # type: ignore[arg-type]
    for name, bad in (("first", 0), ("ratio", 1.0), ("max_interval", 0)):
        with pytest.raises(ConfigurationError, match=f"`{name}`"):
            geometric(**{name: bad})


def test_a_function_is_a_schedule() -> None:
    def due(step: int) -> bool:
        return step == 4

    assert as_schedule(due) is due
