"""What docs/reports/paper.md says of each figure is what the paper's commands have kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import emergence
import hypotheses
import kept
import pytest
from contracts.claims import Claim, hold, paper_word, section_of, words_of
from hypotheses import Said, said_by

import sparsitywatch as sw

PAPER = (Path(__file__).parents[2] / "docs" / "reports" / "paper.md").read_text("utf-8")
Report = Mapping[str, Any]


def reports(command: str) -> Mapping[str, Report]:
    return kept.kept(kept.FOLDER / command)


def sentence(said: Said, about: str, first: str, second: str) -> str:
    """One of them, without its last stop."""
    (one,) = (
        str(found) for of, found in said
        if (of, found.comparison.first, found.comparison.second) == (about, first, second)
    )  # fmt: skip
    return one


def tally(said: Said) -> str:
    """How often each word is said: "2 differ, 1 equal, 3 cannot tell"."""
    words = {"differs": "differ", "equal": "equal", "cannot tell": "cannot tell"}
    counts = {told: sum(one.word == word for _, one in said) for word, told in words.items()}
    return ", ".join(f"{num} {told}" for told, num in counts.items() if num)


def names(said: Said, chosen: Callable[[sw.Conclusion], bool]) -> str:
    """The second ones of some comparisons, with what each is about: "wanda at 0.75 and 0.88"."""
    found: dict[str, list[str]] = {}
    for about, one in said:
        if chosen(one):
            found.setdefault(one.comparison.second, []).append(about.rpartition("at ")[2])
    return _and([f"{name} at {_and(places)}" for name, places in found.items()]) or "none"


def _and(words: Sequence[str]) -> str:
    *most, last = words or [""]
    return f"{', '.join(most)} and {last}" if most else last


def is_lower(one: sw.Conclusion) -> bool:
    """Whether the second one is."""
    return one.word == "differs" and one.comparison.difference.mean > 0


def is_higher(one: sw.Conclusion) -> bool:
    return one.word == "differs" and one.comparison.difference.mean < 0


def estimates(report: Report, *starts: str) -> dict[str, str]:
    """Essential sparsity, and its interval, by the line that begins so."""
    found = {}
    for number, start in enumerate(starts):
        (line,) = (one for one in report["said"] if one.startswith(start))
        value = line.partition("essential sparsity ")[2].partition(";")[0]
        found["abcdefgh"[number]] = value.removesuffix(" by groups")
    return found


def test_a_family_is_said_anew_and_told_in_short() -> None:
    told = {"learned": None, "about": "x: at 0.50", "first": "global"}
    far = {"mean": 5.0, "spreads": [[0.5, 3, "seed"], [0.1, 100, "example"]]}
    near = {"mean": 0.1, "spreads": [[0.1, 100, "example"]]}
    wide = {"mean": -1.0, "spreads": [[2.0, 5, "seed"]]}
    report = {"unit": "points", "comparisons": [
        {**told, "second": "a", "difference": far}, {**told, "second": "b", "difference": near},
        {**told, "second": "c", "difference": wide},
        {**told, "second": "a", "difference": far, "about": "x: at 0.75", "learned": far},
    ]}  # fmt: skip
    said = said_by(json.loads(json.dumps(report)))
    assert tally(said) == "2 differ, 1 equal, 1 cannot tell"
    assert names(said, is_lower) == "a at 0.50 and 0.75"
    assert names(said, is_higher) == "none"
    assert names(said, lambda one: one.word != "differs") == "b at 0.50 and c at 0.50"
    assert sentence(said, "x: at 0.50", "global", "b").endswith("points: equal within 1")


# ------------------------------------------------------------------ figure by figure


def layers(_: object = None) -> Mapping[str, Any]:
    """Figures 1 and 7."""
    report = reports("layers")["report"]
    said = dict(said_by(report))
    means = {row[0]: row[2:] for row in report["rows"] if row[1] == "mean"}
    kinds = report["head"][2:]
    of = {kind: float(share) for kind, share in zip(kinds, means["raw"], strict=True)}
    assert said["raw"].word == "differs"
    # as it says: these alone are above, those of the input below attention's output
    assert of["feed-forward in"] < of["attention out"] < of["feed-forward out"]
    return {
        "level": f"{report['arguments']['level']:.1%}",
        "raw": said["raw"], "even": said["normalised by rms"],
        "into": of["feed-forward in"], "out": of["feed-forward out"], "of": of["attention out"],
        "most": next(one for one in report["said"] if one.startswith("raw: ") and "which" in one)
        .removeprefix("raw: ").rstrip("."),
        "scales": next(one for one in report["said"] if one.startswith("Normalising")),
    }  # fmt: skip


LAYERS = [
    Claim(
        "Share of each matrix below the threshold that removes {level} of all weights, the share "
        "of figure 1. No data, no seed.",
        layers,
    ),
    Claim("By block: {raw}.", layers),
    Claim(
        "But that says little: {most}, and only the output matrices have more small weights "
        "({out} %) than attention's output ({of} %); those of the input have fewer ({into} %).",
        layers,
    ),
    Claim("{scales} Then: {even}.", layers),
    Claim(
        "A global threshold on raw magnitudes mostly decides which matrices lose weights, by their "
        "scale. It cannot show that these weights can go, nor how supervised and self-supervised "
        "weights differ, which figure 7 compares."
    ),
]


def patterns(_: object = None) -> Mapping[str, Any]:
    """Figure 5."""
    report = reports("patterns")["report"]
    said = said_by(report)
    pruned = [one for one in said if one[0].startswith("zero-shot")]
    tuned = [one for one in said if one[0].startswith("fine-tuned")]
    given = report["arguments"]
    curves = ("zero-shot: global", "zero-shot: magnitude:n:8", "fine-tuned: global",
              "fine-tuned: magnitude:n:8")  # fmt: skip
    return {
        "held_out": given["held_out"], "seeds": len(given["seeds"]), "steps": given["steps"],
        "pruned": tally(pruned), "lower": names(pruned, is_lower),
        "higher": names(pruned, is_higher), "tuned": tally(tuned),
        "still_lower": names(tuned, is_lower), "still_higher": names(tuned, is_higher),
        **estimates(report, *curves),
    }  # fmt: skip


PATTERNS = [
    Claim(
        "Genres, {held_out:,} texts, {seeds} seeds of what is drawn and of each training ({steps} "
        "steps, the mask held fixed). Each pattern is compared with the global threshold at the "
        "same sparsity.",
        patterns,
    ),
    Claim("**As pruned** ({pruned}): lower are {lower}; higher are {higher}.", patterns),
    Claim(
        "**After training** ({tuned}): lower are {still_lower}; higher are {still_higher}.",
        patterns,
    ),
    Claim(
        "**N of 8 as a curve**: essential sparsity at one point of accuracy is {b} as pruned, that "
        "of the global threshold {a}; after training {d} and {c}.",
        patterns,
    ),
    Claim(
        "N:M is named by what is kept. Texts of one file rise and fall together, so that the "
        "number of files counts. It cannot show OPT-350M, the paper's model here, nor training to "
        "the end."
    ),
]


def finetuned(_: object = None) -> Mapping[str, Any]:
    """Figures 2 and 4."""
    report = reports("finetuned_curve")["report"]
    said = said_by(report)
    dense = [one for one in said if one[1].comparison.first == "dense"]
    random = [one for one in said if one[1].comparison.first == "OMP"]
    tasks = report["arguments"]["tasks"]
    assert {one.word for _, one in dense} == {"cannot tell"}  # as the table says
    found = estimates(report, *(f"{task}: OMP" for task in tasks))
    rows = [row for row in report["rows"] if row[1] == "dense"]
    return {
        "tasks": len(tasks), "seeds": len(report["arguments"]["seeds"]),
        "more": len(report["arguments"]["dense_seeds"]), "steps": report["arguments"]["steps"],
        "dense": tally(dense), "random": tally(random), "costs": costs(random),
        "omp": "; ".join(f"{about}: {one}" for about, one in dense if about.startswith("parity")),
        "essential": _and([f"{value} ({task})" for task, value in zip(tasks, found.values(),
                                                                      strict=True)]),
        "accuracy": _and([f"{row[3]} ({row[0]})" for row in rows]),
    }  # fmt: skip


def costs(said: Said) -> str:
    """Where the second one is lower, by task."""
    found = [(about, one) for about, one in said if is_lower(one)]
    return _and([f"{one.comparison.difference} points on {about.replace(': at', ' at')}"
                 for about, one in found]) or "nowhere"  # fmt: skip


FINETUNED = [
    Claim(
        "Three tasks: fiction or not, spam or not, and whether the sum of two numbers in words is "
        "odd (parity), which a fitted head knows nothing of and which is trained twice as long. "
        "{seeds} seeds, {more} of the dense model; {steps} steps of 32 texts (AdamW, 5e-5, linear "
        "decay) with the mask held fixed. Dense accuracy, mean ± sd over seeds: {accuracy}.",
        finetuned,
    ),
    Claim("**Dense and OMP at 0.3 and 0.5** ({dense}); the largest are {omp}.", finetuned),
    Claim("**OMP and random weights** ({random}): random weights cost {costs}.", finetuned),
    Claim("Essential sparsity by OMP at one point of accuracy: {essential}.", finetuned),
    Claim(
        "The rate (5e-5) and the number of steps were chosen on a part of the files that is not "
        "reported, of genres alone. It cannot show the paper's tasks, nor training to the end: "
        "sixteen tokens and 120 steps, where the paper has thousands of up to 512."
    ),
]


def similarity(_: object = None) -> Mapping[str, Any]:
    """Figure 10."""
    report = reports("mask_similarity")["report"]
    at = [row[0] for row in report["rows"]].index("0.40")
    cosines = [of_seed[at] for of_seed in report["cosines"]]
    by_rate, most = (lowest[at] for lowest in report["lowest"])
    assert min(cosines) > by_rate > 0.9 > 0.6  # as it says
    return {
        "steps": report["arguments"]["steps"], "seeds": len(cosines),
        "cosine": emergence.spread(cosines, ".3f"), "rate": by_rate, "most": most,
    }  # fmt: skip


SIMILARITY = [
    Claim(
        "MiniLM fine-tuned on genres at the paper's own rate, 2e-5 with linear decay, for {steps} "
        "steps (three epochs of its smallest task); {seeds} seeds.",
        similarity,
    ),
    Claim(
        "At a sparsity of 0.4 the masks before and after have a cosine of {cosine}. "
        "Steps of the size of the rate keep it above {rate:.3f} whatever is learnt ({most:.3f} by "
        "the most that Adam allows); two random masks have 0.60. So a cosine above 0.96, as the "
        "paper has it, tells of the rate. Its longer tasks, of up to 150 times as many steps, "
        "allow any mask.",
        similarity,
    ),
]


def tickets(_: object = None) -> Mapping[str, Any]:
    """Figure 9."""
    report = reports("lottery_ticket")["report"]
    said = said_by(report)
    rows = [row for row in report["rows"] if row[1] != "0.000"]
    assert {one.word for _, one in said} <= {"cannot tell", "equal"}  # as it says
    cosine = [float(row[7]) for row in rows]
    return {
        "size": report["size"], "seeds": report["arguments"]["seeds"],
        "steps": report["arguments"]["pretrain_steps"], "each": report["arguments"]["steps"],
        "verdicts": "; ".join(f"{about}: {one}" for about, one in said),
        "high": max(cosine), "low": min(cosine), "last": rows[-1][1],
    }  # fmt: skip


TICKETS = [
    Claim(
        "A transformer of {size:,} weights, pretrained here for {steps:,} steps on Python's "
        "docstrings; two tasks of 500 passages, {each} steps each, {seeds} seeds. Tickets (IMP) "
        "are trained, pruned by a fifth and taken back round by round; OMP prunes once.",
        tickets,
    ),
    Claim("{verdicts}.", tickets),
    Claim(
        "The masks have a cosine of {high:.2f} at 0.2, which falls to {low:.2f} at {last}. The "
        "rate here is 1e-3: weights that move more make tickets that differ more.",
        tickets,
    ),
]


def decoders(_: object = None) -> Mapping[str, Any]:
    """Figure 11, of models trained here."""
    report = reports("decoder")["report"]
    said = said_by(report)
    return {
        "size": report["size"], "seeds": report["arguments"]["seeds"],
        "verdicts": "; ".join(str(one) for _, one in said), "at": said[0][0],
        "estimates": " ".join(report["said"][:3]),  # not of random weights
    }  # fmt: skip


def stored(_: object = None) -> Mapping[str, Any]:
    """Figure 11, of a real language model."""
    report = reports("smollm2")["report"]
    said = said_by(report)
    return {
        "size": report["size"], "num": report["arguments"]["examples"],
        "verdicts": "; ".join(str(one) for _, one in said), "at": said[0][0],
        "estimates": " ".join([*report["said"][:3], report["said"][4]]),
    }  # fmt: skip


DECODERS = [
    Claim(
        "A causal transformer of {size:,} weights, trained here with {seeds} seeds, pruned as it "
        "is; tolerance 1 % of the loss. {estimates}",
        decoders,
    ),
    Claim("By the rule, {at} (a higher one is worse): {verdicts}.", decoders),
    Claim(
        "SmolLM2-135M ({size:,} weights in scope, no part of `make paper`), {num} windows of text. "
        "{estimates}",
        stored,
    ),
    Claim("By the rule, {at}: {verdicts}.", stored),
    Claim(
        "It cannot show Vicuna-7B on MMLU. Wanda and SparseGPT look at the inputs of the very "
        "windows that the loss is measured on."
    ),
]


def volume(_: object = None) -> Mapping[str, Any]:
    """Figure 8 (ii) and (iii)."""
    found = reports("data_volume")
    whole, tuned = found["report"], said_by(found["finetuned"])
    said = said_by(whole)
    shares = [f"{share:.0%}" for share in whole["arguments"]["fractions"]]
    return {
        "shares": _and(shares), "seeds": len(whole["arguments"]["seeds"]),
        "steps": whole["arguments"]["steps"], "tally": tally(said), "tuned": tally(tuned),
        "differ": "; ".join(f"{about}: {one}" for about, one in said if one.word == "differs")
        or "none differs",
        "tuned_differ": "; ".join(f"{about}: {one}" for about, one in tuned if one.word ==
                                  "differs") or "none differs",
    }  # fmt: skip


VOLUME = [
    Claim(
        "The small BERT of the demo (ReLU, decay 1.0), pretrained for {steps:,} steps on {shares} "
        "of Python's documentation, {seeds} seeds.",
        volume,
    ),
    Claim(
        "As pretrained ({tally}): {differ}. Pruned and fine-tuned ({tuned}): {tuned_differ}.",
        volume,
    ),
    Claim(
        "The model is a thousandth of BERT-base and its decay a hundred times the usual one: its "
        "near-zero weights grow because dead units decay."
    ),
]


def families() -> str:
    """Essential sparsity as pruned, of an encoder and of two sizes of decoder."""
    encoder = estimates(reports("patterns")["report"], "zero-shot: global")["a"]
    trained, stored = (reports(name)["report"] for name in ("decoder", "smollm2"))
    own, other = (
        next(one for one in report["said"] if "by magnitude" in one).rstrip(".").split(": ")[1]
        for report in (trained, stored)
    )
    values = [float(one.split()[0]) for one in own.split("], ")]
    assert float(encoder.split()[0]) > max(*values, float(other.split()[0]))  # as the row says
    return (
        f"as pruned, by magnitude: MiniLM {encoder} at one point of accuracy; decoders at 1 % of "
        f"the loss {emergence.spread(values)} ({trained['size']:,} weights) and {other} "
        f"({stored['size']:,})"
    )


#: The table: by figure the command, what came out here, and the verdicts.
ROWS: Mapping[str, Callable[[], Sequence[str]]] = {
    "1": lambda: (
        "`layers`",
        (f"feed-forward weights are smaller: {layers()['raw'].comparison.difference} points more "
        "of them below the threshold; mostly a matter of scales"),
        tally(said_by(reports("layers")["report"])),
    ),
    "2, 4": lambda: (
        "`finetuned_curve`", f"OMP bears {finetuned()['essential']}",
        tally(said_by(reports("finetuned_curve")["report"])),
    ),
    "4 (size, family)": lambda: (
        "`patterns`, `decoder`, `smollm2`", families(), "no comparison: two measures",
    ),
    "5": lambda: (
        "`patterns`", f"after training {patterns()['tuned']}",
        tally(said_by(reports("patterns")["report"])),
    ),
    "8 (ii, iii)": lambda: (
        "`data_volume`, `data_finetuned`", "no difference that could be told",
        f"{volume()['tally']}; {volume()['tuned']}",
    ),
    "9": lambda: (
        "`lottery_ticket`", "no difference that could be told",
        tally(said_by(reports("lottery_ticket")["report"])),
    ),
    "10": lambda: (
        "`mask_similarity`",
        (f"cosine {similarity()['cosine']} at 0.4; not below {similarity()['rate']:.3f} whatever "
        "is learnt, so it tells of the rate"), "no comparison: a bound",
    ),
    "11": lambda: (
        "`decoder`, `smollm2`", "SparseGPT bears more than magnitude in both",
        (f"{tally(said_by(reports('decoder')['report']))}; "
        f"{tally(said_by(reports('smollm2')['report']))}"),
    ),
    **dict.fromkeys(("3", "6", "7"), lambda: ("none", "no run", "no comparison")),
}  # fmt: skip


def row(figure: str) -> str:
    return f"| {' | '.join((figure, *ROWS[figure](), hypotheses.cell(figure)))} |"


SECTIONS = {
    "Where the small weights are (figures 1 and 7)": LAYERS,
    "Every pattern (figure 5)": PATTERNS,
    "After fine-tuning (figures 2 and 4)": FINETUNED,
    "How alike masks are (figure 10)": SIMILARITY,
    "Lottery tickets (figure 9)": TICKETS,
    "Decoders (figure 11)": DECODERS,
    "Less text (figure 8)": VOLUME,
}


@pytest.mark.parametrize("figure", ROWS)
def test_the_table_says_what_was_kept(figure: str) -> None:
    assert words_of(row(figure)) in words_of(PAPER)


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_figure_says_what_was_kept(heading: str) -> None:
    hold(section_of(PAPER, heading), SECTIONS[heading], {})


@pytest.mark.parametrize("figure", [one.figure for one in hypotheses.HYPOTHESES])
def test_the_last_column_is_computed(figure: str) -> None:
    (one,) = (one for one in hypotheses.HYPOTHESES if one.figure == figure)
    (line,) = (line for line in PAPER.splitlines() if line.startswith(f"| {figure} |"))
    cell = line.split("|")[-2].strip()
    assert cell == hypotheses.cell(figure)
    intervals = (
        [found.interval for found in hypotheses.bearing(one)] if one.says != "exists" else []
    )
    assert f"**{paper_word(one.says, intervals, hypotheses.shown(one))}**" in cell


def comparison(mean: float, stderr: float) -> sw.Comparison:
    return sw.Comparison("a", "b", sw.Difference.of(mean, stderr, num=500))


FAR, BACK, NEAR, OPEN = (comparison(*x) for x in ((9, 1), (-9, 1), (0.0, 0.1), (0.5, 2.0)))


@pytest.mark.parametrize(("says", "found", "expected"), [
    ("larger", [], "not done"), ("larger", [FAR], "agrees"), ("larger", [FAR, OPEN], "cannot tell"),
    ("larger", [FAR, BACK], "against it"), ("larger", [FAR, NEAR], "against it"),
    ("larger", [OPEN], "cannot tell"), ("equal", [NEAR], "agrees"), ("equal", [], "not done"),
    ("equal", [NEAR, OPEN], "cannot tell"), ("equal", [NEAR, BACK], "against it"),
    ("equal", [comparison(0.3, 0.05)], "agrees"),  # they differ, by less than what counts as none
])  # fmt: skip
def test_a_word_follows_from_all_comparisons(says: str, found: list, expected: str) -> None:
    said = sw.verdicts(found)
    assert hypotheses.of_comparisons(says, said)[0] == expected
    assert paper_word(says, [one.interval for one in said]) == expected


@pytest.mark.parametrize(("runs", "expected"), [
    ([], "not done"), ([False] * 3, "not seen"), ([False] * 10, "not seen"),
    ([False] * 11, "against it"), ([False, True], "agrees"),
])  # fmt: skip
def test_none_of_few_runs_is_not_seen(runs: list[bool], expected: str) -> None:
    assert hypotheses.of_runs(runs)[0] == paper_word("exists", [], runs) == expected
