"""A record, all that one snapshot of the weights said, and the parts that it has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from itertools import takewhile
from typing import Any

import numpy as np

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records.curve import EssentialSparsity, SparsityCurve
from sparsitywatch.records.event import VITAL_KINDS, Event
from sparsitywatch.records.gradient import Gradient
from sparsitywatch.records.xray import XRay
from sparsitywatch.redact import html_table, printable
from sparsitywatch.series import SERIES, count, describe, numbered, percent

#: Version of the JSON form. Raised when a field changes its name or its sense, or disappears.
SCHEMA_VERSION = 1

#: The one that is read from a log, too, so that records without a number compare as equal.
_NAN = math.nan


# ------------------------------------------------------------------ how the weights move


@dataclass(frozen=True, kw_only=True)
class DecayProjection:
    """How far the decay clock must advance until dormant weights are near zero, K advances."""

    advance: tuple[float, ...]  # of the decay clock (mean over the in-scope weights), rising from 0
    # Share of the sampled weights that is dormant now and near zero at that advance, those left out
    # that pass as dormant by chance.
    dormant: tuple[float, ...]
    # The same for weights that may go dormant next, as a share of these: living weights, those of a
    # tensor counted in proportion to its dormant ones.
    entering: tuple[float, ...]

    def __repr__(self) -> str:
        return f"<DecayProjection over {len(self.advance)} advances of the decay clock>"


@dataclass(frozen=True, kw_only=True)
class Dormant:
    """Weights whose change since the last snapshot is explained by weight decay alone."""

    fraction: float  # of the sampled in-scope weights; NaN when it could not be measured
    num_sampled: int  # size of the fixed random sample
    since_step: int  # step of the earlier snapshot; -1 if there was none
    reason: str = ""  # why ``fraction`` is NaN; empty otherwise
    chance: float = _NAN  # share of living weights that passes by chance over this interval
    # Shrink by decay and size of updates are estimated from the weights themselves, as nothing was
    # known of the optimizer; and by how much the decay clock advanced, if any shrank by one factor.
    estimated: bool = False
    estimated_advance: float = _NAN
    projection: DecayProjection | None = None  # None if the decay clock stands still or is unknown


@dataclass(frozen=True, kw_only=True)
class Movement:
    """How far the weights went since the last snapshot; known for every optimizer."""

    # Root mean square of the change that decoupled decay does not explain, over that of the weights
    # before; NaN if there was no earlier snapshot.
    update_to_weight: float
    sign_flips: float  # fraction of the sampled weights that changed their sign; NaN as above
    num_sampled: int  # size of the fixed random sample
    since_step: int  # step of the earlier snapshot; -1 if there was none
    # The first by block or expert, rising; of very many the ends. What no step reached is left out.
    by_block: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MaskOverlap:
    """Whether pruning would remove the same weights as at the snapshot before."""

    level: tuple[float, ...]  # sparsities that are compared, rising
    # Of the sampled weights that a level would have removed then, the fraction that it removes now;
    # about the level itself by chance. NaN if there was no earlier snapshot, or nothing to remove.
    overlap: tuple[float, ...]
    num_sampled: int  # size of the fixed random sample
    since_step: int  # step of the earlier snapshot; -1 if there was none

    def __repr__(self) -> str:
        return f"<MaskOverlap at {len(self.level)} levels, since_step {self.since_step}>"

    @property
    def scalars(self) -> dict[str, float]:
        """Each overlap by the last part of the name of its series."""
        names = map("mask_overlap_{:g}".format, self.level)
        return dict(zip(names, self.overlap, strict=True))


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The near-zero fraction to come, while the decay clock advances by one unit."""

    rule: str  # the near-zero rule that is forecast
    advance: tuple[float, ...]  # of the decay clock from now on, rising from 0
    # Near-zero fraction of the in-scope weights at each advance; NaN where it is farther ahead, in
    # steps, than twice the age of the run. The band is nominally of nine in ten.
    fraction: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    clock_per_step: float  # present rate of the decay clock
    # When the fraction is twice its running floor, at the present rate; NaN if that cannot be
    # foreseen, or has happened.
    doubling_step: float = _NAN

    def __repr__(self) -> str:
        return f"<Forecast of {self.rule}: {self.at(1.0)[0]:.3g} when the clock advanced by 1>"

    def at(self, advance: float) -> tuple[float, float, float]:
        """Fraction, low and high at an advance of the clock; NaN if it is not foreseen."""
        for x, *values in zip(self.advance, self.fraction, self.low, self.high, strict=True):
            if math.isclose(x, advance):
                return values[0], values[1], values[2]
        return _NAN, _NAN, _NAN

    @property
    def scalars(self) -> dict[str, float]:
        """What is foreseen, by the last part of the name of its series."""
        middle, (whole, low, high) = self.at(0.5)[0], self.at(1.0)
        return {
            "near_zero_in_0.5": middle,
            "near_zero_in_1": whole,
            "near_zero_in_1_low": low,
            "near_zero_in_1_high": high,
        }


# ------------------------------------------------------------------ whether the training trains

#: What weights in scope say by themselves, where parameters are not compared one by one.
_ALWAYS_KNOWN = ("not_finite", "returned")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is wrong with some tensors, for sure."""

    kind: str  # one of ``VITAL_KINDS``
    num: int  # tensors that it is about
    tensors: tuple[str, ...]  # their names, most first; of very many the first ones
    reason: str = ""  # what shows it, in words
    since_step: int = -1  # the last snapshot at which it was not so yet; -1 if that is not known

    def __repr__(self) -> str:
        names = ", ".join(map(printable, self.tensors[:3]))
        kind = VITAL_KINDS.get(self.kind, self.kind)
        return f"<Finding of {self.num} tensors {kind}: {names[:80]}>"


@dataclass(frozen=True, kw_only=True)
class Vital:
    """What was seen of all parameters of the model, in scope or not, since the last snapshot."""

    num_tensors: int  # that were compared, tied ones once
    num_sampled: int  # weights that were: all of a small tensor, a fixed sample of a large one
    # Share of the weights that are to be trained (that require grad; in a replay all) whose bits
    # are what they were at the snapshot before, and at the first of all; NaN if there was none.
    still: float = _NAN
    still_since_start: float = _NAN
    since_step: int = -1  # step of the earlier snapshot; -1 if there was none
    findings: tuple[Finding, ...] = ()
    # Why the parameters were not compared one by one, as those of a checkpoint; empty if they were.
    # Then only weights in scope are known: which are not finite, and whether all went back.
    reason: str = ""
    not_judged: tuple[str, ...] = ()  # kinds that nothing tells now: no step of a rate was taken
    gradient: Gradient | None = None  # None where no step of an optimizer was seen

    @property
    def gradients(self) -> dict[str, float]:
        """What is said of the gradients, by the last part of the name of its series."""
        return {} if self.gradient is None else self.gradient.scalars

    @property
    def counts(self) -> dict[str, float]:
        """Tensors with a finding, by its kind: the kinds that can be known here."""
        judged = _ALWAYS_KNOWN if self.reason else VITAL_KINDS.keys() - set(self.not_judged)
        known = {kind: 0.0 for kind in VITAL_KINDS if kind in judged}
        return known | {finding.kind: float(finding.num) for finding in self.findings}

    def __repr__(self) -> str:
        found = ", ".join(f"{f.num} {f.kind}" for f in self.findings) or "nothing wrong"
        if self.reason:
            return f"<Vital: {found}; {self.reason[:80]}>"
        return f"<Vital of {self.num_tensors} tensors: {found}>"


# ------------------------------------------------------------------ each tensor


@dataclass(frozen=True, kw_only=True)
class LayerShare:
    """One in-scope tensor in one record."""

    name: str
    num_weights: int
    rms: float  # root mean square of its finite weights
    near_zero: Mapping[str, float]  # fraction of its own weights that are near zero, by rule
    removed: tuple[float, ...] = ()  # fraction of them removed at each level of the curve
    dormant: float = _NAN  # fraction of its sampled weights that are dormant; NaN if not known
    # As of ``BlockGradient``: norm, zeros, change and update to weight; NaN if not known.
    gradient: float = _NAN
    gradient_zeros: float = _NAN
    gradient_change: float = _NAN
    update_to_weight: float = _NAN

    def __repr__(self) -> str:
        return f"<LayerShare of {printable(self.name)[:80]}, {self.num_weights:,} weights>"


#: The plain numbers of a tensor; logs that were written before one have none of it.
LAYER_NUMBERS = tuple(one.name for one in fields(LayerShare) if one.type == "float")


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerColumns:
    """The same numbers of N in-scope tensors in one record, an array for each."""

    names: tuple[str, ...]
    num_weights: np.ndarray  # int64 [N]
    numbers: Mapping[str, np.ndarray]  # float64 [N] by LAYER_NUMBERS, those that are known
    near_zero: Mapping[str, np.ndarray] = field(default_factory=dict)  # float64 [N] by rule
    removed: np.ndarray  # float64 [K, N], a row for each level of the curve; K is 0 without one

    @classmethod
    def of(cls, layers: Sequence[LayerShare]) -> LayerColumns:
        """The columns of some tensors; a ConfigurationError if their rules or levels differ."""
        rules = list(layers[0].near_zero) if layers else []
        num_levels = len(layers[0].removed) if layers else 0
        for layer in layers:
            if layer.near_zero.keys() != set(rules) or len(layer.removed) != num_levels:
                raise ConfigurationError(
                    f"Expected `layers` that all have the near-zero rules {rules} and shares at "
                    f"{num_levels} levels, got {list(layer.near_zero)} and {len(layer.removed)} "
                    f"for {layer.name!r}."
                )
        floats = partial(np.array, dtype=np.float64)
        return cls(
            names=tuple(layer.name for layer in layers),
            num_weights=np.array([layer.num_weights for layer in layers], np.int64),
            numbers={x: floats([getattr(one, x) for one in layers]) for x in LAYER_NUMBERS},
            near_zero={rule: floats([x.near_zero[rule] for x in layers]) for rule in rules},
            removed=floats([x.removed for x in layers]).reshape(len(layers), num_levels).T,
        )

    def shares(self) -> Iterator[LayerShare]:
        """A tensor at a time, with plain numbers."""
        # an unknown number is always the same NaN, so that equal records are equal
        columns = (*self.numbers.values(), *self.near_zero.values(), *self.removed)
        floats = [[_NAN if x != x else x for x in column.tolist()] for column in columns]
        num_weights, first = self.num_weights.tolist(), len(self.numbers)
        end = first + len(self.near_zero)
        for name, num, row in zip(self.names, num_weights, zip(*floats, strict=True), strict=True):
            yield LayerShare(
                name=name,
                num_weights=num,
                near_zero=dict(zip(self.near_zero, row[first:end], strict=True)),
                removed=row[end:],
                **dict(zip(self.numbers, row[:first], strict=True)),
            )


class Layers(Sequence[LayerShare]):
    """The tensors of one record as columns, read when asked for; equal to a tuple of shares."""

    def __init__(self, columns: LayerColumns | Callable[[], LayerColumns]) -> None:
        self._columns = columns

    @classmethod
    def of(cls, layers: Sequence[LayerShare]) -> Layers:
        """``layers`` themselves if they are some, else their columns, as ``LayerColumns.of``."""
        return layers if isinstance(layers, Layers) else cls(LayerColumns.of(layers))

    @cached_property
    def columns(self) -> LayerColumns:
        """The numbers, an array for each kind."""
        return self._columns() if callable(self._columns) else self._columns

    def __len__(self) -> int:
        return len(self.columns.names)

    def __iter__(self) -> Iterator[LayerShare]:
        return self.columns.shares()

    def __getitem__(self, index: Any) -> Any:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, tuple | list | Layers):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return Layers, (self.columns,)


# ------------------------------------------------------------------ the record

#: Why an evaluation was left out that was not paid for; by and by one is.
UNPAID = "the evaluation was left out to keep within `max_overhead`"

#: By what is around it, "" for the record itself: each attribute that a series is read from, by
#: its path. Several rows read one.
_PATHS: dict[str, dict[str, str]] = {}
for _path in sorted({path for row in SERIES for path in (row.only, row.source) if path}):
    _PATHS.setdefault(_path.rpartition(".")[0], {})[_path] = _path.rpartition(".")[2]
#: Each series: its name, that up to its ``*`` if it is a family, its room, only where, where.
_ROWS = [
    (row.name, row.name.partition("*")[0], row.name.partition("/")[0], row.only, row.source)
    for row in SERIES
]


@dataclass(frozen=True, kw_only=True)
class ScopeSummary:
    """How much is watched: ``num_tensors`` tensors with ``num_weights`` weights."""

    num_tensors: int
    num_weights: int
    # Which these are, where most of the default scope is not trained, as "the trained 4.8 % of the
    # default scope". Empty if they are what was asked for, or where nobody knows, as of a file.
    which: str = field(default="", compare=False)
    num_untrained: int = field(default=0, compare=False)  # of these, frozen or in no optimizer

    def describe(self) -> str:
        """How much that is: "49,152 weights in 12 tensors", and which, if not all are trained."""
        which = f", {self.which}" if self.which else ""
        if self.num_untrained:
            which = f", {percent(1.0 - self.num_untrained / self.num_weights)} of them trained"
        return f"{count(self.num_weights, 'weight')} in {count(self.num_tensors, 'tensor')}{which}"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the snapshot cost, in seconds and in calls."""

    stall_s: float  # the training thread was held; not what was done behind the training
    spectrum_s: float  # reading the weights
    evaluation_s: float  # the proxy
    publish_s: float = 0.0  # detectors and sinks, for the record before: this one is yet to come
    num_forwards: int  # calls of the value function
    # Share of the wall time that the watch has taken, this snapshot included up to the moment when
    # its record was made; NaN if nobody kept count.
    overhead: float = _NAN
    num_left_out: int = 0  # snapshots that were due since the record before, to save time
    num_evaluations_left_out: int = 0  # 1 if this one has no evaluation for that reason


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """Whether ranks that ought to hold the same weights hold the same bits."""

    num_ranks: int  # that were compared
    ranks: tuple[int, ...] = ()  # those that hold other bits than most; of two that differ, both
    tensors: tuple[str, ...] = ()  # in which they do

    @property
    def num_differing(self) -> int:
        """How many ranks differ."""
        return len(self.ranks)

    def __repr__(self) -> str:
        differ = f"ranks {list(self.ranks)} differ" if self.ranks else "all agree"
        return f"<Replicas on {self.num_ranks} ranks: {differ}>"


@dataclass(frozen=True, kw_only=True)
class Content:
    """What the bytes of one stored tensor show that ordinary weights do not."""

    name: str
    flat: float = 0.0  # share of its blocks, of 128 weights, that hold one value
    is_one_piece: bool = False  # whether these lie side by side, and are not one or two
    begin: float = 0.0  # where the longest run of them begins and ends, as parts of the tensor
    end: float = 0.0
    is_zero: bool = False  # whether that value is zero
    zeros: float = 0.0  # share of exact zeros among its other weights
    digits: int = 0  # binary digits that its weights have, if these are less than its dtype has
    repeats: float = 0.0  # share of weights that stand in their block twice


@dataclass(frozen=True, kw_only=True)
class Source:
    """The checkpoint that a replay measured."""

    address: str  # where it lay, without what may be a secret
    key: str = ""  # of what was taken in a file that holds several models; empty if it was all
    # Of the first bytes of some of its in-scope tensors: quick to see again. Empty if unreadable.
    mark: str = ""
    contents: tuple[Content, ...] = ()  # of its in-scope tensors, those that show something


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a number depends on; curves whose provenance differs cannot be compared."""

    sparsitywatch: str  # versions
    torch: str
    scope_hash: str  # which weights are watched
    proxy_hash: str  # which examples are evaluated; empty without a proxy
    dtypes: tuple[str, ...]  # of the in-scope tensors
    tolerance: float  # as in ``EssentialSparsity``
    tolerance_mode: str
    pattern: str  # what a level means
    evaluation: str = "zero-shot"  # masked weights, no fine-tuning
    unit: str = "step"  # what ``step`` counts: "step", or in a replay also "epoch" or "save"

    @property
    def tolerated(self) -> str:
        """The harm that counts as none, in words."""
        if self.tolerance_mode == "relative":
            return f"{percent(self.tolerance)} of the dense value"
        return f"{self.tolerance:.4g} in units of the value"

    def settings(self) -> dict[str, Any]:
        """What has to agree for numbers to be compared; versions of libraries need not."""
        names = ("scope_hash", "proxy_hash", "tolerance", "tolerance_mode", "pattern")
        return {name: getattr(self, name) for name in names}


def of_one_model(records: Sequence[Record]) -> Sequence[Record]:
    """Of a run's records those about the weights of the last one, by names and shapes."""
    num = sum(1 for _ in takewhile(records[-1].is_comparable, reversed(records))) if records else 0
    return records if num == len(records) else records[-num:]


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything that one snapshot of the weights said.

    Args:
        step: optimizer steps done; of a replay perhaps epochs: ``provenance.unit`` says it.
        wall_time: seconds since the epoch.
        valid: False if a measurement failed or contradicted itself; see ``reason``.
        reason: what went wrong; empty if nothing did.
        scope: size of what was watched.
        num_nan, num_inf, num_zero: counts of non-finite and exactly zero in-scope weights;
            -1 if the weights could not be read.
        largest: magnitude that no in-scope weight exceeds, the end of the bin that holds the
            largest one: at most 0.4 % above it. Infinite if one is; NaN if one is NaN, or none
            could be read.
        near_zero: fraction of in-scope weights near zero, by rule.
        fingerprint: of the in-scope weights: of the counts of all magnitudes and the bits of
            a sample; 16 hexadecimal digits, the same live and from a checkpoint. Empty if the
            weights could not be read.
        same_weights_as: step of the first snapshot that had the same fingerprint; None if no
            other one had it.
        decay_clock: sum of lr times weight decay over the steps so far, averaged over the in-scope
            weights that an optimizer has stepped on, each with its own; NaN if unknown.
        why_no_clock: why it is unknown; empty if it is not, and where no optimizer was seen.
        lr_clock: sum of lr over the steps so far, averaged in the same way.
        lr: learning rate at the snapshot, averaged over the in-scope weights that have one.
        trained: fraction of the in-scope weights that a step has reached since the snapshot before,
            or in the last ten steps; NaN if no optimizer was seen.
        dormant, movement, masks: None if motion is not watched.
        forecast: None where the weights' motion gives none.
        read_before: what was about to use the weights when they were read, where something else
            than the optimizer writes to them after its steps: "forward", "step", or "close". Empty
            if they were read as the step left them.
        not_evaluated: why there is a proxy and it was not evaluated at this step, on purpose;
            empty if it was, and without a proxy. Such a record is as valid as any other.
        curve: None without a proxy, and where it was not evaluated.
        controls: curves of other patterns at the same levels, by their names, for comparison.
        reliance: harm of removing every in-scope weight, in units of the value; NaN where there
            is no curve.
        reliance_low, reliance_high: its interval, of the confidence of essential sparsity's.
        essential_sparsity: None where there is no curve.
        alone: essential sparsity of each in-scope tensor where all others stay as they are, of its
            own weights, by name; empty unless ``measure`` was asked for ``each``.
        layers: one per in-scope tensor, in the natural order of their names (2 before 10): a
            live model and its checkpoints give the same. Of a log they are read when they are
            first asked for.
        replicas: whether the ranks that hold the same weights hold the same bits; None where no
            two do, or only one watches.
        vital: what was seen of all parameters, in scope or not; None if nobody looked.
        xray: what the dense forward of the evaluation showed of the layers; None without one, and
            of a sharded model, which is evaluated itself.
        source: the checkpoint that a replay measured; None of a live model.
        cost, provenance: what it cost, and what it depends on.
    """

    step: int
    wall_time: float
    valid: bool = True
    reason: str = ""
    scope: ScopeSummary
    num_nan: int
    num_inf: int
    num_zero: int
    largest: float = _NAN
    near_zero: Mapping[str, float]
    fingerprint: str = ""
    same_weights_as: int | None = None
    decay_clock: float = _NAN
    why_no_clock: str = ""
    lr_clock: float = _NAN
    lr: float = _NAN
    trained: float = _NAN
    dormant: Dormant | None = None
    movement: Movement | None = None
    masks: MaskOverlap | None = None
    forecast: Forecast | None = None
    curve: SparsityCurve | None = None
    controls: Mapping[str, SparsityCurve] = field(default_factory=dict)
    reliance: float = _NAN
    reliance_low: float = _NAN
    reliance_high: float = _NAN
    essential_sparsity: EssentialSparsity | None = None
    alone: Mapping[str, EssentialSparsity] = field(default_factory=dict)
    read_before: str = ""
    not_evaluated: str = ""
    layers: Sequence[LayerShare] = ()
    replicas: Replicas | None = None
    vital: Vital | None = None
    xray: XRay | None = None
    source: Source | None = None
    cost: Cost
    provenance: Provenance
    schema: int = SCHEMA_VERSION

    def __repr__(self) -> str:
        return f"<Record of {self.place}: {', '.join(f'{n} {x}' for n, x in self._brief())}>"

    def _repr_html_(self) -> str:
        return html_table(self._brief(), f"Record of {self.place}")

    def _brief(self) -> list[tuple[str, str]]:
        """What a person asks first, by name."""
        estimate = self.essential_sparsity
        essential = "not measured" if estimate is None else estimate.describe(percent)
        rule, fraction = next(iter(self.near_zero.items()), ("", _NAN))
        near_zero = describe("near_zero/zero").shown(fraction if self.all_finite else _NAN)
        reliance = f"{self.reliance:.3g} [{self.reliance_low:.3g}, {self.reliance_high:.3g}]"
        relied = [] if self.curve is None else [("reliance", reliance)]
        is_valid = (
            "yes" if self.all_finite else f"{self.num_not_finite:,} weights are NaN or infinite"
        )
        return [
            (f"near zero ({rule})" if rule else "near zero", near_zero),
            ("essential sparsity", essential),
            *relied,
            ("valid", is_valid if self.valid else f"no: {printable(self.reason)[:80]}"),
        ]

    @property
    def place(self) -> str:
        """Where it is in its run: "step 500", or in a replay perhaps "epoch 3"."""
        return numbered(self.provenance.unit, self.step)

    @property
    def num_not_finite(self) -> int:
        """In-scope weights that are NaN or infinite; 0 if they could not be read."""
        return max(self.num_nan, 0) + max(self.num_inf, 0)

    @property
    def all_finite(self) -> bool:
        """Whether fractions of weights mean something: what broke did not become less sparse."""
        return not self.num_not_finite

    @property
    def was_read(self) -> bool:
        """Whether the weights could be read."""
        return self.num_nan >= 0

    def is_comparable(self, other: Record) -> bool:
        """Whether both are about the same weights, by names and shapes."""
        return self.provenance.scope_hash == other.provenance.scope_hash

    def remarks(self, previous: Record | None = None) -> list[str]:
        """What a person should know beside the numbers, a sentence each.

        Args:
            previous: the record before; what holds for it, too, is not said again.
        """
        said = {} if previous is None else previous._remarks()
        return [remark for kind, remark in self._remarks().items() if kind not in said]

    def _remarks(self) -> dict[str, str]:
        """By kind: what goes on is one thing."""
        remarks = {}
        if self.num_not_finite:
            remarks["not finite"] = (
                f"{max(self.num_nan, 0):,} in-scope weights are NaN and {max(self.num_inf, 0):,} "
                "infinite; fractions of weights mean nothing and are left out"
            )
        if self.same_weights_as is not None:
            first = numbered(self.provenance.unit, self.same_weights_as)
            remarks[f"same as {first}"] = f"the in-scope weights are the same as at {first}"
        if self.curve is not None and not math.isfinite(self.curve.dense):
            remarks["value"] = (
                "the value of the dense model is not finite, so that there is no essential sparsity"
            )
        return remarks

    def series(self) -> dict[str, float]:
        """Every scalar of this record that may be plotted or watched, by name.

        What could not be measured is left out, and so are all estimates that are not
        informative, and fractions of weights where some are NaN or infinite. An invalid record
        has what was measured before the failure. ``sparsitywatch.series`` says what each is.
        """
        found: dict[str, Any] = {}
        reached: dict[str, Any] = {"": True}
        for place, paths in _PATHS.items():
            around = getattr(self, place) if place else self
            for path, last in paths.items():
                reached[path] = None if around is None else getattr(around, last)
        for row, stem, room, only, source in _ROWS:
            value = reached[source] if reached[only] else None
            if value is None:
                continue
            if type(value) in (float, int, bool) or not isinstance(value, Mapping):  # at once
                found[row] = value
                continue
            for key, x in value.items():
                name = f"{room}/{key}"
                if name == stem or (stem != row and name.startswith(stem)):
                    found[name] = x
        return {name: float(x) for name, x in found.items() if math.isfinite(x)}

    @property
    def why_blind(self) -> str:
        """Why it has no evaluation where no time will bring one; else empty."""
        return "" if self.not_evaluated == UNPAID else self.not_evaluated

    def was_asked(self, series: str) -> bool:
        """Whether this snapshot could have had a series; False where it was not evaluated.

        What is missing then is no gap in the series: the next evaluation goes on with it.
        """
        return not (self.not_evaluated and describe(series).needs_proxy)


for _row in SERIES:  # a row is of a number that is there
    _known: Any = Record
    for _part in _row.source.split("."):
        if not hasattr(_known, _part) and _part not in getattr(_known, "__annotations__", ()):
            raise ConfigurationError(
                f"Expected the row {_row.name!r} of series.py to say where a record has its number "
                f"or a mapping of numbers, got {_row.source!r}: add the field, and compute it."
            )
        _known = globals().get(str(_known.__annotations__.get(_part)).partition(" ")[0])

#: Records and events that a table in a notebook shows, the latest ones.
_MAX_ROWS = 10


def html_of(caption: str, records: Sequence[Record], events: Sequence[Event]) -> str:
    """The latest records and events of a run as a small table for a notebook."""
    rows: list[tuple[object, ...]] = []
    if records:
        rows.append((records[-1].provenance.unit, *(name for name, _ in records[-1]._brief())))
    latest = records[-_MAX_ROWS:]
    rows += [(record.step, *(text for _, text in record._brief())) for record in latest]
    rows += [("event", event.describe()) for event in events[-_MAX_ROWS:]]
    return html_table(rows, caption)
