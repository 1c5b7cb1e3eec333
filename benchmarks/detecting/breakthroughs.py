"""Essential sparsity and reliance where a masked language model leaves its plateau.

The runs are those of recorded/proxy/, replayed through the detectors that a watch has by default.
A model that leaves its plateau begins to use its weights: essential sparsity falls, reliance
rises. Its label is the step at which the loss is 0.15 below the plateau (recording/labels.py). The
fall is *seen* if the first event of essential sparsity downwards comes within three snapshots of
it, before or after. On a model that never leaves its plateau each event of essential sparsity is
false; reliance rises there, too, when the model first uses its weights at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recording.catalog import MEASURED, PROXY_FOLDER, load
from reporting import Goal, table

from detecting.work import Job, Plan, Results
from sparsitywatch.records import Event
from sparsitywatch.settings import Settings, default_detectors

TITLE = "Essential sparsity and reliance"
EVERY = (25, 50, 100)
#: After so many looks without a value a detector begins anew, as in pipeline/pipeline.py.
LONGEST_GAP = 3
_WITHIN = 3
#: Falls to be seen, of so many breakthroughs.
_FALLS = 11
_OF_BREAKTHROUGHS = 13


@dataclass(frozen=True)
class Left:
    """What came of one run at one cadence."""

    name: str
    split: str
    every: int
    # step at which it leaves its plateau; None: a control, it never does
    at: int | None
    # steps of the events of essential sparsity downwards, and of those of reliance upwards
    fell: tuple[int, ...] = ()
    rose: tuple[int, ...] = ()
    # events of essential sparsity upwards
    num_others: int = 0

    @property
    def is_seen(self) -> bool:
        """Whether the first fall of essential sparsity is that of the breakthrough."""
        if self.at is None or not self.fell:
            return False
        return abs(self.fell[0] - self.at) <= _WITHIN * self.every

    def looks(self, events: Sequence[int]) -> str:
        """The step of the first event, and how many snapshots after the label it comes."""
        if not events:
            return "-"
        if self.at is None:
            return str(events[0])
        return f"{events[0]} ({(events[0] - self.at) / self.every:+g})"


def breakthroughs(runs: Mapping[str, Mapping[str, Any]] | None = None) -> Iterator[Left]:
    """Every run at every cadence."""
    for name, run in (load(PROXY_FOLDER) if runs is None else runs).items():
        for every in EVERY:
            sparsity, reliance = (_events(run, series, every) for series in MEASURED)
            fell = tuple(e.detected_step for e in sparsity if e.direction == "down")
            rose = tuple(e.detected_step for e in reliance if e.direction == "up")
            others = len(sparsity) - len(fell)
            yield Left(name, run["split"], every, run["label"]["breakthrough"], fell, rose, others)


def _events(run: Mapping[str, Any], name: str, every: int) -> list[Event]:
    """What the detector of one number says, told what a watch would tell it."""
    apart, series = every // run["every"], run["series"]
    events: list[Event] = []
    detector, gap = default_detectors(Settings())[name], 0
    told = {"low": f"{name}/low", "high": f"{name}/high", "reliance": "value/reliance"}
    for i in range(apart - 1, len(run["steps"]), apart):
        if series[name][i] is None:
            gap += 1
            continue
        if gap >= LONGEST_GAP:
            detector = default_detectors(Settings())[name]
        gap = 0
        context = {key: series[of][i] for key, of in told.items() if series[of][i] is not None}
        event = detector.update(run["steps"][i], series[name][i], context)
        events += [] if event is None else [event]
    return events


def left() -> list[Left]:
    """Those of the recorded runs."""
    return list(breakthroughs())


def jobs(_: Plan) -> list[Job]:
    """One."""
    return [Job(left)]


def lines(results: Results) -> list[str]:
    """A row for each run: the first fall and rise at each cadence, in snapshots from the label."""
    found = results.flat(left)
    rows = []
    for name in dict.fromkeys(one.name for one in found):
        of = [one for one in found if one.name == name]
        at = "-" if of[0].at is None else str(of[0].at)
        cells = [one.looks(one.fell) for one in of] + [one.looks(one.rose) for one in of]
        rows.append([name, of[0].split, at, *cells])
    head = [f"{what} every {every}" for what in ("falls,", "reliance rises,") for every in EVERY]
    return table(["run", "split", "leaves its plateau", *head], rows, left=2)


def goals(results: Results) -> list[Goal]:
    """At the finest cadence."""
    found = [one for one in results.flat(left) if one.every == min(EVERY)]
    breaks = [one for one in found if one.at is not None]
    controls = [one for one in found if one.at is None]
    reach = math.ceil(len(breaks) * _FALLS / _OF_BREAKTHROUGHS)
    fell = sum(one.is_seen for one in breaks)
    false = sum(len(one.fell) + one.num_others for one in controls)
    what = f"essential sparsity's fall seen in time at {len(breaks)} breakthroughs"
    return [
        Goal(what, reach, fell, False, ""),
        Goal(f"events of essential sparsity on {len(controls)} controls", 0.0, false, unit=""),
    ]
