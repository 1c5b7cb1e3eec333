"""Ways to see a rise: the library's, a naive rule, and detectors of river, ruptures and BOCPD.

The general detectors see any change. Where the table says "as is", they are at their defaults,
which are meant for streams of thousands, and whatever they say is an alarm. "Behind our front end"
they are fed the errors of a trailing line (FrontEnd), their parameters are the best of a
dozen on six design seeds of standard difficulty, and an alarm counts only if the series has also
risen by the smallest change that matters, as with the other peers below. To what they would say
with that gate inside them, this is a little unfair.
"""

from __future__ import annotations

import importlib
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from detecting.scoring import Detector
from detecting.series import Array, Series
from sparsitywatch.analysis.detect import AbruptChange, DormantRise
from sparsitywatch.records import Event

OURS = "ours"
#: The smallest change that a user cares for, in units of the series.
MIN_EFFECT = 0.01
#: Told step, value and context of a snapshot; says whether it alarms.
Online = Callable[[int, float, "Mapping[str, float] | None"], "Event | bool | None"]
#: Of another one, told step and finite value.
Update = Callable[[int, float], bool]

#: Snapshots that the result of a gate is read from: now, and before the change.
_NOW = 3
_BEFORE = slice(-20, -6)
_RATIO = 1.5
#: Parameters behind our front end, and the bound of the errors that they are fed.
_TUNED: dict[str, tuple[dict[str, Any], float]] = {
    "PageHinkley": ({"min_instances": 1, "delta": 1.0, "threshold": 6.0, "mode": "up"}, 4.0),
    "ADWIN": ({"delta": 0.1, "clock": 1, "min_window_length": 2, "grace_period": 5}, 10.0),
    "KSWIN": ({"alpha": 1e-3, "window_size": 40, "stat_size": 8}, 10.0),
}
_FLOOR_LOOKS = 5


@dataclass(frozen=True)
class Peer:
    """A detector, run over a series."""

    detect: Detector
    # makes one that is fed snapshot by snapshot; None: it needs the whole series
    online: Callable[[float], Online] | None = None
    # snapshots from the onset at which a change point hits, of an offline one
    tolerance: int | None = None
    # of the seeds that it is run on, for the slow ones
    share: float = 1.0


def online(make: Callable[[float], Online]) -> Detector:
    """A detector of whole series from what makes one, given the smallest change that matters."""

    def detect(series: Series) -> dict[int, Event | bool]:
        update = make(MIN_EFFECT * series.unit)
        found: dict[int, Event | bool] = {}
        for i, (step, value) in enumerate(zip(series.steps, series.values, strict=True)):
            said = update(int(step), float(value), series.context_at(i))
            if said:
                found[i] = said
        return found

    return detect


def ours(min_effect: float) -> Online:
    """The library's detector of rises, at its defaults."""
    return AbruptChange(min_effect, direction="up").update


def early(min_effect: float) -> Online:
    """The library's detector of dormant weights."""
    return DormantRise(min_effect).update


# ------------------------------------------------------------------ the front end of others

_WINDOW = 20
_LEAST = 8
_CLIP = 3.0
_ROUNDS = 2
_SD_OF_MAD = 1.4826
#: The least noise, as a part of the smallest change that matters.
_LEAST_NOISE = 0.05


class FrontEnd:
    """Standardised errors of forecasts one snapshot ahead, along a line through those before.

    Curves drift, and their scale is not known; the smallest change that matters bounds the noise.
    """

    def __init__(self, min_effect: float) -> None:
        self._least = _LEAST_NOISE * min_effect
        self._seen: deque[tuple[float, float]] = deque(maxlen=_WINDOW)

    def update(self, step: int, value: float) -> float | None:
        """The error at one more snapshot, in standard deviations; None as long as there is none."""
        error = None
        if len(self._seen) >= _LEAST:
            error = self._error(np.array(self._seen), float(step), value)
        self._seen.append((float(step), value))
        return error

    def _error(self, seen: Array, step: float, value: float) -> float:
        steps, values = seen.T
        middle, width = steps.mean(), np.ptp(steps)
        design = np.stack([np.ones(len(steps)), (steps - middle) / width], axis=1)
        now = np.array([1.0, (step - middle) / width])
        clipped = values
        for _ in range(_ROUNDS):  # one wild value does not turn the line
            fit = design @ np.linalg.lstsq(design, clipped, rcond=None)[0]
            bound = _CLIP * max(_SD_OF_MAD * float(np.median(np.abs(values - fit))), self._least)
            clipped = np.clip(values, fit - bound, fit + bound)
        line = np.linalg.lstsq(design, clipped, rcond=None)[0]
        rest = clipped - design @ line
        noise = max(math.sqrt(float(rest @ rest) / (len(steps) - 2)), self._least)
        leverage = float(now @ np.linalg.solve(design.T @ design, now))
        return (value - float(now @ line)) / (noise * math.sqrt(1.0 + leverage))


def noise_of(values: Array, least: float) -> float:
    """Standard deviation of the noise, from differences of neighbours.

    >>> round(noise_of(np.array([0.0, 1.0, 0.0, 1.0, 0.0]), 0.01), 3)
    1.048
    """
    differences = np.abs(np.diff(values))
    return max(_SD_OF_MAD * float(np.median(differences)) / math.sqrt(2.0), least)


# ------------------------------------------------------------------ others


def _needed(name: str) -> Any:
    """A module of the dependency group ``bench``."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.split(".")[0]
        raise ModuleNotFoundError(
            f"Expected the module {package!r}, which this comparison is with, found none. "
            "Install it: pip install --group bench"
        ) from error


def naive(min_effect: float) -> Update:
    """Half as much again as the lowest level so far, and ``min_effect``, twice in a row."""
    seen: list[float] = []
    floor = math.inf
    above = 0
    alarmed = False

    def update(step: int, value: float) -> bool:
        nonlocal floor, above, alarmed
        del step
        seen.append(value)
        if len(seen) >= _FLOOR_LOOKS:
            floor = min(floor, float(np.median(seen[-_FLOOR_LOOKS:])))
        is_above = value >= _RATIO * floor and value - floor >= min_effect
        above = above + 1 if is_above else 0
        fresh = above >= 2 and not alarmed
        alarmed = above >= 2
        return fresh

    return update


def _river(name: str, *, behind: bool) -> Callable[[float], Update]:
    def make(min_effect: float) -> Update:
        tuned, bound = _TUNED[name] if behind else ({}, math.inf)
        seed = {"seed": 0} if name == "KSWIN" else {}
        detector = getattr(_needed("river.drift"), name)(**tuned, **seed)
        front = FrontEnd(min_effect)
        seen: list[float] = []

        def update(step: int, value: float) -> bool:
            seen.append(value)
            told = front.update(step, value) if behind else value
            if told is None:
                return False
            detector.update(min(max(told, -bound), bound))
            return bool(detector.drift_detected) and (not behind or _has_risen(seen, min_effect))

        return update

    return make


def _has_risen(seen: list[float], min_effect: float) -> bool:
    before = seen[_BEFORE]
    if not before:
        return False
    return float(np.median(seen[-_NOW:]) - np.median(before)) >= min_effect


def _bocpd(min_effect: float) -> Update:
    """Adams & MacKay 2007, https://arxiv.org/abs/0710.3742, a level for each run."""
    package = _needed("bayesian_changepoint_detection")
    hazard, recent, least = 200.0, 6, 12
    seen: list[float] = []
    detector: Any = None
    scale = 1.0

    def update(step: int, value: float) -> bool:
        nonlocal detector, scale
        del step
        seen.append(value)
        if len(seen) < least:
            return False
        if detector is None:
            scale = noise_of(np.array(seen), 0.1 * min_effect)
            detector = package.OnlineChangepointDetector(
                lambda lengths: package.constant_hazard(hazard, lengths),
                package.online_likelihoods.StudentT(alpha=1.0, beta=1.0, kappa=0.01, mu=0.0),
                max_run_length=100,
                device="cpu",
            )
        posterior = detector.update((value - float(np.median(seen[:least]))) / scale).numpy()
        began = float(posterior[1 : recent + 1].sum())
        return detector.t > recent and began > 0.5 and _has_risen(seen, min_effect)

    return update


def _ruptures_online(min_effect: float) -> Update:
    """The search over the last 60 values again at each snapshot."""
    window, recent = 60, 6
    seen: list[float] = []

    def update(step: int, value: float) -> bool:
        del step
        seen.append(value)
        values = np.array(seen[-window:])
        ends = _segment_ends(values, min_effect)
        if len(ends) < 2 or len(values) - ends[-2] > recent:
            return False
        at = ends[-2]
        since = ends[-3] if len(ends) > 2 else 0
        if values[at:].mean() - values[since:at].mean() < min_effect:
            return False
        del seen[: len(seen) - (len(values) - at)]
        return True

    return update


def _ruptures_offline(series: Series) -> list[int]:
    """PELT with the whole series at hand, rises of ``min_effect`` or more."""
    at = np.flatnonzero(np.isfinite(series.values))
    values, least = series.values[at], MIN_EFFECT * series.unit
    ends = [0, *_segment_ends(values, least)]
    means = [values[a:b].mean() for a, b in pairwise(ends)]
    rises = np.flatnonzero(np.diff(means) >= least)
    return [int(at[ends[i + 1]]) for i in rises]


def _segment_ends(values: np.ndarray, min_effect: float) -> list[int]:
    if len(values) < 6:
        return [len(values)]
    scaled = (values - values[0]) / noise_of(values, 0.1 * min_effect)
    search = _needed("ruptures").KernelCPD(kernel="linear", min_size=2).fit(scaled)
    return [int(end) for end in search.predict(pen=20.0 * math.log(len(values)))]


def _fed(make: Callable[[float], Update], share: float = 1.0) -> Peer:
    """Snapshot by snapshot; a gap is no value, and no peer asks for a context."""

    def fed(min_effect: float) -> Online:
        update = make(min_effect)
        return lambda step, value, _: math.isfinite(value) and update(step, value)

    return Peer(online(fed), online=fed, share=share)


#: By name, ours first.
DETECTORS: Mapping[str, Peer] = {
    OURS: Peer(online(ours), online=ours),
    "naive floor rule": _fed(naive),
    "river PageHinkley, as is": _fed(_river("PageHinkley", behind=False)),
    "river PageHinkley, behind our front end": _fed(_river("PageHinkley", behind=True)),
    "river ADWIN, as is": _fed(_river("ADWIN", behind=False)),
    "river ADWIN, behind our front end": _fed(_river("ADWIN", behind=True)),
    "river KSWIN, as is": _fed(_river("KSWIN", behind=False), share=0.25),
    "river KSWIN, behind our front end": _fed(_river("KSWIN", behind=True), share=0.25),
    "ruptures KernelCPD, again at each snapshot": _fed(_ruptures_online),
    "BOCPD": _fed(_bocpd, share=0.25),
    "ruptures PELT, offline": Peer(_ruptures_offline, tolerance=3),
}
