"""Essential sparsity and its knee on curves given by hand, and what must leave them unchanged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparsitywatch.analysis.estimate import allowed_harm, essential_sparsity, knee_of
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records import EssentialSparsity, SparsityCurve
from sparsitywatch.records.curve import best_rising, standard_error

NAN, INF = math.nan, math.inf


def of_loss(points: dict[float, float], stderr: float | None = None, **kwargs: Any) -> Any:
    """The estimate for a loss, absolute tolerance 0.1 unless told otherwise."""
    errors = None if stderr is None else [0.0 if s == 0 else stderr for s in points]
    curve = SparsityCurve(list(points), list(points.values()), errors, higher_is_better=False)
    return essential_sparsity(curve, **({"tolerance": 0.1, "mode": "absolute"} | kwargs))


# ------------------------------------------------------------------ curves given by hand
@pytest.mark.parametrize(
    ("points", "value", "last"),
    [
        pytest.param({0: 1, 0.4: 1, 0.6: 1.2, 1: 3}, 0.5, 0.5, id="monotone"),
        pytest.param({0.6: 1.2, 1: 3, 0: 1, 0.4: 1}, 0.5, 0.5, id="unsorted"),
        pytest.param({0: 1, 0.2: 1.4, 1: 3}, 0.05, 0.05, id="before the first level"),
        pytest.param({0: 1, 0.4: 0.8, 0.5: 1.1, 0.6: 1.3, 1: 3}, 0.5, 0.5, id="on a point"),
        pytest.param({0: 1, 0.5: 1, 0.8: 1.3}, 0.6, 0.6, id="crossing, no control at 1"),
        pytest.param({0: 1, 0.2: 1.2, 0.4: 1, 0.6: 1.2, 1: 3}, 0.5, 0.5, id="up by chance"),
        pytest.param({0: 1, 0.2: 1.3, 0.4: 1, 0.6: 1.2, 1: 3}, 0.2 / 3, 0.5, id="up for good"),
        pytest.param({0: 1, 0.2: 1.2, 0.4: 1.1, 0.6: 1.3}, 0.1, 0.4, id="down to the tolerance"),
        pytest.param({0: 1, 0.3: 1, 0.5: NAN, 1: 3}, 0.3, 0.3, id="NaN: the last good one"),
        pytest.param({0: 1, 0.3: 1, 0.5: INF, 1: INF}, 0.3, 0.3, id="inf: the last good one"),
        pytest.param({0: 1, 0.3: 1, 0.5: -INF, 1: 3}, 0.3, 0.3, id="a loss of -inf broke too"),
        pytest.param({0: 1, 0.4: 1.2, 0.8: NAN, 1: 3}, 0.2, 0.2, id="NaN after the crossing"),
        pytest.param({0: 1, 0.2: NAN, 0.4: 1, 1: NAN}, 0.0, 0.4, id="breaks, then does not"),
    ],
)
def test_crossings(points: dict[float, float], value: float, last: float) -> None:
    estimate = of_loss(points)
    assert estimate.informative
    assert estimate.value == pytest.approx(value)
    assert estimate.last_crossing == pytest.approx(last)
    assert ("within the tolerance again at" in estimate.reason) == (value != last)


def test_an_earlier_crossing_of_the_curve_itself_is_a_remark() -> None:
    reason = of_loss({0: 1, 0.2: 1.2, 0.4: 1, 0.6: 1.2, 1: 3}).reason
    assert reason == (
        "the first crossing of the curve itself is at 0.100: within the tolerance again above"
    )
    assert of_loss({0: 1, 0.4: 1, 0.6: 1.2, 1: 3}).reason == ""


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ({0: 1, 0.5: 1.02, 1: 1.05}, "does not rely on these weights yet"),
        ({0: 1, 0.5: 1.5, 1: 1.05}, "does not rely on these weights yet"),
        ({0: 1, 0.5: 1, 0.9: 1.05}, "no point at sparsity 1"),
        ({0: 1, 0.2: 1.2, 0.4: 1.0}, "no point at sparsity 1"),
        ({0: 1}, "no point at sparsity 1"),
        ({0.1: 1, 0.5: 2, 1: 3}, "no point at sparsity 0"),
        ({0: NAN, 0.5: 2, 1: 3}, "dense model is not finite"),
        ({0: -INF, 0.5: 2, 1: 3}, "dense model is not finite"),
    ],
)
def test_a_curve_that_says_nothing(points: dict[float, float], reason: str) -> None:
    estimate = of_loss(points, stderr=0.01)
    assert not estimate.informative
    assert reason in estimate.reason
    numbers = ("value", "last_crossing", "low", "high", "knee", "sharpness")
    assert all(math.isnan(getattr(estimate, name)) for name in numbers)


def test_relative_tolerance_is_the_default_for_losses_and_absolute_for_scores() -> None:
    loss = SparsityCurve([0, 0.5, 1], [4.0, 4.1, 8.0], higher_is_better=False)
    score = SparsityCurve([0, 0.5, 1], [0.9, 0.88, 0.1], higher_is_better=True)
    assert essential_sparsity(loss).value == pytest.approx(0.2)  # 1 % of 4.0 is 0.04 of 0.1
    assert essential_sparsity(loss).mode == "relative"
    assert essential_sparsity(loss, mode="absolute").value == pytest.approx(0.05)
    assert essential_sparsity(score).value == pytest.approx(0.25)
    assert essential_sparsity(score).mode == "absolute"
    assert essential_sparsity(score, mode="relative").value == pytest.approx(0.225)


def test_a_relative_tolerance_of_nothing_says_so() -> None:
    estimate = of_loss({0: 0, 0.5: 0.1, 1: 1}, mode="relative")
    assert not estimate.informative
    assert "mode='absolute'" in estimate.reason


def test_rounding_is_not_harm() -> None:
    """In binary, 0.90 - 0.89 exceeds 0.01; the shelf there is within all the same."""
    curve = SparsityCurve([0, 0.2, 0.6, 1], [0.90, 0.89, 0.89, 0.1], higher_is_better=True)
    assert essential_sparsity(curve, 0.01).value == pytest.approx(0.6, abs=1e-9)


@pytest.mark.parametrize(("beyond", "value"), [(0.5e-12, 0.6), (2e-12, 0.2)])
def test_rounding_is_a_trillionth_of_the_dense_value(beyond: float, value: float) -> None:
    estimate = of_loss({0: 100, 0.2: 100, 0.6: 100.1 + 100 * beyond, 1: 300})
    shelf = {0: 100.0, 0.2: 100.1 + 100 * beyond, 0.6: 100.1 + 100 * beyond, 1: 300.0}
    assert of_loss(shelf).value == pytest.approx(value, abs=1e-3)
    assert estimate.value == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize(("share", "is_said"), [(0.9, True), (1.1, False)])
def test_a_dense_value_is_near_zero_below_a_hundredth_of_the_harm(
    share: float, *, is_said: bool
) -> None:
    dense = share * 0.01 * 4.0
    points = {0: dense, 0.5: dense, 1: dense + 4.0}
    assert ("is near zero" in of_loss(points, tolerance=0.01, mode="relative").reason) == is_said


def test_of_points_at_one_sparsity_the_worst_counts() -> None:
    curve = SparsityCurve([0, 0.5, 0.5, 1], [1, 1.2, 1, 3], higher_is_better=False)
    assert essential_sparsity(curve, 0.1, "absolute").value == pytest.approx(0.25)
    curve = SparsityCurve([0, 0, 0.5, 1], [1.05, 1, 1.2, 3], higher_is_better=False)
    assert essential_sparsity(curve, 0.1, "absolute").value == pytest.approx(1 / 6)


# ------------------------------------------------------------------------- the interval
def test_interval_inverts_the_pointwise_test() -> None:
    """On a straight line the band of 1.645 standard errors is straight as well."""
    line = {s / 10: 1 + s / 10 for s in range(11)}
    errors = [0.02 * s for s in line]
    curve = SparsityCurve(list(line), list(line.values()), errors, higher_is_better=False)
    estimate = essential_sparsity(curve, 0.5, "absolute")
    assert estimate.value == pytest.approx(0.5)
    assert estimate.low == pytest.approx(0.5 / (1 + 0.02 * 1.644854))
    assert estimate.high == pytest.approx(0.5 / (1 - 0.02 * 1.644854))


def test_few_examples_widen_the_interval_as_t_does() -> None:
    """Quantiles of Student's t at 0.95, from the usual tables."""
    for num_examples, quantile in ((6, 2.015), (10, 1.833), (64, 1.669), (1001, 1.646)):
        curve = SparsityCurve(
            [0, 1], [0, 1], [0, 0.1], higher_is_better=False, num_examples=num_examples
        )
        low = essential_sparsity(curve, 0.5, "absolute").low
        assert low == pytest.approx(0.5 / (1 + 0.1 * quantile), abs=1e-4)


def test_interval_covers_both_readings_between_points() -> None:
    """Without noise what is left is the difference between a chord and a smooth curve."""
    estimate = of_loss({s / 10: (s / 10) ** 4 for s in range(11)}, stderr=0.0, tolerance=0.2)
    truth = 0.2**0.25
    assert estimate.low == estimate.value < truth
    assert abs(estimate.high - truth) < 0.1 * (truth - estimate.value)


@pytest.mark.parametrize("stderr", [None, [0, NAN, 0.1], [0, INF, 0.1]])
def test_no_interval_without_standard_errors(stderr: list[float] | None) -> None:
    curve = SparsityCurve([0, 0.5, 1], [1, 1.2, 3], stderr, higher_is_better=False)
    estimate = essential_sparsity(curve, 0.1, "absolute")
    assert estimate.informative
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


def test_no_interval_from_a_handful_of_examples() -> None:
    curve = SparsityCurve([0, 1], [1, 3], [0, 0.1], higher_is_better=False, num_examples=4)
    estimate = essential_sparsity(curve)
    assert math.isnan(estimate.low)
    assert "fewer than 5 examples" in estimate.reason
    five = SparsityCurve([0, 1], [1, 3], [0, 0.001], higher_is_better=False, num_examples=5)
    assert essential_sparsity(five).low < essential_sparsity(five).value


def test_where_the_model_broke_the_interval_reaches_the_break() -> None:
    curve = SparsityCurve([0, 0.3, 0.5], [1, 1, NAN], [0, 0.001, NAN], higher_is_better=False)
    estimate = essential_sparsity(curve)
    assert (estimate.low, estimate.value, estimate.high) == (0.3, 0.3, 0.5)
    assert "not finite at 0.500" in estimate.reason


def noisy(stderr: float, num: int | None = 100) -> EssentialSparsity:
    """Of a curve with a harm of 0.1 at 0.5, which is tolerated, and of 2 at the end."""
    curve = SparsityCurve(
        [0, 0.4, 0.6, 1], [1, 1.05, 1.15, 3], [0, stderr, stderr, stderr],
        higher_is_better=False, num_examples=num,
    )  # fmt: skip
    return essential_sparsity(curve, 0.1, "absolute")


#: The 95 % quantile of Student's t with 99 degrees of freedom, from the usual tables.
T_99 = 1.66039


@pytest.mark.parametrize("share", [0.98, 1.02])
def test_below_the_noise_there_is_no_number(share: float) -> None:
    estimate = noisy(share * 0.1)
    assert estimate.informative == (share < 1)
    if share < 1:
        assert estimate.value == pytest.approx(0.5)
        assert estimate.low < 0.5 < estimate.high
        assert estimate.reason == ""
        assert estimate.examples_needed is None
        return
    assert estimate.reason.startswith(
        "cannot say: the tolerance of 0.1 is below the noise of the evaluation, a standard error of"
    )
    assert all(math.isnan(x) for x in (estimate.value, estimate.low, estimate.high, estimate.knee))
    assert estimate.describe() == "cannot say below about 110 examples"  # 104.04, to two digits
    assert estimate.examples_needed == 110


def test_so_many_examples_are_enough_and_not_many_fewer() -> None:
    """Errors fall with the root of the number; t is nearly the same."""
    spread = 2.0
    needed = noisy(spread / 10).examples_needed
    assert needed is not None
    assert noisy(spread / math.sqrt(1.02 * needed), needed).informative
    assert not noisy(spread / math.sqrt(0.9 * needed), int(0.9 * needed)).informative


def test_where_nobody_knows_of_how_many_examples_it_takes_more() -> None:
    estimate = noisy(0.2, None)
    assert not estimate.informative
    assert "it would take more examples" in estimate.reason
    assert estimate.describe() == "not informative"


@pytest.mark.parametrize("stderr", [1.7, 1.95])
def test_reliance_within_the_noise_is_no_reliance(stderr: float) -> None:
    """Harm of 2 at the end, 1.9 beyond what is tolerated; only the error there is large."""
    curve = SparsityCurve(
        [0, 0.4, 0.6, 1], [1, 1.05, 1.15, 3], [0, 0.01, 0.01, stderr / T_99],
        higher_is_better=False, num_examples=100,
    )  # fmt: skip
    estimate = essential_sparsity(curve, 0.1, "absolute")
    assert estimate.informative == (stderr < 1.9)
    assert ("cannot say: reliance on these weights is within" in estimate.reason) == (stderr > 1.9)


def test_noise_counts_in_the_middle_of_the_interval_too() -> None:
    """It grows with sparsity: whoever crosses early by chance would be told else."""
    points = {0: 1.0, 0.2: 1.11, 0.4: 1.12, 0.6: 1.13, 0.8: 1.14, 1: 3.0}
    stderr = [0.0, 0.05, 0.09, 0.12, 0.15, 0.1]
    curve = SparsityCurve(list(points), list(points.values()), stderr, higher_is_better=False)
    estimate = essential_sparsity(curve, 0.1, "absolute")
    assert not estimate.informative
    assert "below the noise" in estimate.reason


def test_levels_that_saw_a_part_bound_nothing() -> None:
    levels, value = [0, 0.3, 0.4, 0.5, 0.6, 1], [1, 5, 1.05, -3, 1.15, 3]
    stderr, seen = [0, 2.0, 0.01, 2.0, 0.01, 0.01], [100, 10, 100, 10, 100, 100]
    options = {"higher_is_better": False, "num_examples": 100}
    found = essential_sparsity(SparsityCurve(levels, value, stderr, num_seen=seen, **options), 0.1)
    assert found.value == pytest.approx(0.5)
    assert found.low > 0.4
    assert found.high < 0.6
    broken = [1, 5, 1.05, INF, 1.15, 3]  # one example on which it breaks is enough
    found = essential_sparsity(SparsityCurve(levels, broken, stderr, num_seen=seen, **options), 0.1)
    assert (found.value, found.high) == (0.4, 0.5)


def test_the_interval_of_reliance_is_that_of_students_t() -> None:
    curve = SparsityCurve(
        [0, 0.5, 1], [1, 1, 3], [0, 0.1, 0.2], higher_is_better=False, num_examples=100
    )
    half = 0.2 * T_99
    assert curve.reliance_interval() == pytest.approx((2 - half, 2 + half), rel=1e-5)
    score = SparsityCurve([0, 1], [3, 1], [0, 0.2], num_examples=100)
    assert score.reliance_interval() == pytest.approx((2 - half, 2 + half), rel=1e-5)
    assert all(map(math.isnan, SparsityCurve([0, 1], [3, 1]).reliance_interval()))
    one = SparsityCurve([0, 1], [3, 1], [0, NAN], num_examples=1)
    assert all(map(math.isnan, one.reliance_interval()))


#: Harms and doubts with ties, 0, negative ones, and what is not finite.
HARMS = st.sampled_from([0.0, -1.0, 1e-9, 0.1, 0.1, 1.0, 50.0, -1e12, 1e12, INF, -INF, NAN])
DOUBTS = st.sampled_from([0.0, 0.0, 1e-12, 0.05, 3.0, 1e9, INF, NAN])


LEVELS = st.sampled_from([0.0, 0.2, 0.4, 0.5, 0.9, 1.0])


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(LEVELS, HARMS, DOUBTS, st.integers(1, 5)), min_size=1, max_size=9),
    st.sampled_from([None, 1, 2, 4, 5, 300]),
    st.booleans(),
    st.sampled_from(["relative", "absolute"]),
)
def test_any_curve_ends_in_an_estimate_or_a_reason(points, num, is_score, mode) -> None:
    sparsity, value, stderr, seen = zip(*points, strict=True)
    curve = SparsityCurve(
        sparsity, value, stderr, higher_is_better=is_score, num_examples=num,
        num_seen=None if num is None else [min(x, num) for x in seen],
    )  # fmt: skip
    estimate = essential_sparsity(curve, 0.1, mode)
    curve.reliance_interval()
    assert estimate.describe()
    if not estimate.informative:
        assert estimate.reason
        assert math.isnan(estimate.value)
        return
    assert 0 <= estimate.value <= estimate.last_crossing <= 1
    assert math.isnan(estimate.low) or estimate.low <= estimate.value <= estimate.high <= 1


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(1, 4)), min_size=1, max_size=7))
def test_the_best_rising_curve_is_the_one_of_all_that_is_nearest(points) -> None:
    """By the min-max formula: at i the least over ends of the most over begins of the means."""
    values, errors = (np.array(x, float) for x in zip(*points, strict=True))
    weights, num = errors**-2, len(values)
    by_hand = [
        max(
            min(np.average(values[a : b + 1], weights=weights[a : b + 1]) for b in range(i, num))
            for a in range(i + 1)
        )
        for i in range(num)
    ]
    assert best_rising(values, errors, 1.0) == pytest.approx(by_hand)


def test_errors_that_are_far_apart_are_no_division_by_zero() -> None:
    values, errors = np.array([0.0, 3.0, 1.0]), np.array([1.0, 1e300, 1e300])
    assert best_rising(values, errors, 1.0) == pytest.approx([0.0, 2.0, 2.0])


def test_errors_weigh_alike_below_a_hundredth_of_the_unit_and_where_one_is_unknown() -> None:
    values = np.array([1.0, 0.0])
    assert best_rising(values, np.array([0.005, 0.01]), 1.0) == pytest.approx([0.5, 0.5])
    assert best_rising(values, np.array([0.01, 0.02]), 1.0) == pytest.approx([0.8, 0.8])
    assert best_rising(values, np.array([NAN, 0.02]), 1.0) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("num", [2, 3, 30, 1000])
def test_equal_numbers_prove_what_the_exact_binomial_says(num: int) -> None:
    """None of n differs: of the population a share p may with a probability of (1 - p)^n = 5 %."""
    error = standard_error(np.full(num, 0.3), most=2.0, unit=0.01)
    share = 1.6448536 * error / 2.0
    assert (1 - share) ** num == pytest.approx(0.05)
    assert num < 30 or share == pytest.approx(3 / num, rel=0.06)


def test_numbers_that_differ_by_more_than_rounding_have_their_own_error() -> None:
    spread = np.array([0.0, 1.0, 0.0, 1.0])
    own = (1 / 3) ** 0.5 / 2
    assert standard_error(1.1e-6 * spread, 1.0, 0.01) == pytest.approx(1.1e-6 * own)
    assert standard_error(0.9e-6 * spread, 1.0, 0.01) > 0.1
    assert all(math.isnan(standard_error(np.array(x), 1.0, 0.01)) for x in ([1.0], [], [1.0, INF]))


# ----------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("tolerance", x) for x in (0, -0.01, NAN, INF, "1%", None, True, 1.0, 5)),
        *(("mode", x) for x in ("percent", "", 1)),
        *(("confidence", x) for x in (0, 1, 90, NAN, "0.9")),
    ],
)
def test_bad_arguments_are_named(argument: str, value: object) -> None:
    curve = SparsityCurve([0, 1], [1, 2], higher_is_better=False)
    with pytest.raises(ConfigurationError, match=f"Expected `{argument}`"):
        essential_sparsity(curve, **{argument: value})  # type: ignore[arg-type]


def test_absolute_tolerance_may_exceed_one() -> None:
    assert allowed_harm(90.0, 2.0, "absolute") == 2.0
    assert allowed_harm(-90.0, 0.01, "relative") == pytest.approx(0.9)


# --------------------------------------------------------------- what changes nothing
@st.composite
def curves(draw: st.DrawFn) -> dict[float, float]:
    """A loss at 0, at 1 and at up to eight levels between, each a whole percent."""
    levels = draw(st.sets(st.integers(1, 99), min_size=1, max_size=8))
    return {s / 100: draw(st.integers(1, 200)) / 10 for s in sorted({0, 100, *levels})}


def same(a: EssentialSparsity, b: EssentialSparsity, *names: str) -> None:
    assert a.informative == b.informative
    for name in names or ("value", "last_crossing", "low", "high"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-6, nan_ok=True)


@pytest.mark.slow
@settings(deadline=None)
@given(curves(), st.randoms(use_true_random=False))
def test_order_of_the_points(points: dict[float, float], random: Any) -> None:
    shuffled = list(points.items())
    random.shuffle(shuffled)
    assert repr(of_loss(dict(shuffled), 0.05)) == repr(of_loss(points, 0.05))


@settings(deadline=None)
@given(curves(), st.sampled_from([1e-6, 0.37, 1e5]))
def test_scale_of_the_loss_where_relative(points: dict[float, float], scale: float) -> None:
    scaled = {s: scale * loss for s, loss in points.items()}
    same(
        of_loss(points, 0.05, mode="relative", tolerance=0.013),
        of_loss(scaled, 0.05 * scale, mode="relative", tolerance=0.013),
    )


@settings(deadline=None)
@given(curves())
def test_a_loss_and_minus_it_as_a_score(points: dict[float, float]) -> None:
    score = SparsityCurve(list(points), [-x for x in points.values()], higher_is_better=True)
    same(essential_sparsity(score, 0.1, "absolute"), of_loss(points))


@settings(deadline=None)
@given(curves(), st.integers(0, 7), st.floats(0.1, 0.9))
def test_a_point_on_the_straight_line(points: dict[float, float], cell: int, share: float) -> None:
    """Of a curve that only rises, which is its own best one."""
    at = sorted(points)
    points = dict(zip(at, sorted(points.values()), strict=True))
    left, right = at[cell % (len(at) - 1)], at[cell % (len(at) - 1) + 1]
    added = {left + share * (right - left): points[left] + share * (points[right] - points[left])}
    same(of_loss(points), of_loss(points | added), "value", "last_crossing")


@settings(deadline=None)
@given(curves(), st.floats(0, 2))
def test_the_interval_holds_the_value(points: dict[float, float], stderr: float) -> None:
    estimate = of_loss(points, stderr)
    if estimate.informative:
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.value <= estimate.last_crossing <= 1


def test_a_relative_tolerance_of_a_loss_near_zero_names_the_absolute_mode() -> None:
    points = {0: 1e-6, 0.2: 2e-6, 0.5: 0.01, 1: 4.0}
    estimate = of_loss(points, tolerance=0.01, mode="relative")
    assert estimate.informative
    assert estimate.value < 0.01
    assert "the dense value of 1e-06 is near zero beside the harm of up to 4" in estimate.reason
    assert "allows only 1e-08; use mode='absolute'" in estimate.reason
    assert "near zero" not in of_loss(points, tolerance=0.1, mode="absolute").reason
    assert "near zero" not in of_loss({0: 1, 0.5: 1, 1: 4}, tolerance=0.01, mode="relative").reason


GRID = np.linspace(0, 1, 11)


def hinge(knot: float, before: float, after: float) -> np.ndarray:
    return before * np.minimum(GRID, knot) + after * np.maximum(GRID - knot, 0)


@pytest.mark.parametrize("knot", [0.2, 0.45, 0.6, 0.83])
@pytest.mark.parametrize(("before", "after"), [(0.1, 3.0), (1.0, 1.5), (1e-6, 1e-4)])
def test_a_hinge_is_found_exactly(knot: float, before: float, after: float) -> None:
    found, sharpness = knee_of(GRID, hinge(knot, before, after))
    assert found == pytest.approx(knot)
    assert sharpness == pytest.approx(after / before)


@pytest.mark.parametrize("before", [0.0, -0.3])
def test_without_a_rise_before_it_the_knee_is_infinitely_sharp(before: float) -> None:
    found, sharpness = knee_of(GRID, hinge(0.7, before, 2.0))
    assert found == pytest.approx(0.7)
    assert sharpness == math.inf


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(np.zeros(11), id="flat"),
        pytest.param(np.full(11, 19.0), id="flat, not at zero"),
        pytest.param(3 * GRID, id="straight"),
        pytest.param(np.sqrt(GRID), id="levels off"),
        pytest.param(hinge(0.5, -2.0, -1.0), id="only gains"),
        pytest.param(np.where(GRID < 0.35, GRID**2, np.nan), id="four finite points"),
        pytest.param(0.5e-9 * hinge(0.5, 0, 1) - 0.5 * GRID, id="a bend by rounding"),
    ],
)
def test_no_knee(harm: np.ndarray) -> None:
    assert all(math.isnan(x) for x in knee_of(GRID, harm))


def test_five_finite_points_and_a_bend_beyond_rounding_have_a_knee() -> None:
    assert 0.0 < knee_of(GRID, np.where(GRID < 0.45, GRID**2, np.nan))[0] < 0.4
    found, sharpness = knee_of(GRID, 1.0 + 1e-7 * hinge(0.5, 0.0, 1.0))
    assert found == pytest.approx(0.5, abs=0.02)
    assert sharpness > 10


def test_where_harm_levels_off_at_the_end_the_knee_is_where_it_rose() -> None:
    """The overall best bend of this S is the one at 0.8, downward; the knee is at 0.6."""
    harm = np.array([0, 0, 0, 0, 0, 0, 0, 1, 2, 2, 2.0])
    found, _ = knee_of(GRID, harm)
    assert 0.4 < found < 0.7


def test_points_that_broke_are_left_out() -> None:
    harm = hinge(0.5, 0.1, 1.0)
    broken = np.append(harm[:-2], [math.inf, math.nan])
    assert knee_of(GRID, broken) == pytest.approx((0.5, 10.0))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_and_origin_do_not_matter(scale: float) -> None:
    found, sharpness = knee_of(scale * (100 + GRID), scale * hinge(0.45, 0.1, 3.0))
    assert found == pytest.approx(scale * 100.45)
    assert sharpness == pytest.approx(30.0)


def squared_error(x: np.ndarray, y: np.ndarray, knot: float) -> tuple[float, float]:
    """Squared error of the fit with this knot, and its change of slope."""
    design = np.stack([np.ones_like(x), x, np.maximum(x - knot, 0)], axis=1)
    fit = np.linalg.pinv(design) @ y
    return float(np.sum((y - design @ fit) ** 2)), float(fit[2])


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=5, max_size=9))
def test_no_knot_on_a_fine_grid_fits_better(heights: list[int]) -> None:
    y = np.array(heights, dtype=float)
    x = np.linspace(0, 1, len(y)) ** 1.5
    found, _ = knee_of(x, y)
    assume(not math.isnan(found))
    tried = [squared_error(x, y, knot) for knot in np.linspace(x[1], x[-2], 300)]
    upward = [error for error, bend in tried if bend > 1e-6]
    best, bend = squared_error(x, y, found)
    assert bend > 0
    assert best <= min(upward, default=math.inf) + 1e-6
