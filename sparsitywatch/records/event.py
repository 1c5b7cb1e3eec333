"""Something worth telling, also in words: a change in a series, ranks that differ, a vital sign."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sparsitywatch.redact import printable, redacted
from sparsitywatch.series import describe, numbered

_NAN = math.nan

#: Kinds of vital signs, and what is said of their tensors.
VITAL_KINDS: Mapping[str, str] = {
    "untrained": "not trained",
    "rounding": "losing their updates in rounding",
    "decay": "not decaying as the optimizer states",
    "no_gradient": "reached by no gradient",
    "idle": "not used by these inputs",
    "no_rate": "with a learning rate of 0",
    "slow": "moving next to nowhere",
    "untied": "no longer tied to the embeddings",
    "not_finite": "not finite",
    "returned": "back at an earlier state",
    "overwritten": "overwritten by something else than the optimizer",
    "blew_up": "changing far more than ever",
    "written": "written to after the optimizer's steps",
}
#: Kinds of what an x-ray shows, and what is said of the tensors of these layers.
XRAY_KINDS: Mapping[str, str] = {
    "dead_units": "with dead inputs",
    "unreached": "reached by no example",
    "super_weights": "with a super weight",
    "sign_diversity": "with inputs that hardly change sign",
}
#: Kinds of how many weights of a tensor are near zero, and what is said of these tensors.
LEVEL_KINDS: Mapping[str, str] = {
    "began_sparse": "sparse as the watch began",
    "sparser": "with at least twice as many near-zero weights as at first",
    "sparse": "that turned sparse: half or more is near zero",
}
#: Kinds of what snapshots, or checkpoints of a replay, are to each other, and what is said of two.
SERIES_KINDS: Mapping[str, str] = {
    "another_run": "{} are not weights of one run",
    "unlike": "{} have no weights in common",
    "contents": "{} hold what no neighbour does",
    "changed": "The model changed between {}",
}


#: From least to most.
SEVERITIES = ("note", "look", "act")


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something worth telling, and what is known about it.

    An event has a course: it is seen, grows, settles, and may be over. What is learned of it later
    makes a new version with the same ``id``; the last one counts. Steps that do not apply are -1.

    Args:
        series: name of the series, as in ``Record.series()``; of near-zero weights it is the run's
            first rule, if that moved as well.
        direction: "up" or "down"; empty where it means nothing.
        onset_step: where the change began, as estimated when it was seen.
        onset_low, onset_high: interval that the onset lies in, in steps; by default the
            onset itself.
        detected_step: the snapshot at which it was seen.
        baseline: level of the series before the onset, in its own units.
        value: the series at ``reported_step``; where the next event has ended it, at
            ``settled_step``.
        noise: standard deviation of the series around its baseline; NaN if unknown.
        id: what identifies the event in its run; by default ``series@onset_step``.
        trend: "sparsifying" or "densifying", which way the model goes; empty if the direction
            of this series does not say, and where near-zero rules disagree.
        layers: tensors that account for most of the change, most first; empty if unknown.
        change: what moved since ``before_step``: "scale" (all magnitudes together),
            "shape" (of their distribution), "both", or empty if unknown.
        explained_by_decay: whether weight decay alone could have done it in that time, by the
            decay clock; None if that is not known. docs/events.md says how.
        decay_clock: sum of lr times weight decay at ``reported_step``; NaN if unknown.
        before_step: the snapshot before the onset that ``layers`` and ``change`` compare with
            ``reported_step``.
        related: the other series that saw the same thing.
        agreeing, opposed: of an event in near-zero weights: the other rules that moved the same
            way since the onset, and those that moved the other way. Of the rest nothing was seen.
        preceded_by: id of the event of dormant weights that became these near-zero ones: of the
            same layers, and by decay. Empty if there was none.
        consequences: ids under which what merely follows from it would have been told, or what led
            to it: of the same tensors, or of others of their block.
        reverted_step: first snapshot at which it was over: the series had lost half of what the
            change was at its largest. What was overwritten or lost is over where it is back, or
            where the value stands at its old best for five evaluations.
        num_not_finite: in-scope weights that were NaN or infinite at ``reported_step``.
        kind: "abrupt": the series jumped, or began to rise or fall; "steady": it grew
            evenly since its floor, which is its baseline; "level": however it came about, it is
            far above what it was when the run began, its baseline; "replicas": ranks that ought
            to hold the same weights hold others, in ``layers``; or one of ``XRAY_KINDS``,
            ``VITAL_KINDS``, ``LEVEL_KINDS``: what is wrong with parameters, in scope or not. Of
            the proxy's value also "lost": half of what it had gained is gone; "worse": a fifth of
            it is missing for good; "unlearned": it has hardly left its start; "standstill": the
            latest half of the run gained nothing.
            "spike": the loss spiked at ``onset_high``; ``layers`` moved first, from ``onset_low``.
        jumped: whether most of the change came within two snapshots, and hardly any after them.
        peak: the farthest that it came, where it was on its way back when it was seen; else NaN.
        value_trend: what the held-out value of the dense model did meanwhile: "better", "worse",
            "still", or empty if that is not known.
        why_no_clock: why the decay clock says nothing here; empty if it does.
        ranks: those that differ from most; empty where it is not about ranks.
        reason: what shows a vital sign, in words; empty for other events.
        unit: what its steps count: "step", or in a replay also "epoch" or "save".
        revised_step: the snapshot at which this version was reported; -1 for the first one, which
            is reported at ``detected_step``.
        settled_step: the snapshot at which it had not been revised for five, after which the next
            event of the series began, or that was the last one as the watch closed; -1 before that.
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
    preceded_by: str = ""
    reverted_step: int = -1
    revised_step: int = -1
    settled_step: int = -1
    num_not_finite: int = 0
    kind: str = "abrupt"
    jumped: bool = False
    peak: float = _NAN
    value_trend: str = ""
    why_no_clock: str = ""
    ranks: tuple[int, ...] = ()
    reason: str = ""
    unit: str = "step"
    consequences: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for end in ("onset_low", "onset_high"):
            if getattr(self, end) < 0:
                object.__setattr__(self, end, self.onset_step)
        if self.series and not self.id:  # detectors do not know the name of their series
            object.__setattr__(self, "id", f"{self.series}@{self.onset_step}")

    def __repr__(self) -> str:
        return (
            f"<Event in {printable(self.series)[:60]}: {self.direction}, {self.baseline:.4g} to "
            f"{self.value:.4g}, {self.when}>"
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
        return self.kind in ("abrupt", "steady", "level", *_OF_VALUE)

    @property
    def reported_step(self) -> int:
        """The snapshot at which this version was reported."""
        return max(self.detected_step, self.revised_step)

    @property
    def course(self) -> str:
        """How far it has come: "seen", "growing", "settled" or "over"."""
        if self.reverted_step >= 0 or self.settled_step >= 0:
            return "over" if self.reverted_step >= 0 else "settled"
        return "growing" if self.revised_step >= 0 else "seen"

    @property
    def is_news(self) -> bool:
        """Whether actions get this version: the first one, and the one that has settled."""
        is_settled = self.course == "settled" or self.revised_step == self.settled_step
        return self.revised_step < 0 or is_settled

    # ------------------------------------------------------------------ in words
    #
    # Log, summary, webhook, drawings, TensorBoard and page read these. The result comes first,
    # then where and why, then what people do about it.

    @property
    def headline(self) -> str:
        """What happened: "Dormant weights jumped from 8 % to 31 % (about 3.9 ×) after step 300".

        A change is said to have jumped, risen or fallen, maybe steadily, or at first to have begun.
        """
        if self.kind == "replicas":
            ranks = ", ".join(map(str, self.ranks))
            return f"Replicas differ: rank{'s' if len(self.ranks) > 1 else ''} {ranks}"
        if self.kind == "spike":
            return f"Spike of the {self.series.partition('/')[2]} at step {self.onset_high:,}"
        if self.kind in SERIES_KINDS:
            both = self._numbered(self.before_step, self.detected_step)
            if self.kind == "contents":
                both = f"the weights of {self.unit}{'s' * (' ' in self.onset)} {self.onset}"
            text = SERIES_KINDS[self.kind].format(both)
            return text[:1].upper() + text[1:]
        if words := _OF_TENSORS.get(self.kind):
            tensors = "tensors" if self.value > 1 else "tensor"
            return f"{self.value:,.0f} {tensors} {words}"
        series = describe(self.series)
        subject = printable(series.subject)
        before, now = series.shown(self.baseline), series.shown(self.value)
        if self.kind == "standstill":
            best = "" if now == before else f", beside its best of {before}"
            return f"{subject} stands still at {now}{best}"
        if self.kind in _OF_VALUE:
            subject = f"{_OF_VALUE[self.kind]}: {subject[:1].lower()}{subject[1:]}"
        if self.kind == "unlearned":
            return f"{subject} is {now}, and began at {before}"
        came = "came" if self.kind == "abrupt" and self.course != "seen" else self.kind
        verbs = _VERBS.get("jumped" if self.jumped else came, {})
        text = f"{subject} {verbs.get(self.direction, 'changed')}"
        top = self.value if math.isnan(self.peak) else self.peak
        if not (math.isnan(self.baseline) and math.isnan(self.value)):
            text += f" from {series.shown(self.baseline)} to {series.shown(top)}{self._times(top)}"
        text += " so far" * (self.course == "growing" and not self.jumped)
        goes_on = self.course != "seen" and not self.jumped and verbs
        text += (", beginning " if goes_on else " ") + self._since
        now = "" if math.isnan(self.peak) else f", and is back at {series.shown(self.value)}"
        return text + now

    def _numbered(self, *steps: int) -> str:
        return numbered(self.unit, *steps)

    def _times(self, top: float) -> str:
        """How large the change is: as a multiple, or beside the noise."""
        times = top / self.baseline if self.baseline > 0.0 else math.nan
        if 0.0 < times <= 1 / _MULTIPLE or times >= _MULTIPLE:
            return f" (about {_two_digits(times)} ×)"
        return f" ({self.in_noise})" if self.in_noise else ""

    @property
    def in_noise(self) -> str:
        """The size beside the noise of a snapshot, in words; empty if it is unknown, or small."""
        sizes = abs(self.size_in_noise)
        return f"{_two_digits(sizes)} times the noise" if _CLEAR <= sizes < math.inf else ""

    @property
    def severity(self) -> str:
        """How much it matters.

        "note": it belongs to a healthy training. "look": a person should see it. "act": while it
        lasts the training is not worth going on with.
        """
        own = next((_SEVERITY[key] for key in self._keys if key in _SEVERITY), "look")
        if self._stayed_dense:
            own = "note"
        kinds = [series_of(name).partition("/")[2] for name in self.consequences]
        known = [_SEVERITY.get(kind, "look") for kind in kinds] + ["look"] * self._is_worse
        return max((own, *known), key=SEVERITIES.index)

    @property
    def gravity(self) -> int:
        """The place of its severity among all, the least first."""
        return SEVERITIES.index(self.severity)

    @property
    def _stayed_dense(self) -> bool:
        """Whether it is over, and stayed below the share near zero that Gaussian weights have."""
        room, _, rule = self.series.partition("/")
        unit, _, factor = rule.partition("_")
        if room != "near_zero" or unit not in ("initial", "rms") or self.reverted_step < 0:
            return False
        top = self.value if math.isnan(self.peak) else self.peak
        return self.kind == "abrupt" and top <= math.erf(float(factor) / math.sqrt(2.0))

    @property
    def _keys(self) -> tuple[str, ...]:
        """Under which severity and advice stand, the first one that has any."""
        room, way = self.series.partition("/")[0], "" if self.opposed else self.direction
        return self.kind, f"{room} {way} {self.kind}", f"{self.series} {way}", f"{room} {way}"

    @property
    def onset(self) -> str:
        """The step at which it began, or the two between which it did."""
        ends = dict.fromkeys((self.onset_low, self.onset_high))
        return " to ".join(f"{step:,}" for step in ends)

    @property
    def _since(self) -> str:
        """Between which steps it began, as far as that can be said."""
        if self.onset_low < self.onset_high:
            return f"between {self._numbered(self.onset_low, self.onset_high)}"
        return f"after {self._numbered(self.onset_step)}"

    @property
    def when(self) -> str:
        """Between which steps it began, if that is known, and when it was seen."""
        is_known = self.is_of_series or self.onset_low < self.onset_high
        return f"began {self._since}, {self._seen}" if is_known else self._seen

    @property
    def _seen(self) -> str:
        last = self.settled_step if self.settled_step >= 0 else self.revised_step
        told = f", {'settled at' if self.settled_step >= 0 else 'as of'} {self._numbered(last)}"
        return f"seen at {self._numbered(self.detected_step)}{told * (last > self.detected_step)}"

    @property
    def end(self) -> str:
        """Since when it is over, in a few words; empty if it is not."""
        if self.reverted_step < 0:
            return ""
        how = "back by half at" if self.is_of_series else "over since"
        if self.series == "value/dense":
            how = "back at its best since"
        elif self.is_happening:
            how = "made good since"
        return f"{how} {self._numbered(self.reverted_step)}"

    @property
    def is_happening(self) -> bool:
        """Whether it is over in a moment, and what it did to the weights stays."""
        return self.kind in ("overwritten", "blew_up", "returned")

    @property
    def causes(self) -> list[str]:
        """What is known of the reason, a few words each."""
        known = [_MEANINGS.get((self.series, self.direction), "")]
        if self._is_worse:
            known = ["the model itself got worse"]
        if self.num_not_finite:
            known.append(f"{self.num_not_finite:,} weights are NaN or infinite")
        if not describe(self.series).needs_proxy:
            known.append(_CHANGES.get(self.change, ""))
        known.append(_EXPLAINED[self.explained_by_decay])
        is_rise = self.series.startswith("near_zero/") and self.direction == "up"
        if is_rise and self.why_no_clock and self.explained_by_decay is None:
            why = redacted(self.why_no_clock)
            known.append(f"it is not known what weight decay has to do with it: {why}")
        return [words for words in known if words]

    @property
    def _is_worse(self) -> bool:
        """Whether what removal costs has changed since the model itself got worse."""
        is_of_removal = self.series != "value/dense" and describe(self.series).needs_proxy
        return self.value_trend == "worse" and is_of_removal

    @property
    def sequel(self) -> list[str]:
        """What else saw it, what announced it, and what came of it, a few words each."""
        known = []
        if self.related:
            known.append(f"seen in {_labels(self.related)} too")
        if self.opposed:
            known.append(f"{_labels(self.opposed)} went the other way")
        if self.preceded_by:
            series, _, step = map(printable, self.preceded_by.partition("@"))
            label = describe(series).label
            known.append(f"{label} of these layers rose before, at {self.unit} {step}")
        return [*known, self.end] if self.end else known

    @property
    def _beneath(self) -> str:
        """What was seen with it, and is no event of its own; empty if nothing was."""
        found = []
        for name in self.consequences:
            series, _, step = name.rpartition("@")
            words = _OF_TENSORS.get(series.partition("/")[2])
            words = printable(describe(series).label) if words is None else f"tensors {words}"
            found.append(f"{words} ({self._numbered(int(step.partition('-')[0]))})")
        return f"; with it came {', '.join(found)}" if found else ""

    @property
    def advice(self) -> str:
        """What people do about such an event; never empty."""
        is_known = self.before_step >= 0
        before = self._numbered(self.before_step) if is_known else f"an earlier {self.unit}"
        first = self.before_step if is_known else self.onset_step
        around = self._numbered(first, self.detected_step)
        compare = f"Compare the checkpoints around {around}"
        decay, value = _DECAY[self.explained_by_decay], _VALUE[self.value_trend]
        words = next((_ADVICE[key] for key in self._keys if key in _ADVICE), "{compare}.")
        if self._is_worse:
            words = "{value} {compare}."
        if self.series == "files/returned":
            words = _COPIED
        now = f"{self.detected_step:,}"
        known = {"compare": compare, "before": before, "unit": self.unit, "now": now}
        words = words.format(**known, decay=decay, value=value)
        return " ".join(words.split())

    def describe(self) -> str:
        """One or two sentences for a person, the result first."""
        if not self.is_of_series:
            return self._of_tensors()
        names = some_of(self.layers, len(self.layers))
        most = f", most in {names}" if names else ""
        first = f"{self.headline}{most}, {self._seen}"
        more = "; ".join([*self.causes, *self.sequel])
        return f"{first}. {more[0].upper()}{more[1:]}" if more else first

    def _of_tensors(self) -> str:
        """What is wrong with ranks, or with tensors, in which, and since when."""
        before = self._numbered(self.before_step) if self.before_step >= 0 else ""
        if self.kind == "replicas":
            names = some_of(self.layers, len(self.layers))
            same = f", the same up to {before}" if before else ""
            text = f"{self.headline} did not hold the weights that other ranks held of {names}, "
            text += f"{self._seen}{same}. The records go on with what rank 0 holds"
            over = f"since {self._numbered(self.reverted_step)}"
            return text + (f"; all ranks agree again {over}" if self.end else "")
        if self.kind == "spike" or self.kind in SERIES_KINDS:
            return f"{self.headline}: {self.reason}"
        names = some_of(self.layers, max(int(self.value), len(self.layers)))
        text = f"{self.headline}: {names}; {self.reason}; {self.when}{self._beneath}"
        return text + (f"; {self.end}" if self.end else "")

    def report(self) -> str:
        """The same after what it asks for, "Note", "Look" or "Act", and what people do about it.

        The log, a webhook and TensorBoard are given this.
        """
        return f"{self.severity.capitalize()}: {self.describe()}. {self.advice}"


def latest_versions(events: Iterable[Event]) -> list[Event]:
    """Each event once, in its last version, in the order in which they were first reported."""
    return list({event.id: event for event in events}.values())


def series_of(name: str) -> str:
    """The series that an event of this id was first seen in."""
    return name.rpartition("@")[0]


def _two_digits(x: float) -> str:
    return f"{x:.2g}" if x < 99.5 else f"{x:,.0f}"


def _labels(series: Sequence[str]) -> str:
    """What series are called, with their rules."""
    parted = [printable(describe(name).label).partition(", ") for name in series]
    return ", ".join(what + (f" ({rule})" if rule else "") for what, _, rule in parted)


def some_of(names: Sequence[str], num: int) -> str:
    """The first three of ``num`` names."""
    more = f" and {num - 3:,} more" if num > 3 else ""
    return ", ".join(map(printable, names[:3])) + more


#: What is said of tensors, by kind.
_OF_TENSORS = {**VITAL_KINDS, **XRAY_KINDS, **LEVEL_KINDS}
#: What a change did, up or down; what has jumped did most of it within two snapshots.
_VERBS = {
    "jumped": {"up": "jumped", "down": "dropped"},
    "abrupt": {"up": "began to rise", "down": "began to fall"},
    "came": {"up": "rose", "down": "fell"},
    "steady": {"up": "rose steadily", "down": "fell steadily"},
    "level": {"up": "rose"},
    "lost": {"up": "rose", "down": "fell"},
    "worse": {"up": "rose", "down": "fell"},
}
#: Kinds of the value of the model as it is alone, and what is said of it first.
_OF_VALUE = {
    "lost": "Half of what was gained is lost",
    "worse": "Worse than its best",
    "unlearned": "Nothing is learned yet",
    "standstill": "",
}
#: From this multiple on, up or down, a change is told as one; and from this one of the noise.
_MULTIPLE, _CLEAR = 1.5, 3.0
_CHANGES = {
    "scale": "the scale of the weights moved",
    "shape": "the shape of the weights' distribution changed",
    "both": "scale and shape of the weights' distribution changed",
}
#: What a change says of the model, by its series and its direction.
_MEANINGS = {
    ("motion/dormant", "up"): "more of the weights get no gradient",
    ("value/reliance", "up"): "the model begins to use the watched weights",
    ("value/reliance", "down"): "the model uses the watched weights less",
    ("essential_sparsity/value", "up"): "more of the weights could be removed without harm",
    ("essential_sparsity/value", "down"): "fewer of the weights could be removed without harm",
}
_EXPLAINED = {
    True: "weight decay explains it",
    False: "weight decay cannot explain it",
    None: "",
}
_DECAY = {
    True: "If it is unwanted, lower the weight decay of the layers named.",
    False: "Look for another cause than weight decay: pruning, a penalty, a jump in training.",
    None: "If it is unwanted, look at weight decay and activation of the layers named.",
}
#: What the held-out value says of it.
_VALUE = {
    "better": "No action needed now: the held-out value still gets better.",
    "worse": "The held-out value got worse meanwhile: look at the training first.",
    "still": "The held-out value stands still: no action needed if the training is at its end.",
    "": "No action needed while the loss still falls.",
}
#: Severity where it is not "look", by the same keys as advice.
_SEVERITY = {
    "motion/dormant down": "note",
    "near_zero down": "note",
    "value/reliance up": "note",
    "essential_sparsity down": "note",
    "standstill": "note",
    "idle": "note",
    "no_rate": "note",
    "super_weights": "note",
    "unreached": "note",
    "written": "note",
    "began_sparse": "note",
    "sparser": "note",
    "changed": "note",
    "lost": "act",
    "replicas": "act",
    "untrained": "act",
    "not_finite": "act",
    "another_run": "act",
}
#: Of files that hold the bits of earlier ones.
_COPIED = (
    "Look at the files: one of them may have been copied, or renamed. If training went back to "
    "that checkpoint, the {unit}s count on as before."
)
#: By the series or its room, the direction, and "steady"; what is not here is compared.
#: docs/alarms.md has these sentences, too, and a test holds it to them.
_ADVICE = {
    "motion/dormant up": "{value} Expect more near-zero weights as decay continues. If it is "
    "unwanted, look in the layers named for dead ReLUs, a learning rate too high for them, or "
    "inputs that never come.",
    "motion/dormant down": "No action needed: these weights get gradients again.",
    "near_zero up": "{compare}. {decay} {value}",
    "near_zero up steady": "{value} {decay}",
    "near_zero down": "No action needed: weights grow back. {compare} if that surprises.",
    "lost": "Stop the run and look at its data and its learning rate. {compare}.",
    "worse": "Keep the checkpoint of its best value. If it overfits, stop there; else look at the "
    "data and the learning rate since. {compare}.",
    "unlearned": "Look at the learning rate, the labels, and whether the loss reaches these "
    "weights.",
    "standstill": "No action needed if it has converged.",
    "value/reliance up": "No action needed: the model began to need these weights. Compare "
    "sparsities only from here on.",
    "value/reliance down": "{compare}, and the loss: the model gets by without weights that it "
    "used. Look at the layers beside the watched ones, too.",
    "essential_sparsity up": "{value} {compare} before you prune.",
    "essential_sparsity down": "No action needed: the model makes use of more weights.",
    # by kind, where it is no change of a series
    "spike": "Look at the data of these steps and the learning rate of the layers named. If the "
    "loss stays up, go on from an earlier checkpoint.",
    "changed": "No action needed if it was on purpose. Numbers begin anew at {unit} {now}.",
    "another_run": "{compare}: one of them comes from another run, or was replaced. Replay the "
    "checkpoints of one run.",
    "unlike": "{compare}: they may come from two runs. If they are of one, they lie far apart: "
    "give the replay its learning rate and weight decay, or more checkpoints between them.",
    "replicas": "Stop the run and look at what these ranks do otherwise, their devices first. Go "
    "on from a checkpoint of {before} or before.",
    "untrained": "Stop the run and put these tensors into the optimizer, or let the gradient reach "
    "them. If they are frozen on purpose, set requires_grad to False: that says so and is faster.",
    "rounding": "Keep float32 copies for the optimizer (or the weights in float32 under autocast), "
    "or raise the learning rate: as it is these tensors do not learn.",
    "decay": "Look at the weight decay of the param group that they are in: at what applies it, "
    "and whether these tensors ought to be in it.",
    "no_gradient": "Look for a detach, a hook, or a branch that nothing uses. If they are frozen "
    "on purpose, set requires_grad to False; if they are not used yet, no action is needed.",
    "idle": "No action needed if these inputs do not use them, as experts, heads or towers; else "
    "look at the router, or for a detach.",
    "no_rate": "No action needed if they are to be unfrozen later; else look at their param group.",
    "slow": "Look at the learning rate of their param group, and at what scales their gradient.",
    "untied": "If they ought to be one, tie them before the optimizer is made.",
    "not_finite": "Stop the run and go on from a checkpoint of {before} or before.",
    "contents": "Copy the file again, or leave it out: a full disk, a torn copy and rounding do "
    "this.",
    "returned": "If nobody went back to a checkpoint on purpose, look for what overwrites weights: "
    "a reload, an average that is put back. After a rollback the {unit}s count on as before.",
    "overwritten": "If nobody wrote to these weights on purpose, look for what does: a checkpoint "
    "of another model, an initialisation, a merge. Go on from a checkpoint of {before} or before.",
    "blew_up": "Look at the learning rate and the gradients of these tensors, and at what may have "
    "overwritten them. Go on from a checkpoint of {before} or before.",
    "written": "No action needed if the loop masks, clips, projects, averages or quantises its "
    "weights on purpose: the records have the weights that the next forward uses.",
    "dead_units": "Look at the learning rate and the biases of the layer before. {compare}.",
    "unreached": "Look at the router and at its balancing loss.",
    "super_weights": "No action needed: keep this weight when you prune or quantise.",
    "began_sparse": "No action needed if these weights were pruned on purpose.",
    "sparser": "No action needed while the loss still falls.",
    "sparse": "{compare}: look for pruning, a penalty, or dead units in these tensors.",
    "sign_diversity": "Lower the learning rate, or go on from a checkpoint of {before} or before.",
}
