"""Something worth telling: a change in a series, ranks that differ, a vital sign."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from sparsitywatch.records import wording
from sparsitywatch.shown import shown_name

__all__ = ["Event", "latest_versions"]

_NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something worth telling, and what is known about it.

    What is learned about an event later makes a new version of it with the same ``id``. The last
    one counts. Steps that do not apply are -1.

    Args:
        series: name of the series, as in ``Record.series()``.
        direction: "up" or "down"; empty where it means nothing.
        onset_step: where the change began, as estimated when it was seen.
        onset_low, onset_high: interval that the onset lies in, in steps; by default the
            onset itself.
        detected_step: the snapshot at which it was seen.
        baseline: level of the series before the onset, in its own units.
        value: the series at ``detected_step``.
        noise: standard deviation of the series around its baseline; NaN if unknown.
        id: what identifies the event in its run; by default ``series@onset_step``.
        trend: "sparsifying" or "densifying", which way the model goes; empty if the direction
            of this series does not say.
        layers: tensors that account for most of the change, most first; empty if unknown.
        change: what moved since ``before_step``: "scale" (all magnitudes together),
            "shape" (of their distribution), "both", or empty if unknown.
        explained_by_decay: whether weight decay alone could have done it in that time, by the
            decay clock; None if that is not known. docs/events.md says how.
        decay_clock: sum of lr times weight decay at ``detected_step``; NaN if unknown.
        before_step: the snapshot before the onset that ``layers`` and ``change`` compare with
            ``detected_step``.
        related: the other series that saw the same thing.
        preceded_by: id of the event that announced this one: dormant weights become
            near-zero ones later. Empty if there was none.
        reverted_step: first snapshot at which the series had lost half of what the change was at
            its largest.
        num_not_finite: in-scope weights that were NaN or infinite at ``detected_step``.
        near_zero_step: of dormant weights: where half of them will be near zero if decay goes on as
            it does; -1 if that is not known.
        kind: "abrupt": the series changed within a few snapshots, or bent; "steady": it grew
            evenly since its floor, which is its baseline; "replicas": ranks that ought to hold the
            same weights hold others, in ``layers``; or one of ``SIGNS``: what is wrong with
            parameters, in scope or not, for sure.
        ranks: those that differ from most; empty where it is not about ranks.
        reason: what shows a vital sign, in words; empty for other events.
        revised_step: the snapshot at which this version was reported; -1 for the first one, which
            is reported at ``detected_step``.
    """

    series: str
    direction: str
    onset_step: int
    detected_step: int
    baseline: float
    value: float
    noise: float = _NAN
    layers: tuple[str, ...] = ()
    decay_clock: float = _NAN
    id: str = ""
    onset_low: int = -1
    onset_high: int = -1
    trend: str = ""
    change: str = ""
    explained_by_decay: bool | None = None
    before_step: int = -1
    related: tuple[str, ...] = ()
    preceded_by: str = ""
    reverted_step: int = -1
    revised_step: int = -1
    num_not_finite: int = 0
    near_zero_step: int = -1
    kind: str = "abrupt"
    ranks: tuple[int, ...] = ()
    reason: str = ""

    def __post_init__(self) -> None:
        for end in ("onset_low", "onset_high"):
            if getattr(self, end) < 0:
                object.__setattr__(self, end, self.onset_step)
        if self.series and not self.id:  # detectors do not know the name of their series
            object.__setattr__(self, "id", f"{self.series}@{self.onset_step}")

    def __repr__(self) -> str:
        return (
            f"<Event in {shown_name(self.series)[:60]}: {self.direction}, {self.baseline:.4g} to "
            f"{self.value:.4g}, began at step {self.onset_step}, seen at step {self.detected_step}>"
        )

    @property
    def size(self) -> float:
        """``value`` minus ``baseline``, in units of the series."""
        return self.value - self.baseline

    @property
    def size_in_noise(self) -> float:
        """``size`` in units of ``noise``, with its sign; NaN if the noise is unknown."""
        if self.noise == 0.0:
            return math.copysign(math.inf, self.size) if self.size else 0.0
        return self.size / self.noise

    @property
    def is_of_series(self) -> bool:
        """Whether it is a change of its series, rather than something about tensors or ranks."""
        return self.kind in ("abrupt", "steady")

    @property
    def reported_step(self) -> int:
        """The snapshot at which this version was reported."""
        return max(self.detected_step, self.revised_step)

    @property
    def headline(self) -> str:
        """What happened, in a few words: the series, and from where to where it went."""
        return wording.headline(self)

    @property
    def advice(self) -> str:
        """What people do about such an event; never empty."""
        return wording.advice(self)

    def describe(self) -> str:
        """One or two sentences for a person, the result first."""
        return wording.sentences(self)

    def report(self) -> str:
        """The same, and what people do about it: what the log and a webhook are given."""
        return f"{self.describe()}. {self.advice}"


def latest_versions(events: Iterable[Event]) -> list[Event]:
    """Each event once, in its last version, in the order in which they were first reported.

    >>> from dataclasses import replace
    >>> first = Event(
    ...     series="s", direction="up", onset_step=3, detected_step=5, baseline=0.0, value=1.0
    ... )
    >>> [e.reverted_step for e in latest_versions([first, replace(first, reverted_step=9)])]
    [9]
    """
    return list({event.id: event for event in events}.values())
