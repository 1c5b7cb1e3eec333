"""A fixed sample of each tensor's weights, and what two snapshots of it say to the last bit.

Arrays are [T], by tensor, or [N], by sampled weight.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import cached_property, lru_cache

import numpy as np
import torch

from sparsitywatch.weights.snapshot import SampleIndex, bits_of, float64_of

#: Tensors of up to this many weights are compared whole; of larger ones, this many weights are.
WHOLE, SOME = 4096, 512
#: Of fewer weights nobody can say that all were multiplied by one factor, or that they ought to
#: move: a temperature may stand at a bound that it is held to.
FEW = 8
#: Each of some thousand steps rounds by up to half an eps, up or down: together by so many.
ROUNDED = 32


class Sample:
    """The sampled weights of every tensor, one tensor after another; on the CPU."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.kinds = [(name, one.dtype, len(one)) for name, one in tensors.items()]
        self.num = np.array([num for _, _, num in self.kinds], int)
        self.starts = np.cumsum(self.num) - self.num
        self._bits = [bits_of(one).numpy() for one in tensors.values()]
        self.words = np.concatenate([np.empty(0, np.uint8), *self._bits])  # as wide as the widest

    @cached_property
    def values(self) -> np.ndarray:
        """The weights as numbers, float64 [N]."""
        dtypes = {dtype for _, dtype, _ in self.kinds}
        if len(dtypes) == 1:  # as of most models; one by one takes several times as long
            return float64_of(torch.from_numpy(self.words).view(*dtypes))
        return float64_of(*self.tensors.values())

    def slice_of(self, index: int) -> slice:
        """Where the weights of one tensor are."""
        return slice(int(self.starts[index]), int(self.starts[index] + self.num[index]))

    def count(self, is_so: np.ndarray) -> np.ndarray:
        """Of how many weights of each tensor something holds, int64 [T]."""
        ends = np.flatnonzero(is_so).searchsorted(np.append(self.starts, len(self.words)))
        return np.diff(ends)

    def root_mean_square(self, values: np.ndarray) -> np.ndarray:
        """That of each tensor's part of ``values``, [T]."""
        if not len(values):
            return values
        return np.asarray(np.sqrt(np.add.reduceat(np.square(values), self.starts) / self.num))

    def marks(self) -> np.ndarray:
        """A checksum of each tensor's sample, int64 [T]."""
        return np.array([zlib.crc32(bits.data) for bits in self._bits], int)


@lru_cache(maxsize=1 << 13)  # of the same tensors at every snapshot
def chosen(name: str, size: int) -> SampleIndex:
    """Which weights of a tensor are compared; by its name and size alone."""
    if size <= WHOLE:
        return SampleIndex(size, None)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    where = torch.randint(size, (SOME,), generator=generator, device="cpu").numpy()
    return SampleIndex(SOME, np.sort(where))


class Comparison:
    """Samples of the same weights at the start, before and now."""

    def __init__(self, start: Sample, before: Sample, now: Sample) -> None:
        self.start, self.before, self.now = start, before, now
        self.eps = np.array([torch.finfo(dtype).eps for _, dtype, _ in now.kinds])  # [T]
        self.is_same = before.words == now.words  # [N]
        self.num_still = now.count(self.is_same)
        self.is_still: np.ndarray = self.num_still == now.num
        self.is_shrinking = self._is_shrinking()

    @cached_property
    def update(self) -> np.ndarray:
        """Root mean square of each tensor's change since the snapshot before, [T]."""
        with np.errstate(all="ignore"):  # what is not finite is told beside
            return self.now.root_mean_square(self.now.values - self.before.values)

    @cached_property
    def rms(self) -> np.ndarray:
        """That of the weights before, [T]."""
        with np.errstate(all="ignore"):
            return self.now.root_mean_square(self.before.values)

    def num_moved(self, index: int, allowed: np.ndarray | float) -> int:
        """How many weights of a tensor moved farther, not to a value that many of them have.

        So are those at zero, which the steps after a mask move by what is ``allowed``, if most of
        the others stayed where they were.
        """
        where = self.now.slice_of(index)
        before, now = self.before.values[where], self.now.values[where]
        with np.errstate(all="ignore"):  # what is not finite is told beside
            is_far = np.abs(now - before) > allowed
        # such a value is a bound that they are held to, or the zero of a mask. In their order, one
        # that so many have is at one of these places
        sizes, many = np.abs(now), len(now) // FEW + 1
        places = np.arange(many - 1, len(now), many)
        values = np.partition(sizes, places)[places] if is_far.any() else sizes[:0]
        is_common = (sizes == values[:, None]).sum(axis=1) >= many
        if is_common.any():
            is_far &= ~np.isin(sizes, values[is_common])
        is_zero = sizes <= allowed
        rest = is_far & ~is_zero
        if 2 * np.count_nonzero(rest) < np.count_nonzero(~is_zero):
            is_far = rest
        return int(np.count_nonzero(is_far))

    @np.errstate(all="ignore")  # what is not finite is told beside
    def _is_shrinking(self) -> np.ndarray:
        # the first weights of most tensors say that they were not; of the others all are asked
        was, now = self.before.values, self.now.values
        firsts = self.now.starts[:, None] + np.minimum(np.arange(FEW), self.now.num[:, None] - 1)
        found: np.ndarray = _have_one_factor(was[firsts], now[firsts], self.eps) != 0
        for index in np.flatnonzero(found).tolist():
            where = self.now.slice_of(index)
            is_enough = np.count_nonzero(was[where]) >= FEW
            found[index] = (
                is_enough and _have_one_factor(was[where], now[where], self.eps[index]) > 0
            )
        return found


def _have_one_factor(was: np.ndarray, is_now: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """Of each row whether its weights were all multiplied by one factor below 1; -1: none tells."""
    ratio = is_now / was
    ratio[was == 0.0] = np.nan
    low, high = np.fmin.reduce(ratio, axis=-1), np.fmax.reduce(ratio, axis=-1)
    is_so = (high < 1.0 - eps) & (low > 0.0) & (high - low <= ROUNDED * eps)
    return np.where(np.isnan(low), -1, is_so)  # they were 0, or are NaN
