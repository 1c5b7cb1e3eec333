"""How many weights are near zero beside what there were when the run began: no history is needed.

A judge of change compares a series with its own quiet stretch, and is silent of what begins with
the first snapshot or rises slowly. A judge of height compares with the weights that the run began
with, and with what a dense tensor, of Gaussian weights, has below the same threshold: for the
whole, and by tensor, as a small one hardly moves the whole.

Shapes: R rules, N tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from sparsitywatch.analysis.detect.detector import HALF, LATEST, SCORE, TREND, Array
from sparsitywatch.records import LEVEL_KINDS, Began, Event, LayerColumns, Layers, Record
from sparsitywatch.series import percent

_NEAR_ZERO = "near_zero/"
#: A share is high at so many times what it was as the run began.
_TIMES_BEGAN = 2.0
#: And at so many times what a dense tensor has: of a threshold that stays, and of one that moves
#: with the weights, where the tails that any training grows make more of them small.
_TIMES_DENSE, _TIMES_DENSE_MOVING = 1.5, 2.0
#: Smallest change of a share of all weights that is worth a word.
MIN_EFFECT = 0.01


def dense_share(limit: float, rms: float) -> float:
    """Of Gaussian weights of a root mean square, the share up to a limit.

    >>> round(dense_share(0.1, 1.0), 4)
    0.0797
    """
    if rms > 0.0:
        return math.erf(limit / rms / math.sqrt(2.0))
    return float(limit > 0.0)


def high_from(began: Array, dense: Array, times: Array | float, sizes: Array) -> Array:
    """The share from which on it is high; above 1 where nothing can be."""
    # of what was sparse already it is half of the weights that were left
    high = np.maximum(*(np.minimum(k * x, HALF * (1.0 + x))
                        for k, x in ((_TIMES_BEGAN, began), (times, dense))))  # fmt: skip
    floor = np.maximum(began, dense)
    counting = np.sqrt(np.maximum(floor * (1.0 - floor), 1.0 / sizes) / sizes)
    return np.asarray(np.maximum(high, floor + SCORE * counting))


class Heights:
    """Judges the near-zero weights of a run, record by record.

    Args:
        began: how small the weights were when the run began.
        initial_rms: root mean square of each tensor then.
        rules: that are judged; the first one that is high leads.
    """

    def __init__(
        self, began: Began, initial_rms: Mapping[str, float], rules: Sequence[str]
    ) -> None:
        self._began, self._initial_rms = began, initial_rms
        self._rules = [rule for rule in rules if rule in began.near_zero]
        self._names: tuple[str, ...] = ()  # that the arrays are of

    def events(
        self, record: Record, earlier: Sequence[Record], told: Sequence[Event]
    ) -> list[Event]:
        """What is high at a record and the one before it, and was not ``told``."""
        columns = _columns_of(record)
        if columns is None or not self._rules:
            return []
        if columns.names != self._names:
            self._align(columns)
        found = [] if earlier else self._at_first(record)
        before = next((c for r in reversed(earlier[-2:]) if (c := _columns_of(r))), None)
        if before is None or before.names != self._names:
            return found
        last = next(r for r in reversed(earlier) if r.near_zero)
        shares = np.array([[r.near_zero.get(x, math.nan) for x in self._rules]
                           for r in (record, last)])  # fmt: skip
        is_high = (shares >= self.high).all(axis=0)
        if not is_high.any():
            found += self._tensors(record, columns, before, told)
            # a note waits where all weights, going on so, are soon an event, which explains it
            is_soon = (shares[0] + TREND * (shares[0] - shares[1]) >= self.high).any()
            return [event for event in found if event.kind != "sparser" or not is_soon]
        if any(_tells(event, record) for event in told):
            return found
        return [*found, self._whole(record, earlier, int(np.argmax(is_high)))]

    def _align(self, columns: LayerColumns) -> None:
        """Make the arrays of the tensors, in their order."""
        self._names, sizes = columns.names, columns.num_weights.astype(np.float64)
        began, dense, times = [], [], []
        rms = [self._initial_rms.get(name, math.nan) for name in self._names]
        for rule in self._rules:
            kind, _, factor = rule.partition("_")
            units = {"initial": rms, "rms": rms}.get(kind, [1.0] * len(rms))
            limits = [float(factor or 0.0) * unit for unit in units]
            own = self._began.near_zero[rule]
            began.append([own.get(name, math.nan) for name in self._names])
            dense.append(list(map(dense_share, limits, rms)))
            times.append(_TIMES_DENSE_MOVING if kind == "rms" else _TIMES_DENSE)
        at, null, k = np.array(began), np.array(dense), np.array(times)[:, None]
        weights = sizes / max(sizes.sum(), 1.0)
        self.began, self._sizes = np.nansum(at * weights, axis=1), sizes
        whole = partial(high_from, sizes=np.array(max(sizes.sum(), 1.0)))
        in_all = np.nansum(null * weights, axis=1)
        high = whole(self.began, in_all, k[:, 0])
        self.high = np.maximum(high, np.maximum(self.began, in_all) + MIN_EFFECT)
        self._began_of, self._high_of = at, high_from(at, null, k, sizes)
        # as if it had begun dense: what is above that was sparse from the start; but what is all
        # zero waits to be trained, as one half of a LoRA
        self._was_sparse = (at >= high_from(null, null, k, sizes)) & (np.array(rms) > 0.0)

    def _at_first(self, record: Record) -> list[Event]:
        """The note on tensors that were sparse when the run began."""
        names, shares = self._strongest(self._was_sparse, self._began_of)
        if not names:
            return []
        lead = self._rules[int(np.argmax(self.began / np.maximum(self.high, 1e-12)))]
        why = (
            f"{percent(self.began[self._rules.index(lead)])} of all weights were near zero "
            f"({lead}) when the watch began, {percent(max(shares))} of the sparsest tensor"
        )
        return [_of_tensors(record, self._began.step, "began_sparse", lead, names, why)]

    def _whole(self, record: Record, earlier: Sequence[Record], place: int) -> Event:
        """The event of all weights in scope, by the rule at a place."""
        rule, began, now = self._rules[place], float(self.began[place]), record.near_zero
        known = [(r.step, r.near_zero.get(rule, math.nan)) for r in earlier if r.all_finite]
        steps, values = map(np.array, zip((self._began.step, began), *known, strict=True))
        rise = now[rule] - began
        low, at, high = (int(steps[values <= began + part * rise][-1])
                         for part in (0.0, LATEST, HALF))  # fmt: skip
        return Event(
            series=_NEAR_ZERO + rule, direction="up", kind="level", baseline=began,
            value=now[rule], onset_step=at, onset_low=low, onset_high=high,
            detected_step=record.step,
        )  # fmt: skip

    def _tensors(
        self, record: Record, now: LayerColumns, before: LayerColumns, told: Sequence[Event]
    ) -> list[Event]:
        """The events of single tensors: that half is near zero, or twice as much as at first."""
        shares = np.array([now.near_zero[rule] for rule in self._rules])
        least = np.minimum(shares, [before.near_zero[rule] for rule in self._rules])
        is_high = least >= self._high_of
        # what an event of all weights has named
        tells = [event for event in told if _tells(event, record)]
        is_new = ~np.isin(self._names, [name for event in tells for name in event.layers])
        kinds, found = list(LEVEL_KINDS), list[Event]()
        levels = {"sparse": is_high & (least >= HALF), "sparser": is_high & (not tells)}
        for kind, which in levels.items():
            says = [e for e in told if e.kind in kinds[kinds.index(kind) :]]
            known = {name for event in (*says, *found) for name in event.layers}
            names, _ = self._strongest(which & is_new, shares)
            # again where twice as many tensors are
            if len(known.union(names)) < 2 * len(known) or known.issuperset(names):
                continue
            place = self._names.index(names[0])
            rule = int(np.argmax(which[:, place]))
            then, share = (percent(float(x[rule, place])) for x in (self._began_of, shares))
            why = f"near-zero weights ({self._rules[rule]}) of {names[0]} rose from {then} when "
            why += f"the run began to {share}"
            found += [_of_tensors(record, self._began.step, kind, self._rules[rule], names, why)]
        return found

    def _strongest(self, which: np.ndarray, shares: Array) -> tuple[tuple[str, ...], list[float]]:
        """The tensors of which any rule says it, those with most first, and their shares."""
        most = np.where(which, shares, -1.0).max(axis=0)
        order = [i for i in np.argsort(-most, kind="stable").tolist() if most[i] >= 0.0]
        return tuple(self._names[i] for i in order), most[order].tolist()


def _columns_of(record: Record) -> LayerColumns | None:
    is_known = record.all_finite and record.near_zero and record.layers
    return Layers.of(record.layers).columns if is_known else None


def _tells(event: Event, record: Record) -> bool:
    """Whether an event says that all weights have come to be small, as far as they have."""
    rule = event.series.removeprefix(_NEAR_ZERO)
    if rule == event.series or not event.is_of_series:
        return False
    if event.direction == "down":  # of rules that disagree it says that some rose
        return bool(event.opposed) and event.reverted_step < 0
    return event.reverted_step < 0 or record.near_zero.get(rule, math.nan) < event.value


def _of_tensors(
    record: Record, since: int, kind: str, rule: str, names: tuple[str, ...], why: str
) -> Event:
    return Event(
        series=f"tensors/{rule}", direction="", kind=kind, onset_step=record.step, onset_low=since,
        detected_step=record.step, before_step=since, baseline=0.0, value=float(len(names)),
        layers=names, reason=why,
    )  # fmt: skip
