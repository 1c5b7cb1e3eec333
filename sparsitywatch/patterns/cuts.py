"""What a pattern is told of the weights, and what it makes of them: cuts, which remove weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch

from sparsitywatch.weights.spectrum import MagnitudeSpectrum

#: Some numbers of each tensor, by its name.
Numbers = dict[str, list[np.ndarray]]
#: For each level what share of each tensor's weights goes, by name.
Shares = Sequence[Mapping[str, float]]
#: The scores, [rows, inputs], of some rows of a tensor, one for each output, and of which.
Score = Callable[[torch.Tensor, slice], torch.Tensor]
#: Those of each tensor, by its name; None: by the order of their ``|w|``.
Scores = Callable[[str], Score] | None


class Combination(Protocol):
    """A score, a structure and an allocation with their arguments, as ``Pattern`` has them."""

    score: str
    structure: str
    allocation: str | dict[str, float]
    needs_inputs: Literal["", "squares", "products"]
    exponent: float
    block: int
    damping: float
    memory_gb: float
    outlier: float
    spread: float


def of_this_rank(find: Callable[[], Numbers]) -> Numbers:
    """What is found where a process holds all weights."""
    return find()


class Grams(Mapping[str, torch.Tensor]):
    """Sums of the products of each two input features, of one group of layers at a time."""

    def __init__(
        self,
        groups: Sequence[Sequence[str]],
        gather: Callable[[Sequence[str]], Mapping[str, torch.Tensor]],
        held: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._groups = {name: group for group in groups for name in group}
        self._gather, self._held = gather, dict(held or {})
        self._made: dict[tuple[str, Any], Any] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._held:
            group = self._groups[name]
            self._held, self._made = {}, {}  # before there are others
            self._held = dict(self._gather(group))
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def turned(self, name: str, by: Any, turn: Callable[[torch.Tensor], Any]) -> Any:
        """What ``turn`` makes of the products of a layer: kept in their place, as long as they."""
        if (name, by) not in self._made:
            own = self[name]
            made = turn(own)
            for other in [other for other, one in self._held.items() if one is own]:
                self._made[other, by] = made
                del self._held[other]
        return self._made[name, by]


@dataclass(frozen=True)
class Inputs:
    """What came into each layer, by name, while the dense model ran on the proxy's batches."""

    num: Mapping[str, int]  # vectors
    squares: Mapping[str, torch.Tensor]  # sum of the squares of each input feature, [in]
    #: Sum of the products of each two of them, [in, in]; empty unless a pattern needs them.
    products: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Weights:
    """What a pattern is told of the in-scope weights.

    Args:
        spectrum: how many have which magnitude, by tensor.
        shapes: of each tensor, by name.
        input_axes: the axis of each tensor that runs over inputs: the second one of nn.Linear and
            of convolutions, the first one of transformers' Conv1D. Missing: the last one.
        seed: of whatever a pattern draws.
        inputs: of the layers, for patterns that say ``needs_inputs``; else None.
        tensors: the weights themselves, of this rank, by name. Without them a threshold is met to
            a bin of the spectrum, not to the weight.
        united: what all ranks find in what each holds of the tensors, given what finds it in
            ``tensors``.
    """

    spectrum: MagnitudeSpectrum
    shapes: Mapping[str, tuple[int, ...]]
    input_axes: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    inputs: Inputs | None = None
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    united: Callable[[Callable[[], Numbers]], Numbers] = of_this_rank

    def __repr__(self) -> str:
        return f"<Weights: {len(self.shapes)} tensors, {self.spectrum.num_weights:,} weights>"

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], **known: Any) -> Weights:
        """What is told of some ``tensors``, by name; and what else is ``known``: further fields."""
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return cls(MagnitudeSpectrum.of(tensors), shapes, tensors=tensors, **known)

    def input_axis(self, name: str) -> int:
        """The axis of a tensor that runs over inputs."""
        return self.input_axes.get(name, len(self.shapes[name]) - 1)


@dataclass(frozen=True, repr=False)
class Cut(ABC):
    """Removing some weights, the same ones whenever it is applied to the same weights.

    Args:
        level: the sparsity that was asked for.
        sparsity: the counted fraction of all in-scope weights that it removes.
        shares: the counted fraction of each tensor's weights that it removes, by name.
    """

    level: float
    sparsity: float
    shares: Mapping[str, float]

    def __repr__(self) -> str:
        kind = type(self).__name__.lstrip("_")
        return f"<{kind} for {self.level:g}: {self.sparsity:g} of {len(self.shares)} tensors>"

    @abstractmethod
    def prune(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:
        """Write ``weights`` without the removed ones to ``out``.

        Args:
            name: the tensor's name in scope.
            weights: the dense weights, any float dtype and shape; not written to.
            out: same shape, dtype and device. Kept weights are the same bit for bit, unless the
                pattern makes up for what goes, as SparseGPT does.
        """
