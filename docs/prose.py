"""Is the manual easy to read? proselint's rules, the length of sentences, how many are passive.

    python docs/prose.py [--show] [PAGE ...]

Without pages it reads README.md and the manual. Left out are reports, and pages that come from
docstrings and tables of the package. A sentence has three words or more and ends in a full stop, a
colon or the like: headings, code and labels are none.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

from proselint import checks
from proselint.config import DEFAULT
from proselint.registry import CheckRegistry
from proselint.registry.checks import Check, types
from proselint.tools import LintFile

ROOT = Path(__file__).resolve().parents[1]
MOST_WORDS, MOST_PASSIVE = 18.0, 0.12
MADE = {"api.md", "tags.md"}
#: Of proselint. Quotes are straight, as in code; cells side by side repeat themselves.
CHECKS = {**DEFAULT["checks"], "typography": False, "lexical_illusions": False}
ADVERBS = (
    r"\w+ly|all|also|always|both|each|ever|longer|never|no|not|now|often|once|only|so|still|then"
)
PARTICIPLES = (
    r"\w+ed|begun|bent|born|bought|bound|broken|brought|built|caught|chosen|cut|done|drawn|driven|eaten"
    "|fed|felt|forgotten|found|frozen|given|hidden|hit|held|kept|known|laid|learnt|led|left|lent|lost"
    "|made|meant|met|overridden|paid|proven|put|read|rewritten|run|said|seen|sent|set|shown|shut|sold"
    "|split|spent|spoken|spread|stolen|struck|sunk|taken|taught|thought|thrown|told|torn|understood"
    "|undone|won|written"
)
#: A rule for proselint: a form of "be", adverbs, a participle.
PASSIVE = Check(
    types.ExistenceSimple(
        r"\b(am|are|is|was|were|be|been|being|get|gets)(n't)?"
        rf"(\s({ADVERBS}))*\s({PARTICIPLES})\b",
        exceptions=(r".*\s(embed|hundred|indeed|need|red|seed|speed)",),
    ),
    path="passive",
    message="'{}' is passive",
)


class Sentence(NamedTuple):
    """One of a page; code in it is one word."""

    line: int
    text: str

    @property
    def num_words(self) -> int:
        """What has a letter or digit in it."""
        return sum(bool(re.search(r"\w", word)) for word in self.text.split())

    @property
    def is_passive(self) -> bool:
        """Whether any of its verbs is."""
        return any(True for _ in PASSIVE.check(self.text))


def prose(markdown: str) -> str:
    """Its words, line by line; ¶ is where a paragraph, an item or a cell of a table ends."""
    lines, is_code = [], False
    for line in markdown.splitlines():
        fence = line.lstrip().startswith("```")
        is_code ^= fence
        if fence or is_code or re.match(r" {4}\S|#|:::|!\[|\|[-: |]+$|<|$", line):
            lines.append("¶")
        elif line.startswith("|"):
            lines.append(re.sub(r"(?<!\\)\|", "¶", line))
        else:
            lines.append(re.sub(r"^ *(?:[-*]|\d+\.) ", "¶ ", line))
    text = re.sub(r"(`+).+?\1", "Code", "\n".join(lines))
    text = re.sub(r"\[([^\[\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"\*+(?=\S)|(?<=\S)\*+", "", text)


def sentences(text: str) -> list[Sentence]:
    """Those of a page's prose."""
    found = []
    for one in re.finditer(r"[^¶]+?(?:(?<!\bal)[.!?][\"')]*(?=\s|¶|$)|:\s*(?=¶))|[^¶]+", text):
        words = " ".join(one[0].split())
        if re.search(r"[.!?:][\"')]*$", words):
            lead = len(one[0]) - len(one[0].lstrip())
            found.append(Sentence(text.count("\n", 0, one.start() + lead) + 1, words))
    return [one for one in found if one.num_words > 2]


def manual() -> list[Path]:
    """README.md and the pages that are written by hand."""
    pages = (page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in MADE)
    return [ROOT / "README.md", *pages]


def mean_words(page: list[Sentence]) -> float:
    """The mean length of a sentence."""
    return sum(one.num_words for one in page) / max(len(page), 1)


def passive_share(page: list[Sentence]) -> float:
    """The share of the sentences."""
    return sum(one.is_passive for one in page) / max(len(page), 1)


def table(found: dict[str, list[Sentence]]) -> list[str]:
    """A line for each page and one for all."""
    rows = {**found, "all": [one for page in found.values() for one in page]}
    return [
        f"{name:16}{len(page):6} sentences  {mean_words(page):5.1f} words  "
        f"{passive_share(page):6.1%} passive"
        for name, page in rows.items()
    ]


def faults(name: str, text: str) -> list[str]:
    """What proselint says of a page's prose."""
    if not CheckRegistry().checks:
        CheckRegistry().register_many(checks.__register__)
    told = LintFile(name, text.replace("¶", " ")).lint({"max_errors": 1000, "checks": CHECKS})
    return [f"{name}:{one.pos[0]}: {one.check_result.message}" for one in told]


def wrong(pages: dict[str, str]) -> list[str]:
    """Everything that is, of the prose of these pages."""
    everything = [one for text in pages.values() for one in sentences(text)]
    found = [fault for name, text in pages.items() for fault in faults(name, text)]
    if (mean := mean_words(everything)) > MOST_WORDS:
        found.append(f"Expected sentences of at most {MOST_WORDS:g} words, got {mean:.1f}.")
    if (share := passive_share(everything)) > MOST_PASSIVE:
        found.append(f"Expected at most {MOST_PASSIVE:.0%} passive sentences, got {share:.1%}.")
    return found


def main() -> int:
    """Print the table, and what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", type=Path, default=manual())
    parser.add_argument("--show", action="store_true", help="every passive or long sentence, too")
    args = parser.parse_args()
    pages = {page.name: prose(page.read_text(encoding="utf-8")) for page in args.pages}
    found = {name: sentences(text) for name, text in pages.items()}
    for name, page in found.items() if args.show else ():
        for one in page:
            if one.is_passive or one.num_words > 25:
                kind = "passive" if one.is_passive else f"{one.num_words} words"
                print(f"{name}:{one.line}: {kind}: {one.text}")
    told = wrong(pages)
    print("\n".join([*table(found), *told]))
    return bool(told)


if __name__ == "__main__":
    sys.exit(main())
