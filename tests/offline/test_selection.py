"""What is looked at of what was found."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.checkpoints.series import ListedCheckpoint, select

STATES = ("complete", "incomplete", "refused", "duplicate")


@st.composite
def listings(draw: st.DrawFn) -> list[ListedCheckpoint]:
    """What ``discover`` may give: one complete checkpoint of a step at most."""
    found, complete = [], set()
    for number in range(draw(st.integers(2, 12))):
        step = draw(st.none() | st.integers(0, 6))
        state = draw(st.sampled_from(STATES))
        if state == "complete" and step is not None:
            state = "duplicate" if step in complete else state
            complete.add(step)
        found.append(
            ListedCheckpoint(
                url=f"u{number}", step=step, step_from="name", format="", state=state,
                reason="" if state == "complete" else f"why {number}",
            )
        )  # fmt: skip
    return found


@pytest.mark.slow
@given(listings())
def test_each_step_once_and_nothing_is_left_out_in_silence(found: list[ListedCheckpoint]) -> None:
    pending, others = select(found)
    steps = list(pending)
    assert steps == sorted(steps)
    complete = {one.step: one.url for one in found if one.state == "complete"}
    for step, one in pending.items():
        assert one in found
        # a complete one is never passed over for another of its step
        assert (one.step, one.url) == (step, complete.get(step, one.url))
    told = {one.url for one in others}
    for one in found:
        assert one.url in told or one in pending.values()
    assert all(one.reason for one in others)


def test_a_single_one_without_a_step_stands_for_step_zero() -> None:
    alone = ListedCheckpoint(url="u", step=None, step_from="", format="torch", state="complete")
    assert select([alone]) == ({0: replace(alone, step=0)}, [])
    broken = ListedCheckpoint(
        url="v", step=None, step_from="", format="", state="refused", reason="why"
    )
    assert select([broken]) == ({}, [broken])
