"""Watch essential sparsity and abrupt sparsification live while a model pretrains.

Each name is imported when it is first used (PEP 562), so that tools which only read a log start
without torch. Type checkers read ``__init__.pyi``.
"""

from importlib import import_module

#: Every public name and the module that has it; a module of its own has "".
_HOME = {
    "Audit": "lab.audit",
    "CheckpointError": "errors",
    "Comparison": "lab.conclusion",
    "Conclusion": "lab.conclusion",
    "ConfigurationError": "errors",
    "Difference": "records",
    "EssentialSparsity": "records",
    "Event": "records",
    "FinetunedCurve": "lab.finetuned",
    "MagnitudeSpectrum": "weights.spectrum",
    "MeasurementError": "errors",
    "Proxy": "proxy.proxy",
    "Record": "records",
    "Run": "page.render",
    "Settings": "settings",
    "SparsityCurve": "records",
    "SparsityWatchError": "errors",
    "StateError": "errors",
    "Watcher": "live.watcher",
    "__version__": "records.run",
    "actions": "",
    "adaptive": "live.schedule",
    "assert_trains": "verification",
    "audit": "offline.audit",
    "detectors": "",
    "errors": "",
    "essential_sparsity": "analysis.estimate",
    "finetuned_curve": "lab.finetuned",
    "load": "page.render",
    "mask_similarity": "patterns.pattern",
    "measure": "pipeline.measure",
    "patterns": "",
    "replay": "offline.replay",
    "schedules": "",
    "sinks": "",
    "sweeps": "",
    "until_told": "lab.conclusion",
    "verdicts": "lab.conclusion",
    "verify": "verification",
    "watch": "live.watch",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_HOME[name] or name}")
    value = getattr(module, name) if _HOME[name] else module
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return __all__
