"""What may be said of differences: one rule for words, for all comparisons of a command at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sparsitywatch.errors import expect, expect_number, expect_whole, listed
from sparsitywatch.records.curve import rounded_up, t_quantile, units
from sparsitywatch.records.difference import Difference, Spread
from sparsitywatch.redact import printable

Word = Literal["differs", "equal", "cannot tell"]


@dataclass(frozen=True)
class Comparison:
    """Two things that a number was measured of.

    Args:
        first, second: what they are called.
        difference: the first minus the second, paired.
        learned: how much better the dense model is than always giving the largest class, where
            the number is an accuracy. Of a model that is no better nothing is concluded.
    """

    first: str
    second: str
    difference: Difference
    learned: Difference | None = None

    def __repr__(self) -> str:
        first, second = printable(self.first), printable(self.second)
        return f"<Comparison of {first:.60} and {second:.60}: {self.difference}>"


@dataclass(frozen=True)
class Conclusion:
    """What may be said of a comparison; ``str`` of it is a sentence.

    Args:
        comparison: which.
        word: "differs", "equal" (the whole interval lies within what counts as none), or
            "cannot tell".
        words: the same for a reader, with why nobody can tell, or what it would take.
        interval: what the word was decided by: wider than nominal beside other comparisons.
        needed: how many seeds or examples it would take to tell, by what they are, if difference
            and spread stay what they are; empty where these tell, or more would not help.
        unit, digits: of the numbers in the sentence.
    """

    comparison: Comparison
    word: Word
    words: str
    interval: tuple[float, float]
    needed: Mapping[str, int] = field(default_factory=dict)
    unit: str = "points"
    digits: int = 1

    def __repr__(self) -> str:
        return f"<Conclusion: {printable(str(self)):.180}>"

    def __str__(self) -> str:
        one = self.comparison
        numbers = (one.difference.mean, *self.interval)
        mean, low, high = (f"{number:+.{self.digits}f}" for number in numbers)
        return f"{one.first} − {one.second}: {mean} [{low}, {high}] {self.unit}: {self.words}"


def verdicts(
    comparisons: Sequence[Comparison],
    *,
    within: float = 1.0,
    unit: str = "points",
    confidence: float = 0.9,
) -> list[Conclusion]:
    """What may be said of each of some comparisons: that it differs, that it is equal, or neither.

    All comparisons that are made together are given together, since the more there are, the more
    differ by chance. *Differs*: the interval excludes 0; the confidence of each is Holm's, so that
    among all that do not differ one is said to with a probability of at most 1 - ``confidence``.
    *Equal*: the whole interval, of that confidence, lies within ± ``within``. Else nobody *can
    tell*, and it says how many seeds or examples it would take. A spread of exactly 0 proves
    nothing.

    Args:
        comparisons: all those of one command, page or paper.
        within: how much counts as none, in the unit of the numbers.
        unit: of the numbers, for words.
        confidence: of all together, in (0, 1).

    Returns:
        A conclusion for each, in their order.

    Raises:
        ConfigurationError: an argument cannot be used.

    Reference: Holm 1979, Scand. J. Stat. 6:65; equivalence by an interval: Schuirmann 1987,
    J. Pharmacokinet. Biopharm. 15:657.

    >>> far, near = Difference.of(40.0, 0.6, num=3000), Difference.of(0.0, 1.0, num=3000)
    >>> for one in verdicts([Comparison("a", "b", far), Comparison("a", "c", near)]):
    ...     print(one)
    a − b: +40.0 [+38.8, +41.2] points: they differ, a is higher
    a − c: +0.0 [-1.6, +1.6] points: cannot tell, it would take about 8,200 examples
    """
    given = listed("comparisons", comparisons, "a list of sw.Comparison")
    for index, one in enumerate(given):
        expect(isinstance(one, Comparison), f"comparisons[{index}]", "a sw.Comparison", one)
    expect_number("within", within, lambda x: 0.0 < x < math.inf, "finite and positive")
    expect_number("confidence", confidence, lambda x: 0.0 < x < 1.0, "in (0, 1)")
    why_not = [_why_not(one, confidence) for one in given]
    p_values = [
        math.nan if reason else one.difference.p_value
        for one, reason in zip(given, why_not, strict=True)
    ]
    tested = _holm(p_values, 1.0 - confidence)
    digits = max(0, 1 - math.floor(math.log10(within)))
    return [
        Conclusion(one, *_said(one, reason, within, *how), unit, digits)
        for one, reason, how in zip(given, why_not, tested, strict=True)
    ]


#: Each look is at half as many seeds again: what each takes of the risk would else be too little.
_GROWTH = 1.5


def until_told(
    draw: Callable[[int], Sequence[Comparison]],
    limit: int,
    *,
    start: int = 3,
    within: float = 1.0,
    unit: str = "points",
    confidence: float = 0.9,
) -> list[Conclusion]:
    """Draw seeds until every comparison is told, or ``limit`` is reached.

    It looks at ``start`` seeds, then at half as many again each time, at last at ``limit``. The
    risk of a false word, 1 - ``confidence``, is shared evenly between all looks that may come
    (union bound), and by ``verdicts`` between the comparisons of a look. So it holds for all words
    of all looks together, however early the drawing ends. A comparison that was told keeps its
    word, interval and numbers.

    Args:
        draw: gives the comparisons of the first so many seeds, the same ones in the same order
            each time. It keeps what it has measured.
        limit: how many seeds at most.
        start: how many at first, 2 or more.
        within, unit, confidence: as of ``verdicts``.

    Returns:
        A conclusion for each comparison, in their order.

    Raises:
        ConfigurationError: an argument cannot be used, or other comparisons come.

    >>> drawn = lambda num: [Comparison("a", "b", Difference.of(9.0, 5 / num, num, "seed"))]
    >>> print(*until_told(drawn, limit=12))
    a − b: +9.0 [+5.5, +12.5] points: they differ, a is higher
    """
    expect_whole("start", start, 2)
    expect_whole("limit", limit, start)
    expect_number("confidence", confidence, lambda x: 0.0 < x < 1.0, "in (0, 1)")
    looks = [start]
    while looks[-1] < limit:
        looks.append(min(limit, math.ceil(_GROWTH * looks[-1])))
    each, told = 1.0 - (1.0 - confidence) / len(looks), list[Conclusion]()
    for num in looks:
        new = verdicts(draw(num), within=within, unit=unit, confidence=each)
        names = [
            [(one.comparison.first, one.comparison.second) for one in of] for of in (told, new)
        ]
        expect(names[0] in ([], names[1]), f"draw({num})", "the comparisons of before", names[1])
        both = zip(told or new, new, strict=True)
        told = [now if before.word == "cannot tell" else before for before, now in both]
        if all(one.word != "cannot tell" for one in told):
            break
    return told


def _holm(p_values: Sequence[float], risk: float) -> list[tuple[float, bool]]:
    """The risk that each is tested at, and whether it is rejected; NaN never is, but counts."""
    left, rejected = len(p_values), dict[int, float]()
    known = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    for p, tied in itertools.groupby(known, key=lambda pair: pair[0]):
        if p > risk / left:
            break  # nor is any that is less sure
        rejected |= dict.fromkeys([index for _, index in tied], risk / left)
        left = len(p_values) - len(rejected)
    others = risk / max(left, 1)
    return [(rejected.get(i, others), i in rejected) for i in range(len(p_values))]


def _said(
    one: Comparison, reason: str, within: float, risk: float, differs: bool
) -> tuple[Word, str, tuple[float, float], Mapping[str, int]]:
    """The word, words, the interval and what it would take."""
    low, high = interval = one.difference.interval(1.0 - risk)
    if differs:
        higher = one.first if one.difference.mean > 0.0 else one.second
        return "differs", f"they differ, {higher} is higher", interval, {}
    if not reason and -within <= low and high <= within:
        return "equal", f"equal within {within:g}", interval, {}
    needed = {} if reason else _needed(one.difference, within, risk)
    takes = " and ".join(f"{num:,} {units(what)}" for what, num in needed.items())
    reason = reason or f"it would take about {takes or 'many more'}"
    return "cannot tell", f"cannot tell, {reason}", interval, needed


def _why_not(one: Comparison, confidence: float) -> str:
    """Why nothing can be said whatever the interval is; empty where something can."""
    if one.learned is not None and not one.learned.interval(confidence)[0] > 0.0:
        return f"the dense model is no better than the largest class ({one.learned})"
    if not one.difference.spreads:
        return "one number has no error: it takes several seeds or the value of each example"
    if not math.isfinite(one.difference.mean + one.difference.stderr):
        return "a value is not finite"
    alike = [spread.unit for spread in one.difference.spreads if spread.stderr == 0.0]
    return f"{units(alike[0])} that agree to the last digit prove nothing" if alike else ""


def _needed(difference: Difference, within: float, risk: float) -> dict[str, int]:
    """How many would decide: of what spreads most, or of everything where that is not enough."""
    size, spreads = abs(difference.mean), difference.spreads
    largest = max(spreads, key=lambda spread: spread.stderr)
    for grown in ({largest}, {*spreads}):
        fixed = sum(one.stderr**2 for one in spreads if one not in grown)
        freedom, ratio = None, 1.0
        for _ in range(20):  # with more of them Student's t comes nearer to the normal
            wanted = max(size, within - size) / t_quantile(1.0 - risk / 2, freedom)
            if wanted**2 <= fixed or largest.num is None:
                break
            ratio = max(1.0, (difference.stderr**2 - fixed) / (wanted**2 - fixed))
            more = (_grown(one, ratio) if one in grown else one for one in spreads)
            freedom = Difference(difference.mean, tuple(more)).degrees_of_freedom
        else:
            known = [one for one in spreads if one in grown and one.num is not None]
            return {one.unit: rounded_up(_grown(one, ratio).num or 0) for one in known}
    return {}


def _grown(spread: Spread, ratio: float) -> Spread:
    """The same with so many times as many, and one more at least."""
    if spread.num is None:
        return spread
    num = max(spread.num + 1, math.ceil(ratio * spread.num))
    return spread._replace(num=num, stderr=spread.stderr * math.sqrt(spread.num / num))
