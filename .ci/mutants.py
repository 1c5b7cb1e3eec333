"""Whether the tests notice wrong code: small changes of core modules, one at a time, by cosmic-ray.

Each changed module is put into a copy of this checkout, whose tests of that module are run: first
those that are fast, then the others. A change that all of them pass has survived. The survivors
that change nothing, or nothing that anybody could see, are in ``HARMLESS`` with the reason.

    make mutants ARGS="--num 4 estimate"    # four of the module analysis/estimate.py
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).resolve().parents[1]
#: Modules of the core, and the tests that ought to notice.
MODULES = {
    "analysis/detect/abrupt.py": "analysis",
    "analysis/detect/jumps.py": "analysis",
    "analysis/detect/measured.py": "analysis",
    "analysis/estimate.py": "analysis/test_estimate.py analysis/test_knee.py",
    "analysis/forecast.py": "analysis/test_forecast.py",
    "analysis/height.py": "analysis/test_height.py",
    "patterns/selections.py": "patterns",
    "patterns/thresholds.py": "patterns",
    "sweeps.py": "sweeps",
    "vital/judgement.py": "vital",
    "weights/clock.py": "weights/test_clock.py live/test_clocks.py live/test_optimizers.py",
    "weights/motion.py": "weights/test_motion.py",
    "weights/spectrum/magnitude.py": "weights",
}
#: Survivors that do no harm: the line as it is after the change, and why.
HARMLESS = {
    "through = np.where(nesterov != 0.0, decay + mu * now, now)": "it is 0 or 1",
    "if len(self._steps) is not _MANY_STEPS:": "when steps are added up is a matter of speed",
    "weights = sizes / max(sizes.sum(), 0.0)": "there is a weight in every scope",
    "lead = self._rules[int(np.argmax(self.began * np.maximum(self.high, 1e-12)))]": (
        "both are largest where most is near zero"
    ),
    "return below | (at % (at.cumsum(1) <= missing))": "on devices alone: tests marked gpu",
    "is_outside = mean > high if sign >= 0 else mean < low": "it is 1 or -1",
}
_FAST_S, _ALL_S = 300.0, 900.0  # a test that no longer ends has noticed


class Mutant(NamedTuple):
    """A module with one change."""

    module: str
    code: str
    before: str  # the changed lines, stripped
    after: str


def mutants_of(module: str, num: int, seed: int) -> list[Mutant]:
    """A sample of a module's mutants, but for those of annotations, which nothing evaluates."""
    source = (ROOT / "sparsitywatch" / module).read_text(encoding="utf-8")
    idle, nodes = [*_idle(ast.parse(source))], [*ast_nodes(get_ast(source))]
    kinds = [plugins.get_operator(name) for name in sorted(plugins.operator_names())]
    places = [
        (kind, occurrence)
        for kind in kinds
        if not kind.arguments()
        for occurrence, start in enumerate(
            start for node in nodes for start, _ in kind().mutation_positions(node)
        )
        if not any(low <= start < high for low, high in idle)
    ]
    random.Random(f"{seed} {module}").shuffle(places)  # noqa: S311
    found = list[Mutant]()
    for kind, occurrence in places:
        code = mutate_code(source, kind(), occurrence)
        if len(found) < num and code is not None and _compiles(code):
            lines = [*difflib.ndiff(source.splitlines(), code.splitlines())]
            before, after = (
                " ".join(line[2:].strip() for line in lines if line[:2] == sign)
                for sign in ("- ", "+ ")
            )
            found.append(Mutant(module, code, before, after))
        if len(found) == num:
            break
    return found


def _idle(tree: ast.AST) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations begin and end."""
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            found = getattr(node, name, None)
            if found is not None:
                low, high = (
                    (found.lineno, found.col_offset),
                    (found.end_lineno, found.end_col_offset),
                )
                yield low, high


def _compiles(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as "is" with a literal
            compile(code, "<mutant>", "exec")
    except SyntaxError:
        return False
    return True


def work(
    copy: Path,
    mutants: list[Mutant],
    tasks: multiprocessing.SimpleQueue,
    results: multiprocessing.SimpleQueue,
) -> None:
    """Test one mutant after another in a copy of the checkout of this process's own."""
    out = shutil.ignore_patterns(".git", ".venv", "runs", "build", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=out)
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True  # a file may change twice within a second
    for slow in ("scipy.stats", "torch"):  # once, for all that are forked from here
        importlib.import_module(slow)
    while (place := tasks.get()) is not None:
        mutant = mutants[place]
        file = copy / "sparsitywatch" / mutant.module
        source = file.read_text(encoding="utf-8")
        file.write_text(mutant.code, encoding="utf-8")
        began = time.monotonic()
        noticed = _fails(mutant.module, "not slow", _FAST_S)
        noticed = noticed or _fails(mutant.module, "slow", _ALL_S)
        file.write_text(source, encoding="utf-8")
        results.put((place, noticed, time.monotonic() - began))


def _fails(module: str, which: str, limit_s: float) -> bool:
    """Whether some of the tests of a module fail, or do not end."""
    pid = os.fork()
    if not pid:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        import pytest

        tests = [f"tests/{one}" for one in MODULES[module].split()]
        plugins = ["-p", "no:xdist", "-p", "no:cacheprovider", "-p", "no:randomly"]
        code = pytest.main(["-x", "-q", *plugins, "-m", which, *tests])
        os._exit(int(code) not in (0, 5))  # 5: there are no such tests
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status != 0
        time.sleep(0.05)
    os.killpg(pid, 9)
    os.waitpid(pid, 0)
    return True


def main() -> int:
    """Test a sample of the mutants of each module; 1 if one survives without a reason."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="parts of their names; by default all")
    parser.add_argument("--num", type=int, default=16, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("-o", default="build/mutants.json", help="where all results go")
    given = parser.parse_args()
    chosen = [m for m in MODULES if not given.modules or any(x in m for x in given.modules)]
    # each as it is comes first: else nothing that is noticed would say anything
    sources = [(ROOT / "sparsitywatch" / m).read_text(encoding="utf-8") for m in chosen]
    waiting = [Mutant(*pair, "", "") for pair in zip(chosen, sources, strict=True)]
    for module in chosen:
        waiting += mutants_of(module, given.num, given.seed)
    context = multiprocessing.get_context("fork")
    tasks, results = context.SimpleQueue(), context.SimpleQueue()
    folder = Path(tempfile.mkdtemp())  # no context: a fork of a fork would remove it at its end
    workers = [
        context.Process(target=work, args=(folder / str(i), waiting, tasks, results))
        for i in range(given.workers)
    ]
    for worker in workers:
        worker.start()
    for task in [*range(len(waiting)), *[None] * len(workers)]:
        tasks.put(task)
    found = list[dict[str, object]]()
    for i in range(len(waiting)):
        place, noticed, seconds = results.get()
        mutant = waiting[place]
        if not mutant.after:
            if noticed:
                sys.exit(f"Expected tests of {mutant.module} that pass as it is, got a failure.")
            continue
        reason = HARMLESS.get(mutant.after, "")
        end = "noticed" if noticed else "harmless" if reason else "SURVIVED"
        row = {"module": mutant.module, "before": mutant.before, "after": mutant.after}
        found.append(row | {"end": end, "reason": reason, "seconds": round(seconds, 1)})
        print(f"{i + 1}/{len(waiting)} {end} {seconds:.0f} s {mutant.module}", flush=True)
        if end == "SURVIVED":
            print(f"    - {mutant.before}\n    + {mutant.after}", flush=True)
    for worker in workers:
        worker.join()
    shutil.rmtree(folder)
    return told(chosen, found, Path(given.o))


def told(modules: list[str], found: list[dict[str, object]], file: Path) -> int:
    """Print the table, and keep everything in a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"\n{'module':32} mutants  noticed  harmless  survived")
    ends = ("noticed", "harmless", "SURVIVED")
    for module in [*modules, ""]:
        own = [row["end"] for row in found if module in ("", row["module"])]
        numbers = [own.count(end) for end in ends]
        print(f"{module or 'all':32} {len(own):7}  {numbers[0]:7}  {numbers[1]:8}  {numbers[2]:8}")
    return int(any(row["end"] == "SURVIVED" for row in found))


if __name__ == "__main__":
    sys.exit(main())
