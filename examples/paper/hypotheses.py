"""What the paper claims of each figure, as a hypothesis, and what the runs here say of it.

    python examples/paper/hypotheses.py

prints a word for each claim, by one rule, from what the commands have kept:

| word | of a difference that the paper has, or has not | of something that happens in runs |
|---|---|---|
| agrees | every comparison that bears on it says so | a run shows it |
| against it | one says the opposite | none of so many shows it that chance is excluded |
| not seen | | none shows it, and so few do not exclude it |
| cannot tell | no comparison says the opposite, and not all say so | |
| not done | there is none here | there is none here |
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from common import table
from emergence import turns
from kept import FOLDER, kept

import sparsitywatch as sw
from sparsitywatch.records.difference import Spread

Told = Literal["agrees", "against it", "not seen", "cannot tell", "not done"]
Said = list[tuple[str, sw.Conclusion]]
#: How often something may happen of which no run says that it does not, at this confidence.
MOST, CONFIDENCE = 0.25, 0.95


@dataclass(frozen=True)
class Hypothesis:
    """A claim of the paper.

    Args:
        figure: of the paper, as the table has it.
        claim: in a few words.
        says: "larger": the first one of each comparison is; "equal": they are, within a point;
            "exists": it happens.
        bears: what bears on it: of each command the comparisons whose text, "about: first -
            second", a pattern matches. For "exists" the runs of that name which may show it.
    """

    figure: str
    claim: str
    says: Literal["larger", "equal", "exists"] = "larger"
    bears: Sequence[tuple[str, str]] = ()


HYPOTHESES = (
    Hypothesis("1", "more of the small weights are feed-forward", "larger",
               [("layers/report", r"raw: ")]),
    Hypothesis("2, 4", "30 and 50 % go at no loss", "equal",
               [("finetuned_curve/report", r"dense - OMP")]),
    Hypothesis("3", "images: 30 to 50 % go at no loss", "equal"),
    Hypothesis("4 (size, family)", "decoders bear less"),
    Hypothesis("5", "N:M loses no more up to a half, after training", "equal",
               [("patterns/report", r"fine-tuned: at 0\.(12|25|38|50): global - (keep|magn)")]),
    Hypothesis("6", "self-supervised models bear more than supervised ones"),
    Hypothesis("7", "self-supervised weights are smaller than supervised ones"),
    Hypothesis("8 (i)", "an abrupt turn to sparse, with GELU and BERT's own decay", "exists",
               [("emergence", r"gelu-0\.01-")]),
    Hypothesis("8 (ii, iii)", "more text makes a sparser model, and a better one", "larger",
               [("data_volume/report", r"near zero at the end|essential"),
                ("data_volume/finetuned", r"dense: ")]),
    Hypothesis("9", "tickets and one-shot masks are as good below a half", "equal",
               [("lottery_ticket/report", r"below a half")]),
    Hypothesis("10", "masks have a cosine above 0.96 at 0.4", "larger",
               [("mask_similarity/report", r"at 0\.40")]),
    Hypothesis("11", "SparseGPT loses less than magnitude", "larger",
               [("decoder/report", r"magnitude - SparseGPT"),
                ("smollm2/report", r"magnitude - SparseGPT")]),
)  # fmt: skip

# ------------------------------------------------------------------ what was kept


def said_by(report: Mapping[str, Any]) -> Said:
    """The conclusions of a command, by the rule as it is now, each with what it is about."""

    def difference(found: Mapping[str, Any]) -> sw.Difference:
        return sw.Difference(found["mean"], tuple(Spread(*spread) for spread in found["spreads"]))

    pairs = [
        sw.Comparison(
            one["first"], one["second"], difference(one["difference"]),
            difference(one["learned"]) if one["learned"] else None,
        )
        for one in report["comparisons"]
    ]  # fmt: skip
    about = [one["about"] for one in report["comparisons"]]
    return [*zip(about, sw.verdicts(pairs, unit=report["unit"]), strict=True)]


def cosines(report: Mapping[str, Any]) -> Said:
    """Those of the masks against the paper's bound, in hundredths, paired by seed."""
    at = [row[0] for row in report["rows"]].index("0.40")
    own = [[100.0 * of_seed[at]] for of_seed in report["cosines"]]
    pair = sw.Comparison("cosine", "0.96", sw.Difference.paired(own, [[96.0]] * len(own)))
    return [("at 0.40", sw.verdicts([pair], unit="hundredths")[0])]


def bearing(hypothesis: Hypothesis) -> list[sw.Conclusion]:
    """The conclusions that bear on a claim, each of all comparisons of its command."""
    found = []
    for place, pattern in hypothesis.bears:
        command, _, file = place.partition("/")
        report = kept(FOLDER / command)[file]
        said = cosines(report) if "cosines" in report else said_by(report)
        for about, one in said:
            text = f"{about}: {one.comparison.first} - {one.comparison.second}"
            found += [one] if re.search(pattern, text) else []
    return found


def shown(hypothesis: Hypothesis) -> list[bool]:
    """Of each run that may show it, whether it turns abruptly to sparse at some threshold."""
    return [
        bool(turns(run, "up"))
        for command, pattern in hypothesis.bears
        for name, run in kept(FOLDER / command).items()
        if re.match(pattern, name)
    ]


# ------------------------------------------------------------------ the rule


def word(hypothesis: Hypothesis) -> tuple[Told, str]:
    """What the runs say of a claim, and by how many."""
    if hypothesis.says == "exists":
        return of_runs(shown(hypothesis))
    return of_comparisons(hypothesis.says, bearing(hypothesis))


def of_comparisons(says: str, found: Sequence[sw.Conclusion]) -> tuple[Told, str]:
    """The word of comparisons that bear on a claim of "larger" or "equal"."""
    marks = [_mark(says, one) for one in found]
    if not marks:
        return "not done", ""
    counts = f"{marks.count(1)} of {len(marks)} say so"
    if marks.count(-1):
        return "against it", f"{counts}, {marks.count(-1)} the opposite"
    return ("agrees" if all(marks) else "cannot tell"), counts


def _mark(says: str, one: sw.Conclusion, within: float = 1.0) -> int:
    """1 for the claim, -1 against it, 0 where nobody can tell."""
    if one.word == "cannot tell":
        return 0
    if says == "larger":
        return 1 if one.word == "differs" and one.comparison.difference.mean > 0.0 else -1
    return 1 if -within <= one.interval[0] and one.interval[1] <= within else -1


def of_runs(found: Sequence[bool]) -> tuple[Told, str]:
    """The word of runs each of which may show what a claim says is there."""
    if not found:
        return "not done", ""
    if any(found):
        return "agrees", f"{sum(found)} of {len(found)} runs"
    most = 1.0 - (1.0 - CONFIDENCE) ** (1.0 / len(found))
    counts = f"0 of {len(found)} runs, which exclude a chance above {most:.0%}"
    return ("against it" if most <= MOST else "not seen"), counts


def cell(figure: str) -> str:
    """The last column of the table of docs/reports/paper.md."""
    (one,) = (one for one in HYPOTHESES if one.figure == figure)
    told, counts = word(one)
    return f"{one.claim}: **{told}**" + (f" ({counts})" if counts else "")


def rows() -> Iterator[list[str]]:
    """Figure, claim, word, and by how many."""
    for one in HYPOTHESES:
        yield [one.figure, one.claim, *word(one)]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the words; returns the exit status."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args(argv)
    print(table(["figure", "claim", "word", "by"], [*rows()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
