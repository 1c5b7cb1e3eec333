"""What the files of a replay hold that those of no neighbouring checkpoint do."""

from __future__ import annotations

from collections.abc import Sequence

from sparsitywatch.analysis.contents import LONGEST, odd_contents
from sparsitywatch.pipeline.pipeline import Reviewer
from sparsitywatch.records import Event, Layers, Record


class FilesReviewer(Reviewer):
    """Tells of contents that come and go, once they have gone; at the end, that they came."""

    def events(
        self, record: Record, earlier: Sequence[Record], told: Sequence[Event]
    ) -> list[Event]:
        """What was in the checkpoint before, or in some up to it, and is in this one no more."""
        return _odd([*earlier[-2 * LONGEST :], record], told, len(earlier) + 1, is_end=False)

    def last_words(self, records: Sequence[Record], told: Sequence[Event]) -> list[Event]:
        """What came with the last checkpoints."""
        return _odd(records[-2 * LONGEST :], told, len(records), is_end=True)


def _odd(
    records: Sequence[Record], told: Sequence[Event], num: int, *, is_end: bool
) -> list[Event]:
    """What is odd in the checkpoint before the last one, or at the end in the last one."""
    read = [one for one in records if one.was_read and one.source is not None]
    contents = [() if one.source is None else one.source.contents for one in read]
    if not read or not any(contents):
        return []
    is_whole, found = len(records) == num, []
    for odd in odd_contents(contents, Layers.of(read[-1].layers).columns.names):
        series = f"files/{odd.kind}"
        known = {
            step
            for event in told
            if event.series == series
            for step in range(event.onset_low, event.onset_high + 1)
        }
        new = [p for p in range(odd.first, odd.last + 1) if read[p].step not in known]
        if odd.last != len(read) - (1 if is_end else 2) or not new or not (new[0] or is_whole):
            continue
        step, last = read[new[0]].step, read[new[-1]].step
        event = Event(
            series=series, direction="", kind="contents", onset_step=step, onset_high=last,
            detected_step=step, before_step=read[new[0] - 1].step if new[0] else -1,
            baseline=0.0, value=float(len(odd.tensors)), layers=odd.tensors, reason=odd.words,
        )  # fmt: skip
        found.append(event)
    return found
