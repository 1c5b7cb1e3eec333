"""One rule for words: Holm by an oracle, errors of families with known truth, and what it takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from contracts.families import some_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import sparsitywatch as sw
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records.curve import t_quantile, t_tail
from sparsitywatch.records.difference import Spread


def compared(mean: float, stderr: float, num: int | None = 3000, unit: str = "example") -> object:
    return sw.Comparison("a", "b", sw.Difference.of(mean, stderr, num, unit))


def words(comparisons: Sequence[sw.Comparison], **options: float) -> list[str]:
    return [one.word for one in sw.verdicts(comparisons, **options)]


# ------------------------------------------------------------------ the two of issue 30


def test_forty_points_differ_whatever_their_error_is() -> None:
    (found,) = sw.verdicts([compared(40.0, 1.0 / 1.645)])
    assert (found.word, found.needed) == ("differs", {})
    assert str(found) == "a − b: +40.0 [+39.0, +41.0] points: they differ, a is higher"


def test_a_wide_interval_about_zero_is_no_equality() -> None:
    (found,) = sw.verdicts([compared(0.0, 1.7 / 1.645)])
    assert found.word == "cannot tell"
    assert found.needed == {"example": 8700}  # 3000 x 1.7 squared, and to two digits
    assert str(found).endswith(
        "[-1.7, +1.7] points: cannot tell, it would take about 8,700 examples"
    )


@pytest.mark.parametrize(
    ("mean", "stderr", "within", "word"),
    [
        (0.2, 0.4, 1.0, "equal"), (0.4, 0.4, 1.0, "cannot tell"), (-0.2, 0.4, 1.0, "equal"),
        (0.004, 0.01, 0.02, "cannot tell"), (0.002, 0.01, 0.02, "equal"),
        (0.3, 0.1, 1.0, "differs"),  # by less than a point
    ],
)  # fmt: skip
def test_equal_is_the_whole_interval_within_what_counts_as_none(
    mean: float, stderr: float, within: float, word: str
) -> None:
    assert words([compared(mean, stderr)], within=within) == [word]


# ------------------------------------------------------------------ what ends a conclusion


def test_seeds_that_agree_prove_nothing() -> None:
    (found,) = sw.verdicts([compared(40.0, 0.0, 3, "seed")])
    assert found.words == "cannot tell, seeds that agree to the last digit prove nothing"
    same = sw.Difference.paired([[5.0], [5.0], [5.0]], [[0.0], [0.0], [0.0]])
    assert words([sw.Comparison("a", "b", same)]) == ["cannot tell"]


def test_a_dense_model_that_has_learned_nothing_ends_it() -> None:
    nothing, something = sw.Difference.of(0.5, 0.4, 900), sw.Difference.of(20.0, 0.4, 900)
    one = compared(40.0, 0.6)
    first, second = sw.verdicts([replace(one, learned=nothing), replace(one, learned=something)])
    assert first.words == (
        "cannot tell, the dense model is no better than the largest class (+0.5 [-0.2, +1.2])"
    )
    assert second.word == "differs"


def test_what_has_no_error_or_no_value_is_not_judged() -> None:
    alone = sw.Comparison("a", "b", sw.Difference.paired([[3.0]], [[1.0]]))
    broken = sw.Comparison("a", "b", sw.Difference.paired([[math.nan], [1.0]], [[1.0], [1.0]]))
    first, second = sw.verdicts([alone, broken])
    assert "one number has no error" in first.words
    assert "a value is not finite" in second.words
    assert sw.verdicts([]) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"comparisons": 3}, "`comparisons`"),
        ({"comparisons": [3]}, r"`comparisons\[0\]`"),
        ({"within": 0.0}, "`within`"),
        ({"confidence": 90}, "`confidence`"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(wrong: dict, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        sw.verdicts(**({"comparisons": []} | wrong))
    with pytest.raises(ConfigurationError, match="`stderr`"):
        sw.Difference.of(1.0, -1.0)
    with pytest.raises(ConfigurationError, match="`num`"):
        sw.Difference.of(1.0, 1.0, 1)


# ------------------------------------------------------------------ Holm

FAMILIES = st.lists(
    st.tuples(st.floats(-8, 8), st.floats(0.05, 3), st.sampled_from([2, 3, 9, 400, 20_000])),
    min_size=1, max_size=7,
)  # fmt: skip


def holm(p_values: Sequence[float], risk: float) -> list[bool]:
    """Step by step, as in the paper of 1979."""
    rejected = [False] * len(p_values)
    for k, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] > risk / (len(p_values) - k):
            break
        rejected[index] = True
    return rejected


@given(FAMILIES)
def test_what_differs_is_what_holm_rejects(family: list[tuple[float, float, int]]) -> None:
    p_values = [2 * stats.t.sf(abs(m) / s, n - 1) for m, s, n in family]
    if min(abs(p * k - 0.1) for p in p_values for k in range(1, 8)) < 1e-6:
        return  # on the limit rounding decides
    found = words([compared(*one) for one in family])
    assert [word == "differs" for word in found] == holm(p_values, 0.1)


@given(FAMILIES, st.randoms())
def test_neither_order_nor_direction_matters(family: list, random: object) -> None:
    comparisons = [compared(*one) for one in family]
    found = sw.verdicts(comparisons)
    turned = [
        sw.Comparison("b", "a", replace(one.difference, mean=-one.difference.mean))
        for one in comparisons
    ]
    for one, other in zip(found, sw.verdicts(turned), strict=True):
        assert (one.word, one.needed) == (other.word, other.needed)
        assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))
    order = [*range(len(family))]
    random.shuffle(order)
    mixed = sw.verdicts([comparisons[i] for i in order])
    assert [found[i] for i in order] == mixed


@given(FAMILIES, st.floats(1.0, 4.0), st.data())
def test_surer_numbers_never_unsay_a_difference(family: list, times: float, data: object) -> None:
    index = data.draw(st.integers(0, len(family) - 1))
    before = words([compared(*one) for one in family])
    mean, stderr, num = family[index]
    for surer in ((mean * times, stderr, num), (mean, stderr / times, num)):
        after = words([compared(*one) for one in [*family[:index], surer, *family[index + 1 :]]])
        differing = [i for i, word in enumerate(before) if word == "differs"]
        assert all(after[i] == "differs" for i in differing)
        if before[index] == "equal" and surer[0] == mean:
            assert after[index] != "cannot tell"


@given(st.floats(-8, 8), st.floats(0.05, 3), st.sampled_from([2, 3, 9, 400]))
def test_one_more_comparison_never_makes_surer(mean: float, stderr: float, num: int) -> None:
    alone = sw.verdicts([compared(mean, stderr, num)])[0]
    beside = sw.verdicts([compared(mean, stderr, num), compared(0.0, 1.0)])[0]
    assert alone.interval[0] >= beside.interval[0]
    assert beside.word == "cannot tell" or alone.word != "cannot tell"
    assert alone.word == "differs" or beside.word != "differs"


# ------------------------------------------------------------------ known truth


def simulated(
    truths: Sequence[float], num_seeds: int, num: int, random: np.random.Generator
) -> list[sw.Comparison]:
    """Paired values: seeds off by 0.6, examples by 20, and noise of each."""
    found = []
    for truth in truths:
        seeds = 0.6 * random.normal(size=(num_seeds, 1)) if num_seeds > 1 else 0.0
        drops = seeds + 20.0 * random.normal(size=(1, num)) if num > 1 else seeds + np.zeros((1, 1))
        drops = truth + drops + (5.0 * random.normal(size=(num_seeds, num)) if num > 1 else 0.0)
        base = random.normal(size=drops.shape)
        found.append(sw.Comparison("a", "b", sw.Difference.paired(base + drops, base)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "truths",
    some_of([[0.0, 0.0, 3.0, 9.0, 1.0, -1.0], [0.0] * 6, [1.0, -1.0, 1.0, -1.0]], 3),
)
@pytest.mark.parametrize(
    ("num_seeds", "num"), [(1, 400), (3, 1), (8, 1), (3, 300)],
    ids=["examples", "three seeds", "eight seeds", "three seeds and examples"],
)  # fmt: skip
def test_a_family_errs_as_rarely_as_it_says(truths: list, num_seeds: int, num: int) -> None:
    """Wrong is: what is equal differs, and what is a point off is equal within one."""
    random, wrong, times = np.random.default_rng(7), 0, 400
    for _ in range(times):
        found = words(simulated(truths, num_seeds, num, random))
        wrong += any(
            word == ("differs" if truth == 0.0 else "equal" if abs(truth) >= 1.0 else "")
            for word, truth in zip(found, truths, strict=True)
        )
    assert wrong / times <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / times)


# ------------------------------------------------------------------ what it would take


@settings(max_examples=60)
@given(
    st.floats(-3, 3), st.floats(0.3, 4), st.floats(0.0, 4), st.sampled_from([3, 5, 20]),
    st.sampled_from([0, 50, 3000]),
)  # fmt: skip
def test_so_many_would_tell_and_half_as_many_would_not(
    mean: float, of_seeds: float, of_examples: float, num_seeds: int, num: int
) -> None:
    spreads = [Spread(of_seeds, num_seeds, "seed")]
    spreads += [Spread(of_examples, num, "example")] if num and of_examples > 0.01 else []
    given_ = sw.Difference(mean, tuple(spreads))
    (found,) = sw.verdicts([sw.Comparison("a", "b", given_)])
    if found.word != "cannot tell":
        assert found.needed == {}
        return
    assert found.needed
    for share, tells in ((1.1, True), (0.5, False)):
        grown = []
        for one in spreads:
            number = one.num
            if one.unit in found.needed:
                number = max(2, math.ceil(share * found.needed[one.unit]))
            grown.append(Spread(one.stderr * math.sqrt(one.num / number), number, one.unit))
        if not tells and any(b.num <= a.num for a, b in zip(spreads, grown, strict=True)
                             if a.unit in found.needed):  # fmt: skip
            continue
        (again,) = sw.verdicts([sw.Comparison("a", "b", sw.Difference(mean, tuple(grown)))])
        assert (again.word != "cannot tell") is tells


# ------------------------------------------------------------------ differences


@pytest.mark.parametrize("freedom", [1, 2, 3, 10, 99, 100, 5000, 20_000, None])
@pytest.mark.parametrize("t", [0.0, 0.5, 1.645, 3.0, 8.0])
def test_tails_are_those_of_scipy(t: float, freedom: int | None) -> None:
    expected = stats.norm.sf(t) if freedom is None else stats.t.sf(t, freedom)
    assert t_tail(t, freedom) == pytest.approx(expected, rel=2e-3, abs=1e-12)


def test_the_interval_of_a_difference_covers() -> None:
    """Seeds and examples both vary: nominal 90 %, and it errs to the wide side."""
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        seeds, examples = 0.02 * random.normal(size=(3, 1)), 0.3 * random.normal(size=(1, 100))
        noise = 0.1 * random.normal(size=(3, 100))
        low, high = sw.Difference.paired(0.05 + seeds + examples + noise, np.zeros(100)).interval()
        covered += low <= 0.05 <= high
    assert 0.88 <= covered / 300 <= 1.0


def test_examples_of_one_group_count_together() -> None:
    """Ten examples a file, all alike: the error is that of the files, by numpy."""
    of_file = np.random.default_rng(3).normal(size=(2, 40))
    drops, groups = np.repeat(of_file, 10, axis=1), np.repeat(np.arange(40), 10)
    found = sw.Difference.paired(drops, 0 * drops, [f"file {i}" for i in groups])
    files = of_file.mean(0).std(ddof=1) / 40**0.5
    seeds = of_file.mean(1).std(ddof=1) / 2**0.5
    assert found.stderr == pytest.approx(np.hypot(files, seeds))
    assert found.mean == pytest.approx(of_file.mean())
    assert [(one.unit, one.num) for one in found.spreads] == [("seed", 2), ("group", 40)]
    alone = sw.Difference.paired(drops, 0 * drops)
    assert alone.stderr == sw.Difference.paired(drops, 0 * drops, range(400)).stderr
    assert alone.stderr < found.stderr
    with pytest.raises(ConfigurationError, match="`groups` to be one for each of 400 examples"):
        sw.Difference.paired(drops, drops, [1, 2])


def test_degrees_of_freedom_are_satterthwaites() -> None:
    both = sw.Difference(1.0, (Spread(0.3, 3, "seed"), Spread(0.4, 50, "example")))
    expected = 0.25**2 / (0.3**4 / 2 + 0.4**4 / 49)
    assert both.degrees_of_freedom == math.floor(expected)
    assert both.stderr == pytest.approx(0.5)
    width = stats.t.ppf(0.95, math.floor(expected)) * 0.5
    assert both.interval() == pytest.approx((1.0 - width, 1.0 + width))
    assert sw.Difference.of(1.0, 0.5).degrees_of_freedom is None
    assert t_quantile(0.95, None) == pytest.approx(1.644854)


def test_values_of_one_seed_are_of_examples_and_one_of_each_seed_of_seeds() -> None:
    values = np.random.default_rng(0).normal(size=30)
    examples = sw.Difference.paired(values, np.zeros(30))
    seeds = sw.Difference.paired(values[:, None], np.zeros((30, 1)))
    paired = stats.ttest_1samp(values, 0.0)
    for found, unit in ((examples, "example"), (seeds, "seed")):
        assert [one.unit for one in found.spreads] == [unit]
        assert found.p_value == pytest.approx(paired.pvalue)
        expected = paired.confidence_interval(0.9)
        assert found.interval(0.9) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("drop", "most"), [(0.0, 0.9), (0.2, 0.2)])
def test_three_that_agree_are_off_as_much_as_others_may_be(drop: float, most: float) -> None:
    """Of three that are equal up to 63 % of the others may differ, 1 - 0.05^(1/3)."""
    found = sw.Difference.paired([[0.9]] * 3, [[0.9 - drop]] * 3)
    assert 1.6448536 * found.stderr == pytest.approx((1 - 0.05 ** (1 / 3)) * most)
    for value in itertools.chain(found.interval(), [found.p_value]):
        assert math.isfinite(value)


def test_seeds_whose_means_alone_agree_are_as_far_apart_as_their_examples_make_them() -> None:
    """Each errs on ten examples of its own: the error is that of 30 errors of 3 x 400 by chance."""
    drops = np.zeros((3, 400))
    for seed in range(3):
        drops[seed, 10 * seed : 10 * seed + 10] = 1.0
    (of_seeds, _) = sw.Difference.paired(drops, np.zeros(400)).spreads
    assert of_seeds.stderr == pytest.approx((30 * np.var([1, 0, 0], ddof=1) / 3) ** 0.5 / 400)
    same = sw.Difference.paired(np.tile(drops[:1], (3, 1)), np.zeros(400)).spreads[0]
    assert same.stderr == pytest.approx((1 - 0.05 ** (1 / 3)) * 10 / 400 / 1.6448536)
    rounded = sw.Difference.paired(
        np.tile(drops[:1], (3, 1)) + 1e-13 * np.eye(3, 400), np.zeros(400)
    )
    assert rounded.spreads[0].stderr == pytest.approx(same.stderr)
    alone = sw.Difference.paired([[0.1 + 0.2], [0.3]], [[0.0], [0.0]]).spreads[0]
    assert alone.stderr == pytest.approx(0.3 * (1 - 0.05**0.5) / 1.6448536)


# ------------------------------------------------------------------ until it is told


def seeds_of(values: np.ndarray) -> object:
    """Draws the comparisons of the first seeds, of values [K, S]."""

    def draw(num: int) -> list[sw.Comparison]:
        means, errors = values[:, :num].mean(1), values[:, :num].std(1, ddof=1) / math.sqrt(num)
        drawn = zip(means.tolist(), errors.tolist(), strict=True)
        return [sw.Comparison("a", f"b{k}", sw.Difference.of(*one, num, "seed"))
                for k, one in enumerate(drawn)]  # fmt: skip

    return draw


def is_false(found: Sequence[sw.Conclusion], truth: Sequence[float], within: float) -> bool:
    """Whether a word is wrong: of no difference, or of one that is more than none."""
    return any(
        (one.word == "differs" and mean == 0.0) or (one.word == "equal" and abs(mean) > within)
        for one, mean in zip(found, truth, strict=True)
    )


@pytest.mark.parametrize("truth", [(0.0,) * 4, (0.0, 0.0, 1.05, 6.0)])
def test_the_error_holds_over_all_looks(
    truth: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsitywatch.lab.conclusion._needed", lambda *_: {})  # no word
    values = np.random.default_rng(0).normal(0.0, 2.0, (1000, 4, 12)) + np.array(truth)[:, None]
    false = sum(is_false(sw.until_told(seeds_of(own), 12), truth, 1.0) for own in values)
    # the same words at each look, without a share of the risk for each, would be too many
    naive = sum(
        any(is_false(sw.verdicts(seeds_of(own)(num)), truth, 1.0) for num in (3, 5, 8, 12))
        for own in values[:300]
    )
    assert false <= 100
    assert naive > 30 or any(truth)


def test_what_is_told_keeps_its_word_and_the_drawing_ends() -> None:
    drawn: list[int] = []

    def draw(num: int) -> list[sw.Comparison]:
        drawn.append(num)
        first = compared(9.0 if num == 3 else 0.0, 0.1, num, "seed")  # gone later
        return [first, compared(5.0, 60.0 / num**2, num, "seed")]

    found = sw.until_told(draw, 100)
    assert [one.word for one in found] == ["differs", "differs"]
    assert found[0].comparison.difference.mean == 9.0
    assert drawn == [3, 5, 8]
    never = [compared(0.0, 9.0, 3, "seed")]
    assert [one.word for one in sw.until_told(lambda _: never, 3)] == ["cannot tell"]


def test_each_look_takes_an_even_share_of_the_risk() -> None:
    one = [compared(0.0, 9.0, 3, "seed")]  # looks at 3, 5, 8 and 12
    (found,) = sw.until_told(lambda _: one, 12)
    assert found.interval == one[0].difference.interval(1 - 0.1 / 4)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"limit": 2}, "limit"), ({"limit": 9, "start": 1}, "start"), ({"limit": 3.5}, "limit"),
     ({"limit": 9, "confidence": 1.0}, "confidence")],
)  # fmt: skip
def test_a_drawing_is_refused_at_the_call(options: dict, said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"Expected `{said}`"):
        sw.until_told(lambda _: [compared(0.0, 1.0)], **options)


def test_other_comparisons_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"draw\(5\)"):
        sw.until_told(lambda num: [compared(0.0, 9.0, num, "seed")] * num, 12)
