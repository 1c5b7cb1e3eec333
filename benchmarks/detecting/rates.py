"""Learning rates over a run, and what a watch tells a detector about them."""

from __future__ import annotations

import numpy as np

from detecting.series import Array, log_uniform

__all__ = ["SCHEDULES", "context_of", "rate_of", "remembered"]

SCHEDULES = ("constant", "cosine", "linear", "wsd", "restarts")
_WARMUP = (0.02, 0.1)
_PEAKS = (1e-4, 1e-2)


def rate_of(schedule: str, rng: np.random.Generator, num: int) -> Array:
    """The learning rate at each snapshot as a part of its peak, after a warm-up.

    Raises:
        KeyError: there is no such schedule.
    """
    time = np.arange(1, num + 1, dtype=np.float64)
    warmup = max(1.0, num * rng.uniform(*_WARMUP))
    way = np.clip((time - warmup) / (num - warmup), 0.0, 1.0)
    shape = {
        "constant": np.ones(num),
        "cosine": 0.5 + 0.5 * np.cos(np.pi * way),
        "linear": 1.0 - way,
        "wsd": _stable_then_down(way, rng.uniform(0.5, 0.85)),
        "restarts": 0.5 + 0.5 * np.cos(np.pi * (0.999 * way * rng.integers(2, 5) % 1.0)),
    }[schedule]
    return np.asarray(np.minimum(time / warmup, shape), np.float64)


def _stable_then_down(way: Array, start: float) -> Array:
    return 1.0 - np.maximum(way - start, 0.0) / (1.0 - start)


def remembered(rate: Array, memory: float) -> Array:
    """The rate as weights answer to it: an exponential mean over some snapshots."""
    answer, last = np.empty_like(rate), 0.0
    for i, value in enumerate(rate):
        last += (value - last) / memory
        answer[i] = last
    return answer


def context_of(
    rate: Array, rng: np.random.Generator, clock: float | None, at: int = -1
) -> dict[str, Array]:
    """Learning rate and clocks as a watch tells them.

    Args:
        rate: at each snapshot, as a part of its peak.
        rng: draws the peak and the steps between snapshots.
        clock: what the decay clock shows at snapshot ``at``; None: no weight decay.
        at: index of a snapshot.
    """
    lr = log_uniform(rng, *_PEAKS) * rate
    lr_clock = float(rng.choice((25, 50, 100, 200, 500))) * np.cumsum(lr)
    context = {"lr": lr, "lr_clock": lr_clock}
    if clock is not None:
        context["decay_clock"] = clock / lr_clock[at] * lr_clock
    return context
