"""What flows from room to room: plain frozen data, and its JSON form.

Nothing here computes; nothing here imports torch. Fractions are in [0, 1], times in
seconds, ``step`` is an optimizer step. A float that could not be measured is NaN, a part
that was not asked for is None; both are ``null`` in JSON.
"""

from sparsitywatch.records.codec import from_data, from_json, to_json
from sparsitywatch.records.curve import EssentialSparsity, SparsityCurve
from sparsitywatch.records.difference import Difference
from sparsitywatch.records.event import (
    LEVEL_KINDS,
    SERIES_KINDS,
    VITAL_KINDS,
    Event,
    latest_versions,
)
from sparsitywatch.records.gradient import BlockGradient, Gradient
from sparsitywatch.records.record import (
    LAYER_NUMBERS,
    SCHEMA_VERSION,
    Content,
    Cost,
    DecayProjection,
    Dormant,
    Finding,
    Forecast,
    LayerColumns,
    Layers,
    LayerShare,
    MaskOverlap,
    Movement,
    Provenance,
    Record,
    Replicas,
    ScopeSummary,
    Source,
    Vital,
    html_of,
    of_one_model,
)
from sparsitywatch.records.run import (
    Began,
    Detail,
    LedgerEntry,
    LogHistogram,
    RunInfo,
    WatchState,
    ledger_in_short,
)
from sparsitywatch.records.xray import XRay, XRayLayers

__all__ = [
    "LAYER_NUMBERS", "LEVEL_KINDS", "SCHEMA_VERSION", "SERIES_KINDS", "VITAL_KINDS", "Began",
    "BlockGradient", "Content", "Cost",
    "DecayProjection", "Detail", "Difference", "Dormant", "EssentialSparsity", "Event", "Finding",
    "Forecast", "Gradient", "LayerColumns", "LayerShare", "Layers", "LedgerEntry", "LogHistogram",
    "MaskOverlap", "Movement", "Provenance", "Record", "Replicas", "RunInfo", "ScopeSummary",
    "Source", "SparsityCurve", "Vital", "WatchState", "XRay", "XRayLayers", "from_data",
    "from_json", "html_of", "latest_versions", "ledger_in_short", "of_one_model",
    "to_json",
]  # fmt: skip
