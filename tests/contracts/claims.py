"""Claims of the manual that are computed: a sentence is a template, its numbers come from series.

An experiment lists its claims, and a test holds a section of the manual to them::

    CLAIMS = [Claim("It fell {fall:.0%}.", lambda runs: {"fall": runs["a"]["loss"][0]})]
    hold(section_of(markdown, "Figure 8"), CLAIMS, kept(FOLDER / "mine"))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Runs = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Claim:
    """A sentence, and what it says by the series: its fields, by their names."""

    text: str
    says: Callable[[Runs], Mapping[str, object]] = lambda _: {}

    def told(self, runs: Runs) -> str:
        return self.text.format(**self.says(runs))


def paper_word(
    says: str, intervals: Sequence[tuple[float, float]], runs: Sequence[bool] = ()
) -> str:
    """The word of a claim of the paper, by the intervals of the differences, or by its runs."""
    if says == "exists":
        silent = "against it" if 0.75 ** len(runs) <= 0.05 else "not seen"
        return "not done" if not runs else "agrees" if any(runs) else silent
    if says == "larger":
        is_so = [low > 0.0 for low, _ in intervals]
        is_not = [high < 0.0 or (-1.0 <= low <= 0.0 and high <= 1.0) for low, high in intervals]
    else:
        is_so = [low >= -1.0 and high <= 1.0 for low, high in intervals]
        is_not = [not so and not low <= 0.0 <= high
                  for so, (low, high) in zip(is_so, intervals, strict=True)]  # fmt: skip
    if any(is_not):
        return "against it"
    return "not done" if not intervals else "agrees" if all(is_so) else "cannot tell"


def section_of(markdown: str, heading: str) -> str:
    """A section of second level, from below its heading to the next one."""
    (found,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", markdown, re.M | re.S)
    return found


def words_of(markdown: str) -> str:
    """Its words: no code, no pictures, no marks of lists, emphasis and quotes, one line."""
    text = re.sub(r"^    .*$|!\[[^]]*\]\([^)]*\)", "", markdown, flags=re.M)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    return " ".join(re.sub(r"^[->*] |^> |\*\*", "", text, flags=re.M).split())


def hold(section: str, claims: Sequence[Claim], runs: Runs) -> None:
    """Every claim stands in the section as it is computed, and nothing else does.

    Args:
        section: Markdown.
        claims: in any order; one that says nothing by the series is what was done, not seen.
        runs: what was kept.
    """
    left = words_of(section)
    for claim in sorted(claims, key=lambda claim: -len(claim.told(runs))):
        told = words_of(claim.told(runs))
        assert told in left, f"The section does not say: {told}"
        left = left.replace(told, "", 1)
    assert not left.split(), f"No claim says: {' '.join(left.split())}"
