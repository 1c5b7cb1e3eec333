"""The exception tree.

::

    SparsityWatchError
    ├── ConfigurationError (also ValueError)   a mistake in a call; names the argument
    │   ├── ScopeError                         which weights count
    │   └── ProxyError                         what is measured
    ├── StateError (also ValueError)           saved state that is incomplete or of another run
    ├── LogTakenError (also RuntimeError)      another watch writes to this log now
    ├── CheckpointError (also ValueError)      a checkpoint that cannot be read or is refused
    │   └── IncompleteCheckpointError          one that is not, or not yet, all there
    ├── MeasurementError (also RuntimeError)   a measurement that failed or cannot be trusted
    └── MissingExtraError (also ImportError)   an optional dependency is not installed

Every message says what was expected, what came, where, and what to do. Logins, signatures and
control characters are left out of it (``shown.py``), whoever wrote it.
"""

from __future__ import annotations

from sparsitywatch.shown import shown_text

__all__ = [
    "CheckpointError",
    "ConfigurationError",
    "IncompleteCheckpointError",
    "LogTakenError",
    "MeasurementError",
    "MissingExtraError",
    "ProxyError",
    "ScopeError",
    "SparsityWatchError",
    "StateError",
]


class SparsityWatchError(Exception):
    """Base of everything this library raises on purpose."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(shown_text(arg) if isinstance(arg, str) else arg for arg in args))


class ConfigurationError(SparsityWatchError, ValueError):
    """A call that cannot mean anything: raised before anything is touched or written."""


class ScopeError(ConfigurationError):
    """The selection of in-scope weights is empty or cannot be understood."""


class ProxyError(ConfigurationError):
    """The proxy's batches or its value function cannot be used."""


class StateError(SparsityWatchError, ValueError):
    """Saved state that lacks a key, or belongs to another model, proxy or schema."""


class LogTakenError(SparsityWatchError, RuntimeError):
    """A log that another watch has taken over: what comes late is not written into it."""


class CheckpointError(SparsityWatchError, ValueError):
    """A checkpoint that cannot be read, or whose own description of itself is not true.

    One line that names the file, the tensor where there is one, and the cause. Nothing of
    the checkpoint has been executed, and no memory was taken on its word.
    """


class IncompleteCheckpointError(CheckpointError):
    """A checkpoint that is not all there, or out of reach for now: it may be worth a wait."""


class MeasurementError(SparsityWatchError, RuntimeError):
    """A measurement that failed or contradicts itself; its record is marked invalid."""


class MissingExtraError(SparsityWatchError, ImportError):
    """An optional dependency is needed and missing; the message names the extra."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"Expected the package {package!r} for {purpose}, but it is not installed. "
            f"Install the extra: pip install 'sparsitywatch[{extra}]'"
        )
