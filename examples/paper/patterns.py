"""Figure 5: the encoder under every pattern, as it is pruned and after it was trained on.

    python examples/paper/patterns.py

prunes MiniLM once (six layers, 10.6 M weights in scope): the smallest magnitudes of all or of each
matrix, random ones, random ones by Erdős-Rényi kernels, N:M by what is *kept*, Wanda and SparseGPT,
these two in rows and as 2:4. N of 8 is a curve, N = 7 to 1, beside the global threshold at the same
sparsities; the others go to a half and to a quarter of the weights. The task is fiction or not by
two sentences of the Brown corpus. Each is judged as it is ("zero-shot", with the head that fits the
dense features) and after 120 steps with the mask held fixed, beside the global pattern at the same
sparsity, paired by seed and example. Settings were chosen as those of finetuned_curve.py were.

It cannot show OPT-350M or its four tasks. 120 steps recover a part only; the paper trains for
thousands. Wanda and SparseGPT see 128 texts of sixteen tokens, far fewer than their authors use.
SparseGPT changes the kept weights, so it is no subset of the pretrained ones.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

from common import (
    CONFIDENCE,
    Line,
    arguments,
    begin,
    draw,
    drop,
    load,
    parsed,
    points,
    report,
)
from fetch import MATERIAL
from tqdm import tqdm
from tuning import TOY, Tuning, add_sizes, processes, tuning_of

import sparsitywatch as sw

HALF, QUARTER = 0.5, 0.75
EIGHTHS = tuple(n / 8 for n in range(1, 8))
LEVELS: dict[str, tuple[float, ...]] = {
    "global": EIGHTHS,
    "magnitude:n:8": EIGHTHS,
    "layerwise": (HALF, QUARTER),
    "random": (HALF, QUARTER),
    "erk": (HALF, QUARTER),
    "keep_1_of_2": (HALF,),
    "keep_2_of_4": (HALF,),
    "keep_1_of_4": (QUARTER,),
    "wanda": (HALF, QUARTER),
    "sparsegpt": (HALF, QUARTER),
    "wanda:2:4": (HALF,),
    "sparsegpt:2:4": (HALF,),
}
#: What is trained on, but for the curves at a half: all of it would take twice as long.
TRAINED: dict[str, tuple[float, ...]] = {
    pattern: levels if levels == EIGHTHS else (HALF,)
    for pattern, levels in LEVELS.items()
    if HALF in levels
}
#: Without training nothing is drawn for these, so that one seed is all there is.
DRAWN = ("random", "erk")
Curves = dict[str, sw.FinetunedCurve]


def measured(tuning: Tuning, seeds: Sequence[int], executor: Executor | None) -> Curves:
    """The curve of each pattern; the dense trainings are those of the first."""
    found: Curves = {}
    words = "fine-tuned" if tuning.steps else "zero-shot"
    levels_of = TRAINED if tuning.steps else LEVELS
    for pattern, levels in tqdm(levels_of.items(), desc=words, unit="pattern", disable=None):
        own = seeds if tuning.steps or pattern in DRAWN else seeds[:1]
        dense = found.get("global")
        found[pattern] = tuning.curve(pattern, levels, own, executor=executor, dense=dense)
    return found


def below(curves: Curves, pattern: str, level: float) -> sw.Difference:
    """How far a pattern is below the global one, in points."""
    plain, curve = curves["global"], curves[pattern]
    return points(plain.values_at(level), curve.values_at(level), curve.groups)


def rows(curves: Curves, how: str, level: float) -> list[list[str]]:
    """A line for each pattern that has the level."""
    found = []
    for pattern, curve in curves.items():
        if level not in (curve.level or ()):
            continue
        cost = drop(curve, level)
        found.append([
            pattern, f"{level:.2f}", how, f"{100 * curve.values_at(level).mean():.1f}", str(cost),
            f"{cost.stderr:.2f}",
            "-" if pattern == "global" else str(below(curves, pattern, level)),
        ])  # fmt: skip
    return found


def compared(tuning: Tuning, curves: Curves, how: str) -> list[tuple[str, sw.Comparison]]:
    """Each pattern beside the global one."""
    learned = tuning.learned(curves["global"])
    return [
        (
            f"{how}: at {level:.2f}",
            sw.Comparison("global", pattern, below(curves, pattern, level), learned),
        )
        for pattern, curve in curves.items()
        for level in (curve.level or ())[1:]
        if pattern != "global"
    ]


def estimates(curves: Curves) -> list[str]:
    """Essential sparsity at one point of accuracy, of the two curves."""
    return [
        f"{pattern}: essential sparsity "
        f"{sw.essential_sparsity(curve, 0.01, 'absolute', CONFIDENCE).describe()}"
        for pattern, curve in curves.items()
        if len(curve.level or ()) > len(EIGHTHS)
    ]


def picture(curves: Curves) -> list[Line]:
    """A line for each pattern, or a point where it has one level."""
    lines = [Line("dense", [0.0], [100 * curves["global"].value[0]], None, "k*")]
    for pattern, curve in curves.items():
        number = list(LEVELS).index(pattern)  # the same look in every panel
        levels = (curve.level or ())[1:]
        bars = [(cost := drop(curve, level)).interval()[1] - cost.mean for level in levels]
        apart = [level + 0.004 * (number - 5.5) for level in levels]
        style = f"C{number % 10}{'osDvPX<>^p*hd'[number]}{'-' if len(levels) > 1 else ''}"
        lines.append(Line(pattern, apart, [100 * v for v in curve.value[1:]], bars, style))
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    parser = arguments("patterns", __doc__ or "")
    parser.add_argument("--material", type=Path, default=MATERIAL)
    parser.add_argument("--task", default="genres", choices=["genres", "spam"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--zero-shot", action="store_true", help="only as pruned: two minutes")
    add_sizes(parser)
    args = parsed(parser, argv, TOY)
    begin(args)
    parts = {"zero-shot": 0} if args.zero_shot else {"zero-shot": 0, "fine-tuned": args.steps}
    lines, said, pairs, panels = [], [], [], {}
    with processes() as executor:
        for name, steps in parts.items():
            tuning = tuning_of(args, args.task, f"{args.task}-{name}", steps)
            curves = measured(tuning, args.seeds, executor)
            for level in EIGHTHS:
                lines += rows(curves, name, level)
            said += [f"{name}: {words}" for words in estimates(curves)]
            pairs += compared(tuning, curves, name)
            panels[f"{args.task}, {name}"] = picture(curves)
            if steps:
                said.append(f"{name}: {tuning.remark(curves['global'], executor)}")
    head = ["pattern", "sparsity", "how", "accuracy", f"drop [{CONFIDENCE:.0%}]", "se",
            "below global"]  # fmt: skip
    report(args, head, lines, said, pairs)
    path = args.out / "patterns.png"
    note = f"{len(args.seeds)} seeds; bars: {CONFIDENCE:.0%} of the paired drop"
    draw(path, panels, "sparsity (points at one sparsity drawn apart)", "accuracy (%)", note)
    print(f"Look at {path}. {load()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
