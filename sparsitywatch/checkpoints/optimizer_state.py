"""What a checkpoint keeps of its optimizers, and whether that is of the weights beside it.

Two things can be proven, and only where most checkpoints of the series keep to them. The state of
a parameter has its shape. Between two checkpoints an optimizer counts at most as many updates as
there are steps, and never fewer than before, unless it began anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from sparsitywatch.weights.layout import Entry

#: What has the shape of its parameter, in every optimizer of torch.
_OF_ITS_SHAPE = ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "sum", "acc_delta",
                 "grad_avg", "exp_inf", "max_exp_avg_sq", "ax", "prev")  # fmt: skip
_STATE, _GROUPS, _PARAMS, _STEP = "state", "param_groups", "params", "step"
#: Levels of a checkpoint in which optimizers are looked for.
_MAX_LEVELS = 4
#: Checkpoints before one that are compared with it.
_AROUND = 64
#: The share of checkpoints whose counts must agree before one that does not is wrong.
_AGREEING = 2 / 3


Look = Callable[[Any], tuple[Sequence[int], bool] | None]


@dataclass(frozen=True)
class OptimizerState:
    """Of one optimizer in one checkpoint."""

    misfit: str  # why it is not of the weights beside it; empty if it may be
    num_updates: int | None  # of the first parameter that it has counted them for


def optimizers_in(
    root: Any, look: Look, whole: Callable[[Any], int | None], entries: Sequence[Entry]
) -> dict[str, OptimizerState]:
    """The optimizers in a tree, beside the tensors of a model; as of ``Tree``."""
    weights = Counter({e.storage or e.name: e.shape for e in entries}.values())
    found = {}
    for key, node in _optimizers(root, "", set(), 0):
        states = [state for state in node[_STATE].values() if isinstance(state, dict)]
        groups = [group for group in _listed(node.get(_GROUPS)) if isinstance(group, dict)]
        shapes = Counter(filter(None, (_shape(state, look) for state in states)))
        num_parameters = max(len(states), sum(len(_listed(g.get(_PARAMS))) for g in groups))
        counted = (one[_STEP] for one in (*states, *groups) if _STEP in one)
        first = next(counted, None)
        found[key] = OptimizerState(
            _misfit(shapes, num_parameters, weights), None if first is None else whole(first)
        )
    return found


def _optimizers(
    node: Any, key: str, known: set[int], depth: int
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    if id(node) in known or depth > _MAX_LEVELS:
        return
    known.add(id(node))
    is_one = isinstance(node, dict) and isinstance(node.get(_STATE), dict)
    if is_one and (_GROUPS in node or "optim" in key):  # groups may lie elsewhere
        yield key, node
    elif isinstance(node, dict | list):
        for name, child in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(child, dict | list) and isinstance(name, str | int):
                yield from _optimizers(child, f"{key}.{name}".lstrip("."), known, depth + 1)


def _listed(node: Any) -> list[Any]:
    return node if isinstance(node, list) else []


def _shape(state: Mapping[Any, Any], look: Look) -> tuple[int, ...] | None:
    """The shape of the parameter that a state is of, if it tells that."""
    seen = (look(state[name]) for name in _OF_ITS_SHAPE if name in state)
    return next((tuple(one[0]) for one in seen if one), None)


def _misfit(
    shapes: Counter[tuple[int, ...]], num_parameters: int, weights: Counter[tuple[int, ...]]
) -> str:
    for shape, num in (shapes - weights).items():
        words = " x ".join(map(str, shape))
        there = weights[shape]
        return f"it is of {there + num:,} tensors of shape {words}, and the weights have {there:,}"
    if num_parameters > weights.total():
        return f"it is of {num_parameters:,} parameters, and there are {weights.total():,} tensors"
    return ""


# ------------------------------------------------------------------ in a series


def unlike_others(
    series: Mapping[int, Mapping[str, OptimizerState]], *, counts_steps: bool = True
) -> dict[int, str]:
    """Why the optimizers of some steps are not of the weights beside them, where that is proven.

    Where names do not count steps, but epochs, they say nothing of the number of updates.
    """
    found: dict[int, str] = {}
    for key in dict.fromkeys(key for states in series.values() for key in states):
        own = {step: states[key] for step, states in sorted(series.items()) if key in states}
        fitting = [step for step, state in own.items() if not state.misfit]
        if 2 * len(fitting) <= len(own):
            continue  # such as one that keeps what it knows in other shapes
        rows = {step: state.misfit for step, state in own.items() if state.misfit}
        counts = {step: own[step].num_updates for step in fitting}
        known = {n: num for n, num in counts.items() if num is not None and counts_steps}
        for step, neighbours in _off_the_line(known).items():
            others = " and ".join(f"{known[n]:,} at step {n:,}" for n in neighbours)
            rows[step] = f"it has made {known[step]:,} updates, beside {others}"
        for step, words in rows.items():
            found.setdefault(step, f"the state under {key!r} is of another step or model: {words}")
    return found


def _off_the_line(counts: Mapping[int, int]) -> dict[int, list[int]]:
    """Steps that are not in the longest line of counts that go together; and their neighbours."""
    steps = list(counts)
    if len(steps) < 3:
        return {}
    slack = median(b - a for a, b in pairwise(steps)) / 2  # names are rounded
    length, before = dict.fromkeys(steps, 1), dict.fromkeys(steps, -1)
    for at, step in enumerate(steps):
        for earlier in steps[max(0, at - _AROUND) : at]:
            passed, made = step - earlier, counts[step] - counts[earlier]
            goes_on = -slack <= made <= passed + slack
            began_anew = counts[step] <= passed + slack
            if (goes_on or began_anew) and length[earlier] + 1 > length[step]:
                length[step], before[step] = length[earlier] + 1, earlier
    line = [max(steps, key=lambda step: length[step])]
    while before[line[-1]] in length:
        line.append(before[line[-1]])
    if len(line) < max(3, _AGREEING * len(steps)):
        return {}  # such as where a name counts something else
    return {step: _around(step, line) for step in steps if step not in line}


def _around(step: int, line: Iterable[int]) -> list[int]:
    line = sorted(line)
    return [n for n in line if n < step][-1:] + [n for n in line if n > step][:1]
