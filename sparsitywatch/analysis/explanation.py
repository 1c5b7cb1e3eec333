"""What the records around an event say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sparsitywatch.analysis.attribution import accountable_layers
from sparsitywatch.analysis.decay_clock import is_on_clock
from sparsitywatch.analysis.scale_or_shape import what_moved
from sparsitywatch.records import Event, Record
from sparsitywatch.series import describe

__all__ = ["explained"]


def explained(event: Event, records: Sequence[Record], initial_rms: Mapping[str, float]) -> Event:
    """The event with its meaning, its layers, what moved, and what the decay clock says.

    Args:
        event: as a detector gave it, with the name of its series.
        records: by rising step; the last one is that in which the event was seen.
        initial_rms: root mean square of each tensor when the watch first saw it.
    """
    now = records[-1]
    event = replace(
        event,
        meaning=describe(event.series).meaning(event.direction),
        decay_clock=now.decay_clock,
        num_not_finite=now.num_not_finite,
        on_clock=is_on_clock(event, records),
    )
    # the layers of old records are let go: then the oldest that has them is the closest
    with_layers = [r for r in records[:-1] if r.layers and not r.num_not_finite]
    before = [record for record in with_layers if record.step <= event.onset_step]
    compared = before[-1:] or with_layers[:1]
    if not compared:
        return event
    return replace(
        event,
        layers=accountable_layers(compared[0], now, event.series),
        change=what_moved(compared[0], now, event.series, initial_rms),
        before_step=compared[0].step,
    )
