"""Something worth telling, also in words: a change in a series, ranks that differ, a vital sign."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sparsitywatch.redact import printable
from sparsitywatch.series import describe

_NAN = math.nan
_DORMANT = "motion/dormant"

#: Kinds of vital signs, and what is said of their tensors.
VITAL_KINDS: Mapping[str, str] = {
    "untrained": "not trained",
    "rounding": "losing their updates in rounding",
    "decay": "not decaying as the optimizer states",
    "not_finite": "not finite",
    "returned": "back at an earlier state",
    "blew_up": "changing far more than ever and than all others",
}


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
            of this series does not say, and where near-zero rules disagree.
        layers: tensors that account for most of the change, most first; empty if unknown.
        change: what moved since ``before_step``: "scale" (all magnitudes together),
            "shape" (of their distribution), "both", or empty if unknown.
        explained_by_decay: whether weight decay alone could have done it in that time, by the
            decay clock; None if that is not known. docs/events.md says how.
        decay_clock: sum of lr times weight decay at ``detected_step``; NaN if unknown.
        before_step: the snapshot before the onset that ``layers`` and ``change`` compare with
            ``detected_step``.
        related: the other series that saw the same thing.
        agreeing, opposed: of an event in near-zero weights: the other rules that moved the same
            way since the onset, and those that moved the other way. Of the rest nothing was seen.
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
            parameters, in scope or not, for sure. Of the proxy's value also "lost": half of what
            it had gained is gone; "standstill": the latest half of the run gained nothing.
        ranks: those that differ from most; empty where it is not about ranks.
        reason: what shows a vital sign, in words; empty for other events.
        severity: "act", "look" or "note"; empty if its kind says it.
        improving: whether the proxy's value still got better when it was seen; None if unknown.
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
    agreeing: tuple[str, ...] = ()
    opposed: tuple[str, ...] = ()
    severity: str = ""
    improving: bool | None = None
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
            f"<Event in {printable(self.series)[:60]}: {self.direction}, {self.baseline:.4g} to "
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
        return self.kind in ("abrupt", "steady", "lost", "standstill")

    @property
    def reported_step(self) -> int:
        """The snapshot at which this version was reported."""
        return max(self.detected_step, self.revised_step)

    # ------------------------------------------------------------------ in words
    #
    # Log, summary, webhook, drawings, TensorBoard and page read these. The result comes first,
    # then where and why, then what people do about it.

    @property
    def headline(self) -> str:
        """What happened, in a few words: "Near-zero weights rose abruptly from 8 % to 11 %"."""
        if self.kind == "replicas":
            ranks = ", ".join(map(str, self.ranks))
            return f"Replicas differ: rank{'s' if len(self.ranks) > 1 else ''} {ranks}"
        if self.kind in VITAL_KINDS:
            tensors = "tensors" if self.value > 1 else "tensor"
            return f"{self.value:,.0f} {tensors} {VITAL_KINDS[self.kind]}"
        series = describe(self.series)
        if (self.series, self.direction, self.kind) == (_DORMANT, "up", "abrupt"):
            return f"Units are dying: {series.shown(self.size)} of the weights get no gradient"
        verb = {"up": "rose", "down": "fell"}.get(self.direction, "changed")
        verb += {"abrupt": " abruptly", "steady": " steadily"}.get(self.kind, "")
        if self.kind == "steady" and self.baseline > 0.0:
            verb += f" to {self.value / self.baseline:.2f} times their floor,"
        subject = printable(series.subject)
        if self.kind == "standstill":
            return f"{subject} stands still at {series.shown(self.value)}"
        if self.kind == "lost":
            subject = f"Half of what was gained is lost: {subject[:1].lower()}{subject[1:]}"
        if math.isnan(self.baseline) and math.isnan(self.value):
            return f"{subject} {verb}"
        return f"{subject} {verb} from {series.shown(self.baseline)} to {series.shown(self.value)}"

    @property
    def when(self) -> str:
        """When it began, with the interval of that, and when it was seen."""
        interval = ""
        if self.onset_low < self.onset_high:
            interval = f" ({self.onset_low:,} to {self.onset_high:,})"
        began = f"began at about step {self.onset_step:,}{interval}"
        return f"{began}, seen at step {self.detected_step:,}"

    @property
    def causes(self) -> list[str]:
        """What is known of the reason, a few words each."""
        known = [_MEANINGS.get((self.series, self.direction), "")]
        if self.near_zero_step >= 0:
            step = f"by step {self.near_zero_step:,}"
            known.append(
                f"at the present decay half of them will be near zero {step}"
                if self.near_zero_step <= _FAR * self.detected_step
                else f"decay is too weak to make them near zero soon: half of them would be {step}"
            )
        if self.num_not_finite:
            known.append(f"{self.num_not_finite:,} weights are NaN or infinite")
        known += [_CHANGES.get(self.change, ""), _EXPLAINED[self.explained_by_decay]]
        return [words for words in known if words]

    @property
    def sequel(self) -> list[str]:
        """What else saw it, what announced it, and what came of it, a few words each."""
        known = []
        if self.related:
            labels = [printable(describe(name).label) for name in self.related]
            parted = [label.partition(", ") for label in labels]
            others = [what + (f" ({rule})" if rule else "") for what, _, rule in parted]
            known.append(f"seen in {', '.join(others)} too")
        if self.preceded_by:
            series, _, step = map(printable, self.preceded_by.partition("@"))
            known.append(f"announced by {describe(series).label} at step {step}")
        if self.reverted_step >= 0:
            known.append(f"back by half at step {self.reverted_step:,}")
        return known

    @property
    def advice(self) -> str:
        """What people do about such an event; never empty."""
        before = f"step {self.before_step:,}" if self.before_step >= 0 else "an earlier step"
        if self.kind in _KIND_ADVICE:
            return _KIND_ADVICE[self.kind].format(before=before)
        first = self.before_step if self.before_step >= 0 else self.onset_step
        compare = f"Compare the checkpoints around steps {first:,} and {self.detected_step:,}"
        room = self.series.partition("/")[0]
        way = "" if self.opposed else self.direction
        own = (f"{room} {self.kind}", f"{room} {way} {self.kind}")
        keys = (*own, f"{self.series} {way}", f"{room} {way}")
        words = next((_ADVICE[key] for key in keys if key in _ADVICE), "{compare}.")
        return words.format(compare=compare, decay=_DECAY[self.explained_by_decay])

    def describe(self) -> str:
        """One or two sentences for a person, the result first."""
        if self.kind in _KIND_ADVICE:
            return self._of_tensors()
        names = _some(self.layers, len(self.layers))
        first = f"{self.headline}: {self.when}{f', most in {names}' if names else ''}"
        # units that die make no weight small: that takes decay
        trend = [self.trend] if self.trend and self.series != _DORMANT else []
        more = "; ".join([*trend, *self.causes, *self.sequel])
        return f"{first}. {more[0].upper()}{more[1:]}" if more else first

    def _of_tensors(self) -> str:
        """What is wrong with ranks, or with tensors, in which, and since when."""
        before = f"step {self.before_step:,}" if self.before_step >= 0 else ""
        seen = f"seen at step {self.detected_step:,}"
        over = f"since step {self.reverted_step:,}" if self.reverted_step >= 0 else ""
        if self.kind == "replicas":
            names = _some(self.layers, len(self.layers))
            same = f", the same up to {before}" if before else ""
            text = f"{self.headline} did not hold the weights that other ranks held of {names}, "
            text += f"{seen}{same}. The records go on with what rank 0 holds"
            return text + (f"; all ranks agree again {over}" if over else "")
        names = _some(self.layers, max(int(self.value), len(self.layers)))
        not_yet = f", not yet so at {before}" if before else ""
        text = f"{self.headline}: {names}; {self.reason}; {seen}{not_yet}"
        return text + (f"; over {over}" if over else "")

    def report(self) -> str:
        """The same, and what people do about it: what the log and a webhook are given."""
        return f"{self.describe()}. {self.advice}"


def latest_versions(events: Iterable[Event]) -> list[Event]:
    """Each event once, in its last version, in the order in which they were first reported."""
    return list({event.id: event for event in events}.values())


def _some(names: Sequence[str], num: int) -> str:
    """The first three of ``num`` names."""
    more = f" and {num - 3:,} more" if num > 3 else ""
    return ", ".join(map(printable, names[:3])) + more


#: Weights that take this many times the steps so far to be near zero are not expected to be.
_FAR = 10
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
_EXPLAINED = {
    True: "weight decay alone explains it",
    False: "weight decay alone does not explain it",
    None: "",
}
_DECAY = {
    True: "If it is unwanted, lower the weight decay of the layers named.",
    False: "Look for another cause than weight decay: pruning, a penalty, a jump in training.",
    None: "If it is unwanted, look at weight decay and activation of the layers named.",
}
#: By the series or its room, the direction, and "steady"; what is not here is compared.
#: docs/alarms.md has these sentences, too, and a test holds it to them.
_ADVICE = {
    "motion/dormant up": "No action needed if the model has spare capacity. Expect more near-zero "
    "weights as decay continues. If it is unwanted, look in the layers named for dead ReLUs, a "
    "learning rate too high for them, or inputs that never come.",
    "motion/dormant down": "No action needed: these weights get gradients again.",
    "near_zero up": "{compare}. {decay} No action needed while the loss still falls.",
    "near_zero up steady": "No action needed while the loss still falls, and nothing happened "
    "at one step. {decay}",
    "near_zero down": "No action needed: weights grow back. {compare} if that surprises.",
    "value lost": "Stop the run and look at its data and its learning rate. {compare}.",
    "value standstill": "No action needed if it has converged.",
    "value/reliance up": "No action needed: the model began to need these weights. Compare "
    "sparsities only from here on.",
    "value/reliance down": "{compare}, and the loss: the model gets by without weights that it "
    "used. Look at the layers beside the watched ones, too.",
    "essential_sparsity up": "No action needed while the loss still falls: it is a good time "
    "to try pruning. If the loss rose, the model is coming apart. {compare}.",
    "essential_sparsity down": "No action needed: the model makes use of more weights.",
}
#: By kind, where it is no change of a series.
_KIND_ADVICE = {
    "replicas": "Stop the run and look at what these ranks do otherwise, their devices first. Go "
    "on from a checkpoint of {before} or before.",
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
