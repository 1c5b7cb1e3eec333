"""What goes wrong with the checkpoints of a series, planted into one that is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from contracts.clean_series import Weights

from sparsitywatch.analysis.contents import Looker
from sparsitywatch.lab.audit import AuditFinding, Facts

#: Rows that are to be found.
Rows = set[tuple[str, int]]
#: Unsigned integers of the width of a weight.
BITS = {2: torch.uint16, 4: torch.uint32, 8: torch.uint64}


def rows_of(findings: Sequence[AuditFinding], steps: Sequence[int]) -> Rows:
    """What is said of each checkpoint."""
    return {(row.finding, step) for row in findings for step in steps if row.covers(step)}


@dataclass(frozen=True)
class Given:
    """Two runs of one recipe, and the place where a fault goes."""

    steps: Sequence[int]
    own: Sequence[Weights]
    other: Sequence[Weights]  # of another seed
    at: int  # two more places after it are free

    @property
    def first_file(self) -> list[str]:
        """Names of the tensors in the first of two files."""
        return list(self.own[0])[: len(self.own[0]) // 2]


#: Weights of every step, and what an audit must say of them.
Planted = tuple[list[Weights], Rows]


def swapped(given: Given, at: int, other: int) -> Planted:
    made = list(given.own)
    made[at], made[other] = made[other], made[at]
    return made, {("swapped", given.steps[at]), ("swapped", given.steps[other])}


def copies(given: Given, owner: int, others: Sequence[int]) -> Planted:
    made = list(given.own)
    for at in others:
        made[at] = given.own[owner]
    return made, {("copy", given.steps[at]) for at in others}


def alike(given: Given, begin: int, end: int) -> Planted:
    made = list(given.own)
    made[begin:end] = [given.own[begin]] * (end - begin)
    return made, {("identical", step) for step in given.steps[begin:end]}


def strangers(given: Given, *places: int) -> Planted:
    made = [given.other[i] if i in places else own for i, own in enumerate(given.own)]
    return made, {("not of this run", given.steps[i]) for i in places}


def late_copies(given: Given) -> Planted:
    num = len(given.own)
    return copies(given, num - 1, [i for i in range(num - 3) if i < num // 2 or i % 5 == 0])


def shards(given: Given, source: Weights, *places: int) -> Planted:
    made = list(given.own)
    for at in places:
        made[at] = {**given.own[at], **{name: source[name] for name in given.first_file}}
    return made, {("shard", given.steps[at]) for at in places}


def changed(given: Given, kind: str, change: Callable[[Weights], Weights]) -> Planted:
    made = list(given.own)
    made[given.at] = change({name: value.clone() for name, value in made[given.at].items()})
    return made, {(kind, given.steps[given.at])}


def _with_nan(weights: Weights) -> Weights:
    next(iter(weights.values())).view(-1)[7] = float("nan")
    return weights


def _untied(weights: Weights) -> Weights:
    name = next(iter(weights))
    return {**weights, "head.weight": weights[name] + 1}


def _wider(weights: Weights) -> Weights:
    name = next(iter(weights))
    return {**weights, name: torch.zeros(len(weights[name]) + 1, *weights[name].shape[1:])}


def _cast(weights: Weights) -> Weights:
    return {
        n: v.to(torch.float64 if v.dtype != torch.float32 else torch.float16)
        for n, v in weights.items()
    }


FAULTS: dict[str, Callable[[Given], Planted]] = {
    "nothing": lambda g: (list(g.own), set()),
    "neighbours swapped": lambda g: swapped(g, g.at, g.at + 1),
    "two far apart swapped": lambda g: swapped(g, 2, g.at + 2),
    "the first one swapped": lambda g: swapped(g, 0, g.at),
    "scattered copies, the last is right": lambda g: copies(g, g.at + 2, [1, g.at - 3]),
    "scattered copies, the first is right": lambda g: copies(g, 1, [g.at - 3, g.at + 2]),
    "a copy of its neighbour": lambda g: alike(g, g.at, g.at + 2),
    "alike from the start": lambda g: alike(g, 0, g.at - 2),
    "most are the last one": late_copies,
    "another seed": lambda g: strangers(g, g.at),
    "another seed at first": lambda g: strangers(g, 0),
    "another seed at last": lambda g: strangers(g, len(g.own) - 1),
    "another seed twice": lambda g: strangers(g, g.at, g.at + 1),
    "another run from somewhere on": lambda g: strangers(g, *range(len(g.own) - 4, len(g.own))),
    "shards of the last one": lambda g: shards(g, g.own[-1], 3, g.at),
    "a shard of another seed": lambda g: shards(g, g.other[g.at], g.at),
    "NaN": lambda g: changed(g, "not finite", _with_nan),
    "a cast": lambda g: changed(g, "dtype", _cast),
    "another shape": lambda g: changed(g, "shape", _wider),
    "an untied head": lambda g: changed(g, "tie", _untied),
    "a tensor missing": lambda g: changed(g, "tensors", lambda w: dict(list(w.items())[1:])),
}  # fmt: skip


def facts_of(
    steps: Sequence[int], weights: Sequence[Weights], first_file: Sequence[str]
) -> list[Facts]:
    """What an audit would know of them, by numpy alone."""
    found = []
    for step, tensors in zip(steps, weights, strict=True):
        second = frozenset(tensors) - frozenset(first_file)
        values = {n: v.float().numpy().reshape(-1)[:1024] for n, v in tensors.items()}
        looker = Looker()
        for name, value in tensors.items():
            looker.see(name, 0, value.contiguous().view(BITS[value.itemsize]).numpy().reshape(-1))
        found.append(
            Facts(
                step=step,
                layout={n: (tuple(v.shape), str(v.dtype)[6:], n) for n, v in tensors.items()},
                files={"1.pt": ("", frozenset(first_file)), "2.pt": ("", second)},
                sample=values,
                extent="in the sample",
                not_finite=tuple(n for n, v in tensors.items() if not v.isfinite().all()),
                contents=looker.contents({n: str(v.dtype)[6:] for n, v in tensors.items()}),
            )
        )
    return found
