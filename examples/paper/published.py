r"""Figure 8 (i) of models of others: when does a published training turn sparse, by any threshold?

    python examples/paper/published.py multiberts

streams the checkpoints of a published training from the Hugging Face Hub, each once, and keeps a
series of it of at most 30 kB: how many weights lie below each of 90 thresholds, and where that
turns abruptly (``run.emergence()``). First it says how many bytes that takes, and how long. Of a
checkpoint it fetches the weights in scope alone, and nothing stays on the disk but counts. What
cannot be read is refused by its format before anything is fetched.

Killed and started again it goes on with the checkpoint that it was at. ``HF_ENDPOINT`` names
another hub, ``HF_TOKEN`` an account. ``--page`` writes the report of all series that are kept.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from emergence import spread, turns
from kept import FOLDER, MAX_BYTES, content_of, counted, keep, kept
from tqdm import tqdm

import sparsitywatch as sw
from sparsitywatch.checkpoints.discovery import discover
from sparsitywatch.checkpoints.series import ListedCheckpoint
from sparsitywatch.errors import SparsityWatchError
from sparsitywatch.weights.scope import Scope


@dataclass(frozen=True)
class Series:
    """A series of checkpoints that somebody has published.

    Args:
        about: what was trained, for the page.
        place: where the checkpoints of a run lie, whose name stands for ``{}``.
        runs: names of those that are streamed, unless others are asked for.
        steps: at which checkpoints were published; empty where the hub alone says so.
        final: where the one of the last step lies if no repository is named after that step.
        most: how many are streamed of a run, evenly chosen; None for all.
        note: what a reader of the page has to know.
    """

    about: str
    place: str
    runs: Sequence[str]
    steps: Sequence[int] = ()
    final: str = ""
    most: int | None = None
    note: str = ""

    def name(self, run: str) -> str:
        """Of a run: of its log, its file and its row."""
        return self.place.format(run).rpartition("/")[2].partition("@")[0].removesuffix("-step_*")


#: The names on the command line. Steps: of MultiBERTs its release notes, of Pythia its paper.
SERIES = {
    "multiberts": Series(
        about="BERT-base for 2,000,000 steps, one run a seed",
        place="hf://google/multiberts-seed_{}-step_*",
        runs=tuple("01234"),
        steps=(*range(0, 200_001, 20_000), *range(300_000, 2_000_001, 100_000)),
        final="hf://google/multiberts-seed_{}",
        note="The paper's turn lies between steps 22,000 and 40,000 of 50,000. Here checkpoints "
        "are 20,000 steps apart, of another schedule: such a turn shows between two of them.",
    ),
    "pythia": Series(
        about="decoders (GPT-NeoX) for 143,000 steps, one run a size",
        place="hf://EleutherAI/pythia-{}@step*",
        runs=("160m",),
        steps=(0, *(2**n for n in range(10)), *range(1_000, 143_001, 1_000)),
        note="Files of 16 bits a weight make small ones coarse, or 0.",
    ),
    "olmo": Series(
        about="decoders (OLMo 2), the first stage of their training, one run a size",
        place="hf://allenai/{}@stage1-step*",
        runs=("OLMo-2-0425-1B",),
        most=48,
        note="Checkpoints are chosen evenly among those of the hub; `--most` says how many.",
    ),
}
#: Seconds of a core for each weight: docs/costs.md, five reads of 57 ms for 84,934,656 of them.
SECONDS_A_WEIGHT = 3.4e-9
#: What part of the weights a count is kept to, where the counts themselves take too many bytes.
PARTS = (1_000_000, 100_000, 10_000)
#: Rules of near zero whose shares the page shows.
SHOWN = ("rms_0.1", "initial_0.1")

# ------------------------------------------------------------------ what there is


@dataclass(frozen=True)
class Offered:
    """The checkpoints of one run on the hub.

    Args:
        name: of the run.
        urls: by step, those that are streamed.
        num_weights: in scope, of each.
        num_bytes: of these, by step.
        dtypes: they are stored as.
        done: steps that are measured already.
        problems: what is missing, and what is refused.
    """

    name: str
    urls: Mapping[int, str]
    num_weights: int
    num_bytes: Mapping[int, int]
    dtypes: Sequence[str]
    done: frozenset[int]
    problems: Sequence[str]
    is_refused: bool

    @property
    def left(self) -> int:
        """Bytes that are still to be fetched."""
        return sum(size for step, size in self.num_bytes.items() if step not in self.done)

    def seconds(self, mbit: float) -> float:
        """How long that takes at so many Mbit a second, with the counting."""
        num = len(self.urls.keys() - self.done) * self.num_weights
        return self.left * 8e-6 / mbit + num * SECONDS_A_WEIGHT

    def said(self, mbit: float) -> str:
        """The line before anything is fetched."""
        size = f"{self.num_weights:,} weights in scope ({', '.join(self.dtypes)})"
        what = (
            f"{self.name}: {len(self.urls)} checkpoints, {size}, {sum(self.num_bytes.values()):,}"
        )
        line = f"{what} bytes"
        if self.done:
            line += f"; {len(self.done)} are done, {self.left:,} bytes are left"
        return f"{line}; {duration(self.seconds(mbit))} at {mbit:g} Mbit/s"


def duration(seconds: float) -> str:
    """In the unit that a reader thinks in."""
    for size, unit in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def offered(series: Series, run: str, most: int | None, logdir: Path) -> Offered:
    """What the hub has of a run: headers are read, no weights."""
    listed = [one for one in discover(series.place.format(run)) if one.state != "foreign"]
    missing = sorted({*series.steps} - {one.step for one in listed})
    if series.final and missing == [series.steps[-1]]:
        listed += discover({missing.pop(): series.final.format(run)})
    problems = []
    if missing:
        some = ", ".join(f"{step:,}" for step in missing[:5]) + (", …" if missing[5:] else "")
        problems.append(f"{len(missing)} of {len(series.steps)} are not on the hub: steps {some}")
    refused = [one for one in listed if one.error is not None]
    for reason, num in Counter(why(one) for one in refused).items():
        problems.append(f"{num} of {len(listed)} cannot be read: {reason}")
    whole = {one.step: one for one in listed if one.state == "complete" and one.step is not None}
    chosen = {step: whole[step] for step in evenly(sorted(whole), most)}
    counts = {step: in_scope(one) for step, one in chosen.items()}
    return Offered(
        name=series.name(run),
        urls={step: one.url for step, one in chosen.items()},
        num_weights=max((num for num, _, _ in counts.values()), default=0),
        num_bytes={step: size for step, (_, size, _) in counts.items()},
        dtypes=sorted({dtype for _, _, dtypes in counts.values() for dtype in dtypes}),
        done=frozenset(done(logdir)) & chosen.keys(),
        problems=problems,
        is_refused=bool(refused) or not chosen,
    )


def why(one: ListedCheckpoint) -> str:
    """Why one is refused, without its address: the same for all of a kind."""
    return one.reason.partition(": ")[2] or one.reason


def evenly(steps: Sequence[int], most: int | None) -> list[int]:
    """So many of them at most, the first and the last among them."""
    num = len(steps) if most is None else min(most, len(steps))
    return [steps[i] for i in np.linspace(0, len(steps) - 1, num).round().astype(int)]


def in_scope(one: ListedCheckpoint) -> tuple[int, int, set[str]]:
    """How many weights of one are in scope, their bytes, and what they are stored as."""
    names = {*Scope.of_entries(one.entries).names}
    own = [entry for entry in one.entries if entry.name in names]
    dtypes = {str(entry.dtype).removeprefix("torch.") for entry in own}
    return sum(e.num_weights for e in own), sum(e.num_bytes for e in own), dtypes


def done(logdir: Path) -> list[int]:
    """Steps that the log of a run has."""
    if not (logdir / "sparsitywatch" / "records.jsonl").exists():
        return []
    return [record.step for record in sw.load(logdir).records if record.valid]


# ------------------------------------------------------------------ one run


def stream(of: str, one: Offered, logdir: Path, file: Path) -> list[str]:
    """Measure what is missing of a run, and keep its series; what went wrong."""
    with tqdm(total=len(one.urls), initial=len(one.done), desc=one.name, disable=None) as bar:

        def show(num: int, _: int) -> None:
            bar.update(num - bar.n)

        seen = sw.replay(one.urls, logdir=logdir, on_progress=[show], on_event=())
    if seen.failures:
        return [f"{failed.place}: {failed.reason}" for failed in seen.failures]
    run = sw.load(logdir)
    about = {"series": of, "dtypes": list(one.dtypes), "num_bytes": sum(one.num_bytes.values()),
             "problems": list(one.problems)}  # fmt: skip
    for parts in (None, *PARTS):
        data = {**about, **counted(run, parts)}
        if len(content_of(data)) <= MAX_BYTES or parts == PARTS[-1]:
            keep(file, data)
            break
    return []


# ------------------------------------------------------------------ the page


def page(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """The report of every series, by what is kept: its text says what is not there."""
    parts = [HEAD]
    for name, series in SERIES.items():
        own = {of: one for of, one in runs.items() if one["series"] == name}
        parts += [f"## {name}", f"{series.about[0].upper()}{series.about[1:]}. {series.note}"]
        if own:
            parts += [rows(own), concluded(own)]
        else:
            parts.append(
                f"**It waits for its checkpoints.** None of them was read yet, so nothing is known "
                f"of this series: `make {name}` reads them where there is a network."
            )
    return "\n\n".join(parts) + "\n"


HEAD = """# Published trainings

What the checkpoints of others say of figure 8 (i) of the paper
([arXiv:2306.03805](https://arxiv.org/abs/2306.03805)): does the number of near-zero weights turn
abruptly? `make multiberts`, `make pythia` and `make olmo` stream them from the Hugging Face Hub,
keep a series of at most 30 kB a run in `examples/paper/kept/published/`, and write this page from
it. A run is asked for a turn at 90 thresholds, as in
[When weights turn sparse](paper.md#when-weights-turn-sparse-figure-8)."""


def rows(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each run."""
    shares = [f"below {of.replace('_', ' ')}, first to last" for of in SHOWN]
    head = ["run", "checkpoints", "weights", "steps", *shares, "thresholds to sparse", "to dense"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name, one in runs.items():
        steps = one["steps"]
        found = [one["thresholds"].index(of) for of in SHOWN]
        ends = np.cumsum(one["count_changes"], axis=1)[found][:, [0, -1]] / one["parts"]
        lines.append([
            name, str(len(steps)), f"{one['num_weights']:,}", f"{steps[0]:,} to {steps[-1]:,}",
            *(f"{first:.1%} to {last:.1%}" for first, last in ends),
            *(str(len({t["series"] for t in turns(one, way)})) for way in ("up", "down")),
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def concluded(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """How many runs turn, when, and what that many can bear."""
    found = {name: turns(one, "up") for name, one in runs.items()}
    begun = [turn for own in found.values() for turn in own]
    num, total = sum(map(bool, found.values())), len(found)
    text = f"**{num} of {total} runs turn abruptly to sparse** at some threshold."
    if begun:
        low = spread([turn["onset_low"] for turn in begun], ",.0f")
        high = spread([turn["onset_high"] for turn in begun], ",.0f")
        text += f" The turns begin after steps {low}, and before {high}."
    if num == 0:
        text += f" So many without one exclude a chance above {1 - 0.1 ** (1 / total):.0%} (90 %)."
    problems = sorted({problem for one in runs.values() for problem in one["problems"]})
    return " ".join([text, *(f"{problem}." for problem in problems)])


# ------------------------------------------------------------------ the command


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("series", nargs="?", choices=SERIES, help="which; none with --page")
    add("--runs", nargs="+", metavar="RUN", help="seeds or sizes; by default those of the table")
    add("--most", type=int, help="checkpoints of a run, evenly chosen")
    add("--mbit", type=float, default=200.0, help="of the network, a second, to say how long")
    add("--dry-run", action="store_true", help="say bytes and time, and fetch nothing")
    add("--out", type=Path, default=Path("runs/paper/published"), help="logs")
    add("--kept", type=Path, default=FOLDER / "published", help="where series are kept")
    add("--page", type=Path, help="write the report of all series that are kept")
    args = parser.parse_args(argv)
    if args.series is None and args.page is None:
        parser.error(f"Expected one of {', '.join(SERIES)}, or `--page FILE`, got neither.")
    return args


def fetched(args: argparse.Namespace) -> int:
    """Stream what is asked for; the exit status."""
    series, most = SERIES[args.series], args.most or SERIES[args.series].most
    status, found = 0, list[Offered]()
    for run in args.runs or series.runs:
        name = series.name(run)
        print(f"{name}: asking {os.environ.get('HF_ENDPOINT') or 'the hub'} what there is")
        try:
            one = offered(series, run, most, args.out / name)
        except SparsityWatchError as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = 2
            continue
        for problem in one.problems:
            print(f"{name}: {problem}", file=sys.stderr)
        if one.is_refused:
            print(f"{name}: refused, nothing of it is fetched", file=sys.stderr)
            status = 2
            continue
        print(one.said(args.mbit))
        found.append(one)
    seconds = sum(one.seconds(args.mbit) for one in found)
    print(f"To fetch: {sum(one.left for one in found):,} bytes, {duration(seconds)}", flush=True)
    for one in [] if args.dry_run else found:
        file = args.kept / f"{one.name}.json.gz"
        failures = stream(args.series, one, args.out / one.name, file)
        for failure in failures:
            print(f"{one.name}: {failure}", file=sys.stderr)
        if failures:
            print(f"{one.name}: not kept; started again it goes on", file=sys.stderr)
            status = 2
            continue
        print(f"{one.name}: {file}, {file.stat().st_size:,} bytes", flush=True)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Stream, and write the page; returns the exit status."""
    args = parsed(argv)
    status = fetched(args) if args.series else 0
    if args.page is not None:
        args.page.write_text(page(kept(args.kept)), encoding="utf-8")
        print(f"Look at {args.page}.")
    return status


if __name__ == "__main__":
    sys.exit(main())
