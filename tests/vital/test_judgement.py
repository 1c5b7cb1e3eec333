"""What facts prove: each rule, and each excuse that it accepts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from contracts import fake_run
from contracts.vital_rows import Row, stacked

from sparsitywatch.records import Event, Finding, Record, Vital
from sparsitywatch.vital import VitalReviewer
from sparsitywatch.vital.judgement import _BY_STEPS, VitalReading, findings_of
from sparsitywatch.vital.judgement import judged as judged_reading


def tensor(name: str, **fields: object) -> Any:
    """One of 1,000 weights that its optimizer moves."""
    usual = {
        "num_weights": 1000, "num": 1000, "num_dims": 2, "update": 0.01, "rms": 1.0,
        "past_updates": (), "trained_by": "own", "lr": 1e-3, "lr_share": 1.0, "num_steps": 10,
    }  # fmt: skip
    return Row(name=name, **{**usual, **fields})


def judged(facts: Iterable[Any], since_step: int) -> tuple[Finding, ...]:
    """What is found among these tensors."""
    return findings_of(stacked(facts), since_step)


LIVING = [tensor(f"living.{i}.weight") for i in range(4)]
STILL = {"num_still": 1000, "still_for": 1, "has_moved": False, "update": 0.0}
REACHED = {"gradient": "some", "gradient_ratio": 1.0, "num_gradients": 1000}
DEAD = {**STILL, "still_for": 2, "gradient": "none", "dead_for": 2, "dead_steps": 20}


def kinds(*facts: Any) -> dict[str, tuple[str, ...]]:
    """What is found, by kind, among tensors that are well."""
    return {found.kind: found.tensors for found in judged([*facts, *LIVING], 0)}


@pytest.mark.parametrize(
    ("fields", "is_fault"),
    [
        ({"trained_by": "none"}, True),
        ({"trained_by": "none", "gradient": "none"}, False),
        ({"trained_by": "none", "gradient_ratio": 1e-5}, False),
        ({"trained_by": "none", "gradient_ratio": 0.9e-3}, False),  # of an ordinary gradient
        ({"trained_by": "none", "gradient_ratio": 1.1e-3}, True),
        ({"trained_by": "frozen"}, False),
        ({"trained_by": "other"}, False),
        ({"trained_by": "unknown"}, False),
        ({}, True),
        ({"trained_by": "master"}, True),
        ({"lr": 0.0}, False),
        ({"lr_share": 0.001}, False),
        ({"lr_share": 0.0099}, False),  # below a hundredth of the highest
        ({"lr_share": 0.0101}, True),
        ({"num_could_round": 900}, False),
        ({"num_could_round": 500}, False),
        ({"num_could_round": 499}, True),
        ({"gradient_ratio": 1e-5}, False),
        ({"gradient_ratio": 0.9e-3}, False),
        ({"gradient_ratio": 1.1e-3}, True),
        ({"gradient": "unknown"}, False),
        ({"num": 1, "num_still": 1}, False),
        ({"num": 7, "num_still": 7}, False),
        ({"num": 8, "num_still": 8}, True),
        ({"has_moved": True}, False),
        ({"has_moved": True, "still_for": 2}, True),
        ({"has_moved": True, "still_for": 2, "gradient_ratio": 0.01}, False),
        ({"has_moved": True, "still_for": 2, "gradient_ratio": 0.09}, False),  # it has learned all
        ({"has_moved": True, "still_for": 2, "gradient_ratio": 0.11}, True),
        ({"num_still": 999, "still_for": 0}, False),
    ],
)
def test_a_tensor_with_a_gradient_that_stands_still(fields: dict, is_fault: bool) -> None:
    found = kinds(tensor("x", **{**STILL, **REACHED, **fields}))
    assert found == ({"untrained": ("x",)} if is_fault else {})


def test_where_nothing_moves_only_what_has_no_optimizer_is_named() -> None:
    """A step that was skipped looks like that, too."""
    skipped = [tensor(f"{i}", **STILL, **REACHED) for i in range(3)]
    assert judged(skipped, 0) == ()
    (found,) = judged([*skipped, tensor("x", trained_by="none", **STILL, **REACHED)], 0)
    assert found.tensors == ("x",)


def stack(dead: set[int], **fields: object) -> list[Any]:
    """Six layers, some of which no gradient reaches."""
    parts = [("norm.weight", 1), ("q.weight", 2), ("k.weight", 2), ("v.weight", 2)]
    return [
        tensor(f"layers.{i}.{part}", num_dims=dims, **(DEAD if i in dead else {}) | fields)
        for i in range(6)
        for part, dims in parts
    ]


def test_a_gradient_that_ends_within_the_layers() -> None:
    below = [tensor("tokens.weight", **DEAD), *stack({0, 1}), *LIVING]
    (found,) = judged(below, 0)
    assert (found.kind, found.num) == ("untrained", 9)
    (found,) = judged([*LIVING, *stack({3})], 0)
    assert set(found.tensors) == {
        one.name for one in stack({3}) if one.name.startswith("layers.3.")
    }
    (found,) = judged([*stack({0, 1, 2, 3, 4, 5}), *LIVING], 0)
    assert found.num == 24


@pytest.mark.parametrize(
    ("num_living", "num_dead", "num_weights", "is_fault"),
    [
        (9, 3, 3000, True),  # half of the weights, and a quarter of the tensors
        (9, 3, 2999, False),
        (10, 3, 4000, False),
        (2, 2, 9000, False),  # two may be a part that these inputs do not use
        (2, 3, 9000, True),
    ],
)
def test_a_gradient_that_most_of_the_model_does_not_get(
    num_living: int, num_dead: int, num_weights: int, *, is_fault: bool
) -> None:
    living = [tensor(f"living.{i}.weight") for i in range(num_living)]
    dead = [tensor(name, **DEAD, num_weights=num_weights) for name in "abc"[:num_dead]]
    (found,) = judged([*living, *dead], 0)
    assert (found.kind, found.num) == ("untrained" if is_fault else "no_gradient", num_dead)


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("idle", [*LIVING, tensor("pooler.weight", **DEAD), tensor("pooler.bias", **DEAD)]),
        ("idle", [tensor("tower.0.weight", **DEAD), *LIVING]),
        ("idle", [*LIVING, *(x.but(name=x.name.replace("layers", "experts")) for x in stack({3}))]),
        ("no_gradient", [*LIVING, *(x.but(name=f"layers.0.{x.name}") for x in stack({3}))]),
        ("no_gradient", [*LIVING, tensor("branch_2.weight".replace("branch", "side"), **DEAD)]),
    ],
    ids=["pooler", "tower", "experts", "list in a list", "side"],
)
def test_what_no_gradient_has_reached_is_found_by_its_name(kind: str, facts: list[Any]) -> None:
    """Once it has had a gradient it is another matter."""
    (found,) = judged(facts, 0)
    assert found.kind == kind
    assert all(one.startswith("they are in the optimizer, and for") for one in [found.reason])
    lived = [x.but(alive_steps=1) for x in facts]
    assert judged(lived, 0) == ()


@pytest.mark.parametrize(
    "facts",
    [
        [*LIVING, *stack({3}, has_moved=True)],
        [*LIVING, *stack({3}, dead_for=1)],
        [*LIVING, *stack({3}, dead_steps=3)],
        [*LIVING, *stack({3}, lr=0.0)],
    ],
    ids=["moved", "once", "few steps", "no rate"],
)
def test_what_is_merely_not_used_is_no_fault(facts: list[Any]) -> None:
    assert judged(facts, 0) == ()


NO_RATE = {"lr": 0.0, "lr_share": 0.0, "has_moved": False, "still_for": 2}


@pytest.mark.parametrize(
    ("fields", "is_told"),
    [
        ({}, True),
        ({"gradient": "none", "dead_for": 2, "dead_steps": 9}, True),  # the rate is the cause
        ({"still_for": 1}, False),
        ({"has_moved": True}, False),  # it was trained, and is at its end
        ({"lr": 1e-9}, False),  # in the interval
        ({"lr_share": 1.0}, False),  # now
        ({"trained_by": "frozen"}, False),
    ],
)
def test_a_rate_of_0_beside_others_is_a_note(fields: dict, *, is_told: bool) -> None:
    block = [tensor(f"layers.3.{part}.weight", **{**NO_RATE, **fields}) for part in "qkv"]
    found = [one for one in judged([*LIVING, *block], 0) if one.kind != "slow"]
    names = {one.name for one in block}
    assert [(one.kind, set(one.tensors)) for one in found] == [("no_rate", names)] * is_told
    of_none = judged([one.but(lr=0.0, lr_share=0.0) for one in [*LIVING, *block]], 0)
    assert "no_rate" not in [one.kind for one in of_none]


LOSSY = {"num_still": 900, "num_lossy": 900, "num_lossy_expected": 50.0} | REACHED


@pytest.mark.parametrize(
    ("fields", "is_fault"),
    [
        ({}, True),
        ({"num_lossy_moved": 9}, True),
        ({"num_lossy_moved": 10}, True),
        ({"num_lossy_moved": 11}, False),  # a fifth of what random rounding would move
        ({"num_lossy_moved": 40}, False),  # rounded at random, or kept elsewhere
        ({"num_lossy_expected": 2.0}, False),
        ({"num_lossy_expected": 7.9}, False),
        ({"num_lossy_expected": 8.1}, True),
        ({"num_lossy_expected": 12.0, "still_for": 6, "num_could_round": 1000}, True),
        ({"trained_by": "master"}, False),
        ({"lr_rise": 1.5}, False),
        ({"lr_rise": 1.11}, False),
        ({"lr_rise": 1.09}, True),
        ({"lr_share": 0.001}, False),
        ({"num_still": 300}, False),
        ({"num_still": 499}, False),
        ({"num_still": 500}, True),
        ({"num_lossy": 300}, False),
        ({"num_lossy": 499}, False),
        ({"num_lossy": 500}, True),
        ({"gradient_ratio": 1e-4}, False),
        ({"gradient": "unknown"}, False),
    ],
)
def test_updates_that_are_lost(fields: dict, is_fault: bool) -> None:
    found = kinds(tensor("x", **{**LOSSY, **fields}))
    assert found == ({"rounding": ("x",)} if is_fault else {})


def test_those_that_lose_most_come_first() -> None:
    some, most = tensor("some", **LOSSY), tensor("most", **{**LOSSY, "num_still": 990})
    assert kinds(some, most) == {"rounding": ("most", "some")}


@pytest.mark.parametrize(
    ("fields", "is_fault"),
    [
        ({"num_to_decay": 40, "num_not_decayed": 40}, True),
        ({"num_to_decay": 40, "num_not_decayed": 10}, False),
        ({"num_to_decay": 40, "num_not_decayed": 19}, False),
        ({"num_to_decay": 40, "num_not_decayed": 20}, True),
        ({"num_to_decay": 8, "num_not_decayed": 8}, False),
        ({"num_to_decay": 15, "num_not_decayed": 15}, False),
        ({"num_to_decay": 16, "num_not_decayed": 16}, True),
        ({"num_to_decay": 40, "num_not_decayed": 40, "lr": 0.0}, False),
        ({"gradient": "zero", "shrinks_for": 2, "dead_for": 2, "dead_steps": 9}, True),
        ({"gradient": "zero", "shrinks_for": 2, "dead_for": 2, "dead_steps": 8}, True),
        ({"gradient": "zero", "shrinks_for": 2, "dead_for": 2, "dead_steps": 7}, False),
        ({"gradient": "zero", "shrinks_for": 1, "dead_for": 1, "dead_steps": 9}, False),
        ({"gradient": "zero", "shrinks_for": 1, "dead_for": 2, "dead_steps": 9}, False),
    ],
)
def test_decay_that_is_not_applied_or_not_wanted(fields: dict, is_fault: bool) -> None:
    facts = [tensor("x", has_moved=False, **fields), *LIVING, *LIVING]
    found = [(one.kind, "decay shrinks them" in one.reason) for one in judged(facts, 0)]
    shrinks = "num_to_decay" not in fields
    # what decay shrinks is not "not decaying as the optimizer states"
    named = [("no_gradient", True) if shrinks else ("decay", False)]
    if not is_fault and fields.get("dead_for", 0) >= 2 and fields["dead_steps"] >= 8:
        named, is_fault = [("no_gradient", False)], True  # nothing shrinks it yet
    assert found == (named if is_fault else [])
    if shrinks and is_fault:
        (one,) = judged([facts[0].but(name="layers.0.experts.1.weight"), *facts[1:]], 0)
        assert one.kind == "idle"


@pytest.mark.parametrize(
    ("fields", "is_slow"),
    [
        ({"lr": 0.9e-8}, True),
        ({"lr": 1.1e-8}, False),
        ({"lr": 1e-9, "lr_share": 1e-6}, False),  # its own schedule has come down
        ({"lr": 0.0}, False),
        ({"trained_by": "none", "lr": 1e-9, "gradient": "none"}, False),
    ],
)
def test_a_rate_far_below_that_of_the_others_is_told(fields: dict, is_slow: bool) -> None:
    facts = [tensor("x", **{"lr": 1e-3, **fields}), *(one.but(lr=1e-3) for one in LIVING)]
    assert [one.kind for one in judged(facts, 0)] == (["slow"] if is_slow else [])


@pytest.mark.parametrize(
    ("fields", "is_slow"),
    [
        ({"update": 0.9e-6}, True),
        ({"update": 1.1e-6}, False),
        ({"update": 0.9e-6, "past_updates": (1e-7, 1.1e-6)}, False),  # it has moved before
        ({"update": 0.9e-6, "past_updates": (1e-7,)}, False),
        ({"update": 0.9e-6, "num_dims": 1}, False),  # such as biases of keys
        ({"update": 0.9e-6, "sized_by": "lr"}, False),
        ({"update": 0.9e-6, "began_at_zero": True}, False),
        ({"update": 0.9e-6, "gradient": "zero"}, False),
    ],
)
def test_a_matrix_that_hardly_moves_beside_the_others_is_told(fields: dict, is_slow: bool) -> None:
    by_gradient = {"sized_by": "gradient", **REACHED, "past_updates": (0.01, 0.01)}
    usual = [one.but(**by_gradient) for one in LIVING]
    own = {"past_updates": (1e-7, 1e-7), "num_gradients": 1000, "gradient": "some"}
    fields = {"sized_by": "gradient", **own, **fields}
    if len(fields["past_updates"]) == 1:
        usual = [one.but(past_updates=(0.01,)) for one in usual]
    found = [one.kind for one in judged([tensor("x", **fields), *usual], 0)]
    assert found == (["slow"] if is_slow else [])


@pytest.mark.parametrize(("step", "is_told"), [(31, False), (32, True)])
def test_what_no_gradient_has_reached_is_told_once_after_32_steps(step: int, is_told: bool) -> None:
    def at(number: int) -> Record:
        finding = Finding(kind="no_gradient", num=1, tensors=("x",), since_step=max(number - 8, 0))
        vital = Vital(num_tensors=3, num_sampled=3, findings=(finding,))
        return replace(record(number, 0), vital=vital)

    records, events = [at(8), at(16), at(step), at(64), at(400)], []
    for place, one in enumerate(records):
        events += VitalReviewer().events(one, records[:place], events)
    assert [e.detected_step for e in events] == [step if is_told else 64]
    assert events[0].onset_low == records[0].step  # it never was: it began with the watch
    assert VitalReviewer(patience=0).events(records[0], [], [])


def test_what_is_not_finite_is_named_by_its_share() -> None:
    few, all_of_it = tensor("few", num_not_finite=1), tensor("all", num_not_finite=1000)
    assert kinds(few, all_of_it) == {"not_finite": ("all", "few")}


@pytest.mark.parametrize(
    ("fields", "is_fault"),
    [
        ({}, True),
        ({"num_still": 980}, False),
        ({"num_still": 500}, False),
        ({"num_still": 499}, True),
        ({"num": 31}, False),  # a few weights may swing between neighbouring numbers
        ({"num": 32}, True),
        ({"back_at": -1}, False),
    ],
)
def test_weights_that_come_back(fields: dict, is_fault: bool) -> None:
    found = kinds(tensor("x", **{"back_at": 3, **fields}))
    assert found == ({"returned": ("x",)} if is_fault else {})


CALM = [one.but(past_updates=(0.01, 0.012, 0.011)) for one in LIVING]


@pytest.mark.parametrize(
    ("fields", "is_fault"),
    [
        ({}, True),
        ({"update": 0.29}, False),
        ({"update": 0.31}, True),
        ({"num_far": 500}, False),
        ({"num_far": 501}, True),
        ({"past_updates": (0.01, 0.13, 0.01)}, False),
        ({"past_updates": (0.01, 0.11, 0.01)}, True),
        ({"past_updates": (0.01, 0.01)}, False),
        ({"past_updates": (0.0, 0.01, 0.01)}, False),
        ({"began_at_zero": True}, False),  # of a bias the size says nothing
        ({"num": 7}, False),
        ({"num": 8}, True),
    ],
)
def test_a_tensor_that_changes_far_more_than_ever(fields: dict, is_fault: bool) -> None:
    usual = {"update": 1.2, "past_updates": (0.01, 0.01, 0.01), "num_far": 900}
    one = tensor("x", **usual | fields)
    found = {f.kind: f.tensors for f in judged([one, *CALM], 0)}
    assert found == ({"blew_up": ("x",)} if is_fault else {})


def test_how_far_a_tensor_went_is_said_beside_its_size_and_its_past() -> None:
    far = {"update": 1.2, "rms": 0.4, "past_updates": (0.02, 0.05, 0.01), "num_far": 900}
    (found,) = judged([tensor("x", **far), *CALM], 0)
    assert found.reason == "3 of its size in one interval, 24 times its most ever"


def test_a_model_that_blows_up_as_a_whole_is_told() -> None:
    (found,) = judged([one.but(update=1.0, num_far=900) for one in CALM], 0)
    assert (found.kind, found.num) == ("blew_up", 4)


BEYOND = {
    "update": 1.4, "from_start": 0.2, "reach": 0.1, "num_beyond": 900, "is_within": False,
    "was_within": True, "has_past": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "is_fault"),
    [
        ({}, True),
        ({"trained_by": "master"}, True),
        ({"trained_by": "none"}, False),
        ({"is_within": True}, False),
        ({"was_within": False}, False),  # it is written to in every interval
        ({"update": 0.19}, False),  # back on its way: an average, an earlier state
        ({"update": 0.21}, True),
        ({"update": 0.29, "has_past": True}, False),  # its way before the watch is not known
        ({"update": 0.31, "has_past": True}, True),
        ({"back_at": 3}, False),
        ({"num": 7}, False),
        ({"num": 8}, True),
    ],
)
def test_weights_beyond_the_reach_of_their_optimizer(fields: dict, is_fault: bool) -> None:
    found = kinds(tensor("x", **{**BEYOND, **fields}))
    found.pop("returned", None)
    assert found == ({"overwritten": ("x",)} if is_fault else {})


def test_what_is_overwritten_has_not_blown_up() -> None:
    one = tensor("x", **{**BEYOND, "past_updates": (0.01, 0.01, 0.01)})
    (found,) = judged([one, *CALM], 0)
    assert found.kind == "overwritten"
    assert found.reason.startswith("20 % of the model's weights; in one interval they moved 14 ")


ENDED = {"gradient": "none", "dead_for": 1, "dead_steps": 4, "alive_steps": 4, "has_moved": True}


@pytest.mark.parametrize(
    ("fields", "is_fault"),
    [
        ({}, True),
        ({"gradient": "zero"}, True),
        ({"trained_by": "master"}, True),
        ({"trained_by": "frozen"}, False),
        ({"lr": 0.0}, False),
        ({"dead_for": 0}, False),
        ({"dead_steps": 3}, False),
        ({"alive_steps": 3}, False),
        ({"absence": 1}, False),  # it was away before, and came back
        ({"is_relieved": True}, False),  # something else has begun: they are trained in turn
        ({"name": "layers.0.experts.1.weight"}, False),
    ],
)
def test_a_gradient_that_ends(fields: dict, is_fault: bool) -> None:
    one = tensor(**{"name": "x", **ENDED, **fields})
    assert kinds(one) == ({"untrained": (one.name,)} if is_fault else {})


def test_how_long_is_long_is_said_by_what_comes_back() -> None:
    back = tensor("back", absence=2)
    assert kinds(back, tensor("x", **ENDED | {"dead_steps": 19})) == {}
    assert kinds(back, tensor("x", **ENDED | {"dead_steps": 20})) == {"untrained": ("x",)}


def test_where_all_gradients_end_names_excuse_nothing() -> None:
    ends = [tensor(name, **ENDED) for name in ("layers.0.weight", "head.weight")]
    (found,) = judged(ends, 0)
    assert found.num == 2
    assert found.reason == "a gradient reached them, and for 4 steps none has"


@pytest.mark.parametrize(
    ("fields", "kind", "since"),
    [
        ({**ENDED, "dead_for": 3, "dead_steps": 12, "well_at": 10}, "untrained", 10),
        ({**STILL, **REACHED, "trained_by": "none", "well_at": 0}, "untrained", 0),
        ({**DEAD, "gradient": "zero", "shrinks_for": 2, "well_at": 20}, "no_gradient", 20),
        ({"num_not_finite": 1, "well_at": 10}, "not_finite", 30),  # it came in the last interval
    ],
)
def test_what_is_told_once_it_has_lasted_began_before(fields: dict, kind: str, since: int) -> None:
    found = {one.kind: one for one in judged([tensor("x", **fields), *LIVING], 30)}
    assert found[kind].since_step == since
    vital = Vital(num_tensors=5, num_sampled=5, findings=(found[kind],))
    (event,) = VitalReviewer(patience=0).events(replace(record(40, 0), vital=vital), [], [])
    assert (event.onset_low, event.onset_high) == (since, 40)


# ------------------------------------------------------------------ events


def record(step: int, num: int) -> Record:
    """One that found so many tensors untrained."""
    finding = Finding(
        kind="untrained", num=num, tensors=("a", "b"), reason="r", since_step=step - 5
    )
    found = Vital(num_tensors=9, num_sampled=9, findings=(finding,) if num else ())
    return replace(fake_run.look(step)[0], vital=found)


def test_a_finding_is_an_event_once_and_again_when_it_doubles() -> None:
    numbers = [0, 3, 3, 5, 6, 0, 6, 0, 0, 0, 6]
    records = [record(5 * i, num) for i, num in enumerate(numbers)]
    told: list[Event] = []
    steps = []
    for i, one in enumerate(records):
        new = VitalReviewer().events(one, records[:i], told)
        steps += [(event.detected_step // 5, event.value) for event in new]
        told += new
    assert steps == [(1, 3.0), (4, 6.0), (10, 6.0)]
    first = told[0]
    assert (first.kind, first.series, first.direction) == ("untrained", "vital/untrained", "")
    assert (first.layers, first.reason, first.onset_low) == (("a", "b"), "r", 0)


def test_a_record_that_did_not_look_says_nothing() -> None:
    assert VitalReviewer().events(replace(record(5, 3), vital=None), [], []) == []


@pytest.mark.parametrize(
    ("rate", "since", "not_judged"),
    [
        ({}, 0, ()),
        ({"lr": 0.0}, 0, _BY_STEPS),
        ({"lr_share": 0.001}, 0, _BY_STEPS),
        ({"trained_by": "unknown"}, 0, _BY_STEPS),
        ({"lr": 0.0}, -1, ()),  # the first snapshot
    ],
)
def test_what_only_steps_tell_is_not_over_when_the_rate_ends(
    rate: dict[str, Any], since: int, not_judged: tuple[str, ...]
) -> None:
    facts = stacked([tensor(f"{i}.weight", **rate) for i in range(4)])
    found = judged_reading(VitalReading(facts=facts, since_step=since), None)
    assert found.not_judged == not_judged
    assert [kind for kind in (*_BY_STEPS, "returned") if kind not in found.counts] == [*not_judged]
