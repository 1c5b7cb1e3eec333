"""Watch essential sparsity and abrupt sparsification live while a model pretrains.

Names are imported when they are first used, so that tools which only read a log start
without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsitywatch import actions as actions  # a room of its own
    from sparsitywatch.analysis.detect import AbruptChange, DormantRise
    from sparsitywatch.analysis.estimate import essential_sparsity
    from sparsitywatch.attach import watch
    from sparsitywatch.errors import (
        CheckpointError,
        ConfigurationError,
        MeasurementError,
        MissingExtraError,
        ProxyError,
        ScopeError,
        SparsityWatchError,
        StateError,
    )
    from sparsitywatch.pruning.patterns import GlobalMagnitude
    from sparsitywatch.pruning.proxy import Proxy
    from sparsitywatch.pruning.sweep import Bisection, Grid
    from sparsitywatch.pruning.tracking import Tracking
    from sparsitywatch.records import EssentialSparsity, Event, Record, SparsityCurve
    from sparsitywatch.replayer.call import replay
    from sparsitywatch.schedule import adaptive, at, every, geometric
    from sparsitywatch.sinks.memory import MemorySink
    from sparsitywatch.verification import verify
    from sparsitywatch.version import __version__
    from sparsitywatch.watcher import Watcher
    from sparsitywatch.weights.scope import Scope
    from sparsitywatch.weights.spectrum import MagnitudeSpectrum

_HOMES = {
    "AbruptChange": "analysis.detect",
    "Bisection": "pruning.sweep",
    "CheckpointError": "errors",
    "ConfigurationError": "errors",
    "DormantRise": "analysis.detect",
    "EssentialSparsity": "records",
    "Event": "records",
    "GlobalMagnitude": "pruning.patterns",
    "Grid": "pruning.sweep",
    "MagnitudeSpectrum": "weights.spectrum",
    "MeasurementError": "errors",
    "MemorySink": "sinks.memory",
    "MissingExtraError": "errors",
    "Proxy": "pruning.proxy",
    "ProxyError": "errors",
    "Record": "records",
    "Scope": "weights.scope",
    "ScopeError": "errors",
    "SparsityCurve": "records",
    "SparsityWatchError": "errors",
    "StateError": "errors",
    "Tracking": "pruning.tracking",
    "Watcher": "watcher",
    "__version__": "version",
    "adaptive": "schedule",
    "at": "schedule",
    "essential_sparsity": "analysis.estimate",
    "every": "schedule",
    "geometric": "schedule",
    "replay": "replayer.call",
    "verify": "verification",
    "watch": "attach",
}

__all__ = [
    "AbruptChange",
    "Bisection",
    "CheckpointError",
    "ConfigurationError",
    "DormantRise",
    "EssentialSparsity",
    "Event",
    "GlobalMagnitude",
    "Grid",
    "MagnitudeSpectrum",
    "MeasurementError",
    "MemorySink",
    "MissingExtraError",
    "Proxy",
    "ProxyError",
    "Record",
    "Scope",
    "ScopeError",
    "SparsityCurve",
    "SparsityWatchError",
    "StateError",
    "Tracking",
    "Watcher",
    "__version__",
    "adaptive",
    "at",
    "essential_sparsity",
    "every",
    "geometric",
    "replay",
    "verify",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name == "actions":
        return importlib.import_module(f"{__name__}.actions")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
