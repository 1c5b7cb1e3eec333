"""What an audit of a series of checkpoints says, and how it is found: facts in, findings out.

One law is enough, and no model of the training: within a run, more steps between two checkpoints
never bring their weights closer. What breaks it is not where it belongs.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from sparsitywatch.records.event import some_of
from sparsitywatch.series import count, numbered, size

#: Every finding, and what to do about it.
FINDINGS: Mapping[str, str] = {
    "unreadable": "Upload or copy it again, then audit again.",
    "not finite": "Leave it out. If training diverged there, everything later is lost too.",
    "tensors": "Audit one model at a time, or upload the right model.",
    "shape": "Audit one model at a time, or upload the right model.",
    "dtype": "Save every checkpoint in one dtype: rounding changes small weights.",
    "tie": "Tie the head as in the other checkpoints before you compare them.",
    "copy": "Do not use it. Ask the publisher for the true weights of this checkpoint.",
    "identical": "The files cannot tell whose weights these are: ask who saved them. A training "
    "that had not moved yet, or was rolled back, gives this too.",
    "shard": "Do not use it. Ask the publisher for the true file of this checkpoint.",
    "swapped": "Exchange the two, after a look at the log of the training.",
    "odd one out": "Leave it out until you know where it comes from.",
    "not of this run": "Leave it out, or audit the runs one by one.",
    "return": "Ask whether training was rolled back; if not, this is another checkpoint's file.",
    "jump": "Ask what changed there: the data, the optimizer, or the run.",
    "optimizer": "Do not go on training from it: ask for the state that belongs to these weights.",
    "missing": "Look for them, or say in your paper that they are missing.",
    "step": "Rename the file, or correct the number inside.",
}


@dataclass(frozen=True, kw_only=True)
class AuditFinding:
    """One checkpoint that is not what its name says, or may not be."""

    step: int | None  # optimizer steps that it is called by; of those that are missing the first
    finding: str  # what is wrong, in a word or two: one of ``FINDINGS``
    evidence: str  # what shows it
    action: str  # what to do

    @classmethod
    def of(cls, step: int | None, kind: str, evidence: str) -> AuditFinding:
        """One with what to do about it."""
        return cls(step=step, finding=kind, evidence=evidence, action=FINDINGS[kind])


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit of a series found.

    Args:
        findings: by step; a checkpoint without a finding has none.
        steps: those that there are checkpoints of, as their names or contents count them.
        unit: what these count: "step", or else "epoch" or "save".
        num_checkpoints: how many there are.
        num_audited: of these, the ones that could be read.
        num_without_step: of these, the ones that nothing gives a step to, such as a branch
            "main"; they are not audited.
        num_weight_bytes: size of the weights of all.
        num_bytes_read: bytes of their files that were read, headers included.
        is_full: whether every weight was read.
    """

    findings: tuple[AuditFinding, ...]
    steps: tuple[int, ...]
    unit: str
    num_checkpoints: int
    num_audited: int
    num_without_step: int
    num_weight_bytes: int
    num_bytes_read: int
    is_full: bool

    @property
    def headline(self) -> str:
        """How many findings there are."""
        found, series = count(len(self.findings), "finding"), count(len(self.steps), "checkpoint")
        return f"{found} in {series}"

    @property
    def basis(self) -> str:
        """What was read of how much, and what was not."""
        unread = len(self.steps) - self.num_audited
        words = f"{unread:,} cannot be read; " if unread else ""
        if self.num_without_step:
            words += f"{self.num_without_step:,} left out, as nothing says its {self.unit}; "
        return f"{words}{size(self.num_bytes_read)} read of {size(self.num_weight_bytes)}"

    def __repr__(self) -> str:
        return f"<Audit: {self.headline}>"

    @property
    def status(self) -> Literal[0, 1, 2]:
        """0: nothing was found; 1: there are findings; 2: nothing could be audited."""
        if self.num_audited == 0:
            return 2
        return 1 if self.findings else 0


# ------------------------------------------------------------------ what is judged

#: Shape, dtype, and the first name of the same storage, by the name of a tensor.
Layout = Mapping[str, tuple[tuple[int, ...], str, str]]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of one checkpoint, and a sample of its weights."""

    step: int
    problem: str = ""  # why it cannot be read
    layout: Layout = field(default_factory=dict)
    #: By the name of a file: the hash that the storage has, or "", and the tensors in it.
    files: Mapping[str, tuple[str, frozenset[str]]] = field(default_factory=dict)
    sample: Mapping[str, np.ndarray] = field(default_factory=dict)  # some tensors' first weights
    digest: str = ""  # of more than the sample, where more was read
    extent: str = ""  # what was compared, for the evidence
    not_finite: tuple[str, ...] = ()

    @property
    def hashes(self) -> tuple[str, ...]:
        """Those of all files, if the storage has all of them."""
        stated = sorted(one for one, _ in self.files.values())
        return tuple(stated) if all(stated) else ()


def judge(facts: Sequence[Facts], unit: str = "step") -> list[AuditFinding]:
    """What is wrong with the checkpoints of a series, numbered by ``unit``: one finding each."""
    facts = sorted(facts, key=lambda one: one.step)
    readable = [one for one in facts if not one.problem]
    usual, others = usual_layout(readable), f"most of the other {len(readable) - 1:,}"
    rows, sound = list[AuditFinding](), list[Facts]()
    for one in facts:
        kind, words = _wrong_by_itself(one, usual, others)
        if kind:
            rows.append(AuditFinding.of(one.step, kind, words))
        else:
            sound.append(one)
    if len(sound) > 1:
        rows += _Series(sound, list(sound[0].sample), unit).judged()
    return rows


def _wrong_by_itself(one: Facts, usual: Layout, others: str) -> tuple[str, str]:
    """What is wrong with a checkpoint whatever its weights are, and what shows it."""
    if one.problem:
        return "unreadable", one.problem
    if one.not_finite:
        some = some_of(one.not_finite, len(one.not_finite))
        return "not finite", f"NaN or infinite weights in {some}"
    return ("", "") if one.layout == usual else _unlike(one.layout, usual, others)


def usual_layout(facts: Iterable[Facts]) -> Layout:
    """That of most of them; of several the first."""
    counts = Counter(tuple(sorted(one.layout.items())) for one in facts)
    return dict(counts.most_common(1)[0][0]) if counts else {}


def _unlike(own: Layout, usual: Layout, others: str) -> tuple[str, str]:
    """How the tensors of one checkpoint differ from those of others, and in which words."""
    more = [name for name in own if name not in usual]
    less = [name for name in usual if name not in own]
    if more or less:
        twins = [name for name in usual if more and usual[name][:2] == own[more[0]][:2]]
        if len(more) == 1 and not less and len(own[more[0]][0]) > 1 and twins:
            words = f"{more[0]} is a tensor of its own; {others} have none: there a tensor such as"
            return "tie", f"{words} {twins[0]} stands for both"
        parts = [f"{some_of(names, len(names))} {what}"
                 for names, what in ((more, "too many"), (less, "missing")) if names]  # fmt: skip
        return "tensors", f"{'; '.join(parts)}, compared with {others}"
    differ = [[name for name in usual if own[name][at] != usual[name][at]] for at in range(3)]
    at, changed = next((at, names) for at, names in enumerate(differ) if names)
    name, in_all = changed[0], f"; {count(len(changed), 'tensor')} in all"
    if at == 2:
        return "tie", f"{name} shares its storage with other tensors than in {others}{in_all}"
    came, expected = (
        " x ".join(map(str, one[0])) or "scalar" if at == 0 else one[1]
        for one in (own[name], usual[name])
    )
    return ("shape", "dtype")[at], f"{name} is {came}, {expected} in {others}{in_all}"


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


class _Series:
    """Checkpoints by step, and N x N matrices of how far apart they are, by the usual weights."""

    def __init__(self, facts: Sequence[Facts], names: Sequence[str], unit: str) -> None:
        self.facts, self.names, self.unit = facts, names, unit
        matrices = [name for name in names if len(facts[0].layout[name][0]) > 1] or names
        self.steps = [one.step for one in facts]
        self.found: dict[int, tuple[str, str]] = {}  # kind and evidence
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

    def judged(self) -> list[AuditFinding]:
        """What is wrong with any of them."""
        self._find_copies()
        self._find_strangers()
        self._find_swapped()
        self._find_shards()
        self._find_odd()
        self._find_returns()
        self._find_jumps()
        return [AuditFinding.of(self.steps[i], *found) for i, found in self.found.items()]

    def _put_aside(self, kind: str, words: str, *indices: int) -> None:
        self.found |= dict.fromkeys(indices, (kind, words))
        self.line = [i for i in self.line if i not in indices]

    def _named(self, *indices: int) -> str:
        steps = [self.steps[i] for i in indices]
        if len(steps) < 3:
            return numbered(self.unit, *steps)
        return f"{self.unit}s {some_of([f'{step:,}' for step in steps], len(steps))}"

    # -------------------------------------------------------------- copies, other runs

    def _find_copies(self, *, is_part: bool = False) -> None:
        """Those whose weights are another's; where nobody can know whose, both are named."""
        groups: dict[int, list[int]] = {}
        for i, first in enumerate(self.same.argmax(axis=1).tolist()):
            groups.setdefault(first, []).append(i)
        single = [group[0] for group in groups.values() if len(group) == 1]
        for group in groups.values():
            # of a part, such as one shard, neighbours may be alike: it may have been frozen
            is_together = group[-1] - group[0] == len(group) - 1
            if len(group) == 1 or (is_part and (is_together or len(single) < 2)):
                continue
            home = self._home(group, single)
            hashes = {self.facts[i].hashes for i in group}
            is_by_hash = len(hashes) == 1 and any(hashes)
            by_hash = "by the hash that the storage has"
            extent = by_hash if is_by_hash else self.facts[group[0]].extent
            for i in group:
                others = self._named(*(j for j in group if j != i))
                if i not in home:
                    whose = self._named(*home) if home else others
                    rest = "" if home else ", and of none of these"
                    words = f"the weights of {whose}, {extent}{rest}; {self._far_away(i, single)}"
                    self._put_aside("copy", words, i)
                elif len(home) > 1:
                    self._put_aside("identical", f"the same weights as {others}, {extent}", i)
            self.line = sorted({*self.line, *home[:1]})  # these weights are of the run

    def _home(self, group: Sequence[int], single: Sequence[int]) -> list[int]:
        """Where weights that several have are at home: no place makes for a shorter detour."""
        if len(single) < 2:
            return list(group)
        far = self.far[group[0], single]
        between = self.far[single[:-1], single[1:]]
        costs = np.array([far[0], *(far[:-1] + far[1:] - between), far[-1]]) + 0.5 * far.min()
        is_home = costs[np.searchsorted(single, group)] <= _WORSE * costs.min()
        return [i for i, one in zip(group, is_home, strict=True) if one]

    def _far_away(self, i: int, single: Sequence[int]) -> str:
        """The evidence that weights are not at home at their place."""
        nearest = single[int(self.far[i, single].argmin())]
        around = [j for j in single if j < i][-1:] + [j for j in single if j > i][:1]
        ratio = self.far[i, around].min() / self.far[i, nearest]
        return self._farther(ratio, around, [nearest])

    def _farther(self, ratio: float, around: Sequence[int], than: Sequence[int]) -> str:
        words = f"it is {ratio:.1f} times as far from {self._named(*around)}"
        return f"{words} as from {self._named(*than)}"

    def _find_strangers(self) -> None:
        """Groups with nothing in common with the largest one."""
        line = np.array(self.line)
        if len(line) < 4:
            return
        at = np.arange(len(line))
        reach = self.related[np.ix_(line, line)] & (abs(at[:, None] - at) <= _AROUND)
        reach = (reach | (at[:, None] == at)).astype(float)
        for _ in range(len(line).bit_length()):  # each time over twice as many of them
            reach = np.minimum(reach @ reach, 1.0)
        is_own = reach[reach.sum(axis=1).argmax()] > 0.0
        own, strangers = line[is_own].tolist(), line[~is_own].tolist()
        if len(own) < 3 or not strangers:
            return
        # over a long time weights forget where they began
        long = 2 * np.diff([self.steps[i] for i in own])
        is_long_before = self.steps[own[0]] - self.steps[strangers[-1]] > long[0]
        if is_long_before or self.steps[strangers[0]] - self.steps[own[-1]] > long[-1]:
            return
        words = "its weights have no more in common with those of the others than chance gives"
        self._put_aside("not of this run", words, *strangers)

    # -------------------------------------------------------------- places

    def _find_swapped(self) -> None:
        """Two that are exchanged."""
        while swap := self._swap():
            words = "each is closer to the neighbours of the other: exchanged with"
            for i, other in itertools.permutations(self.line[p] for p in swap):
                self._put_aside("swapped", f"{words} {self._named(other)}", i)

    def _find_shards(self) -> None:
        """Files that are those of another step, where another file of it is its own."""
        line = self.line
        facts = [self.facts[i] for i in line]
        files = facts[0].files if len(facts) > 3 and len(facts[0].files) > 1 else {}
        rows: dict[int, tuple[str, str]] = {}
        in_place: set[int] = set()  # with another file
        for file, (_, held) in files.items():
            names = [name for name in self.names if name in held]
            part = [
                replace(one, digest="", files={file: one.files.get(file, ("", held))})
                for one in facts
            ]
            series = _Series(part, names, self.unit)
            series._find_copies(is_part=True)
            series._find_odd()
            in_place |= series._in_place() - series.found.keys()
            for i, (kind, words) in series.found.items():
                kind = kind if kind == "identical" else "shard"
                rows.setdefault(i, (kind, f"{file}: {words}"))
        for i in sorted(rows.keys() & in_place):
            self._put_aside(*rows[i], line[i])

    def _in_place(self) -> set[int]:
        """Those whose neighbours are farther from one another than from them; and both ends."""
        line, far = self.line, self.far
        around = zip(line, line[1:], line[2:], strict=False)
        near = {i for a, i, b in around if max(far[a, i], far[i, b]) < far[a, b]}
        return {*line[:1], *near, *line[-1:]}

    def _find_odd(self) -> None:
        """Those far from both neighbours, which are close to one another."""
        while odd := self._odd():
            begin, end, ratio = odd
            inside, around = self.line[begin:end], [self.line[begin - 1], self.line[end]]
            words = f"it is {ratio:.1f} times as far from {self._named(*around)} as these are apart"
            is_related = self.related[np.ix_(inside, around)].any()
            kind = "odd one out" if is_related else "not of this run"
            self._put_aside(kind, words, *inside)

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
        line = self.line
        for p in range(3, len(line)):
            i, before = line[p], line[p - 1]
            earlier = line[int(self.far[i, line[: p - 2]].argmin())]
            ratio = self.far[i, before] / self.far[i, earlier]
            if ratio > _RETURNED:
                self._put_aside("return", self._farther(ratio, [before], [earlier]), i)

    def _find_jumps(self) -> None:
        """Intervals that are much faster than those on both sides."""
        line = self.line
        way = self.far[line[:-1], line[1:]]
        steps = np.maximum(np.diff([self.steps[i] for i in line]), 1)
        for p in range(1, len(way) - 1):
            around = [*range(max(0, p - 2), p), *range(p + 1, min(len(way), p + 3))]
            # weights wander by the root of the steps, and drift by the steps
            ratio = min(
                float(way[p] / steps[p] ** power / (way[around] / steps[around] ** power).max())
                for power in (0.5, 1.0)
            )
            if ratio > _JUMP:
                words = (
                    f"it is {ratio:.1f} times as far from {self._named(line[p])} as any interval "
                    f"around it, for its {self.unit}s; later ones are close"
                )
                self._put_aside("jump", words, line[p + 1])


def _squares(sample: np.ndarray) -> np.ndarray:
    """Squared distances of each pair, by the usual square of the weights."""
    inner = sample @ sample.T
    own = np.diag(inner)
    usual = float(np.median(own)) or float(own.max()) or 1.0
    return np.asarray(np.maximum(own[:, None] + own - 2 * inner, 0.0) / usual)


def _correlation(sample: np.ndarray) -> np.ndarray:
    """Correlation of each pair; 0 of what is constant."""
    centred = sample - sample.mean(axis=1, keepdims=True)
    lengths = np.sqrt((centred**2).sum(axis=1, keepdims=True))
    unit = np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)
    return np.asarray(unit @ unit.T)


def missing_steps(steps: Sequence[int], unit: str = "step") -> list[AuditFinding]:
    """Gaps in a series that is even before and after them."""
    steps = sorted(steps)
    gaps = np.diff(steps)
    rows = []
    for p in range(2, len(gaps) - 2):
        usual = int(gaps[p - 1])
        is_even = (gaps[[p - 2, p - 1, p + 1, p + 2]] == usual).all()
        if is_even and gaps[p] > usual and gaps[p] % usual == 0:
            missing = [f"{step:,}" for step in range(steps[p] + usual, steps[p + 1], usual)]
            some = some_of(missing, len(missing))
            words = f"{unit}s come every {usual:,} here, but there is no {some}"
            rows.append(AuditFinding.of(steps[p] + usual, "missing", words))
    return rows
