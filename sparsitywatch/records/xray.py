"""What the dense forward of an evaluation showed of the layers: an x-ray."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

_NAN = math.nan


@dataclass(frozen=True, kw_only=True)
class XRayLayers:
    """The same numbers of the L layers that ran, in the model's order; NaN where not known."""

    names: tuple[str, ...] = ()  # of the weight of each layer
    num_units: tuple[int, ...] = ()  # inputs of the layer: the units that it reads
    dead: tuple[float, ...] = ()  # share of them that stay below a thousandth of the inputs' rms
    # Share of the positions at which a unit is above zero: of the units, the 5th percentile, the
    # median and the 95th.
    active_low: tuple[float, ...] = ()
    active: tuple[float, ...] = ()
    active_high: tuple[float, ...] = ()
    # Entropy of that share in bits, mean over the units, where some inputs are negative.
    sign_diversity: tuple[float, ...] = ()
    massive: tuple[float, ...] = ()  # largest output beside the median of its position; in scope


@dataclass(frozen=True, kw_only=True)
class XRay:
    """What the examples of the proxy do to the model as it is, in sum and by layer."""

    dead: float = _NAN  # share of all units that are dead
    dead_units: float = _NAN  # of the layer that has the largest share
    sign_diversity: float = _NAN  # mean over the layers
    massive: float = _NAN  # of the layer where it is largest
    num_super_weights: float = _NAN
    num_unreached: float = _NAN
    max_violation: float = _NAN  # of the mixture of experts whose load is least even
    #: Weights that make most of a massive activation by themselves: "tensor[row, col]".
    super_weights: tuple[str, ...] = ()
    #: Layers that no example reached, beside others of their list that some did.
    unreached: tuple[str, ...] = ()
    #: In-scope tensors whose layers could not be looked at; and why none could, if so.
    unseen: tuple[str, ...] = ()
    reason: str = ""
    #: Positions that count and came to each expert, by its stack or list; of the first 100.
    expert_load: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    layers: XRayLayers = field(default_factory=XRayLayers, repr=False)
