"""Something worth telling, also in words: a change in a series, ranks that differ, a vital sign."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from sparsitywatch.records.vital import VITAL_KINDS
from sparsitywatch.series import describe
from sparsitywatch.shown import shown_name

__all__ = ["Event", "cause", "latest_versions", "sequel", "when"]

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
            same weights hold others, in ``layers``; or one of ``VITAL_KINDS``: what is wrong with
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
        return _headline(self)

    @property
    def advice(self) -> str:
        """What people do about such an event; never empty."""
        return _advice(self)

    def describe(self) -> str:
        """One or two sentences for a person, the result first."""
        return _sentences(self)

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


# ------------------------------------------------------------------ in words
#
# Log, summary, webhook, figures, TensorBoard and page read these. The result comes first, then
# where and why, then what people do about it.

_CHANGES = {
    "scale": "the scale of the weights moved",
    "shape": "the shape of the weights' distribution changed",
    "both": "scale and shape of the weights' distribution changed",
}
#: What a change says of the model, by its series and its direction.
_MEANINGS = {
    ("value/reliance", "up"): "the model begins to use the watched weights",
    ("value/reliance", "down"): "the model uses the watched weights less",
    ("essential_sparsity/value", "up"): "more of the weights could be removed without harm",
    ("essential_sparsity/value", "down"): "fewer of the weights could be removed without harm",
}
#: Weights that would be near zero only after so many times the steps so far are not seen to be.
_FAR = 10
_MOST_NAMES, _DORMANT = 3, "motion/dormant"


def _headline(event: Event) -> str:
    """What happened, in a few words: "Near-zero weights rose abruptly from 8.9 % to 11.1 %"."""
    if event.kind == "replicas":
        ranks = ", ".join(map(str, event.ranks))
        return f"Replicas differ: rank{'s' if len(event.ranks) > 1 else ''} {ranks}"
    if event.kind in VITAL_KINDS:
        return (
            f"{event.value:,.0f} tensor{'s' if event.value > 1 else ''} {VITAL_KINDS[event.kind]}"
        )
    series = describe(event.series)
    if event.series == _DORMANT and event.direction == "up" and event.kind == "abrupt":
        return f"Units are dying: {series.shown(event.size)} of the weights get no gradient"
    verb = {"up": "rose", "down": "fell"}.get(event.direction, "changed")
    verb += {"abrupt": " abruptly", "steady": " steadily"}.get(event.kind, "")
    if event.kind == "steady" and event.baseline > 0.0:
        verb += f" to {event.value / event.baseline:.2f} times their floor,"
    if math.isnan(event.baseline) and math.isnan(event.value):
        return f"{shown_name(series.subject)} {verb}"
    sizes = f"from {series.shown(event.baseline)} to {series.shown(event.value)}"
    return f"{shown_name(series.subject)} {verb} {sizes}"


def _sentences(event: Event) -> str:
    """What happened, when it began and was seen, where, why, and what came of it."""
    if event.kind == "replicas":
        return _replicas(event)
    if event.kind in VITAL_KINDS:
        return _sign(event)
    names = _names(event)
    first = f"{_headline(event)}: {when(event)}{f', most in {names}' if names else ''}"
    # units that die make no weight small: that takes decay
    trend = [event.trend] if event.trend and event.series != _DORMANT else []
    more = "; ".join([*trend, *cause(event), *sequel(event)])
    return f"{first}. {more[0].upper()}{more[1:]}" if more else first


def when(event: Event) -> str:
    """When it began, with the interval of that, and when it was seen."""
    interval = ""
    if event.onset_low < event.onset_high:
        interval = f" ({event.onset_low:,} to {event.onset_high:,})"
    began = f"began at about step {event.onset_step:,}{interval}"
    return f"{began}, seen at step {event.detected_step:,}"


def cause(event: Event) -> list[str]:
    """What is known of the reason, a few words each."""
    known = _meaning(event)
    if event.num_not_finite:
        known.append(f"{event.num_not_finite:,} weights are NaN or infinite")
    if event.change in _CHANGES:
        known.append(_CHANGES[event.change])
    if event.explained_by_decay is not None:
        speed = "no faster" if event.explained_by_decay else "faster"
        known.append(f"{speed} than weight decay alone could")
    return known


def sequel(event: Event) -> list[str]:
    """What else saw it, what announced it, and what came of it, a few words each."""
    known = []
    if event.related:
        rows = map(describe, event.related)
        others = [row.label.partition(", ")[0] + _rule(row.label) for row in rows]
        known.append(f"seen in {', '.join(map(shown_name, others))} too")
    if event.preceded_by:
        series, _, step = event.preceded_by.partition("@")
        known.append(
            f"announced by {shown_name(describe(series).label)} at step {shown_name(step)}"
        )
    if event.reverted_step >= 0:
        known.append(f"back by half at step {event.reverted_step:,}")
    return known


def _advice(event: Event) -> str:
    """What people do about such an event; never empty."""
    if event.kind == "replicas":
        return (
            "Stop the run and look at what these ranks do otherwise, their devices first. Go on "
            f"from a checkpoint of {_step(event.before_step, 'an earlier step')} or before."
        )
    if event.kind in VITAL_KINDS:
        earlier = _step(event.before_step, "an earlier step")
        return _SIGN_ADVICE[event.kind].format(before=earlier)
    before = event.before_step if event.before_step >= 0 else event.onset_step
    compare = f"Compare the checkpoints around steps {before:,} and {event.detected_step:,}"
    room, way = event.series.partition("/")[0], event.direction
    keys = (f"{room} {way} {event.kind}", f"{event.series} {way}", f"{room} {way}")
    words = next((_ADVICE[key] for key in keys if key in _ADVICE), "{compare}.")
    return words.format(compare=compare, decay=_DECAY[event.explained_by_decay])


def _meaning(event: Event) -> list[str]:
    """What the change says of the model, and when it will show in small weights."""
    meaning = _MEANINGS.get((event.series, event.direction))
    known = [] if meaning is None else [meaning]
    if event.near_zero_step >= 0:
        step = f"step {event.near_zero_step:,}"
        known.append(
            f"at the present decay half of them will be near zero by {step}"
            if event.near_zero_step <= _FAR * event.detected_step
            else f"decay is too weak to make them near zero soon: half of them would be by {step}"
        )
    return known


_DECAY = {
    True: "If it is unwanted, lower the weight decay of the layers named.",
    False: "Look for another cause than weight decay: pruning, a penalty, a jump in training.",
    None: "If it is unwanted, look at weight decay and activation of the layers named.",
}
#: By the series or its room, the direction, and "steady"; what is not here is compared.
#: docs/alarms.md has these sentences, too, and a test holds it to them.
_ADVICE = {
    "motion/dormant up": "Nothing need be done now if capacity is to spare: near-zero weights may "
    "follow on the decay clock. If it is unwanted, look in the layers named for dead ReLUs, a "
    "learning rate too high for them, or inputs that never come.",
    "motion/dormant down": "Nothing need be done: these weights get gradients again.",
    "near_zero up": "{compare}. {decay} Nothing need be done while the loss still falls.",
    "near_zero up steady": "Nothing need be done while the loss still falls, and nothing happened "
    "at one step. {decay}",
    "near_zero down": "Nothing need be done: weights grow back. {compare} if that surprises.",
    "value/reliance up": "Nothing need be done: the model began to need these weights. Compare "
    "sparsities only from here on.",
    "value/reliance down": "{compare}, and the loss: the model gets by without weights that it "
    "used. Look at the layers beside the watched ones, too.",
    "essential_sparsity up": "Nothing need be done while the loss still falls: it is a good time "
    "to try pruning. If the loss rose, the model is coming apart. {compare}.",
    "essential_sparsity down": "Nothing need be done: the model makes use of more weights.",
}


#: By kind of vital sign.
_SIGN_ADVICE = {
    "untrained": "Stop the run and put these tensors into the optimizer, or let the gradient reach "
    "them. If they are frozen on purpose, set requires_grad to False: that says so and is faster.",
    "rounding": "Keep float32 copies for the optimizer (or the weights in float32 under autocast), "
    "or raise the learning rate: as it is these tensors do not learn.",
    "decay": "Look at the weight decay of the param group that they are in: at what applies it, "
    "and whether these tensors ought to be in it.",
    "not_finite": "Stop the run and go on from a checkpoint of {before} or before.",
    "returned": "If nobody went back to a checkpoint on purpose, look for what overwrites weights: "
    "a reload, an average that is put back. After a rollback the steps count on as before.",
    "blew_up": "Look at the learning rate and the gradients of these tensors, and at what may have "
    "overwritten them. Go on from a checkpoint of {before} or before.",
}


def _step(step: int, unknown: str) -> str:
    return f"step {step:,}" if step >= 0 else unknown


def _names(event: Event) -> str:
    num = (
        max(int(event.value), len(event.layers)) if event.kind in VITAL_KINDS else len(event.layers)
    )
    more = num - _MOST_NAMES
    names = ", ".join(map(shown_name, event.layers[:_MOST_NAMES]))
    return names + (f" and {more} more" if more > 0 else "")


def _rule(label: str) -> str:
    """The part of a label that tells a series from the others of its family, in brackets."""
    rule = label.partition(", ")[2]
    return f" ({rule})" if rule else ""


def _sign(event: Event) -> str:
    since = f", not yet so at step {event.before_step:,}" if event.before_step >= 0 else ""
    text = f"{_headline(event)}: {_names(event)}; {event.reason}; seen at step "
    text += f"{event.detected_step:,}{since}"
    if event.reverted_step >= 0:
        text += f"; over since step {event.reverted_step:,}"
    return text


def _replicas(event: Event) -> str:
    since = f", the same up to step {event.before_step:,}" if event.before_step >= 0 else ""
    text = (
        f"{_headline(event)} did not hold the weights that other ranks held of {_names(event)}, "
        f"seen at step {event.detected_step:,}{since}. The records go on with what rank 0 holds"
    )
    if event.reverted_step >= 0:
        text += f"; all ranks agree again since step {event.reverted_step:,}"
    return text
