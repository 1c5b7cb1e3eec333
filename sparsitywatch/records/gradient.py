"""How large the gradients were that a step of the optimizer used, of a model and of its blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsitywatch.redact import printable

#: A block is out of line once its norm is so many times its own usual one, or that part of it.
_OUT_OF_LINE = 3.0


@dataclass(frozen=True, kw_only=True)
class BlockGradient:
    """The gradients of one block of a model: every element is counted."""

    name: str  # as "layers.3"; outside of all blocks that of a module
    norm: float  # root of the sum of squares, as the optimizer used it: unscaled, after any clip
    zeros: float  # share of the elements that are exactly zero
    change: float = math.nan  # the norm / its median at up to eight earlier snapshots
    # Root mean square of what its sampled weights changed by since the snapshot before and decay
    # does not explain, over that of these weights before; NaN without an earlier snapshot.
    update_to_weight: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """The gradients of all tensors that an optimizer steps on itself, at one step."""

    num_tensors: int  # that had one
    norm: float
    zeros: float
    change: float = math.nan
    before_clip: float = math.nan  # norm before the clip, as the training has reported it
    blocks: tuple[BlockGradient, ...] = ()  # in the order of the model

    @property
    def scalars(self) -> dict[str, float]:
        """Each number by what follows ``gradient/`` in the name of its series."""
        names = ("norm", "before_clip", "zeros", "change")
        own = {name: getattr(self, name) for name in names}
        return own | {f"block/{block.name}": block.norm for block in self.blocks}

    def describe(self) -> str:
        """The block whose norm is farthest from its own usual one; empty if none is far."""
        known = [block for block in self.blocks if 0.0 < block.change < math.inf]
        far = max(known, key=lambda block: abs(math.log(block.change)), default=None)
        if far is None or 1.0 / _OUT_OF_LINE < far.change < _OUT_OF_LINE:
            return ""
        return f"gradient norm of block {printable(far.name)} at {far.change:.3g} times its usual"
