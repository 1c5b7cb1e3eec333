"""Figure 5: the encoder under every pattern, as it is pruned and after it was trained on.

    python examples/paper/patterns.py

prunes MiniLM once (six layers, 10.6 M weights in scope) to a half and to a quarter of its weights:
the smallest magnitudes of all or of each matrix, random ones, random ones by Erdős-Rényi kernels,
N:M by what is *kept* (1 of 2, 2 of 4, 4 of 8; 1 of 4), Wanda and SparseGPT. The task is fiction
or not by two sentences of the Brown corpus. Each is judged as it is ("zero-shot", with the
head that fits the dense features) and, at a half, after 120 steps with the mask held fixed,
beside the global pattern at the same sparsity, paired by seed and example. Settings were chosen as
those of finetuned_curve.py were.

It cannot show OPT-350M or its four tasks. 120 steps recover a part only; the paper trains for
thousands. Wanda and SparseGPT see 128 texts of sixteen tokens, far fewer than their authors use.
SparseGPT changes the kept weights, so it is no subset of the pretrained ones.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import CONFIDENCE, Line, arguments, begin, draw, load, table, verdict
from fetch import MATERIAL
from tqdm import tqdm
from tuning import WITHOUT_MASK, Tuning, Unit, add_sizes, ahead, one_thread_each, setting_of

HALF, QUARTER = 0.5, 0.75
LEVELS: dict[str, tuple[float, ...]] = {
    "global": (HALF, QUARTER),
    "layerwise": (HALF, QUARTER),
    "random": (HALF, QUARTER),
    "erk": (HALF, QUARTER),
    "keep_1_of_2": (HALF,),
    "keep_2_of_4": (HALF,),
    "keep_4_of_8": (HALF,),
    "keep_1_of_4": (QUARTER,),
    "wanda": (HALF, QUARTER),
    "sparsegpt": (HALF, QUARTER),
}
#: What is trained on, at a half: all of it would take twice as long.
TRAINED: dict[str, tuple[float, ...]] = {
    pattern: (HALF,) for pattern, levels in LEVELS.items() if HALF in levels
}
#: Without training nothing is drawn for these, so that one seed is all there is.
DRAWN = ("random", "erk")


def levels_of(tuning: Tuning) -> dict[str, tuple[float, ...]]:
    """Which levels each pattern is measured at."""
    return TRAINED if tuning.steps else LEVELS


def seeds_of(tuning: Tuning, pattern: str, seeds: Sequence[int]) -> list[int]:
    """The seeds that can differ, of a pattern."""
    return list(seeds if tuning.steps or pattern in DRAWN else seeds[:1])


def everywhere(tuning: Tuning, pattern: str, level: float, seeds: Sequence[int]) -> np.ndarray:
    """What each example gave with each seed, [S, N], repeated where seeds cannot differ."""
    found = tuning.right(pattern, level, seeds_of(tuning, pattern, seeds))
    return np.broadcast_to(found, (len(seeds), found.shape[1])) if len(found) == 1 else found


def units(tunings: Sequence[Tuning], seeds: Sequence[int]) -> tuple[list[Unit], list[Unit]]:
    """What can be done at once: the dense trainings, then those of the patterns."""
    dense = [
        Unit(tuning.setting, name, (), seeds)
        for tuning in tunings
        for name in (WITHOUT_MASK if tuning.steps else WITHOUT_MASK[:1])
    ]
    pruned = [
        Unit(tuning.setting, pattern, levels, seeds_of(tuning, pattern, seeds))
        for tuning in tunings
        for pattern, levels in levels_of(tuning).items()
    ]
    return dense, pruned


def measured(tuning: Tuning, seeds: Sequence[int]) -> None:
    """Everything that is missing, by ``sw.finetuned_curve``."""
    words = "fine-tuned" if tuning.steps else "zero-shot"
    for pattern, levels in tqdm(
        levels_of(tuning).items(), desc=words, unit="pattern", disable=None
    ):
        tuning.curve(pattern, levels, seeds_of(tuning, pattern, seeds))


def rows(tuning: Tuning, seeds: Sequence[int], level: float) -> list[list[str]]:
    """A line for each pattern that has the level."""
    dense = everywhere(tuning, "dense", 0.0, seeds)
    if all(level not in levels for levels in levels_of(tuning).values()):
        return []
    plain = everywhere(tuning, "global", level, seeds)
    found = []
    for pattern, levels in levels_of(tuning).items():
        if level not in levels:
            continue
        right = everywhere(tuning, pattern, level, seeds)
        drop = tuning.difference(dense, right)
        beside = tuning.difference(plain, right)
        found.append([
            pattern, f"{level:.2f}", "fine-tuned" if tuning.steps else "zero-shot",
            f"{100 * right.mean():.1f}", str(drop), f"{drop.stderr:.2f}",
            "-" if pattern == "global" else str(beside),
        ])  # fmt: skip
    return found


def conclusion(tuning: Tuning, seeds: Sequence[int]) -> list[str]:
    """What the intervals say of each pattern beside the global one."""
    levelled, said = tuning.levelled_off(seeds) if tuning.steps else (True, "")
    lines = [f"{said}."] if said else []
    for pattern, levels in levels_of(tuning).items():
        for level in levels if pattern != "global" else ():
            plain, other = (everywhere(tuning, p, level, seeds) for p in ("global", pattern))
            words = verdict("global", pattern, tuning.difference(plain, other), levelled=levelled)
            lines.append(f"at {level:.2f}: {words}")
    return lines


def picture(tuning: Tuning, seeds: Sequence[int]) -> list[Line]:
    """A line for each pattern: two points, or one where it has one level."""
    dense = everywhere(tuning, "dense", 0.0, seeds)
    lines = [Line("dense", [0.0], [100 * float(dense.mean())], None, "k*")]
    for pattern, levels in levels_of(tuning).items():
        number = list(LEVELS).index(pattern)  # the same look in every panel
        found = [everywhere(tuning, pattern, level, seeds) for level in levels]
        drops = [tuning.difference(dense, right) for right in found]
        bars = [(drop.high - drop.low) / 2 for drop in drops]
        apart = [level + 0.006 * (number - 4.5) for level in levels]
        style = f"C{number}{'osDvPX<>^p'[number]}{'-' if len(levels) > 1 else ''}"
        lines.append(Line(pattern, apart, [100 * float(r.mean()) for r in found], bars, style))
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    parser = arguments("patterns", __doc__ or "")
    parser.add_argument("--material", type=Path, default=MATERIAL)
    parser.add_argument("--task", default="genres", choices=["genres", "spam"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--zero-shot", action="store_true", help="only as pruned: two minutes")
    add_sizes(parser)
    args = parser.parse_args(argv)
    begin(args)
    processes = one_thread_each()
    parts = {"fine-tuned": args.steps, "zero-shot": 0}
    tunings = {
        name: Tuning(setting_of(args, args.task, f"{args.task}-{name}", steps))
        for name, steps in parts.items()
        if not steps or not args.zero_shot
    }
    ahead(processes, *units(list(tunings.values()), args.seeds))
    lines, said, panels = [], [], {}
    for name, tuning in reversed(tunings.items()):
        measured(tuning, args.seeds)
        for level in (HALF, QUARTER):
            lines += rows(tuning, args.seeds, level)
        said += [f"{name}: {line}" for line in conclusion(tuning, args.seeds)]
        panels[f"{args.task}, {name}"] = picture(tuning, args.seeds)
    head = ["pattern", "sparsity", "how", "accuracy", f"drop [{CONFIDENCE:.0%}]", "se",
            "below global"]  # fmt: skip
    print("", table(head, lines), "", *said, "", sep="\n")
    path = args.out / "patterns.png"
    note = f"{len(args.seeds)} seeds; bars: {CONFIDENCE:.0%} of the paired drop"
    draw(path, panels, "sparsity (points at one sparsity drawn apart)", "accuracy (%)", note)
    print(f"Look at {path}. {load()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
