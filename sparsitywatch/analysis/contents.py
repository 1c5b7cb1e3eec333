"""What the bytes of stored weights say by themselves, and what of it no neighbour has.

Weights that were trained are neither zero nor alike for long, and use every bit of their dtype. A
file that was torn, filled up or rounded is told by that, in an audit and in a replay alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sparsitywatch.records import Content
from sparsitywatch.records.event import some_of
from sparsitywatch.series import percent

#: Weights side by side that make a block; of each stretch that is read so many blocks are looked at
#: closely. All are asked whether they hold one value.
_BLOCK, _CLOSELY = 128, 8
#: So many blocks side by side, and no others, are what is cut off, not what is pruned.
_PIECE = 4
#: Binary digits that the weights of a dtype have; in no tensor that was trained are the last three
#: zero in so many weights by chance.
_DIGITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8, "float8_e4m3": 4,
           "float8_e5m2": 3}  # fmt: skip
_FEW_DIGITS, _FEW = 3, 16
_NONE, _VALUE, _ZERO = range(3)


class Looker:
    """Sees the bits of tensors, in any order, all or some of them, from any thread."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}

    def see(self, name: str, first: int, bits: np.ndarray) -> None:
        """Flat bits of a tensor, as unsigned integers, from an index on; twice is as once."""
        size = min(_BLOCK, len(bits))
        if size < 2:
            return
        num = len(bits) // size
        blocks, flags = bits[: num * size].reshape(num, size), np.zeros(num, np.int8)
        # without the sign: what a mask has cut away may be -0
        likely = np.flatnonzero((blocks[:, 0] ^ blocks[:, 1]) << 1 == 0)
        others: slice | np.ndarray = slice(None, None, -(-num // _CLOSELY))
        if len(likely):
            some = blocks[likely] << 1
            is_flat = (some == some[:, :1]).all(1)
            flags[likely] = is_flat * np.where(some[:, 0] == 0, _ZERO, _VALUE)
            where = np.flatnonzero(flags == _NONE)
            others = where[:: -(-len(where) // _CLOSELY) or 1]
        closely = np.sort(blocks[others] << 1, axis=1)
        again = np.count_nonzero((closely[:, 1:] == closely[:, :-1]) & (closely[:, 1:] != 0))
        used = np.bitwise_or.reduce(closely, axis=None) >> 1
        numbers = [size, closely.size, np.count_nonzero(closely), again, used]
        self._seen.setdefault(name, {})[first] = flags, np.array(numbers, np.uint64)

    def contents(self, dtypes: Mapping[str, str]) -> tuple[Content, ...]:
        """What is not as in ordinary weights, of the tensors that have any; dtypes by name."""
        found = (_content(n, dtypes[n], sorted(seen.items())) for n, seen in self._seen.items())
        return tuple(one for one in found if one is not None)


def _content(
    name: str, dtype: str, seen: Sequence[tuple[int, tuple[np.ndarray, np.ndarray]]]
) -> Content | None:
    flags, rows = np.concatenate([own for _, (own, _) in seen]), np.stack([n for _, (_, n) in seen])
    num, num_other, again = rows[:, 1:4].sum(0).tolist()
    used, zeros = int(np.bitwise_or.reduce(rows[:, 4])), (num - num_other) / max(num, 1)
    lost = (used & -used).bit_length() - 1 if num_other >= _FEW else 0
    edges = np.flatnonzero(np.diff(flags, prepend=_NONE, append=_NONE)).tolist()
    runs = [(b - a, a, b) for a, b in pairwise(edges) if flags[a] != _NONE]
    num_flat = sum(length for length, *_ in runs)
    # where zeros are many some blocks have nothing else, by chance
    if num_flat <= 3.0 * len(flags) * zeros ** float(rows[:, 0].max()):
        runs, num_flat = [], 0
    _, begin, end = max(runs, default=(0, 0, 0))
    is_rounded = lost >= _FEW_DIGITS
    one = Content(
        name=name,
        flat=num_flat / len(flags),
        is_one_piece=len(runs) == 1 and num_flat >= min(_PIECE, len(flags)),
        begin=begin / len(flags),
        end=end / len(flags),
        is_zero=bool(runs) and int(flags[begin]) == _ZERO,
        zeros=zeros,
        digits=_DIGITS.get(dtype, 0) - lost if is_rounded else 0,
        # of short numbers many are the same by chance
        repeats=0.0 if runs or is_rounded or _DIGITS.get(dtype, 0) < 24 else again / max(num, 1),
    )
    is_odd = runs or is_rounded or zeros > _SCATTERED or one.repeats > _REPEATED
    return one if is_odd else None


# ------------------------------------------------------------------ what no neighbour has

#: More than this share of exact zeros, or of weights that stood just before, is looked at; what is
#: odd is twice as much as what a neighbour has, and this more.
_SCATTERED, _REPEATED = 0.02, 0.03
#: What comes and goes does so within so many checkpoints.
LONGEST = 8


class Odd(NamedTuple):
    """What the contents of some checkpoints in a row have, and their neighbours have not."""

    kind: str  # "zeros", "constant" or "coarser"
    first: int  # places in the series
    last: int
    words: str  # what shows it
    tensors: tuple[str, ...]


def odd_contents(series: Sequence[Sequence[Content]], matrices: Sequence[str]) -> list[Odd]:
    """What comes and goes in the contents of a series; ``matrices`` are no vectors."""
    end, by_name = len(series) - 1, [{one.name: one for one in content} for content in series]
    names = dict.fromkeys(name for own in by_name for name in own)
    columns = {name: [own.get(name, Content(name=name)) for own in by_name] for name in names}
    runs = [(n, *run) for n in names for run in _runs(columns[n], is_matrix=n in matrices)]
    # what is pruned for good is scattered, in one tensor at least
    pruned = {
        (kind, first)
        for name, kind, first, last in runs
        if first < last == end and not all(one.is_one_piece for one in columns[name][first:])
    }
    rows: dict[tuple[str, int], dict[str, str]] = {}
    for name, kind, first, last in runs:
        if kind == "coarser" or last < end or (kind, first) not in pruned:
            for at in range(first, last + 1):
                shown = _words(kind, columns[name][at])
                rows.setdefault((kind, at), {}).setdefault(name, shown)
    found: list[Odd] = []
    for (kind, at), words in sorted(rows.items()):
        # what belongs to a new layer, or to another step, are vectors; what is rounded are most
        is_few = kind == "coarser" and at == 0 and 2 * len(words) < len(matrices)
        if is_few or not any(name in matrices for name in words):
            continue
        if found and (found[-1].kind, found[-1].last) == (kind, at - 1):
            found[-1] = found[-1]._replace(last=at)
            continue
        most, some = next(iter(words.values())), some_of(list(words), len(words))
        found.append(Odd(kind, at, at, f"{most} in {some}, as in no neighbour", tuple(words)))
    return found


def _words(kind: str, one: Content) -> str:
    """What is odd in one tensor, for the evidence."""
    if kind == "coarser":
        names = {digits: name for name, digits in _DIGITS.items()}
        to = names.get(one.digits, f"{one.digits} binary digits") if one.digits else "a few values"
        return f"weights rounded to {to}"
    if not one.flat:
        return f"{percent(one.zeros)} exact zeros"
    what = "zeros" if one.is_zero else "one value"
    if one.flat > _WHOLE:
        return f"nothing but {what}"
    return f"{what} from {percent(one.begin)} to {percent(one.end)}"


#: From this share of its blocks on a tensor holds one value.
_WHOLE = 0.99


def _zeros(one: Content) -> float:
    return one.zeros + (one.is_zero - one.zeros) * one.flat


def _coarse(one: Content) -> float:
    return -float(one.digits or 99)


_Measure = Callable[[Content], float]
#: By what is odd: what is compared with what a neighbour has, how many times that is still usual,
#: and so much beside it.
_MEASURES: tuple[tuple[str, _Measure, _Measure, float, float], ...] = (
    ("zeros", lambda one: one.flat * one.is_zero, _zeros, 2.0, 0.0),
    ("zeros", _zeros, _zeros, 2.0, _SCATTERED),
    ("constant", lambda one: one.flat * (not one.is_zero), lambda one: one.flat, 2.0, 0.0),
    ("coarser", _coarse, _coarse, 1.0, _FEW_DIGITS - 0.5),
    ("coarser", lambda one: one.repeats, lambda one: one.repeats, 2.0, _REPEATED),
)


def _runs(own: Sequence[Content], *, is_matrix: bool) -> Iterator[tuple[str, int, int]]:
    """Where one tensor has what it has neither before nor after."""
    nothing, end = Content(name=""), len(own) - 1
    for kind, measure, of_others, factor, more in _MEASURES:
        sizes = [measure(one) for one in own]
        *usual, always = [more + factor * of_others(one) for one in (*own, nothing)]
        for first, size in enumerate(sizes):
            if size <= (usual[first - 1] if first else always):
                continue
            for last in range(first, min(first + LONGEST, end + 1)):
                if last == end or min(sizes[first : last + 1]) > usual[last + 1]:
                    before, run = own[first - 1] if first else None, own[first : last + 1]
                    if last - first < end and _is_odd(kind, run, before, is_matrix=is_matrix):
                        yield kind, first, last
                    break


def _is_odd(kind: str, run: Sequence[Content], before: Content | None, *, is_matrix: bool) -> bool:
    """Whether nothing that people do on purpose gives such a run."""
    if kind == "coarser":  # what has just left one value has a few
        return run[0].digits > 0 or before is None or before.flat <= _WHOLE
    # what was not trained yet may be all zero, or any vector
    is_new = all(one.flat > _WHOLE and one.is_zero for one in run)
    return before is not None or (is_matrix and not is_new)
