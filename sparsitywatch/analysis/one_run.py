"""Which checkpoints of a series are not what their names say: facts in, findings out.

One law is enough, and no model of the training: within a run, more steps between two checkpoints
never bring their weights closer. What breaks it is not where it belongs.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsitywatch.records.event import some_of
from sparsitywatch.series import count


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One checkpoint that is not what its name says, or may not be.

    Args:
        step: optimizer steps that it is called by; of steps that are missing the first one.
        finding: what is wrong, in a word or two: one of ``FINDINGS``.
        evidence: what shows it.
        action: what to do.
    """

    step: int | None
    finding: str
    evidence: str
    action: str


#: Every finding, and what to do about it.
FINDINGS: Mapping[str, str] = {
    "unreadable": "Upload or copy it again, then audit again.",
    "not finite": "Leave it out. If training diverged there, everything later is lost too.",
    "tensors": "Audit one model at a time, or upload the right model.",
    "shape": "Audit one model at a time, or upload the right model.",
    "dtype": "Save every step in one dtype: rounding changes small weights.",
    "tie": "Tie the head as in the other steps before you compare them.",
    "copy": "Do not use it. Ask the publisher for the true weights of this step.",
    "identical": "The files cannot tell whose weights these are: ask who saved them. A training "
    "that had not moved yet, or was rolled back, gives this too.",
    "shard": "Do not use it. Ask the publisher for the true file of this step.",
    "swapped": "Exchange the two, after a look at the log of the training.",
    "odd one out": "Leave it out until you know where it comes from.",
    "not of this run": "Leave it out, or audit the runs one by one.",
    "return": "Ask whether training was rolled back; if not, this file is of another step.",
    "jump": "Ask what changed there: the data, the optimizer, or the run.",
    "missing": "Look for them, or say in your paper that they are missing.",
    "step": "Rename the file, or correct the step inside.",
}


#: Shape, dtype, and the first name of the same storage, by the name of a tensor.
Layout = Mapping[str, tuple[tuple[int, ...], str, str]]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of one checkpoint, and a sample of its weights."""

    step: int
    layout: Layout
    #: By the name of a file: the hash that the storage has, or "", and the tensors in it.
    files: Mapping[str, tuple[str, frozenset[str]]]
    sample: Mapping[str, np.ndarray]  # the first weights of some tensors
    hashes: tuple[str, ...] = ()  # of all files, if the storage has all of them
    digest: str = ""  # of more than the sample, where more was read
    extent: str = ""  # what was compared, for the evidence
    not_finite: tuple[str, ...] = ()


def judge(facts: Sequence[Facts]) -> list[Finding]:
    """What is wrong with checkpoints that could be read: one finding for each at most."""
    facts = sorted(facts, key=lambda one: one.step)
    found: dict[int, Finding] = {}
    usual = most_common(layout_key(one.layout) for one in facts)
    layout = next((one.layout for one in facts if layout_key(one.layout) == usual), {})
    for i, one in enumerate(facts):
        if one.not_finite:
            some = some_of(one.not_finite, len(one.not_finite))
            found[i] = finding(one.step, "not finite", f"NaN or infinite weights in {some}")
        elif layout_key(one.layout) != usual:
            found[i] = _other_layout(one, layout, num_others=len(facts) - 1)
    sound = [facts[i] for i in range(len(facts)) if i not in found]
    rows = list(found.values())
    if len(sound) > 1:
        names = list(sound[0].sample)
        matrices = [name for name in names if len(layout[name][0]) > 1] or names
        rows += Series(sound, names, matrices).judged()
    return rows


def finding(step: int | None, kind: str, evidence: str) -> Finding:
    """One with what to do about it."""
    return Finding(step=step, finding=kind, evidence=evidence, action=FINDINGS[kind])


def layout_key(layout: Layout) -> tuple[Any, ...]:
    """What is equal for layouts that are."""
    return tuple(sorted(layout.items()))


def most_common(keys: Iterable[Any]) -> Any:
    """The first of the most frequent; None of none."""
    counts = Counter(keys)
    return max(counts, key=lambda key: counts[key], default=None)


def _other_layout(one: Facts, usual: Layout, num_others: int) -> Finding:
    """How the tensors of one checkpoint differ from those of most others."""
    more = [name for name in one.layout if name not in usual]
    less = [name for name in usual if name not in one.layout]
    others = f"most of the other {num_others:,}"
    if more or less:
        twins = [n for n in usual if more and usual[n][:2] == one.layout[more[0]][:2]]
        if len(more) == 1 and not less and len(one.layout[more[0]][0]) > 1 and twins:
            words = f"{more[0]} is a tensor of its own; {others} have none, and one storage"
            return finding(one.step, "tie", f"{words} such as {twins[0]} stands for both")
        parts = [f"{some_of(names, len(names))} {what}"
                 for names, what in ((more, "too many"), (less, "missing")) if names]  # fmt: skip
        return finding(one.step, "tensors", f"{'; '.join(parts)}, compared with {others}")
    for place, kind in enumerate(("shape", "dtype", "tie")):
        changed = [name for name in usual if one.layout[name][place] != usual[name][place]]
        if changed:
            name = changed[0]
            words = f"{name} is {_shown(one.layout[name][place])}, {_shown(usual[name][place])} in"
            more_words = f"; {count(len(changed), 'tensor')} in all"
            if kind == "tie":
                words = f"{name} shares its storage with other tensors than in"
            return finding(one.step, kind, f"{words} {others}{more_words}")
    raise AssertionError  # layouts that differ, differ in one of these


def _shown(value: object) -> str:
    return " x ".join(map(str, value)) or "scalar" if isinstance(value, tuple) else str(value)


#: A correlation of samples that chance does not give, in standard errors.
_RELATED = 5.0
#: How much worse a place must be than the best one for weights not to be at home there.
_WORSE = 1.25
#: An odd one is as many times as far from its neighbours as these from one another; two that
#: are swapped come as much closer to theirs; a return is as much nearer than the step before.
_ODD, _SWAPPED, _RETURNED = 1.54, 0.745, 1.54
#: Two neighbours that are swapped are this much closer to one another than to what is around.
_APART = 1.3
#: A jump is as many times as fast as any interval around it.
_JUMP = 4.0
#: Neighbours among which one of the same run is looked for; the longest run of odd ones.
_AROUND = 8


class Series:
    """Checkpoints in the order of their steps, and how far apart their weights are.

    Every pair has a place in N x N matrices; distances are relative to the usual weights.
    """

    def __init__(self, facts: Sequence[Facts], names: Sequence[str], matrices: Sequence[str]):
        self.facts, self.names, self.matrices = facts, names, matrices
        self.steps = [one.step for one in facts]
        self.found: dict[int, Finding] = {}
        self.line = list(range(len(facts)))  # those that no finding has put aside
        digests = np.array([one.digest for one in facts])
        self.same = digests[:, None] == digests
        squares = np.zeros_like(self.same, dtype=float)
        sigmas, strongest = squares.copy(), squares.copy()
        num_weights = 0
        for name in names:
            sample = np.stack([one.sample[name] for one in facts]).astype(float)
            first: dict[bytes, int] = {}
            ids = np.array([first.setdefault(row.tobytes(), i) for i, row in enumerate(sample)])
            equal = ids[:, None] == ids
            self.same &= equal
            if name in matrices and not equal.all():  # what never moves says nothing
                squares += _squares(sample)
                correlation, num = _correlation(sample), sample.shape[1]
                sigmas += num * correlation
                strongest = np.maximum(strongest, math.sqrt(num) * correlation)
                num_weights += num
        self.related = np.maximum(sigmas / math.sqrt(num_weights or 1), strongest) > _RELATED
        self.far = np.where(self.same, 0.0, np.sqrt(squares) + 1e-12)

    def judged(self) -> list[Finding]:
        """What is wrong with any of them."""
        self.find_copies()
        self._find_strangers()
        self._find_swapped()
        self._find_shards()
        self.find_odd()
        self._find_returns()
        self._find_jumps()
        return list(self.found.values())

    def in_place(self) -> set[int]:
        """Those whose neighbours are further from one another than from them; and both ends."""
        line, far = self.line, self.far
        around = zip(line, line[1:], line[2:], strict=False)
        near = {i for a, i, b in around if max(far[a, i], far[i, b]) < far[a, b]}
        return {*line[:1], *near, *line[-1:]}

    def _put_aside(self, kind: str, evidence: Mapping[int, str]) -> None:
        for i, words in evidence.items():
            self.found[i] = finding(self.steps[i], kind, words)
        self.line = [i for i in self.line if i not in evidence]

    def _named(self, indices: Sequence[int]) -> str:
        steps = [f"{self.steps[i]:,}" for i in indices]
        return f"step{'s' * (len(steps) > 1)} {some_of(steps, len(steps))}"

    # -------------------------------------------------------------- copies

    def find_copies(self, *, is_part: bool = False) -> None:
        """Those whose weights are another's; where nobody can know whose, both are named.

        Of a part, such as one shard, neighbours may be alike: it may have been frozen meanwhile.
        """
        groups: dict[int, list[int]] = {}
        for i, first in enumerate(self.same.argmax(axis=1)):
            groups.setdefault(int(first), []).append(i)
        single = [group[0] for group in groups.values() if len(group) == 1]
        for group in groups.values():
            is_together = group[-1] - group[0] == len(group) - 1
            if len(group) == 1 or (is_part and (is_together or len(single) < 2)):
                continue
            costs, best = self._costs(group, single)
            home = [i for i in group if costs[i] <= _WORSE * best]
            extent = self.facts[group[0]].extent
            if len({self.facts[i].hashes for i in group}) == 1 and self.facts[group[0]].hashes:
                extent = "by the hash that the storage has"
            unknown: dict[int, str] = {}
            copies: dict[int, str] = {}
            for i in group:
                others = [j for j in group if j != i]
                if i not in home:
                    copies[i] = self._copied(i, home, others, single, extent)
                elif len(home) > 1:
                    unknown[i] = f"the same weights as {self._named(others)}, {extent}"
            self._put_aside("copy", copies)
            self._put_aside("identical", unknown)
            self.line = sorted({*self.line, *home[:1]})  # these weights are of the run

    def _costs(self, group: Sequence[int], single: Sequence[int]) -> tuple[dict[int, float], float]:
        """What a detour by these weights costs at each of their places, and at the best place."""
        if len(single) < 2:
            return dict.fromkeys(group, 0.0), 0.0
        far = self.far[group[0], single]
        between = self.far[single[:-1], single[1:]]
        costs = np.array([far[0], *(far[:-1] + far[1:] - between), far[-1]]) + 0.5 * far.min()
        places = np.searchsorted(single, group)
        return dict(zip(group, costs[places].tolist(), strict=True)), float(costs.min())

    def _copied(
        self, i: int, home: Sequence[int], others: Sequence[int], single: Sequence[int], extent: str
    ) -> str:
        """The evidence that weights are not at home at a place."""
        nearest = single[int(self.far[i, single].argmin())]
        around = [j for j in single if j < i][-1:] + [j for j in single if j > i][:1]
        far, near = self.far[i, around].min(), self.far[i, nearest]
        words = f"{far / near:.1f} times as far from {self._named(around)} as from"
        whose = self._named(home or others)
        rest = "" if home else ", and of none of these steps"
        return f"the weights of {whose}, {extent}{rest}; {words} {self._named([nearest])}"

    # -------------------------------------------------------------- other runs

    def _find_strangers(self) -> None:
        """Groups with nothing in common with the largest one."""
        if len(self.line) < 4:
            return
        related = self.related[np.ix_(self.line, self.line)]
        label = list(range(len(self.line)))
        for p in range(len(label)):
            for q in range(max(0, p - _AROUND), p):
                if related[p, q] and label[p] != label[q]:
                    label = [label[p] if one == label[q] else one for one in label]
        run = most_common(label)
        own = [i for i, one in zip(self.line, label, strict=True) if one == run]
        strangers = [i for i in self.line if i not in own]
        if len(own) < 3 or not strangers:
            return
        # over a long time weights forget where they began
        long = 2 * np.diff([self.steps[i] for i in own])
        if self.steps[own[0]] - self.steps[strangers[-1]] > long[0]:
            return
        if self.steps[strangers[0]] - self.steps[own[-1]] > long[-1]:
            return
        words = "its weights have no more in common with those of other steps than chance gives"
        self._put_aside("not of this run", dict.fromkeys(strangers, words))

    # -------------------------------------------------------------- places

    def _find_swapped(self) -> None:
        """Two that are exchanged."""
        while swap := self._swap():
            one, other = (self.line[p] for p in swap)
            words = "each is closer to the neighbours of the other: exchanged with"
            self._put_aside("swapped", {one: f"{words} {self._named([other])}",
                                        other: f"{words} {self._named([one])}"})  # fmt: skip

    def _find_shards(self) -> None:
        """Files that are those of another step, where another file of it is its own."""
        facts = [self.facts[i] for i in self.line]
        files = facts[0].files if len(facts) > 3 and len(facts[0].files) > 1 else {}
        rows: dict[int, tuple[str, str]] = {}
        in_place: set[int] = set()  # with another file
        for file, (_, held) in files.items():
            names = [name for name in self.names if name in held]
            hashes = [one.files.get(file, ("", held))[0] for one in facts]
            part = [
                replace(one, digest="", hashes=tuple(filter(None, [stated])))
                for one, stated in zip(facts, hashes, strict=True)
            ]
            series = Series(part, names, [n for n in names if n in self.matrices] or names)
            series.find_copies(is_part=True)
            series.find_odd()
            in_place |= series.in_place() - series.found.keys()
            for i, row in series.found.items():
                kind = "identical" if row.finding == "identical" else "shard"
                rows.setdefault(i, (kind, f"{file}: {row.evidence}"))
        for i in sorted(rows.keys() & in_place, reverse=True):
            kind, words = rows[i]
            self._put_aside(kind, {self.line[i]: words})

    def find_odd(self) -> None:
        """Those far from both neighbours, which are close to one another."""
        while odd := self._odd():
            begin, end, ratio = odd
            inside, around = self.line[begin:end], [self.line[begin - 1], self.line[end]]
            words = f"{ratio:.1f} times as far from {self._named(around)} as these are apart"
            is_related = self.related[np.ix_(inside, around)].any()
            kind = "odd one out" if is_related else "not of this run"
            self._put_aside(kind, dict.fromkeys(inside, words))

    def _odd(self) -> tuple[int, int, float] | None:
        """Where in the line some are that a shortcut leaves out, and how odd they are."""
        far, num = self.far[np.ix_(self.line, self.line)], len(self.line)
        best: tuple[int, int, float] | None = None
        least = _ODD
        for length in range(1, min(_AROUND, (num - 1) // 2) + 1):
            before = np.arange(num - length - 1)
            after = before + length + 1
            detour = np.minimum(far[before, before + 1], far[after - 1, after])
            ratios = detour / far[before, after]
            if length == 1 and num > 4:  # where it always goes to and fro, more is needed
                least *= max(1.0, float(np.median(ratios)))
            at = int(ratios.argmax()) if len(ratios) else 0
            if len(ratios) and ratios[at] > max(least, best[2] if best else 0.0):
                best = at + 1, at + 1 + length, float(ratios[at])
        return best

    def _swap(self) -> tuple[int, int] | None:
        """The two places in the line whose exchange shortens the way most, at both."""
        far, num = self.far[np.ix_(self.line, self.line)], len(self.line)
        inner = np.arange(1, num - 1)
        detours = (far[inner - 1, inner] + far[inner, inner + 1]) / far[inner - 1, inner + 1]
        ill = {0, num - 1, *(inner[detours > 1.5] if num > 2 else ())}  # 1 of what drifts
        most, found = 0.0, None
        for p, q in itertools.combinations(range(num), 2):
            if q > p + 1 and not {p, q} <= ill:
                continue
            ways = [
                (sum(far[old, at] for at in around), sum(far[new, at] for at in around))
                for old, new in ((p, q), (q, p))
                if (around := [at for at in (old - 1, old + 1) if 0 <= at < num and at != new])
            ]
            ratios = [after / before for before, after in ways]
            shorter = sum(before - after for before, after in ways)
            mean = math.prod(ratios) ** (1 / max(1, len(ratios)))
            # neighbours that go to and fro are as far from one another as from the others
            apart = sum(before for before, _ in ways) / max(1, len(ways))
            if q == p + 1 and apart < _APART * far[p, q]:
                continue
            if max(ratios, default=1.0) < 0.95 and mean < _SWAPPED and shorter > most:
                most, found = shorter, (p, q)
        return found

    def _find_returns(self) -> None:
        """Those that are nearer to a step three or more before than to the last one."""
        line, rows = self.line, {}
        for p in range(3, len(line)):
            i, before = line[p], line[p - 1]
            earlier = line[int(self.far[i, line[: p - 2]].argmin())]
            ratio = self.far[i, before] / self.far[i, earlier]
            if ratio > _RETURNED:
                words = f"{ratio:.1f} times as far from {self._named([before])} as from"
                rows[i] = f"{words} {self._named([earlier])}"
        self._put_aside("return", rows)

    def _find_jumps(self) -> None:
        """Intervals that are much faster than those on both sides."""
        line = self.line
        if len(line) < 4:
            return
        way = self.far[line[:-1], line[1:]]
        steps = np.maximum(np.diff([self.steps[i] for i in line]), 1)
        rows = {}
        for p in range(1, len(way) - 1):
            around = [*range(max(0, p - 2), p), *range(p + 1, min(len(way), p + 3))]
            # weights wander by the root of the steps, and drift by the steps
            ratio = min(
                float(way[p] / steps[p] ** power / (way[around] / steps[around] ** power).max())
                for power in (0.5, 1.0)
            )
            if ratio > _JUMP:
                words = f"{ratio:.1f} times as far from {self._named([line[p]])} as any interval"
                rows[line[p + 1]] = f"{words} around it, for its steps; later steps are close to it"
        self._put_aside("jump", rows)


def _squares(sample: np.ndarray) -> np.ndarray:
    """Squared distances of each pair, by the usual square of the weights."""
    inner = sample @ sample.T
    own = np.diag(inner)
    usual = float(np.median(own)) or float(own.max()) or 1.0
    squares: np.ndarray = np.maximum(own[:, None] + own - 2 * inner, 0.0) / usual
    return squares


def _correlation(sample: np.ndarray) -> np.ndarray:
    """Correlation of each pair; 0 of what is constant."""
    centred = sample - sample.mean(axis=1, keepdims=True)
    lengths = np.sqrt((centred**2).sum(axis=1, keepdims=True))
    unit = np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)
    correlation: np.ndarray = unit @ unit.T
    return correlation


def missing_steps(steps: Sequence[int]) -> list[Finding]:
    """Gaps in a series that is even before and after them."""
    steps = sorted(steps)
    gaps = np.diff(steps)
    rows = []
    for p in range(2, len(gaps) - 2):
        usual = int(gaps[p - 1])
        is_even = (gaps[[p - 2, p - 1, p + 1, p + 2]] == usual).all()
        if is_even and gaps[p] > usual and gaps[p] % usual == 0:
            missing = [f"{step:,}" for step in range(steps[p] + usual, steps[p + 1], usual)]
            words = (
                f"steps come every {usual:,} here, but there is no {some_of(missing, len(missing))}"
            )
            rows.append(finding(steps[p] + usual, "missing", words))
    return rows
