"""Calls that a type checker refuses; `make types` reads this, nobody runs it.

An ignored error that is none any more is one itself.
"""

from __future__ import annotations

import sparsitywatch as sw
from sparsitywatch.integrations.huggingface import SparsityWatchCallback
from sparsitywatch.integrations.lightning import SparsityWatch

SparsityWatchCallback(every=3, tolerance=0.1, on_event=["log", print], max_overhead=None)
SparsityWatchCallback(toleranc=0.1)  # type: ignore[call-arg]
SparsityWatchCallback.from_eval(None, 64, every=3, logdir="runs")
SparsityWatchCallback.from_eval(None, toleranc=0.1)  # type: ignore[call-arg]
SparsityWatch(every=sw.adaptive(5), levels=[0.5], logdir="runs", strict=True)
SparsityWatch(toleranc=0.1)  # type: ignore[call-arg]
SparsityWatch(every="often")  # type: ignore[arg-type]
