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
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
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
_LIMIT_S = 600.0  # tests that no longer end have noticed


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


class Copy:
    """A copy of the checkout, in which one mutant after another is tested."""

    def __init__(self, folder: str) -> None:
        self._root = Path(folder) / "checkout"
        out = shutil.ignore_patterns(".git", ".venv", "runs", "build", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, self._root, symlinks=True, ignore=out)

    def notices(self, mutant: Mutant) -> tuple[str, float]:
        """Which test fails, or "no end"; empty if all pass; and the seconds it took."""
        file, began = self._root / "sparsitywatch" / mutant.module, time.monotonic()
        source = file.read_text(encoding="utf-8")
        file.write_text(mutant.code, encoding="utf-8")
        try:
            failed = self._failed(mutant.module, "not slow") or self._failed(mutant.module, "slow")
        finally:
            file.write_text(source, encoding="utf-8")
        return failed, time.monotonic() - began

    def _failed(self, module: str, which: str) -> str:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", which]
        command += ["-p", "no:xdist", "-p", "no:cacheprovider"]
        environment = os.environ | {
            "PYTHONPATH": str(self._root),
            "PYTHONDONTWRITEBYTECODE": "1",  # a file may change twice within a second
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "Agg",
        }
        tests = [f"tests/{one}" for one in MODULES[module].split()]
        try:
            done = subprocess.run(
                [*command, *tests], cwd=self._root, env=environment, timeout=_LIMIT_S,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "no end"
        if done.returncode in (0, 5):  # 5: there are no such tests
            return ""
        named = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return named[-1] if named else done.stdout[-400:]


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
    waiting = [
        Mutant(m, (ROOT / "sparsitywatch" / m).read_text(encoding="utf-8"), "", "") for m in chosen
    ]
    for module in chosen:
        waiting += mutants_of(module, given.num, given.seed)
    found = list[dict[str, object]]()
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(given.workers) as pool,
    ):
        copies = SimpleQueue[Copy]()
        for i in range(given.workers):
            copies.put(Copy(f"{folder}/{i}"))
        for mutant, failed, seconds in pool.map(partial(tested, copies), waiting):
            if not mutant.after:
                if failed:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise SystemExit(f"Expected tests of {mutant.module} that pass, got {failed}")
                continue
            reason = HARMLESS.get(mutant.after, "")
            end = "noticed" if failed else "harmless" if reason else "SURVIVED"
            row = {"module": mutant.module, "before": mutant.before, "after": mutant.after}
            found.append(row | {"end": end, "by": failed, "reason": reason})
            print(f"{len(found)} of {len(waiting) - len(chosen)}: {end} {seconds:.0f} s, "
                  f"{mutant.module}", flush=True)  # fmt: skip
            if end == "SURVIVED":
                print(f"    - {mutant.before}\n    + {mutant.after}", flush=True)
    return told(chosen, found, Path(given.o))


def tested(copies: SimpleQueue[Copy], mutant: Mutant) -> tuple[Mutant, str, float]:
    """Test a mutant in a copy that is free."""
    copy = copies.get()
    try:
        return mutant, *copy.notices(mutant)
    finally:
        copies.put(copy)


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
