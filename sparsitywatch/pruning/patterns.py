"""What a level means: which weights one-shot magnitude pruning removes at a sparsity."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

__all__ = ["PATTERNS", "Cut", "GlobalMagnitude", "Pattern", "ThresholdCut", "as_pattern"]


class Cut(Protocol):
    """Removing some weights, the same ones whenever it is applied to the same weights."""

    @property
    def level(self) -> float:
        """The sparsity that was asked for."""

    @property
    def sparsity(self) -> float:
        """The counted fraction of all in-scope weights that it removes."""

    @property
    def shares(self) -> Mapping[str, float]:
        """The counted fraction of each tensor's weights that it removes, by name."""

    def prune(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:
        """Write ``weights`` without the removed ones to ``out``.

        Args:
            name: the tensor's name in scope.
            weights: the dense weights, any float dtype and shape; not written to.
            out: same shape, dtype and device; every kept weight is bit for bit the same.
        """


class Pattern(Protocol):
    """A rule that turns levels into cuts; masks of rising levels are nested."""

    @property
    def name(self) -> str:
        """What the pattern is called in the provenance."""

    def cuts(self, spectrum: MagnitudeSpectrum, levels: Sequence[float]) -> list[Cut]:
        """One cut per level, in the order of ``levels``, each in [0, 1]."""


@dataclass(frozen=True)
class ThresholdCut:
    """Removes every weight with ``|w| <= threshold``, ties together.

    A level of 1 removes everything, NaN included; a level of 0 removes nothing.
    """

    level: float
    sparsity: float
    threshold: float
    shares: Mapping[str, float]

    def prune(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:  # noqa: ARG002 a global threshold is the same for every tensor
        """Write ``weights`` without the removed ones to ``out``."""
        if self.threshold == -math.inf:
            out.copy_(weights)
        elif self.threshold == math.inf:
            out.zero_()
        else:
            threshold = _round_down(self.threshold, weights.dtype)
            # hardshrink is one-shot magnitude pruning in one fused pass. NaN and inf
            # lie above every finite threshold and stay.
            torch.hardshrink(weights, threshold, out=out)


@functools.lru_cache
def _round_down(threshold: float, dtype: torch.dtype) -> float:
    """The largest value of ``dtype`` that is not above a non-negative ``threshold``."""
    rounded = torch.tensor(threshold, dtype=torch.float64, device="cpu").to(dtype)
    if float(rounded) > threshold:
        rounded = torch.nextafter(rounded, torch.zeros_like(rounded))
    return float(rounded)


@dataclass(frozen=True)
class GlobalMagnitude:
    """One threshold on raw ``|w|`` for all in-scope weights together.

    Args:
        name: what it is called in the provenance.

    Reference: Jaiswal et al. 2023, arXiv:2306.03805, section 3 (one-shot magnitude
    pruning); the threshold runs over all tensors, as in their code.
    """

    name: str = "global"

    def cuts(self, spectrum: MagnitudeSpectrum, levels: Sequence[float]) -> list[Cut]:
        """One cut per level, in the order of ``levels``."""
        cuts: list[Cut] = []
        for level, (threshold, sparsity, shares) in zip(levels, spectrum.cuts(levels), strict=True):
            if level >= 1.0:  # NaN, too
                threshold, sparsity, shares = math.inf, 1.0, dict.fromkeys(shares, 1.0)
            cuts.append(ThresholdCut(level, sparsity, threshold, shares))
        return cuts


#: Every pattern there is, by the name that ``pattern=`` takes.
PATTERNS: Mapping[str, Callable[[], Pattern]] = {"global": GlobalMagnitude}


def as_pattern(pattern: str | Pattern | None) -> Pattern:
    """A pattern by its name or as it is; None is "global".

    Raises:
        ConfigurationError: there is none of that name, or it is no pattern.

    >>> as_pattern("global")
    GlobalMagnitude(name='global')
    """
    if pattern is None or isinstance(pattern, str):
        make = PATTERNS.get("global" if pattern is None else pattern)
        if make is not None:
            return make()
    elif callable(getattr(pattern, "cuts", None)) and isinstance(
        getattr(pattern, "name", None), str
    ):
        return pattern
    raise ConfigurationError(
        f"Expected `pattern` to be one of {', '.join(map(repr, PATTERNS))} or an object with "
        f"`name` and `cuts` such as sw.GlobalMagnitude(), got {pattern!r:.80}."
    )
