"""What a run says while it runs: a bar, and what has been seen the moment it is seen."""

from __future__ import annotations

import logging
import math
import sys

from milestones import NEAR_ZERO, Breakthrough
from tqdm import tqdm

from sparsitywatch.records import Event, Record

__all__ = ["Console", "meaning", "status"]

#: By name of the series (up to its slash) and direction.
_MEANINGS = {
    ("near_zero", "up"): (
        "Take-off of near-zero weights. It runs on the decay clock (lr x weight decay, summed): "
        "weights that get no gradient shrink as exp(-clock). The control that does not show it "
        "is --decay 0.01. Seen here, in a small model with strong decay; no proof of the "
        "paper's figure."
    ),
    ("near_zero", "down"): "Fewer weights are near zero than before: they grow.",
    ("value", "up"): (
        "Breakthrough: the model has begun to rely on the watched weights; until now an "
        "essential sparsity said little, because hardly anything was used."
    ),
    ("value", "down"): "The model relies less on the watched weights.",
    ("motion", "up"): (
        "Weights go dormant: they get no gradient any more (dead units), so only weight decay "
        "moves them. Near-zero weights follow on the decay clock, if there is decay."
    ),
    ("essential_sparsity", "down"): "Less of the model can be removed at no cost: more is used.",
    ("essential_sparsity", "up"): "More of the model can be removed at no cost (zero-shot).",
}


class Console:
    """Prints above the bar, so that both stay readable.

    Args:
        total: steps in all.
        done: steps done before this process.
        quiet: no bar; what is seen is still said.
    """

    def __init__(self, total: int, done: int = 0, *, quiet: bool = False) -> None:
        self._bar = tqdm(
            total=total,
            initial=done,
            disable=quiet,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10.0,  # a log file gets fewer lines
        )
        self._loss = math.nan
        self._record: Record | None = None
        self._handler = _AboveTheBar(self)
        logging.getLogger("sparsitywatch").addHandler(self._handler)

    def say(self, text: str) -> None:
        """One message, at once."""
        tqdm.write(text)

    def step(self, loss: float | None = None) -> None:
        """One step was taken; ``loss`` only when it was read."""
        if loss is not None:
            self._loss = loss
            self._refresh()
        self._bar.update()

    def record(self, record: Record) -> None:
        """A look at the weights was taken."""
        self._record = record
        self._refresh()

    def event(self, event: Event) -> None:
        """An abrupt change was detected."""
        self.say(f"\n>> {event.describe()}\n   {meaning(event)}\n")

    def breakthrough(self, found: Breakthrough) -> None:
        """The held-out loss has left its plateau."""
        self.say(
            f"\n>> Breakthrough: {found.describe()}.\n   The model begins to use the watched "
            "weights; until now an essential sparsity said little.\n"
        )

    def close(self) -> None:
        """Leave the bar as it is."""
        logging.getLogger("sparsitywatch").removeHandler(self._handler)
        self._bar.close()

    def _refresh(self) -> None:
        self._bar.set_postfix_str(status(self._loss, self._record), refresh=False)


class _AboveTheBar(logging.Handler):
    """What the watch logs (warnings, faults), printed above the bar."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.say(self.format(record))


def status(loss: float, record: Record | None) -> str:
    """Loss and the latest look in a few words, for the bar.

    >>> status(2.9649, None)
    'loss 2.965'
    """
    parts = [f"loss {loss:.3f}"]
    if record is None:
        return parts[0]
    if not record.valid:
        return f"{parts[0]}, last look failed: {record.reason}"
    estimate = record.essential_sparsity
    if estimate is not None:
        known = f"{estimate.value:.2f}" if estimate.informative else "not used yet"
        parts.append(f"essential sparsity {known}")
    parts.append(f"near-zero {record.near_zero.get(NEAR_ZERO, math.nan):.3f}")
    if record.dormant is not None and math.isfinite(record.dormant.fraction):
        parts.append(f"dormant {record.dormant.fraction:.2f}")
    if math.isfinite(record.reliance):
        parts.append(f"reliance {record.reliance:.2f}")
    return ", ".join(parts)


def meaning(event: Event) -> str:
    """What an event of this series and direction means, and what it does not."""
    key = (event.series.split("/")[0], event.direction)
    return _MEANINGS.get(key, "An abrupt change; what it means depends on the run.")
