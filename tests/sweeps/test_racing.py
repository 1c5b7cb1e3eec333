"""Most levels on a few examples, and still the estimate of the full grid on all of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from contracts.thread_ranks import ThreadRanks, on_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sparsitywatch as sw
from sparsitywatch.analysis.estimate import essential_sparsity
from sparsitywatch.errors import ConfigurationError, MeasurementError
from sparsitywatch.evaluation.masked import MaskedModel, SweepResult, run_sweep
from sparsitywatch.patterns.pattern import GlobalMagnitude
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.records import EssentialSparsity, SparsityCurve
from sparsitywatch.records.codec import from_json, to_json
from sparsitywatch.sweeps import (
    Bisection,
    Grid,
    PairedDifferences,
    Point,
    Racing,
    Sweep,
    largest_step,
    shares_of,
)
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

DENSE, ALLOWED = 2.0, 0.02
GRID = [i / 100 for i in range(101)]
Harm = Callable[[float], float]


class Examples:
    """A made-up model: harm by level, in units of what is allowed, and how examples differ.

    What an example loses changes slowly from level to level: ``spread`` times the root of the harm,
    for the mean of all of them.
    """

    def __init__(
        self, harm: Harm, spread: float = 0.0, num: int = 256, seed: int = 0, step: float = 0.0
    ) -> None:
        rng = np.random.default_rng(seed)
        self.num, self.passes = num, 1.0
        knots = rng.standard_normal((21, num))
        self._knots = (knots - knots.mean(axis=1, keepdims=True)) / knots.std(axis=1)[:, None]
        self._harm, self._spread = harm, spread * math.sqrt(num)
        self._order = rng.permutation(num)
        self.losses = PairedDifferences(num, ALLOWED)
        self.shares = (*shares_of(num, 8, step / ALLOWED), 1.0)
        self.seen: dict[float, float] = {}
        self.evaluate(0.0, self.shares[0])
        self.evaluate(1.0, 1.0)

    def lost(self, level: float) -> np.ndarray:
        left = min(int(20 * level), 19)
        share, mean = 20 * level - left, self._harm(level)
        noise = (1 - share) * self._knots[left] + share * self._knots[left + 1]
        return ALLOWED * (mean + self._spread * math.sqrt(abs(mean)) * noise)

    def evaluate(self, level: float, least: float) -> None:
        share = next(s for s in self.shares if s >= least - 1e-9)
        seen = self.seen.get(level, 0.0)
        assert share > seen
        start, stop = (math.ceil(s * self.num - 1e-9) for s in (seen, share))
        drawn = self._order[start:stop] if seen or share < 1 else slice(None)
        self.losses.add(level, self.lost(level)[drawn])
        self.passes += share - seen
        self.seen[level] = share

    def curve(self) -> SparsityCurve:
        levels, means = zip(*sorted(self.losses.means.items()), strict=True)
        return SparsityCurve(
            levels, [DENSE + mean.value for mean in means], [mean.stderr for mean in means],
            higher_is_better=False, num_examples=self.num,
            num_seen=[mean.num_seen for mean in means],
        )  # fmt: skip

    def estimate(self) -> EssentialSparsity:
        return essential_sparsity(self.curve())

    def full(self) -> EssentialSparsity:
        values = [self.lost(level) for level in GRID]
        return essential_sparsity(
            SparsityCurve(
                GRID, [DENSE + v.mean() for v in values],
                [v.std(ddof=1) / math.sqrt(self.num) for v in values],
                higher_is_better=False, num_examples=self.num,
            )
        )  # fmt: skip


def raced(examples: Examples, sweep: Sweep | None = None) -> Examples:
    sweep = sweep or Racing()
    while step := sweep.next_step(examples.losses.points(), examples.shares):
        examples.evaluate(*step)
    return examples


def power(crossing: float, exponent: float = 8.0) -> Harm:
    return lambda level: (level / crossing) ** exponent


def with_dip(harm: Harm, middle: float) -> Harm:
    return lambda level: harm(level) + 2.0 * math.exp(-(((level - middle) / 0.05) ** 2))


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(st.floats(0.05, 0.97), st.floats(1.0, 20.0))
def test_harm_that_rises_gives_the_estimate_of_the_full_grid(
    crossing: float, exponent: float
) -> None:
    examples = raced(Examples(power(crossing, exponent), 0.02))
    found, full = examples.estimate(), examples.full()
    assert found.informative == full.informative
    if full.informative:
        assert found.value == pytest.approx(full.value, abs=0.01)
    assert examples.passes < 11


@pytest.mark.part(2)
@pytest.mark.slow
@pytest.mark.parametrize("crossing", [0.25, 0.45, 0.62, 0.8])
def test_with_errors_it_is_within_the_resolution_nearly_always(crossing: float) -> None:
    runs = [raced(Examples(power(crossing), 0.2, seed=seed)) for seed in range(36)]
    errors = [abs(run.estimate().value - run.full().value) for run in runs]
    assert np.mean(np.array(errors) <= 0.01) >= 0.9
    assert np.median(errors) <= 0.003
    assert np.mean([run.passes for run in runs]) <= 8.5
    bisection = Examples(power(crossing), 0.2)
    bisection.shares = (1.0,)
    raced(bisection, Bisection(Racing().levels))
    assert bisection.passes >= 14


@pytest.mark.part(2)
@pytest.mark.slow
@pytest.mark.parametrize("crossing", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("spread", [0.05, 0.15, 0.4])
def test_the_interval_is_that_of_the_full_grid(crossing: float, spread: float) -> None:
    widths = []
    for seed in range(12):
        run = raced(Examples(power(crossing, 6.0), spread, seed=seed))
        found, full = run.estimate(), run.full()
        assert found.informative == full.informative
        if not found.informative:
            continue
        widths.append((found.high - found.low, full.high - full.low))
        assert found.low == pytest.approx(full.low, abs=1.5 * (full.high - full.low))
        assert found.high == pytest.approx(full.high, abs=0.5 * (full.high - full.low))
    assert len(widths) >= 10
    narrow, wide = np.mean(widths, axis=0)
    assert 0.7 * wide <= narrow <= 1.5 * wide


@pytest.mark.parametrize("middle", [0.13, 0.2, 0.275, 0.41])
def test_a_bump_far_below_is_no_crossing_of_the_best_rising_curve(middle: float) -> None:
    for seed in range(2):
        run = raced(Examples(with_dip(power(0.8), middle), 0.1, seed=seed, num=512))
        assert run.estimate().value == pytest.approx(run.full().value, abs=0.0101)
        assert run.full().value > 0.75
        assert "the first crossing of the curve itself" in run.full().reason


def test_where_nothing_is_crossed_nothing_is_looked_for() -> None:
    run = raced(Examples(lambda level: 0.5 * level, 0.05))
    assert [*run.seen] == [0.0, 1.0]
    assert run.passes == 2.0 + run.shares[0]


def test_where_the_tolerance_is_below_the_noise_no_interval_is_looked_for() -> None:
    quiet, noisy = (raced(Examples(power(0.6), spread)) for spread in (0.3, 3.0))
    assert quiet.estimate().informative
    assert "below the noise" in noisy.estimate().reason
    assert noisy.passes < quiet.passes - 1.0


@pytest.mark.parametrize("breaks", [0.535, 0.6])
def test_a_model_that_breaks_down_is_beyond_any_tolerance(breaks: float) -> None:
    run = raced(Examples(lambda level: math.inf if level > breaks else 0.1 * level))
    assert run.estimate().value == pytest.approx(breaks, abs=0.0301)


def test_the_risk_says_which_interval_is_bounded() -> None:
    """A lower risk is a wider interval: levels on all examples are farther from the crossing."""
    highest = {}
    for risk in (0.5, 0.001):
        run = raced(Examples(power(0.6), 0.3, num=1024), Racing(risk=risk))
        highest[risk] = max(x for x, share in run.seen.items() if share == 1.0 and x < 1.0)
    assert highest[0.001] > highest[0.5] + 0.05
    assert sw.Settings(confidence=0.99).effective_sweep.risk == pytest.approx(0.01)


def test_answers_that_are_right_or_wrong_are_asked_of_many_or_bisected() -> None:
    step = 1.0
    small = Examples(power(0.6), 0.1, num=128, step=step)
    assert small.shares == (1.0,)
    asked = set(raced(small).seen)
    again = Examples(power(0.6), 0.1, num=128, step=step)
    raced(again, Bisection(Racing().levels))
    assert asked == set(again.seen)


@pytest.mark.parametrize("resolution", [0.01, 0.05, 0.12])
def test_where_examples_are_few_a_race_is_a_bisection_half_as_fine(resolution: float) -> None:
    for crossing in (0.31, 0.6, 0.87):
        raced(race := Examples(power(crossing), num=32), Racing(resolution=resolution))
        raced(
            other := Examples(power(crossing), num=32), Bisection(Racing().levels, 2 * resolution)
        )
        assert race.shares == (1.0,)
        assert race.seen == other.seen
    for num in (32, 999):
        given = (num, Racing(resolution=resolution), Bisection(Racing().levels, 2 * resolution))
        expected = [sweep.expected(num, divided=False) for sweep in given[1:]]
        assert expected[0] == expected[1]


def test_where_nothing_is_tolerated_only_harm_is_beyond_it() -> None:
    """A dense value of 0 with a relative tolerance: a gain is none."""
    costs = PairedDifferences(4, 0.0)
    for level, lost in ((0.2, 0.0), (0.4, -0.5), (0.6, 0.5), (0.8, math.nan)):
        costs.add(level, np.full(4, lost))
    assert [point.harm for point in costs.points()] == [0.0, 0.0, math.inf, math.inf]


NUMBERS = st.sampled_from([0.0, 0.0, 1.0, -1.0, 0.9, 1e-9, 1e9, -1e9, math.inf, math.nan])


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(st.data(), st.sampled_from([Racing(), Racing(resolution=0.25), Bisection((0.3, 0.6))]))
def test_whatever_a_level_costs_a_sweep_comes_to_an_end(data: st.DataObject, sweep: Sweep) -> None:
    shares = data.draw(st.sampled_from([(1.0,), (0.1, 0.2, 1.0)]))

    def point(level: float, share: float) -> Point:
        harm, stderr, error = (data.draw(NUMBERS) for _ in range(3))
        return Point(level, harm, abs(stderr), 0.0 if share == 1.0 else abs(error), 7, share)

    points = {0.0: point(0.0, shares[0]), 1.0: point(1.0, 1.0)}
    while step := sweep.next_step([points[level] for level in sorted(points)], shares):
        level, share = step
        assert 0.0 < level < 1.0
        assert share > points[level].share if level in points else share > 0.0
        points[level] = point(level, share)
    assert len(points) < 130


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.lists(NUMBERS, min_size=16, max_size=16), min_size=3, max_size=3),
    st.sampled_from([3, 8, 15]), st.sampled_from([0.0, 1e-9, 1.0]),
)  # fmt: skip
def test_whatever_examples_lose_a_part_of_them_is_in_doubt(rows, num, tolerated) -> None:
    differences = PairedDifferences(16, tolerated)
    lost = np.array(rows)
    for level, row, seen in ((1.0, lost[0], 16), (0.6, lost[1], 16), (0.5, lost[2], num)):
        differences.add(level, row[:seen])
    for point in differences.points():
        assert point.harm == math.inf or math.isfinite(point.harm)
        assert point.stderr >= point.sampling_error >= 0.0
    mean = differences.means[0.5]
    if np.isfinite(lost[2][:num]).all() and tolerated:
        assert mean.stderr >= mean.sampling_error > 0.0


# ------------------------------------------------------------------ one step, by hand


def straight(levels: list[float], stderr: float = 1e-6) -> list[Point]:
    """Harm that rises straight and crosses at 0.5, all examples seen."""
    ends = [Point(0.0, 0.0), Point(1.0, 11.0, stderr)]
    return [ends[0], *(Point(x, 1 + 20 * (x - 0.5), stderr) for x in levels), ends[1]]


def step_of(points: list[Point]) -> tuple[float, float] | None:
    seen = [Point(x, 0.0, 9.0, 9.0, 7, 0.1) for x in Racing().levels]
    known = {point.level for point in points}
    every = sorted([*points, *(point for point in seen if point.level not in known)])
    return Racing().next_step(every, (0.1, 1.0))


def test_levels_at_the_crossing_are_three_resolutions_apart_at_most() -> None:
    assert step_of(straight([0.48, 0.51])) is None
    level, share = step_of(straight([0.48, 0.52]))
    assert 0.48 < level < 0.52
    assert share == 1.0


@pytest.mark.parametrize(
    ("side", "width", "is_near"),
    [(-1, 2.9, True), (-1, 3.1, False), (1, 0.9, True), (1, 1.1, False)],
)
def test_levels_at_the_lower_end_are_three_intervals_apart_and_one_at_the_upper(
    side: int, width: float, *, is_near: bool
) -> None:
    """The interval of 90 % is 0.45 to 0.55: so is an error of half of what is tolerated."""
    near, other = 0.5 + side * 0.01, 0.5 - side * 0.01
    levels = sorted([near, other, near + side * 0.1 * width, 0.5 - side * 0.1])
    error = 0.5 / 1.644854
    points = [
        point._replace(harm=1 + 10 * (point.level - 0.5), stderr=error)
        for point in straight(levels)
    ]
    points[0], points[-1] = Point(0.0, 0.0), Point(1.0, 6.0, error)
    assert (step_of(points) is None) == is_near


def test_a_level_between_two_keeps_a_fifth_of_their_distance_from_both() -> None:
    """All that is known says that the crossing is just above 0.2, or just below 0.7."""
    steep = [
        Point(0.0, 0.0),
        Point(0.2, 0.99, 1e-6),
        Point(0.7, 50.0, 1e-6),
        Point(1.0, 60.0, 1e-6),
    ]
    assert Racing(levels=(0.2,)).next_step(steep, (0.1, 1.0)) == (0.3, 1.0)
    late = [
        Point(0.0, 0.0),
        Point(0.2, -50.0, 1e-6),
        Point(0.7, 1.01, 1e-6),
        Point(1.0, 60.0, 1e-6),
    ]
    assert Racing(levels=(0.2,)).next_step(late, (0.1, 1.0)) == (0.6, 1.0)


@pytest.mark.slow
def test_a_race_takes_about_as_many_levels_on_all_examples_as_are_expected() -> None:
    found = []
    for crossing in (0.3, 0.45, 0.62, 0.8):
        for seed in range(12):
            run = raced(Examples(power(crossing, 5.0), 0.2, seed=seed))
            found.append(sum(share == 1.0 for share in run.seen.values()) - 1)
    assert Racing().expected(256, divided=True)[1] == pytest.approx(np.mean(found), abs=0.75)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("resolution", 0.0), ("resolution", 0.3), ("risk", 0.0), ("risk", 1.0), ("risk", "0.1"),
     ("examples", 7), ("examples", 8.5), ("levels", ()), ("levels", (1.0,))],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(argument: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"`{argument}"):
        Racing(**{argument: value})


# ------------------------------------------------------------------ on a model


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 2))


def batches(sizes: tuple[int, ...] = (40, 40, 16)) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    target = net()
    found = []
    for size in sizes:
        x = torch.randn(size, 6, generator=generator)
        noise = 0.3 * torch.randn(size, 2, generator=generator)
        found.append([x, target(x).detach() + noise])
    return found


def error(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().mean(dim=1)


def swept(
    sweep: Sweep,
    value=error,
    proxy: Proxy | None = None,
    model: nn.Module | None = None,
    allowed: float | None = None,
) -> SweepResult:
    model = model or net()
    scope = Scope.of(model)
    with torch.no_grad():
        return run_sweep(
            MaskedModel(model, scope),
            proxy or Proxy(batches(), value),
            MagnitudeSpectrum.of(Snapshot.of(model, scope, 0).tensors),
            pattern=GlobalMagnitude(),
            sweep=sweep,
            allowed=lambda dense: 0.05 * dense if allowed is None else allowed,
        )


def test_levels_that_saw_all_examples_are_those_of_a_grid() -> None:
    result = swept(Racing())
    curve = result.curve
    whole = [i for i, seen in enumerate(curve.num_seen) if seen == 96 and 0 < curve.level[i] < 1]
    assert whole
    assert min(curve.num_seen) == 8
    grid = swept(Grid([curve.level[i] for i in whole])).curve
    for index, level in enumerate(grid.level[1:-1], 1):
        i = curve.level.index(level)
        assert curve.value[i] == pytest.approx(grid.value[index], rel=1e-6)
        assert curve.stderr[i] == pytest.approx(grid.stderr[index], rel=1e-4)
        assert curve.sparsity[i] == grid.sparsity[index]
    assert curve.value[0] == grid.value[0]
    assert curve.stderr[0] == 0.0
    assert 1 + sum(curve.num_seen) / 96 < 14  # bisection: 16
    assert from_json(SparsityCurve, to_json(curve)) == curve


def test_a_small_proxy_is_bisected_as_ever() -> None:
    small = Proxy(batches((8, 6)), error)
    by_racing, by_bisection = (
        swept(Racing(), proxy=small),
        swept(Bisection(Racing().levels), proxy=small),
    )
    assert by_racing == by_bisection
    assert by_racing.curve.num_seen is None


def test_a_value_that_depends_on_the_rest_of_its_batch_is_never_divided(caplog) -> None:
    def contrast(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        out = model(batch[0])
        return (
            torch.logsumexp(-torch.cdist(out, batch[1]), dim=1) + torch.cdist(out, batch[1]).diag()
        )

    proxy = Proxy(batches(), contrast)
    result = swept(Racing(), proxy=proxy)
    assert "depends on the others in its batch" in caplog.text
    assert result.curve == swept(Bisection(Racing().levels), contrast).curve
    caplog.clear()
    swept(Racing(), proxy=proxy)
    assert not caplog.text  # it is remembered


def test_kernels_that_round_by_the_batch_are_compared_in_the_same_batches() -> None:
    """As in bfloat16: level 0 is still the dense model bit for bit, and pairs are true pairs."""

    def rounding(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return error(model, batch) + 0.0005 * (len(batch[0]) % 7)

    curve = swept(Racing(), rounding).curve
    exact = swept(Racing()).curve
    assert curve.value[0] - exact.value[0] == pytest.approx(
        0.0005 * (2 * 5 * 40 + 2 * 16) / 96, rel=1e-3
    )
    # a part's own differences: none of the shift by the batch is in them
    alike = [
        (a - b, seen)
        for level, a, seen in zip(curve.level, curve.value, curve.num_seen, strict=True)
        for other, b, seen_there in zip(exact.level, exact.value, exact.num_seen, strict=True)
        if level == other and seen == seen_there == 8
    ]
    assert len(alike) > 3
    assert np.median([abs(shift - alike[0][0]) for shift, _ in alike]) < 1e-6


def shifted(shift: float):
    """A value that is off by this much in batches as small as the smallest part."""

    def value(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return error(model, batch).double() + shift * (len(batch[0]) == 8)

    return value


@pytest.mark.parametrize(("share", "is_divided"), [(0.09, True), (0.11, False)])
def test_a_tenth_of_the_spread_is_what_others_in_the_batch_may_move(
    share: float, *, is_divided: bool
) -> None:
    spread = float(Proxy(batches(), error).evaluate(net()).std())
    result = swept(Racing(), shifted(share * spread), allowed=1e-3)
    assert (result.curve.num_seen is not None) == is_divided


@pytest.mark.parametrize(("allowed", "is_divided"), [(1.1, True), (0.9, False)])
def test_what_is_tolerated_may_be_moved_in_any_case(allowed: float, *, is_divided: bool) -> None:
    spread = float(Proxy(batches(), error).evaluate(net()).std())
    result = swept(Racing(), shifted(0.5 * spread), allowed=allowed * 0.5 * spread)
    assert (result.curve.num_seen is not None) == is_divided


@pytest.mark.parametrize(("share", "num_seen"), [(0.9e-3, 96), (1.1e-3, 8 + 96)])
def test_parts_are_put_together_where_the_batch_moves_a_thousandth_of_what_is_tolerated(
    share: float, num_seen: int
) -> None:
    """Else all examples are evaluated anew."""

    class Twice(Sweep):
        examples = 8

        def next_step(self, points, shares):
            known = {point.level: point.share for point in points}
            return next(((0.5, s) for s in (shares[0], 1.0) if known.get(0.5, 0.0) < s), None)

    def value(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        every.append(len(batch[0]))
        return shifted(share * 0.02)(model, batch)

    every: list[int] = []
    swept(Twice(), value, allowed=0.02)
    # dense, and on the smallest part; level 0 there, level 1 on all; whatever parts need of dense
    assert sum(every) == 96 + 8 + 8 + 96 + num_seen


def test_a_value_that_nobody_can_repeat_is_caught_on_a_part_too() -> None:
    own = torch.Generator()

    def noisy(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return error(model, batch) + 0.01 * torch.rand(len(batch[0]), generator=own)

    with pytest.raises(MeasurementError, match="level 0 to equal the dense model bit for bit"):
        swept(Racing(), noisy)


def test_without_room_for_a_batch_it_begins_again_with_halves() -> None:
    def hungry(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        if len(batch[0]) > 20:
            raise torch.OutOfMemoryError("no room")
        return error(model, batch)

    curve, roomy = swept(Racing(), hungry).curve, swept(Racing()).curve
    assert curve.level == roomy.level
    assert curve.num_seen == roomy.num_seen
    assert np.allclose(curve.value, roomy.value, rtol=1e-6)


def test_ranks_choose_the_same_levels_and_parts_as_one_process() -> None:
    alone = swept(Racing()).curve
    # made before: threads share the random generator
    models, proxies = [net(), net()], [Proxy(batches(), error) for _ in range(2)]

    def on_rank(ranks: ThreadRanks) -> SparsityCurve:
        model = models[ranks.rank]
        proxy = proxies[ranks.rank].shared(ranks)
        return swept(Racing(), proxy=proxy, model=model).curve

    for curve in on_ranks(2, on_rank):
        assert curve == alone


def test_a_control_is_evaluated_on_the_same_parts() -> None:
    record = sw.measure(
        net(), Proxy(batches(), error), scope="layers", controls=("random",), tolerance=0.05
    )
    control = record.controls["random"]
    assert record.curve.num_seen is not None
    assert control.level == record.curve.level
    assert control.num_seen == record.curve.num_seen


def test_largest_step_of_what_a_model_answers() -> None:
    assert largest_step(np.array([0.0, 1.0] * 20)) == 1.0
