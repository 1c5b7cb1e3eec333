"""The counts of a spectrum in few bytes, without losing one.

A count of a fine bin is that of a smooth density, and noise. The density is soon told. The noise,
some ``log2(4 * sqrt(count))`` bits a bin, is not, nor does an earlier spectrum tell it: from one
snapshot of a training to the next most weights move by more than a bin. So each spectrum is
packed by itself.

Each octave of magnitudes is halved, and halved again, down to its bins. Of the n weights of a piece
about half lie in its left half, and the standard deviation of their number, ``sqrt(n) / 2``, is
known before the number is. So what the piece and those beside it do not foretell is coded
together with that of other pieces of about n weights, by the Huffman codes of zlib. This
takes some percent more bytes than the entropy of the noise; benchmarks/log.py measures it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from sparsitywatch.errors import StateError

__all__ = ["pack", "unpack"]

#: Arrays that are packed: of T tensors how many bins each has, then key and count of each bin.
_PLAIN = ("num_bins", "keys", "counts")
#: By dtype: bits of a key below its octave, and what to add to it so that octaves begin at
#: multiples of their size. Bins of float32 and float64 are rounded up, so that a key of 1 begins
#: one, and what is exactly zero has its own. Of other dtypes as of float32: it only costs bytes.
_OCTAVES = {"bfloat16": (7, 0), "float16": (10, 0)}
_OTHER_OCTAVES = (8, 255)
#: The largest key has less bits than that.
_KEY_BITS = 20
#: A byte with a sign is coded; this one stands for what is none.
_ESCAPE = -128


def pack(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a spectrum with its bins packed; arrays of anything else as they are.

    Args:
        arrays: as ``MagnitudeSpectrum.to_arrays`` gives them.
    """
    if not _are_bins(arrays):
        return dict(arrays)
    num_bins, keys, counts = (arrays[name] for name in _PLAIN)
    of_dtype = [_OCTAVES.get(name, _OTHER_OCTAVES) for name in arrays["dtypes"].tolist()]
    octave_bits, offsets = np.array(of_dtype, np.int64).reshape(-1, 2).T
    firsts = (np.arange(len(num_bins)) << _KEY_BITS) + offsets
    bins = np.repeat(firsts, num_bins) + keys
    octaves, totals, pieces = [_NOTHING], [_NOTHING], []
    for bits in np.unique(octave_bits).tolist():
        own = np.repeat(octave_bits == bits, num_bins)
        found, cells = _in_octaves(bins[own], counts[own], bits)
        octaves.append(np.diff(found, prepend=0))
        totals.append(cells.sum(axis=1, dtype=np.int64))
        pieces += _halved(found, cells)
    packed = {name: array for name, array in arrays.items() if name not in _PLAIN}
    layout = {
        "octave_bits": octave_bits,
        "octave_offsets": offsets,
        "num_octaves": np.array([len(found) for found in octaves[1:]], np.int64),
        "octaves": np.concatenate(octaves),
        "octave_counts": np.concatenate(totals),
    }
    return packed | {name: _narrow(array) for name, array in layout.items()} | _coded(pieces)


def unpack(packed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays that were given to ``pack``, to the last bit.

    Raises:
        StateError: what was packed is damaged.
    """
    if "octave_bits" not in packed:
        return dict(packed)
    octave_bits, offsets = (packed[n].astype(np.int64) for n in ("octave_bits", "octave_offsets"))
    octaves, totals = (packed[n].astype(np.int64) for n in ("octaves", "octave_counts"))
    coded = _Coded(packed)
    bins, counts = [_NOTHING], [_NOTHING]
    ends = np.cumsum(packed["num_octaves"].astype(np.int64)).tolist()
    for bits, start, end in zip(sorted({*octave_bits.tolist()}), [0, *ends], ends, strict=False):
        own = np.cumsum(octaves[start:end])
        cells = totals[start:end, None]
        for _ in range(bits):
            cells = _doubled(cells, own, coded)
        rows, columns = cells.nonzero()
        bins.append((own[rows] << bits) + columns)
        counts.append(cells[rows, columns])
    all_bins = np.concatenate(bins)
    order = np.argsort(all_bins, kind="stable")
    all_bins = all_bins[order]
    tensors = all_bins >> _KEY_BITS
    plain = {
        "num_bins": np.bincount(tensors, minlength=len(octave_bits)),
        "keys": (all_bins & ((1 << _KEY_BITS) - 1)) - offsets[tensors],
        "counts": np.concatenate(counts)[order],
    }
    rest = {name: array for name, array in packed.items() if name not in (*_LAYOUT, *_CODED)}
    return rest | {name: _narrow(array) for name, array in plain.items()}


_NOTHING = np.empty(0, np.int64)
_LAYOUT = ("octave_bits", "octave_offsets", "num_octaves", "octaves", "octave_counts")
_CODED = ("num_by_class", "escaped", "low_bits", "symbols")


def _are_bins(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether these are a spectrum's arrays that ``unpack`` can give back as they are."""
    if not {"dtypes", *_PLAIN} <= set(arrays):
        return False
    num_bins, keys, counts = (arrays[name] for name in _PLAIN)
    for numbers in (num_bins, keys, counts):
        if numbers.dtype.kind != "u" or numbers.ndim != 1 or numbers.dtype != _kind_for(numbers):
            return False
    if len(arrays["dtypes"]) != len(num_bins) or not len(keys) == len(counts) == num_bins.sum():
        return False
    if not len(keys):
        return True
    within = np.ones(len(keys), bool)
    within[np.cumsum(num_bins[:-1], dtype=np.int64)[num_bins[1:] > 0]] = False
    rising = np.diff(keys.astype(np.int64), prepend=-1) > 0
    few = counts.sum(dtype=np.float64) < 2.0**48
    return bool(np.all(rising | ~within) and counts.min() > 0 and few) and (
        int(keys.max()) < (1 << _KEY_BITS) - (1 << 10)
    )


def _narrow(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(_kind_for(numbers))


def _kind_for(numbers: np.ndarray) -> np.dtype:
    return np.min_scalar_type(int(numbers.max(initial=0)))


# ------------------------------------------------------------------ octaves and their halves


def _in_octaves(bins: np.ndarray, counts: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Octaves that are not empty [O], rising, and the counts in each of their bins [O, 2**bits]."""
    octaves = bins >> bits
    starts = np.flatnonzero(np.diff(octaves, prepend=-1))
    found = octaves[starts]
    # bins are counted from the first one of their own row on
    places = bins + np.repeat(
        (np.arange(len(found)) - found) << bits, np.diff([*starts, len(bins)])
    )
    # sixteen times the largest sum of an octave has to have room
    is_small = int(counts.max(initial=0)) < 1 << (26 - bits)
    cells = np.zeros((len(found), 1 << bits), np.int32 if is_small else np.int64)
    cells.ravel()[places] = counts
    return found, cells


def _halved(octaves: np.ndarray, cells: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """From whole octaves to bins: weights of each piece, and what was not foretold of its half.

    Empty pieces are left out.
    """
    halves = []
    while cells.shape[1] > 1:
        left = cells[:, 0::2]
        cells = left + cells[:, 1::2]
        halves.append((cells, left))
    pieces = []
    for whole, left in reversed(halves):
        is_filled = whole > 0
        pieces.append((whole[is_filled], (left - _foretold(whole, octaves))[is_filled]))
    return pieces


def _doubled(cells: np.ndarray, octaves: np.ndarray, coded: _Coded) -> np.ndarray:
    """The halves of pieces [O, M], as [O, 2 M]."""
    left = np.zeros_like(cells)
    is_filled = cells > 0
    left[is_filled] = _foretold(cells, octaves)[is_filled] + coded.take(cells[is_filled])
    if np.any((left < 0) | (left > cells)):
        raise _contradiction()
    halves = np.empty((len(cells), 2 * cells.shape[1]), cells.dtype)
    halves[:, 0::2] = left
    halves[:, 1::2] = cells - left
    return halves


def _foretold(cells: np.ndarray, octaves: np.ndarray) -> np.ndarray:
    """What is expected in the left half of pieces [O, M]: of a density that is straight there.

    Pieces of the next octave are twice as wide, those of the one before half as wide.
    """
    before, after = np.zeros_like(cells), np.zeros_like(cells)
    before[:, 1:], after[:, :-1] = cells[:, :-1], cells[:, 1:]
    follows = octaves[1:] == octaves[:-1] + 1
    before[1:, 0] = 2 * cells[:-1, -1] * follows
    after[:-1, -1] = (cells[1:, 0] >> 1) * follows
    before -= after
    before += 8 * cells
    before >>= 4
    return np.clip(before, 0, cells, out=before)


# ------------------------------------------------------------------ codes
#
# Pieces of up to eight weights are coded with those of just as many, others with those of the same
# half of a power of two. Where the standard deviation is 32 or more, the low bits are as good
# as random, and are kept as they are.


def _class_of(n: np.ndarray) -> np.ndarray:
    """By which code a piece of n weights is coded, uint8."""
    length = np.frexp(n.astype(np.float64))[1]
    half = (n >> np.maximum(length - 2, 0)) & 1
    return np.where(n <= 8, n, 2 * length + half + 1).astype(np.uint8)


_CLASSES = _class_of(np.arange(1 << 12))


def _classes(n: np.ndarray) -> np.ndarray:
    found: np.ndarray = _CLASSES[np.minimum(n, len(_CLASSES) - 1)]
    is_large = n >= len(_CLASSES)
    found[is_large] = _class_of(n[is_large])
    return found


def _num_low_bits(kind: int) -> int:
    """Of a class: half of log2 n, less what is coded."""
    return max(0, ((kind - 1) // 2 - 1) // 2 - 5)


def _coded(pieces: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """The numbers that were not foretold, class by class; the n of each piece is known."""
    n = np.concatenate([n for n, _ in pieces] or [_NOTHING])
    classes = _classes(n)
    rest = np.concatenate([rest for _, rest in pieces] or [_NOTHING])
    rest = rest[np.argsort(classes, kind="stable")]
    num_by_class = np.bincount(classes).tolist()
    ends = np.cumsum(num_by_class).tolist()
    low_bits = [np.empty(0, np.uint8)]
    for kind, (num, end) in enumerate(zip(num_by_class, ends, strict=True)):
        if num and (num_low := _num_low_bits(kind)):
            part = rest[end - num : end]
            low_bits.append(np.packbits(part[:, None] >> np.arange(num_low) & 1 > 0))
            part >>= num_low
    symbols = rest.astype(np.int8)
    symbols[symbols != rest] = _ESCAPE
    huffman = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    coded = []
    for num, end in zip(num_by_class, ends, strict=True):
        if num:
            coded.append(huffman.compress(symbols[end - num : end].tobytes()))
            coded.append(huffman.flush(zlib.Z_SYNC_FLUSH))  # a code of its own for each class
    coded.append(huffman.flush())
    return {
        "num_by_class": _narrow(np.array(num_by_class, np.int64)),
        "escaped": rest[symbols == _ESCAPE].astype(np.int64),
        "low_bits": np.concatenate(low_bits),
        "symbols": np.frombuffer(b"".join(coded), np.uint8),
    }


class _Coded:
    """The numbers that ``_coded`` coded, to be taken as the n of the pieces become known.

    Raises:
        StateError: they are not whole.
    """

    def __init__(self, packed: Mapping[str, np.ndarray]) -> None:
        num_by_class = packed["num_by_class"].tolist()
        num_low_by_class = [_num_low_bits(kind) for kind in range(len(num_by_class))]
        sizes = [
            -(-n * low // 8) * 8 for n, low in zip(num_by_class, num_low_by_class, strict=True)
        ]
        try:
            symbols = zlib.decompress(packed["symbols"].tobytes(), -15)
        except zlib.error as error:
            raise _contradiction() from error
        rest = np.frombuffer(symbols, np.int8).astype(np.int64)
        low_bits = np.unpackbits(packed["low_bits"])
        is_escaped = rest == _ESCAPE
        expected = [sum(num_by_class), len(packed["escaped"]), sum(sizes)]
        if [len(rest), int(is_escaped.sum()), len(low_bits)] != expected:
            raise _contradiction()
        rest[is_escaped] = packed["escaped"]
        self._rest: list[np.ndarray] = []  # by class
        start = low_start = 0
        columns = zip(num_by_class, num_low_by_class, sizes, strict=True)
        for num, num_low, size in columns:
            part = rest[start : start + num] << num_low
            bits = low_bits[low_start : low_start + num * num_low].reshape(num, num_low)
            self._rest.append(part + (bits.astype(np.int64) << np.arange(num_low)).sum(axis=1))
            start, low_start = start + num, low_start + size
        self._num_taken = [0] * len(self._rest)

    def take(self, n: np.ndarray) -> np.ndarray:
        """The next numbers, for pieces of n weights."""
        classes = _classes(n)
        parts = [_NOTHING]
        for kind, num in enumerate(np.bincount(classes).tolist()):
            if num and kind < len(self._rest):
                start = self._num_taken[kind]
                self._num_taken[kind] += num
                parts.append(self._rest[kind][start : start + num])
        found = np.concatenate(parts)
        if len(found) != len(n):
            raise _contradiction()
        rest = np.empty_like(found)
        rest[np.argsort(classes, kind="stable")] = found
        return rest


def _contradiction() -> StateError:
    return StateError("Expected a packed spectrum, got one whose numbers contradict each other.")
