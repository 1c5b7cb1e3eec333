"""When a snapshot is taken: for ``sw.watch(every=)``."""

from sparsitywatch.live.schedule import Schedule, adaptive, at, every, geometric

__all__ = ["Schedule", "adaptive", "at", "every", "geometric"]
