"""What an audit of a series of checkpoints says, and how it is found: facts in, findings out.

Two laws are enough, and no model of the training. Within a run, more steps between two checkpoints
never bring their weights closer. And weights move with w' = kept * w + u: what training adds has
nothing in common with w, so that but for decay all of w is in w' still, and nothing of another run.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from sparsitywatch.analysis.contents import odd_contents
from sparsitywatch.records import Content
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
    "layer": "Do not use it. Save it again, or ask the publisher for the true tensors.",
    "zeros": "Leave it out, or copy it again: a full disk and a torn copy leave zeros.",
    "constant": "Leave it out, or copy it again: no training leaves one value everywhere.",
    "coarser": "Save every checkpoint in one dtype: rounding changes small weights.",
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
    """One checkpoint, or several in a row, that are not what their names say, or may not be."""

    step: int | None  # optimizer steps that it is called by; of several in a row the first
    finding: str  # what is wrong, in a word or two: one of ``FINDINGS``
    evidence: str  # what shows it
    action: str  # what to do
    last_step: int | None = None  # of several in a row the last

    @classmethod
    def of(
        cls, step: int | None, kind: str, evidence: str, last_step: int | None = None
    ) -> AuditFinding:
        """One with what to do about it."""
        last, action = step if last_step is None else last_step, FINDINGS[kind]
        return cls(step=step, finding=kind, evidence=evidence, action=action, last_step=last)

    def covers(self, step: int) -> bool:
        """Whether it is about the checkpoint of a step."""
        return self.step is not None and self.step <= step <= (self.last_step or self.step)


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
    sample: Mapping[str, np.ndarray] = field(default_factory=dict)  # of some tensors, 1-D
    digest: str = ""  # of more than the sample, where more was read
    extent: str = ""  # what was compared, for the evidence
    not_finite: tuple[str, ...] = ()
    contents: tuple[Content, ...] = ()

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
    layouts = _layouts(readable, usual)
    rows, sound = list[AuditFinding](), list[Facts]()
    for one in facts:
        kind, words = _wrong_by_itself(one, layouts.get(one.step, usual), others)
        if kind:
            rows.append(AuditFinding.of(one.step, kind, words))
        else:
            sound.append(one)
    if len(sound) > 1:
        matrices = [name for name, (shape, *_) in usual.items() if math.prod(shape[1:]) > 1]
        for odd in odd_contents([one.contents for one in sound], matrices):
            at = range(odd.first, odd.last + 1)
            if not any(row.covers(sound[i].step) for row in rows for i in at):
                ends = sound[odd.first].step, sound[odd.last].step
                rows.append(AuditFinding.of(ends[0], odd.kind, odd.words, ends[1]))
        sound = [one for one in sound if not any(row.covers(one.step) for row in rows)]
    if len(sound) > 1:
        sizes = [{name: len(values) for name, values in one.sample.items()} for one in sound]
        names = [n for n in sizes[0] if all(own.get(n) == sizes[0][n] for own in sizes)]
        rows += _Series(sound, names, unit).judged()
    return rows


def _layouts(facts: Sequence[Facts], usual: Layout) -> dict[int, Layout]:
    """What each of them has to have, by step: the usual tensors, to which rows may be appended."""
    rows: dict[int, list[int]] = {}
    for one in facts:
        pairs = [(one.layout[name], usual[name]) for name in usual if name in one.layout]
        is_alike = len(pairs) == len(usual) == len(one.layout)
        if is_alike and all((a[0][1:], *a[1:]) == (b[0][1:], *b[1:]) for a, b in pairs):
            rows[one.step] = [math.prod(own[0][:1]) for own, _ in pairs]
    # the longest line of checkpoints in which no row ever goes
    length, before = dict.fromkeys(rows, 1), dict.fromkeys(rows, -1)
    for step, earlier in itertools.permutations(rows, 2):
        has_grown = all(a <= b for a, b in zip(rows[earlier], rows[step], strict=True))
        if earlier < step and has_grown and length[earlier] >= length[step]:
            length[step], before[step] = length[earlier] + 1, earlier
    line = [max(length, key=lambda step: length[step], default=-1)]
    while line[-1] in rows:
        line.append(before[line[-1]])
    own = {one.step: one.layout for one in facts if one.step in line}
    return {n: own[max((m for m in own if m <= n), default=min(own))] for n in length if own}


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


#: Part of the weights that is still in those of a neighbour of one run, at least, if decay leaves
#: it; and how uncertain that is, in standard errors. Of what decay leaves, as the nearest interval
#: shows it, not more than half may be gone, if it was ten times as fast.
_KEPT, _ERRORS, _HALF, _FASTER = 0.4, 3.0, 0.5, 10.0
#: How much worse a place must be than the best one for weights not to be at home there.
_WORSE = 1.25
#: An odd one is as many times as far from its neighbours as these from one another; an odd tensor
#: more. Of two that are swapped each makes for a detour as many times as long as at its home,
#: farther apart more, and both together.
_ODD, _ODD_TENSOR, _MOVED, _FAR, _SWAPPED = 1.54, 4.0, 1.25, 1.95, 1.35
#: The two at an end, if they are swapped, are closer by this factor than the next one. What is at
#: home makes for a way as many times as long as that which leaves it out, at most.
_BETWEEN, _DETOUR = 0.87, 1.5
#: What returns to an earlier step is as much nearer to it than to the last one, and has less than
#: this part of the way between them, on which no interval is so many times the one before.
_NEARER, _LEFT, _ON_ITS_WAY = 1.2, 0.45, 3.0
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
        self.ways = squares.copy()  # of all tensors together, of which no one is most
        self.moving: list[str] = []
        kept = [np.full((2, _AROUND, len(facts)), np.nan)]
        for name in names:
            sample = np.stack([one.sample[name] for one in facts]).astype(float)
            first: dict[bytes, int] = {}
            ids = np.array([first.setdefault(row.tobytes(), i) for i, row in enumerate(sample)])
            equal = ids[:, None] == ids
            self.same &= equal
            if name in matrices and not equal.all():  # what never moves says nothing
                self.moving.append(name)
                own = _squares(sample)
                squares, self.ways = squares + own, self.ways + np.sqrt(own)
                kept.append(_kept(sample))
        self.far = np.where(self.same, 0.0, np.sqrt(squares)) + 1e-12
        #: How much of one is in the next ones, and how uncertain that is: [offset - 1, N].
        self.kept, self.error = _most(np.stack(kept))

    def judged(self) -> list[AuditFinding]:
        """What is wrong with any of them; what is so of several in a row once."""
        self._find_copies()
        self._find_strangers()
        self._find_swapped()
        files = self.facts[0].files if len(self.facts[0].files) > 1 else {}
        shards = {file: [n for n in self.names if n in held] for file, (_, held) in files.items()}
        self._find_parts("shard", shards, _ODD)
        self._find_parts("layer", {name: [name] for name in self.moving}, _ODD_TENSOR)
        self._find_returns()
        self._find_odd(_ODD)
        self._find_jumps()
        rows: list[AuditFinding] = []
        for i, found in sorted(self.found.items()):
            if rows and rows[-1].last_step == self.steps[i - 1] and self.found[i - 1] == found:
                rows[-1] = replace(rows[-1], last_step=self.steps[i])
            else:
                rows.append(AuditFinding.of(self.steps[i], *found))
        return rows

    def _put_aside(self, kind: str, words: str, *indices: int) -> None:
        self.found |= dict.fromkeys(indices, (kind, words))
        self._leave_out(*indices)

    def _leave_out(self, *indices: int) -> None:
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
            back = [] if is_part else [i for i in group if self._is_back(i, home, single)]
            home = [i for i in home if i not in back]
            for i in group:
                others = self._named(*(j for j in group if j != i))
                if i in back:
                    words = f"the weights of {self._named(home[0])} again, {extent}; later ones"
                    self._put_aside("return", f"{words} go on from these", i)
                    self._leave_out(*range(home[0] + 1, i))
                elif i not in home:
                    whose = self._named(*home) if home else others
                    rest = "" if home else ", and of none of these"
                    words = f"the weights of {whose}, {extent}{rest}; {self._far_away(i, single)}"
                    self._put_aside("copy", words, i)
                elif len(home) > 1:
                    self._put_aside("identical", f"the same weights as {others}, {extent}", i)
            self.line = sorted({*self.line, *home[:1]})  # these weights are of the run

    def _is_back(self, i: int, home: Sequence[int], single: Sequence[int]) -> bool:
        """Whether training went on from there, with the weights that it had once."""
        around = self._beside(i, single)
        is_later = len(around) == 2 and bool(home) and home[0] < around[0]
        return is_later and self._gone(home[0], *around)

    def _beside(self, i: int, places: Sequence[int]) -> list[int]:
        return [j for j in places if j < i][-1:] + [j for j in places if j > i][:1]

    def _home(self, group: Sequence[int], single: Sequence[int]) -> list[int]:
        """Where weights that several have are at home: no place makes for a shorter detour."""
        if len(single) < 2:
            return list(group)
        costs = self._detours(group[0], single, 0.5)
        is_home = costs[np.searchsorted(single, group)] <= _WORSE * costs.min()
        return [i for i, one in zip(group, is_home, strict=True) if one]

    def _far_away(self, i: int, single: Sequence[int]) -> str:
        """The evidence that weights are not at home at their place."""
        nearest, around = single[int(self.far[i, single].argmin())], self._beside(i, single)
        ratio = self.far[i, around].min() / self.far[i, nearest]
        return self._farther(ratio, around, [nearest])

    def _farther(self, ratio: float, around: Sequence[int], than: Sequence[int]) -> str:
        words = f"it is {ratio:.1f} times as far from {self._named(*around)}"
        return f"{words} as from {self._named(*than)}"

    def _has_of(self, i: int, j: int) -> tuple[float, float]:
        """How much of one is in a later one, at most and by itself; NaN if that is not known."""
        if not 0 < j - i <= _AROUND:
            return math.nan, math.nan
        own = float(self.kept[j - i - 1, i])
        return own + _ERRORS * float(self.error[j - i - 1, i]), own

    def _is_kin(self, i: int, j: int) -> bool:
        return not self._has_of(*sorted((i, j)))[0] < _KEPT

    def _find_strangers(self, *, is_part: bool = False) -> None:
        """Groups with nothing in common with the largest one."""
        line = np.array(self.line)
        if len(line) < 4:
            return
        at = np.arange(len(line))
        reach = (abs(at[:, None] - at) <= _AROUND).astype(float)
        for p, q in zip(*np.nonzero(np.triu(reach, 1)), strict=True):
            reach[p, q] = reach[q, p] = self._is_kin(line[p], line[q])
        for _ in range(len(line).bit_length()):  # each time over twice as many of them
            reach = np.minimum(reach @ reach, 1.0)
        is_own = reach[reach.sum(axis=1).argmax()] > 0.0
        own, strangers = line[is_own].tolist(), line[~is_own].tolist()
        if len(own) < 3:
            return
        before = [i for i in strangers if i < own[0]]
        after = [i for i in strangers if i > own[-1]]
        for some, pairs in ((before, (before[-1:] + own[:1], own[:2])),
                            (after, (own[-1:] + after[:1], own[-2:]))):  # fmt: skip
            # what is replaced for good, such as a head, was so on purpose
            is_replaced = is_part and len(some) > 1
            if is_replaced or (some and self._has_forgotten(*pairs[0], *pairs[1])):
                strangers = [i for i in strangers if i not in some]
        words = "its weights have no more in common with those of the others than chance gives"
        self._put_aside("not of this run", words, *strangers)

    def _has_forgotten(self, i: int, j: int, own: int, other: int) -> bool:
        """Whether two of one run show that weights forget so fast: then others may be of it."""
        most, kept = self._has_of(i, j)[0], self._has_of(own, other)[1]
        times = _FASTER * (self.steps[j] - self.steps[i]) / (self.steps[other] - self.steps[own])
        return not most < _HALF * min(max(kept, 1e-3), 1.0) ** times

    # -------------------------------------------------------------- places

    def _find_swapped(self) -> None:
        """Two of which each is at home at the place of the other; the clearest first."""
        while swap := max(self._swaps(), default=None):
            words = "each is closer to the neighbours of the other: exchanged with"
            for i, other in itertools.permutations(swap[1:]):
                self._put_aside("swapped", f"{words} {self._named(other)}", i)

    def _swaps(self) -> Iterator[tuple[float, int, int]]:
        """How much shorter detours are where two of the line are exchanged, and which."""
        line, far = self.line, self.far
        homes = [self._moved(p) for p in range(len(line))] if len(line) > 3 else []
        for (p, (at, gain)), (q, (to, other)) in itertools.combinations(enumerate(homes), 2):
            is_mutual = at in (q - 1, q) and to in (p, p + 1) and self._is_exchanged(p, q)
            if (p, q) in ((0, 1), (len(line) - 2, len(line) - 1)):
                # what is odd beside an end is as far from all; and some go to and fro everywhere
                way = line if p else line[::-1]
                goes_on = far[way[:-2], way[2:]] > far[way[:-2], way[1:-1]]
                is_closer = far[way[-1], way[-2]] < _BETWEEN * far[way[-2], way[-3]]
                is_mutual &= bool(is_closer and goes_on[:-2].all())
            both = math.sqrt(gain * other)
            if is_mutual and min(gain, other) > (_MOVED, _FAR)[q > p + 1] and both > _SWAPPED:
                yield both, line[p], line[q]

    def _is_exchanged(self, p: int, q: int) -> bool:
        """Whether two places are closer to the neighbours of the other: not to it alone."""
        line, far = self.line, self.far
        beside = [{line[i] for i in (p - 1, p + 1) if 0 <= i < len(line)} for p in (p, q)]
        own, others = (sorted(some - {line[p], line[q]}) for some in beside)
        if not (own and others):
            return True
        one, other = far[line[p]], far[line[q]]
        ways = one[own].mean() + other[others].mean()
        return bool(one[others].mean() + other[own].mean() <= ways)

    def _moved(self, p: int) -> tuple[int, float]:
        """Where in the line a place is that makes for a shorter detour, and how much shorter."""
        line, far = self.line, self.far
        around = line[max(0, p - 1) : p] + line[p + 1 : p + 2]
        ways = far[line[p], around].sum()  # over what they are apart: 1 of what drifts
        costs = self._detours(line[p], line[:p] + line[p + 1 :], 0.25)
        home = int(costs.argmin())
        is_well = home == p or (len(around) == 2 and ways < _DETOUR * far[around[0], around[1]])
        return home, 0.0 if is_well else float(costs[p] / costs[home])

    def _detours(self, i: int, line: Sequence[int], least: float) -> np.ndarray:
        """What it costs to go through one at each place of a line; more where all are far."""
        far, between = self.far[i, line], self.far[line[:-1], line[1:]]
        costs = np.array([far[0], *(far[:-1] + far[1:] - between), far[-1]])
        return np.asarray(costs + least * far.min() + 1e-9)

    def _find_parts(self, kind: str, parts: Mapping[str, Sequence[str]], least: float) -> None:
        """Parts of another step or run in a checkpoint where another part is in its place."""
        line = self.line
        rows: dict[int, dict[str, tuple[str, str]]] = {}
        in_place: set[int] = set()  # with another part
        for part, names in parts.items() if len(line) > 3 and len(parts) > 1 else ():
            series = self._part(names, part)
            series._find_copies(is_part=True)
            series._find_strangers(is_part=True)
            series._find_returns()
            series._find_odd(least)
            in_place |= series._in_place() - series.found.keys()
            for i, (what, words) in series.found.items():
                if what != "return":
                    rows.setdefault(i, {})[part] = what, words
        for i in sorted(rows.keys() & in_place):
            is_sure = kind == "shard" or any(what == "copy" for what, _ in rows[i].values())
            if is_sure or 2 * len(rows[i]) <= len(parts):  # else all of it is odd
                _, words = next(iter(rows[i].values()))
                some = some_of(list(rows[i]), len(rows[i]))
                self._put_aside(kind, f"{some}: {words}", line[i])

    def _part(self, names: Sequence[str], file: str) -> _Series:
        """The same of some tensors, without what was put aside."""
        facts = [self.facts[i] for i in self.line]
        own = [{file: one.files[file]} if file in one.files else {} for one in facts]
        part = [replace(one, digest="", files=f) for one, f in zip(facts, own, strict=True)]
        return _Series(part, names, self.unit)

    def _in_place(self) -> set[int]:
        """Those whose neighbours are farther from one another than from them; and both ends."""
        line, far = self.line, self.far
        around = zip(line, line[1:], line[2:], strict=False)
        near = {i for a, i, b in around if max(far[a, i], far[i, b]) < far[a, b]}
        return {*line[:1], *near, *line[-1:]}

    def _find_odd(self, least: float) -> None:
        """Those far from both neighbours, which are close to one another."""
        while odd := self._odd(least):
            begin, end, ratio = odd
            inside, around = self.line[begin:end], [self.line[begin - 1], self.line[end]]
            words = f"it is {ratio:.1f} times as far from {self._named(*around)} as these are apart"
            is_kin = any(self._is_kin(i, j) for i in inside for j in around)
            self._put_aside("odd one out" if is_kin else "not of this run", words, *inside)

    def _odd(self, least: float) -> tuple[int, int, float] | None:
        """Where in the line some are that a shortcut leaves out, and how odd they are."""
        far, num = self.far[np.ix_(self.line, self.line)], len(self.line)
        best: tuple[int, int, float] | None = None
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

    def _find_returns(self) -> None:
        """Those that go on from a step three or more before, and have little of the way since."""
        p = 3
        while p < len(self.line):
            line, far = self.line, self.far
            at = int(far[line[p], line[: p - 2]].argmin())
            ratio = far[line[p], line[p - 1]] / far[line[p], line[at]]
            ways = far[line[max(0, at - 1) : p - 1], line[max(1, at) : p]]
            is_on_its_way = (ways[1:] <= _ON_ITS_WAY * ways[:-1]).all()
            if ratio > _NEARER and is_on_its_way and self._gone(line[at], *line[p - 1 : p + 1]):
                words = self._farther(ratio, [line[p - 1]], [line[at]])
                self._put_aside("return", f"{words}; the way between is gone", line[p])
                self._leave_out(*line[at + 1 : p])  # of the run, and no longer on its way
                p = at
            p = max(p + 1, 3)

    def _gone(self, i: int, last: int, now: int) -> bool:
        """Whether most tensors have lost what came between two checkpoints."""
        parts = []
        for name in self.moving:
            before, way, there = (self.facts[k].sample[name].astype(float) for k in (i, last, now))
            way = way - before
            parts += [(there - before) @ way / (way @ way)] if way.any() else []
        return bool(parts) and float(np.median(parts)) < _LEFT

    def _find_jumps(self) -> None:
        """Intervals that are much faster than those around; the last one than all others."""
        line = self.line
        way, num = self.ways[line[:-1], line[1:]] + 1e-12, len(line) - 1
        steps = np.maximum(np.diff([self.steps[i] for i in line]), 1)
        for p in range(1, num) if num > 2 else ():
            others = [q for q in range(num) if q != p and (p == num - 1 or abs(q - p) < 3)]
            # weights wander by the root of the steps, and drift by the steps
            paces = [way / steps**power for power in (0.5, 1.0)]
            ratio = min(float(pace[p] / pace[others].max()) for pace in paces)
            if ratio > _JUMP:
                words = (
                    f"it is {ratio:.1f} times as far from {self._named(line[p])} as any interval"
                )
                self._put_aside("jump", f"{words} around it, for its {self.unit}s", line[p + 1])


def _squares(sample: np.ndarray) -> np.ndarray:
    """Squared distances of each pair in what neither has cut away, by the usual square."""
    is_there = sample != 0.0
    there = np.where(is_there.any(axis=1, keepdims=True), is_there, 1.0)  # not of all of it
    squares = np.square(sample) @ there.T
    usual = float(np.median(np.diag(squares))) or float(squares.max()) or 1.0
    return np.asarray(np.maximum(squares + squares.T - 2 * sample @ sample.T, 0.0) / usual)


def _kept(sample: np.ndarray) -> np.ndarray:
    """How much of each is in the next ones, and how uncertain that is: [2, offset - 1, N]."""
    there = sample != 0.0
    centred = np.where(there, sample - sample.mean(axis=1, keepdims=True), 0.0)
    found = np.full((2, _AROUND, len(sample)), np.nan)
    for offset in range(1, min(_AROUND, len(sample) - 1) + 1):
        both = there[:-offset] & there[offset:]
        before, after = centred[:-offset] * both, centred[offset:] * both
        own, num = (before**2).sum(1), both.sum(1)
        is_enough = (own > 0.0) & (num >= 8)
        own, num = np.where(is_enough, own, np.nan), np.maximum(num, 1)
        found[0, offset - 1, :-offset] = (before * after).sum(1) / own
        found[1, offset - 1, :-offset] = np.sqrt((after**2).sum(1) / own / num)
    return found


def _most(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What three of four tensors do not exceed, and its uncertainty."""
    ordered, num = np.sort(kept, axis=0), np.isfinite(kept).sum(0)
    place = np.maximum(num - 1, 0)[None] * 3 // 4
    found = np.take_along_axis(ordered, place, axis=0)[0]
    return found[0], found[1] * np.where(num[1] > 1, 1.4 / np.sqrt(np.maximum(num[1], 1)), 1.0)


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
